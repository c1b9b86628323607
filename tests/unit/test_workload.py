"""What each vCPU gets to do: recorded streams dealt out, synthetic accesses shared out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import HUGE, anonymous, huge, shared, shares_of, workload_of

from vmemu.ramblock import RAMBlock
from vmemu.synthetic import identity_map
from vmemu.walks import GUEST_PAGE, host_pages
from vmemu.workload import (
    SIZES,
    Lane,
    Pace,
    StreamSlice,
    Workload,
    deal_by_id,
    deal_streams,
    side_by_side,
    size_table,
    together,
)

KINDS = pytest.mark.parametrize("kind", ["sequential", "uniform", "permutation"])


def stream(number: int, length: int) -> StreamSlice:
    """Accesses that say which stream they are of, and which in it."""
    where = np.arange(length, dtype=np.uint32) + np.uint32(number * 1000)
    return StreamSlice(where, np.full(length, number, np.uint8))


def made_of(blocks: list[RAMBlock], vcpus: int, kind: str, accesses: int | None) -> Workload:
    return workload_of(blocks, vcpus, 9, kind=kind, accesses=accesses, write_share=0.5)


lengths = st.lists(st.integers(0, 20), max_size=9)


@given(lengths, st.integers(1, 9))
def test_every_access_is_dealt_once_and_in_order(lengths, vcpus):
    streams = [stream(i, length) for i, length in enumerate(lengths)]
    dealt = deal_streams(streams, vcpus)
    assert len(dealt) == vcpus
    parts = [part for vcpu in dealt for part in vcpu]
    for part in parts:
        assert len(part.where) == len(part.what)
        assert (np.diff(part.where.astype(int)) == 1).all()
    accesses = sorted(int(at) for part in parts for at in part.where)
    assert accesses == sorted(int(at) for one in streams for at in one.where)


@given(lengths, st.integers(1, 9))
def test_a_stream_keeps_its_order_on_each_vcpu_and_from_one_to_the_next(lengths, vcpus):
    streams = [stream(i, length) for i, length in enumerate(lengths)]
    dealt = deal_streams(streams, vcpus)
    for number, one in enumerate(streams):
        parts = [p.where for v in dealt for p in v if len(p.what) and p.what[0] == number]
        joined = np.concatenate(parts) if parts else np.empty(0, np.uint32)
        assert joined.tolist() == one.where.tolist()


@given(st.integers(1, 9), st.integers(1, 9))
def test_no_vcpu_is_idle_while_streams_are_long_enough(streams, vcpus):
    dealt = deal_streams([stream(i, 100) for i in range(streams)], vcpus)
    assert all(sum(len(part.what) for part in vcpu) > 0 for vcpu in dealt)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_a_window_has_as_many_accesses_as_it_says_of_streams_side_by_side(lengths):
    total = sum(lengths)
    bounds = [side_by_side(lengths, bound) for bound in range(total + 1)]
    assert [sum(counts) for counts in bounds] == list(range(total + 1))
    for before, after in itertools.pairwise(bounds):
        assert all(low <= high for low, high in zip(before, after, strict=True))
    for bound, counts in enumerate(bounds):
        for length, count in zip(lengths, counts, strict=True):
            assert count >= length * bound // max(total, 1)
    assert bounds[-1] == lengths


def test_equal_streams_are_cut_alike():
    assert side_by_side([1000, 1000, 1000], 300) == [100, 100, 100]
    assert side_by_side([1000, 1000, 1000], 1) == [1, 0, 0]


def test_no_stream_at_all_leaves_every_vcpu_idle():
    assert deal_streams([], 3) == [[], [], []]


ids = st.lists(st.integers(0, 40), unique=True, max_size=9).map(sorted)


@given(ids, st.integers(1, 9))
def test_by_id_each_stream_is_on_the_vcpu_of_its_id_as_a_whole(ids, vcpus):
    streams = [stream(number, 1 + number) for number in ids]
    dealt = deal_by_id(streams, ids, vcpus)
    assert len(dealt) == vcpus
    for vcpu, parts in enumerate(dealt):
        on_it = [number for number in ids if number % vcpus == vcpu]
        assert [int(part.what[0]) for part in parts] == on_it
        assert [len(part.what) for part in parts] == [1 + number for number in on_it]


@given(lengths, st.integers(1, 9))
def test_times_stay_with_their_accesses(lengths, vcpus):
    plain = [stream(i, length) for i, length in enumerate(lengths)]
    timed = [replace(one, times=one.where.astype(np.uint64) * np.uint64(7)) for one in plain]
    for part in itertools.chain(*deal_streams(timed, vcpus)):
        assert (part.times == part.where.astype(np.uint64) * np.uint64(7)).all()


def test_several_traces_share_the_pages_that_they_have_in_the_same_places():
    one = made_of([anonymous(pages=5)], 2, "uniform", 10)
    other = made_of([anonymous(pages=5)], 2, "permutation", 7)
    where, what = np.zeros(3, np.uint32), np.zeros(3, np.uint8)
    lane = Lane(StreamSlice(where, what), size_table([4]), loops=2)
    recorded = Workload(np.full(2, -1, np.int32), np.zeros(2, np.uint64), [[lane], []])
    work = together([one, recorded, other], Pace("rate", accesses_per_second=3))
    assert work.block.tolist() == [0] * 5 + [-1, -1]
    assert work.offset.tolist() == [*range(0, 5 * 4096, 4096), 0, 0]
    assert [[lane.first_page for lane in lanes] for lanes in work.vcpus] == [[0, 5, 0], [0, 0]]
    assert [lane.sizes[0] for lane in work.vcpus[0]] == [8, 4, 8]
    assert work.accesses == 10 + 7 + 6
    assert work.pace.accesses_per_second == 3


@KINDS
@given(st.integers(1, 1000), st.integers(1, 7))
def test_synthetic_shares_add_up_and_are_even(kind, accesses, vcpus):
    work = made_of([anonymous(pages=5)], vcpus, kind, accesses)
    assert work.accesses == accesses
    shares = work.accesses_by_vcpu()
    assert max(shares) - min(shares) <= 1


def test_without_a_number_there_are_as_many_accesses_as_host_pages():
    blocks = [anonymous(pages=5), huge(pages=3), shared(pages=2)]
    assert made_of(blocks, 3, "permutation", None).accesses == 10


@given(st.integers(1, 9), st.integers(1, 9))
def test_sequential_vcpus_walk_parts_that_cover_all_of_ram(pages, vcpus):
    block = anonymous(pages=pages)
    shares = shares_of(made_of([block], vcpus, "sequential", 100))
    covered = 0
    for share in shares:
        walk = share.phases[0][1][0].numbers
        assert 0 <= walk["begin"] < walk["end"] <= block.size
        assert walk["begin"] % GUEST_PAGE == 0
        assert walk["end"] - walk["begin"] >= 8
        assert walk["begin"] <= covered
        covered = max(covered, walk["end"])
    assert covered == block.size


def test_each_vcpu_has_randomness_of_its_own_and_the_order_in_common():
    shares = shares_of(made_of([anonymous()], 4, "permutation", 64))
    assert len({share.seed for share in shares}) == 4
    assert len({share.phases[0][1][0].numbers["order_seed"] for share in shares}) == 1


def test_host_pages_of_any_size_lie_one_behind_the_other():
    blocks = [anonymous(pages=2), huge(pages=2), shared(pages=1)]
    ends = [0, 4096, 8192, 8192 + HUGE, 8192 + 2 * HUGE, 12288 + 2 * HUGE]
    assert host_pages(blocks, 0, ends[-1]).tolist() == ends
    assert host_pages(blocks, 4096, 8192).tolist() == [4096, 8192]
    begin = 8192 + 4096
    assert host_pages(blocks, begin, ends[-1]).tolist() == [begin, *ends[3:]]


def test_the_identity_map_has_each_guest_page_once():
    block, offset = identity_map([anonymous(pages=2), huge(pages=1)])
    assert block.tolist() == [0, 0] + [1] * 512
    assert offset.tolist() == [0, 4096, *range(0, HUGE, 4096)]


def test_the_table_of_sizes_is_padded():
    assert size_table([1, 8, 4096]).tolist() == [1, 8, 4096] + [0] * (SIZES - 3)


def test_recorded_accesses_are_counted():
    dealt = deal_streams([stream(0, 5), stream(1, 7)], 3)
    vcpus = [[Lane(part, size_table([8]), loops=3) for part in parts] for parts in dealt]
    assert Workload(np.zeros(1, np.int32), np.zeros(1, np.uint64), vcpus).accesses == 36
