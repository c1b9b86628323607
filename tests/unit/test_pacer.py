"""When a vCPU makes its accesses, at the ends of what a pace can be; how late it says it was."""

from __future__ import annotations

import time

import numpy as np
import pytest
from support import shares_of, workload_of
from test_order import BLOCK, TABLES, Rig

from vmemu.guest_worker import NO_END, GuestWorker
from vmemu.workload import Lane, Pace, StreamSlice

LONGEST_NS = (1 << 62) - 1
FASTEST, SLOWEST = 1.7e308, 5e-324


def lane(times: list[int], loops: int = 1) -> Lane:
    """Loads at these times, of a trace that begins at 0 and ends with the last."""
    count = len(times)
    where = np.arange(count, dtype=np.uint32) % np.uint32(BLOCK.size // 8) * np.uint32(8)
    stream = StreamSlice(where, np.zeros(count, np.uint8), np.array(times, np.uint64))
    return Lane(stream, TABLES[0], loops=loops, duration_ns=times[-1])


def made(accesses: int) -> Lane:
    return Lane(
        shares_of(workload_of([BLOCK], 1, 3, kind="uniform", accesses=accesses))[0], TABLES[0]
    )


def run(rig: Rig, begin: int = 0, end: int = NO_END) -> GuestWorker:
    """A vCPU that has come to its end, and was late by no more than has passed."""
    worker = rig.worker(rig.guest(), begin, end)
    before = time.monotonic_ns()
    worker.start()
    assert worker.join(60)
    passed = time.monotonic_ns() - before
    assert worker.error is None
    figures = worker.figures
    assert figures.paced == figures.accesses
    assert figures.lag_mean_ns <= figures.lag_max_ns <= passed
    assert figures.lag_end_ns <= passed
    rig.close()
    return worker


@pytest.mark.parametrize("factor", [1e3, 1e12, 1e300, FASTEST])
def test_a_recording_that_can_not_be_as_fast_as_wanted(factor: float) -> None:
    times = np.linspace(0, 1e3 * factor if factor < 1e12 else LONGEST_NS // 2, 5000)
    worker = run(Rig([lane(times.astype(np.uint64).tolist(), loops=2)], Pace("recorded", factor)))
    assert worker.figures.accesses == 10_000


@pytest.mark.parametrize("factor", [SLOWEST, 1e-300, 1.0, FASTEST])
def test_accesses_that_are_due_at_once(factor: float) -> None:
    same = Lane(lane([7] * 5000).work, TABLES[0], loops=3, origin_ns=7)
    assert run(Rig([same, same], Pace("recorded", factor))).figures.accesses == 30_000


@pytest.mark.parametrize("factor", [SLOWEST, 1e-300, 1e-9])
@pytest.mark.parametrize("begin", [0, 2])
def test_a_recording_that_would_take_for_ever_is_stopped(factor: float, begin: int) -> None:
    rig = Rig([lane([0, 0, 1 << 61, LONGEST_NS])], Pace("recorded", factor))
    worker = rig.worker(rig.guest(), begin)
    worker.start()
    while worker.figures.accesses < (1 if begin else 2):
        assert not worker.join(0)
    worker.stop()
    assert worker.join(60)
    assert worker.figures.position == max(begin + 1, 2)
    assert worker.figures.lag_max_ns < 1 << 62
    rig.close()


@pytest.mark.parametrize("rate", [1, 1_000_000_000])
def test_the_first_access_of_a_rate_is_due_at_once_wherever_it_begins(rate: int) -> None:
    rig = Rig([made(10_000)], Pace("rate", accesses_per_second=rate))
    end = NO_END if rate > 1 else 5001
    assert run(rig, 5000, end).figures.accesses == (5000 if rate > 1 else 1)


@pytest.mark.parametrize("stopped", [True, False])
def test_a_vcpu_that_does_nothing_starts_no_clock(stopped: bool) -> None:
    """The others' accesses would be late before any of them could be made."""
    rig = Rig([lane([0, 10, 20])], Pace("recorded", 1.0))
    guest = rig.guest()
    worker = rig.worker(guest, 0 if stopped else 3)
    if stopped:
        worker.stop()
    worker.start()
    assert worker.join(60)
    assert guest.shared.pace.start_ns == 0
    rig.close()


def test_a_million_loops_are_entered_anywhere() -> None:
    """The first lane has two accesses at each moment but the first and the last, the other one."""
    rig = Rig([lane([0, 5], loops=1_000_000), lane([5], loops=1_000_000)], Pace("recorded", 1e12))
    assert rig.workload.accesses == 3_000_000
    for begin in (1, 1_500_000, 2_999_990):
        listed = rig.listed(begin, 7)
        number = np.arange(begin, begin + 7) - 1
        assert (listed[:, 2] == (number // 3 + 1) * 5).all()
        assert (listed[:, 0] // BLOCK.size == number % 3 // 2).all()
    rig.close()
