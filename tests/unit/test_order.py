"""In which order a vCPU goes through its lanes, and what it leaves of them, wherever it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guest_rig import BLOCK, PAGE, PAGES, SEED, Rig
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shares_of, sizes_of, workload_of

from vmemu import core
from vmemu.guest_worker import Guest
from vmemu.traces.native import npy
from vmemu.workload import ASAP, Lane, Pace, StreamSlice, Workload, size_table

TABLES = [size_table([8, 1, 2, 4]), size_table([8, 5, 3, 16])]
AT_ONCE = Pace("recorded", factor=1e12)

slow = settings(max_examples=60)


def rows_of(lane: Lane, first_page: int) -> np.ndarray[Any, Any]:
    """A lane's accesses as they must be listed, made without the core's order."""
    if isinstance(lane.work, StreamSlice):
        where, what, times = lane.work.where, lane.work.what, lane.work.times
        loops = np.repeat(np.arange(lane.loops, dtype=np.uint64), len(what))
        where, what = np.tile(where, lane.loops), np.tile(what, lane.loops)
        due = loops * np.uint64(lane.duration_ns)
        if times is not None:
            due = np.tile(times, lane.loops) - np.uint64(lane.origin_ns) + due
    else:
        count = lane.accesses
        where, what = np.zeros(count, np.uint64), np.zeros(count, np.uint8)
        due = np.zeros(count, np.uint64)
        made, _keep = lane.work.to_c()
        pointers = (
            core.ffi.from_buffer("uint64_t[]", where),
            core.ffi.from_buffer("uint8_t[]", what),
        )
        core.lib.vm_synthetic_fill(made, *pointers, count)
    columns = [where.astype(np.uint64) + np.uint64(first_page * PAGE), what.astype(np.uint64), due]
    return np.stack(columns, axis=1).reshape(-1, 3)


@st.composite
def columns(draw: st.DrawFn, *, timed: bool) -> Lane:
    """A recorded lane; some have more accesses than are taken in one turn."""
    count = draw(st.one_of(st.integers(0, 40), st.sampled_from([4095, 4096, 4097, 9000])))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    dtype = np.uint64 if draw(st.booleans()) else np.uint32
    where = random.integers(0, PAGES * PAGE - 16, count).astype(dtype)
    what = random.integers(0, 16, count).astype(np.uint8)
    loops, sizes = draw(st.integers(1, 3)), draw(st.sampled_from(TABLES))
    if not timed:
        return Lane(StreamSlice(where, what), sizes, loops=loops)
    span = draw(st.sampled_from([0, 1, 50, 100_000]))
    origin = draw(st.sampled_from([0, 1 << 50]))
    times = np.sort(random.integers(0, span + 1, count)).astype(np.uint64) + np.uint64(origin)
    stream = StreamSlice(where, what, times)
    return Lane(stream, sizes, loops=loops, origin_ns=origin, duration_ns=span)


@st.composite
def generators(draw: st.DrawFn) -> Lane:
    kind = draw(st.sampled_from(["uniform", "sequential", "permutation", "pointer_chase"]))
    accesses = draw(st.sampled_from([1, 30, 4096, 5000]))
    vcpus, seed = draw(st.integers(1, 2)), draw(st.integers(0, 99))
    share = shares_of(workload_of([BLOCK], vcpus, seed, kind=kind, accesses=accesses))[0]
    return Lane(share, TABLES[0])


mixes = st.lists(st.one_of(columns(timed=False), columns(timed=True), generators()), max_size=5)
timed_mixes = st.lists(columns(timed=True), max_size=5)
cuts = st.tuples(st.floats(0, 1), st.floats(0, 1))


def test_without_lanes_there_is_nothing() -> None:
    rig = Rig([])
    assert len(rig.listed()) == 0
    rig.close()


@slow
@given(mixes, st.sampled_from([ASAP, Pace("rate", accesses_per_second=5)]))
def test_each_lane_is_gone_through_once_and_in_its_order(lanes, pace):
    rig = Rig(lanes, pace)
    listed = rig.listed()
    assert len(listed) == rig.workload.accesses
    for number, lane in enumerate(lanes):
        mine = listed[listed[:, 0] // (PAGES * PAGE) == number]
        assert np.array_equal(mine, rows_of(lane, number * PAGES))
    rig.close()


def test_lanes_are_taken_in_turn():
    streams = [StreamSlice(np.zeros(n, np.uint32), np.zeros(n, np.uint8)) for n in (10_000, 5000)]
    rig = Rig([Lane(stream, TABLES[0], loops=n + 1) for n, stream in enumerate(streams)])
    number = rig.listed()[:, 0] // (PAGES * PAGE)
    turns = np.flatnonzero(np.diff(number)) + 1
    # A turn ends with a loop; the second lane is gone through twice.
    assert np.diff([0, *turns, 20_000]).tolist() == [4096, 4096, 4096, 904, 1808, 5000]
    assert number[0] == 0
    rig.close()


@slow
@given(timed_mixes)
def test_the_order_of_a_recording_is_that_of_its_times(lanes):
    """And of the lanes, where two accesses are due at once."""
    rig = Rig(lanes, AT_ONCE)
    rows = [rows_of(lane, number * PAGES) for number, lane in enumerate(lanes)]
    everything = np.concatenate([np.empty((0, 3), np.uint64), *rows])
    order = np.argsort(everything[:, 2], kind="stable")
    assert np.array_equal(rig.listed(), everything[order])
    rig.close()


@slow
@given(st.one_of(mixes.map(lambda m: (m, ASAP)), timed_mixes.map(lambda m: (m, AT_ONCE))), cuts)
def test_who_begins_anywhere_goes_on_as_if_from_the_start(case, cut):
    rig = Rig(*case)
    total = rig.workload.accesses
    begin, end = sorted(int(share * total) for share in cut)
    assert np.array_equal(rig.listed(begin, end - begin), rig.listed()[begin:end])
    assert len(rig.listed(total)) == len(rig.listed(total + 7)) == 0
    rig.close()


@pytest.mark.parametrize("image", [True, False])
@slow
@given(
    case=st.one_of(mixes.map(lambda m: (m, ASAP)), timed_mixes.map(lambda m: (m, AT_ONCE))),
    cut=cuts,
)
def test_two_parts_leave_what_the_whole_does(image, case, cut):
    """One runs the first part, another marks it and runs the rest; memory and marks are as if one
    had done all, and as the accesses say."""
    rig = Rig(*case)
    listed = rig.listed()
    middle = int(cut[0] * len(listed))
    first, second = rig.guest(image=image), rig.guest(image=image)
    workers = [rig.worker(first, 0, middle), rig.worker(second, middle)]
    for worker in workers:
        worker.start()
        assert worker.join()
        assert worker.error is None
        assert (worker.figures.reads_wrong, worker.mismatches()) == (0, [])
    done = [int(worker.figures.accesses) for worker in workers]
    assert done == [middle, len(listed) - middle]
    assert int(workers[1].figures.position) == len(listed)
    assert np.array_equal(marks_of(second), written_by(rig.lanes, listed))
    check_memory(rig, second)
    rig.close()


@slow
@given(
    stride=st.sampled_from([1, 8, 12, 64, 200, 4096, 5000]),
    size=st.sampled_from([1, 2, 4, 8, 16]),
    share=st.sampled_from([0, 0.5, 1]),
    accesses=st.sampled_from([1, 63, 4096, 9000]),
    checked=st.booleans(),
    cut=st.one_of(st.just(0.0), st.floats(0, 1)),
)
def test_a_walk_makes_the_accesses_that_are_listed(*, stride, size, share, accesses, checked, cut):
    """What lies evenly apart is made without a list; memory and marks are as one says."""
    walk = {"kind": "sequential", "stride": stride, "access_size": size, "write_share": share}
    work = workload_of([BLOCK], 1, SEED, accesses=accesses, **walk)
    rig = Rig([Lane(shares_of(work)[0], sizes_of(work))])
    listed = rig.listed()
    guest = rig.guest(check_reads=checked)
    worker = rig.worker(guest, int(cut * accesses))
    worker.start()
    assert worker.join()
    assert worker.error is None
    figures, kinds = worker.figures, listed[int(cut * accesses) :, 1] & 3
    assert figures.accesses == len(kinds)
    assert figures.writes == int(np.count_nonzero(kinds == 1))
    assert (figures.reads_wrong, figures.position) == (0, accesses)
    assert np.array_equal(marks_of(guest), written_by(rig.lanes, listed))
    if cut == 0:  # else what is marked beside was written elsewhere
        check_memory(rig, guest)
    rig.close()


def marks_of(guest: Guest) -> np.ndarray[Any, Any]:
    """A bit for each byte of the block that is marked as written."""
    return np.unpackbits(guest.block_marks(0), bitorder="little").astype(bool)


def written_by(lanes: list[Lane], listed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same, found without the core."""
    written = np.zeros(PAGES * PAGE, bool)
    kinds = listed[:, 1] & 3
    for where, what, _ in listed[(kinds == 1) | (kinds == 2)].tolist():
        lane, at = divmod(where, PAGES * PAGE)
        written[at : at + int(lanes[lane].sizes[what >> 2])] = True
    return written


def check_memory(rig: Rig, guest: Guest) -> None:
    """Every byte is the written one where it is marked, else the initial one."""
    verify = core.ffi.new("struct vm_verify *")
    marks = core.ffi.from_buffer("uint8_t[]", guest.block_marks(0))
    image = rig.source.image[0].data
    core.lib.vm_verify_block(verify, 0, image, BLOCK.size, rig.expected.table, marks, core.ffi.NULL)
    assert (verify.bytes_checked, verify.bytes_wrong) == (BLOCK.size, 0)


@slow
@given(st.lists(timed_mixes, min_size=1, max_size=3), st.floats(0, 1))
def test_at_recorded_times_all_vcpus_flip_at_one_moment(vcpus, share):
    """What is before the flip is due no later than what is behind it, whoever does it."""
    whole = Workload(np.zeros(PAGES, np.int32), np.zeros(PAGES, np.uint64), vcpus, AT_ONCE)
    asked = int(share * whole.accesses)
    positions = whole.positions_at(asked)
    assert sum(positions) == asked
    latest, earliest = 0, 1 << 63
    for lanes, position in zip(vcpus, positions, strict=True):
        rig = Rig(lanes, AT_ONCE)
        times = rig.listed()[:, 2]
        assert position <= len(times)
        latest = max([latest, *times[:position].tolist()])
        earliest = min([earliest, *times[position:].tolist()])
        rig.close()
    assert latest <= earliest


# ---- long columns ----

LONG = 3 * (1 << 20) + 17
"""More than is let go of at a time, several times."""


def long_columns() -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(3)
    return {
        "where": numbers.integers(0, PAGES * PAGE - 8, LONG, np.uint32),
        "what": numbers.integers(0, 4, LONG, np.uint8),
        "times": np.arange(LONG, dtype=np.uint64) * np.uint64(7),
    }


def in_files(columns: dict[str, np.ndarray[Any, Any]], directory: Path) -> list[Any]:
    """The same, each mapped from a file of its own."""
    mapped = []
    for name, column in columns.items():
        path = directory / f"{name}.npy"
        with path.open("wb") as file:
            file.write(npy.header(column.dtype, len(column)))
            npy.write_values(file, column)
        mapped.append(npy.map_column(path, (column.dtype.str,)))
    return mapped


def resident(directory: Path) -> int:
    """Bytes of the files in a directory that count as memory of this process."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Rss:") and here:
            found += int(line.split()[1]) << 10
        elif not line.split()[0].endswith(":"):
            here = str(directory) in line
    return found


def long_lane(columns: list[Any]) -> Lane:
    stream = StreamSlice(*columns)
    return Lane(stream, TABLES[0], loops=2, duration_ns=7 * LONG)


@pytest.mark.parametrize("pace", [ASAP, AT_ONCE], ids=["asap", "recorded"])
def test_of_mapped_columns_what_was_used_is_let_go_of(pace: Pace, tmp_path: Path) -> None:
    columns = long_columns()
    lane = long_lane(in_files(columns, tmp_path))
    for column in (lane.work.where, lane.work.what, lane.work.times):
        column.sum()
    size = sum(column.nbytes for column in columns.values())
    assert resident(tmp_path) >= size
    rig = Rig([lane], pace)
    listed = rig.listed()
    assert resident(tmp_path) < size / 2
    np.testing.assert_array_equal(listed, rows_of(lane, 0))
    rig.close()


def test_columns_in_memory_are_gone_through_again(tmp_path: Path) -> None:
    """As a packed trace has them, and copies of what does not lie in one piece."""
    columns = long_columns()
    doubled = {name: np.repeat(column, 2) for name, column in columns.items()}
    every_other = [column[::2] for column in in_files(doubled, tmp_path)]
    for given_columns in (list(columns.values()), every_other):
        lane = long_lane(given_columns)
        rig = Rig([lane])
        np.testing.assert_array_equal(rig.listed(), rows_of(long_lane(list(columns.values())), 0))
        rig.close()
