"""What it costs to wake a thread that sleeps: most of a fault, where its parts run on two CPUs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vmemu import core
from vmemu.errors import CoreError

_CPUS = Path("/sys/devices/system/cpu")
_ROUNDS = 15
_PAUSE_NS = 100_000  # for the sleeper to sleep, and its CPU to come to rest


@dataclass(frozen=True)
class Wakeup:
    """Medians in nanoseconds of waking a thread on the same CPU and on another one, which is idle
    unless somebody else uses it; None where it could not be measured, and ``why``."""

    same_ns: int | None
    other_ns: int | None
    why: str = ""


def measure(here: int | None = None, rounds: int = _ROUNDS) -> Wakeup:
    """Wake a thread ``rounds`` times on each of two CPUs that this process may use, one of them
    ``here``, the first by default; takes a few ms."""
    allowed = sorted(os.sched_getaffinity(0))
    first = allowed[0] if here is None else here
    others = [cpu for cpu in allowed if cpu != first]
    same: int | None = None
    try:
        same = _median_ns(first, first, rounds)
        if not others:
            return Wakeup(same, None, f"this process may use no other CPU than {first}")
        return Wakeup(same, _median_ns(first, _of_another_core(first, others), rounds))
    except CoreError as error:
        return Wakeup(same, None, str(error))


def _of_another_core(cpu: int, others: list[int]) -> int:
    """The nearest that is no hardware thread of the same core: such a one is never at rest while
    ``cpu`` is not."""
    return next((other for other in others if _core(other) != _core(cpu)), others[0])


def _core(cpu: int) -> str:
    """The CPUs of its core, as the kernel lists them."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _median_ns(waker: int, sleeper: int, rounds: int) -> int:
    took = core.ffi.new("uint64_t[]", rounds)
    core.call(core.lib.vm_wakeup, waker, sleeper, rounds, _PAUSE_NS, took)
    return int(sorted(took)[rounds // 2])
