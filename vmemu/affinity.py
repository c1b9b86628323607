"""On which CPUs threads run: each places itself when it starts, and gets its CPUs back later.

Nothing is ever done to the thread that starts a migration, which is its caller's.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import cycle

from vmemu.cpulist import format_cpus
from vmemu.errors import HostError

CpuSet = frozenset[int]


@dataclass(frozen=True)
class Places:
    """The CPUs of each role of threads. A role has one set or several, which its threads are dealt
    in turn; the threads of a role that is not there run wherever their process may."""

    by_role: Mapping[str, tuple[CpuSet, ...]] = field(default_factory=dict)

    def of(self, role: str, number: int = 0) -> CpuSet | None:
        """The CPUs of a role's thread ``number``; None: wherever its process may run."""
        sets = self.by_role.get(role)
        return sets[number % len(sets)] if sets else None

    def beginning_at(self, role: str, number: int) -> Places:
        """The same for a process that has the threads of a role from ``number`` on, and counts
        them from 0."""
        sets = self.by_role.get(role)
        if not sets:
            return self
        first = number % len(sets)
        return Places({**self.by_role, role: sets[first:] + sets[:first]})


def allowed() -> CpuSet:
    """The CPUs that this thread may use: what cgroups, ``taskset`` and containers leave of the
    machine's."""
    return frozenset(os.sched_getaffinity(0))


def current() -> int:
    """The CPU on which this thread runs at this moment."""
    with open("/proc/thread-self/stat") as file:
        # The name of the thread, in parentheses, may hold spaces; field 39 counts from before it.
        return int(file.read().rpartition(")")[2].split()[36])


def settle(cpus: CpuSet | None) -> None:
    """Move this thread to ``cpus``; None leaves it where it is. Raises HostError."""
    if cpus is None:
        return
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:  # what the process may use can be cut down at any moment
        raise HostError(
            f"thread {threading.current_thread().name} can't be moved to CPU {format_cpus(cpus)}:"
            f" {error.strerror}; this process may use {format_cpus(allowed())} by now",
        ) from None


def free(pids: Iterable[int], threads: Iterable[int], cpus: CpuSet) -> None:
    """Let all threads of those processes, and those threads of this one, run on ``cpus``, each of
    the latter from another of these on: of several that compute on one CPU the kernel moves one
    only when it finds another CPU with less to do. Those that have ended are passed over."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in map(int, os.listdir(f"/proc/{pid}/task")):
                _move(thread, cpus)
    for thread, cpu in zip(threads, cycle(sorted(cpus)), strict=False):
        _move(thread, frozenset({cpu}), cpus)


def _move(thread: int, *stations: CpuSet) -> None:
    with contextlib.suppress(OSError):
        for cpus in stations:
            os.sched_setaffinity(thread, cpus)
