"""What threads of the core ask of the scheduler, and what they leave alone."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable

import pytest

from vmemu import core

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
SLICE_NS = 100_000
needs_slices = pytest.mark.skipif(
    tuple(int(part) for part in platform.release().split(".")[:2]) < (6, 12)
    or platform.machine() not in SCHED_GETATTR,
    reason="the kernel, or this test, knows no slices of a thread",
)


def in_a_thread(function: Callable[[], object]) -> object:
    """What it returns: each thread has a policy of its own, and begins with an ordinary one."""
    results: list[object] = []

    def ordinary() -> None:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        results.append(function())

    thread = threading.Thread(target=ordinary)
    thread.start()
    thread.join()
    return results[0]


def slice_ns() -> int:
    """The slice that the calling thread has asked for."""
    attributes = (ctypes.c_uint64 * 7)()
    libc = ctypes.CDLL(None, use_errno=True)
    number = SCHED_GETATTR[platform.machine()]
    assert libc.syscall(number, 0, ctypes.byref(attributes), 56, 0) == 0
    return int(attributes[3])


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@needs_slices
def test_an_urgent_thread_asks_for_a_short_slice_and_nothing_else() -> None:
    def urgent() -> object:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        core.lib.vm_schedule_urgent()
        return slice_ns(), os.sched_getscheduler(0), niceness()

    before = slice_ns()
    assert in_a_thread(urgent) == (SLICE_NS, os.SCHED_OTHER, 3)
    assert slice_ns() == before


def test_a_thread_that_nobody_waits_for_interrupts_nobody() -> None:
    def bulk() -> object:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        core.lib.vm_schedule_bulk()
        return os.sched_getscheduler(0), niceness()

    before = os.sched_getscheduler(0)
    assert in_a_thread(bulk) == (os.SCHED_BATCH, 3)
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("ask", ["vm_schedule_urgent", "vm_schedule_bulk"])
def test_a_thread_that_was_given_another_policy_keeps_it(ask: str) -> None:
    def idle() -> object:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        getattr(core.lib, ask)()
        return os.sched_getscheduler(0)

    assert in_a_thread(idle) == os.SCHED_IDLE
