"""The loops for accesses that are alike, recorded ones and a walk's, on pages that were touched
before: what goes wrong there is found, what is written is noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from guest_rig import BLOCK, PAGE, PAGES, SEED, Rig
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import await_true, shares_of, sizes_of, workload_of

from vmemu.guest_worker import Guest, GuestWorker
from vmemu.workload import Lane, StreamSlice

STORE, MODIFY = 1, 2
PASSES = 3
ENDLESS = 1 << 40

passes = settings(deadline=None, max_examples=30)


def walk(size: int, step: int, *, accesses: int, write: bool) -> Lane:
    """Reads or writes over the block, again and again, of words ``step`` of them apart."""
    fields = {"stride": size * step, "access_size": size, "write_share": int(write)}
    work = workload_of([BLOCK], 1, SEED, kind="sequential", accesses=accesses, **fields)
    return Lane(shares_of(work)[0], sizes_of(work))


def recorded(lane: Lane, *, wide: bool) -> Lane:
    """The same accesses as columns of a recording."""
    listed = Rig([lane]).listed()
    where = listed[:, 0].astype(np.uint64 if wide else np.uint32)
    return replace(lane, work=StreamSlice(where, listed[:, 1].astype(np.uint8)))


def one_pass(size: int, step: int) -> int:
    return PAGES * PAGE // (size * step)


def replayed(rig: Rig, guest: Guest, vcpu: int) -> GuestWorker:
    worker = rig.worker(guest, vcpu=vcpu)
    worker.start()
    assert worker.join()
    assert worker.error is None
    return worker


def reads_of(lane: Lane, size: int, wrong: NDArray[np.bool_]) -> int:
    """How many accesses of a lane touch a byte that is wrong."""
    where = Rig([lane]).listed()[:, 0].astype(np.int64)
    return int(wrong[where[:, None] + np.arange(size)].any(axis=1).sum())


loops = given(
    size=st.sampled_from([1, 2, 4, 8]),
    step=st.sampled_from([1, 2, 3, 64]),
    columns=st.sampled_from([None, "narrow", "wide"]),
    flips=st.lists(st.integers(0, BLOCK.size - 1), min_size=1, max_size=20),
)


def reading(size: int, step: int, columns: str | None) -> Lane:
    lane = walk(size, step, accesses=PASSES * one_pass(size, step), write=False)
    return lane if columns is None else recorded(lane, wide=columns == "wide")


@passes
@loops
def test_each_read_of_what_is_not_as_written_is_counted(
    *, size: int, step: int, columns: str | None, flips: list[int]
) -> None:
    """Once all writes are lost, once some bytes are flipped."""
    read = reading(size, step, columns)
    rig = Rig([walk(size, step, accesses=one_pass(size, step), write=True)], beside=[read])
    initial = rig.memory().copy()
    guest = rig.guest()
    assert replayed(rig, guest, 0).figures.writes == one_pass(size, step)
    written = rig.memory().copy()
    assert replayed(rig, guest, 1).figures.reads_wrong == 0
    flipped = written.copy()
    flipped[flips] ^= 0xFF
    for found in (initial, flipped):
        rig.memory()[:] = found
        worker = replayed(rig, guest, 1)
        wrong = reads_of(read, size, found != written)
        assert worker.figures.reads_wrong == wrong
        assert len(worker.mismatches()) == min(wrong, 8)
    rig.close()


@passes
@loops
def test_each_read_of_what_nobody_has_written_is_counted(
    *, size: int, step: int, columns: str | None, flips: list[int]
) -> None:
    read = reading(size, step, columns)
    rig = Rig([walk(1, 1, accesses=BLOCK.size, write=True)], beside=[read])
    initial = rig.memory().copy()
    replayed(rig, rig.guest(), 0)
    written = rig.memory().copy()
    rig.memory()[:] = initial
    rig.memory()[flips] ^= 0xFF
    # One that became what the guest would write is as good as written.
    wrong = (rig.memory() != initial) & (rig.memory() != written)
    worker = replayed(rig, rig.guest(), 1)
    assert worker.figures.reads_wrong == reads_of(read, size, wrong)
    rig.close()


def endless(size: int, kind: str) -> Lane:
    """Writes to each word of the block, again and again."""
    if kind == "walk":
        return walk(size, 1, accesses=ENDLESS, write=True)
    lane = recorded(walk(size, 1, accesses=one_pass(size, 1), write=True), wide=size == 8)
    if kind == "modified":
        lane.work.what[:] = lane.work.what & ~np.uint8(3) | MODIFY
    return replace(lane, loops=ENDLESS)


@pytest.mark.parametrize("kind", ["walk", "recorded", "modified"])
@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize(
    "flags",
    [
        {"check_reads": False, "keep_marks": False},
        {"check_reads": False, "keep_marks": True},
        {"check_reads": True, "keep_marks": False},
        {"check_reads": True, "keep_marks": False, "image": False},
    ],
    ids=["bare", "marked", "checked", "checked-by-marks"],
)
def test_what_is_written_again_is_dirty_again(kind: str, size: int, flags: dict[str, Any]) -> None:
    """Harvested while the vCPU runs: its first touch of each page, which is noted by itself, is
    long over."""
    rig = Rig([endless(size, kind)])
    guest = rig.guest(track_writes=True, **flags)
    worker = rig.worker(guest)
    done, twice = worker.figures, 2 * one_pass(size, 1)
    worker.start()
    try:
        for _ in range(2):
            begin = int(done.position)
            await_true(lambda: done.position >= begin + twice)  # noqa: B023
            guest.written[:] = 0
            begin = int(done.position)
            await_true(lambda: done.position >= begin + twice)  # noqa: B023
            assert guest.written[0] == (1 << PAGES) - 1
    finally:
        worker.stop()
        assert worker.join()
    assert worker.error is None
    rig.close()
