"""The order of the push: what comes first, whatever it is each page once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_peer import SMALL, Source, messages, request
from support import anonymous, huge, shared, workload_of

from vmemu import core
from vmemu.errors import CoreError
from vmemu.guest_worker import NO_END, lanes_to_c, pace_to_c
from vmemu.plan import entries_of
from vmemu.protocol import Header, Message
from vmemu.ramblock import RAMBlock
from vmemu.recorded_order import recorded_order
from vmemu.workload import Lane, Pace, StreamSlice, Workload, size_table

NAMES = {"ram": (300 * SMALL, SMALL), "vram": (70 * SMALL, SMALL)}
ALL_PAGES = [
    (index, page) for index, (size, _) in enumerate(NAMES.values()) for page in range(size // SMALL)
]
PUSH = request(None, type=Message.PUSH)
COMPLETE = Header(Message.COMPLETE).pack()


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source(NAMES)
    yield source
    source.close()


def choose(source: Source, order: str, listed: Sequence[tuple[int, int]] = ()) -> None:
    shift = core.lib.VM_CURSOR_SHIFT
    array = core.ffi.new("uint64_t[]", [block << shift | page for block, page in listed])
    kind = getattr(core.lib, f"VM_PUSH_{order.upper()}")
    core.call(core.lib.vm_push_order_set, source.c, kind, array, len(listed))


def pushed(sent: bytes) -> list[tuple[int, int]]:
    """(block, page) of every page in a stream of messages that COMPLETE ends."""
    *headers, last = messages(sent)
    assert last.type == Message.COMPLETE
    return [
        (header.block, header.offset // SMALL + page)
        for header in headers
        for page in range(header.pages)
    ]


def push(source: Source) -> list[tuple[int, int]]:
    os.eventfd_write(source.c.push_fd, 1)
    return pushed(source.run("vm_source_push"))


# ---- in the source ----


def test_sequential_is_from_the_first_page_to_the_last(source):
    choose(source, "sequential")
    assert push(source) == ALL_PAGES


@pytest.mark.parametrize("order", ["sequential", "recorded"])
def test_only_around_faults_follows_what_is_asked_for(source, order):
    choose(source, order)
    source._close("urgent", "urgent_fd")
    asked = request(b"vram", 30 * SMALL)
    pages = pushed(source.run("vm_source_both", asked + PUSH, until=COMPLETE))
    assert pages == [(1, 30), *(place for place in ALL_PAGES if place != (1, 30))]


def test_recorded_is_the_list_and_then_the_rest_in_sequence(source):
    listed = [(1, 5), (1, 6), (0, 200), (0, 7), (1, 0)]
    choose(source, "recorded", listed)
    assert push(source) == listed + [place for place in ALL_PAGES if place not in listed]


def test_a_long_walk_stays_in_its_order(source):
    """Longer than what is looked at for one run."""
    listed = [(1, page) for page in range(10, 70)] + [(0, page) for page in range(1, 300)]
    choose(source, "recorded", listed)
    assert push(source) == listed + [place for place in ALL_PAGES if place not in listed]


def test_a_list_that_names_pages_that_were_asked_for_passes_over_them(source):
    listed = [(1, 5), (1, 6), (1, 7), (0, 200)]
    choose(source, "recorded", listed)
    source._close("urgent", "urgent_fd")
    asked = request(b"vram", 6 * SMALL)
    pages = pushed(source.run("vm_source_both", asked + PUSH, until=COMPLETE))
    assert pages[:4] == [(1, 6), (1, 5), (1, 7), (0, 200)]
    assert sorted(pages) == ALL_PAGES


@pytest.mark.parametrize("place", [(2, 0), (0, 300), (1, 70), ((1 << 24) - 1, 0)])
def test_a_place_that_no_block_has_is_refused(source, place):
    with pytest.raises(CoreError, match="no block has"):
        choose(source, "recorded", [(0, 0), place])


@given(
    order=st.sampled_from(["sequential", "around_faults", "recorded"]),
    listed=st.lists(st.sampled_from(ALL_PAGES), unique=True, max_size=60),
    sent=st.sets(st.sampled_from(ALL_PAGES)),
    filled=st.sets(st.sampled_from(ALL_PAGES)),
)
@settings(max_examples=60, deadline=None)
def test_each_page_goes_once_in_any_order(order, listed, sent, filled):
    source = Source(NAMES)
    try:
        choose(source, order, listed if order == "recorded" else [])
        for block, page in filled:
            source.c.image[block].data[page * SMALL] = 1
        for block, page in sent:
            source.c.image[block].sent[page // 64] |= 1 << page % 64
        pages = push(source)
    finally:
        source.close()
    assert sorted(pages) == [place for place in ALL_PAGES if place not in sent]
    if order == "recorded":
        first = [place for place in listed if place not in sent]
        assert pages[: len(first)] == first


# ---- what is recorded ----


def accesses(workload: Workload, vcpu: int, begin: int) -> list[tuple[int, int]]:
    """(page of the dictionary, time) of each access of a vCPU, one by one."""
    guest = core.ffi.new("struct vm_guest *")
    guest.pages, guest.pace = len(workload.block), pace_to_c(workload.pace)
    one = core.ffi.new("struct vm_vcpu *")
    lanes, _keep = lanes_to_c(workload.vcpus[vcpu])
    one.guest, one.lane, one.lanes, one.begin, one.end = guest, lanes, len(lanes), begin, NO_END
    count = workload.accesses_by_vcpu()[vcpu] - begin
    where, times = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    into = [core.ffi.from_buffer("uint64_t[]", array) for array in (where, times)]
    core.call(core.lib.vm_vcpu_list, one, into[0], core.ffi.NULL, into[1], count)
    if workload.pace.kind != "recorded":
        times = np.arange(begin, begin + count, dtype=np.uint64)
    return list(zip((where >> np.uint64(12)).tolist(), times.tolist(), strict=True))


def expected(workload: Workload, blocks: Sequence[RAMBlock], begins: Sequence[int]) -> list[int]:
    """The order of first touches, found by going through all accesses one by one."""
    touched = [
        (at, vcpu, page)
        for vcpu, begin in enumerate(begins)
        for page, at in accesses(workload, vcpu, begin)
    ]
    order: dict[int, None] = {}
    for _, _, page in sorted(touched, key=lambda one: one[:2]):
        block = int(workload.block[page])
        if block >= 0:
            host = int(workload.offset[page]) // blocks[block].page_size
            order.setdefault(block << core.lib.VM_CURSOR_SHIFT | host)
    return list(order)


KINDS: list[dict[str, Any]] = [
    {"kind": "sequential"},
    {"kind": "uniform"},
    {"kind": "permutation"},
    {"kind": "zipf"},
    {"kind": "strided", "stride": "20KiB"},
]


@given(
    fields=st.sampled_from(KINDS),
    vcpus=st.integers(1, 3),
    begun=st.integers(0, 300),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_synthetic_accesses_are_listed_as_they_come(fields, vcpus, begun, seed):
    blocks = [anonymous(pages=40), shared(pages=9), huge(pages=2)]
    extra = {} if fields["kind"] == "permutation" else {"accesses": 3000}
    work = workload_of(blocks, vcpus, seed, **fields, **extra)
    begins = [min(begun, count) for count in work.accesses_by_vcpu()]
    assert recorded_order(work, entries_of(blocks), begins).tolist() == expected(
        work, blocks, begins
    )


STREAMS = st.lists(
    st.lists(st.tuples(st.integers(0, 19), st.integers(0, 50)), max_size=40),
    min_size=1,
    max_size=3,
)


@given(streams=STREAMS, loops=st.integers(1, 2), timed=st.booleans())
@settings(max_examples=80, deadline=None)
def test_recorded_accesses_are_listed_as_they_come(streams, loops, timed):
    """Of pages some lie outside of every block, some on the memory of others."""
    blocks = [anonymous(pages=8), shared(pages=4)]
    block = np.array([n % 3 - 1 for n in range(20)], np.int32)
    offset = np.array([n % 8 // (2 if n % 3 == 2 else 1) * SMALL for n in range(20)], np.uint64)
    vcpus = []
    for stream in streams:
        where = np.array([page << 12 for page, _ in stream], np.uint32)
        times = np.cumsum(np.array([gap for _, gap in stream], np.uint64), dtype=np.uint64)
        part = StreamSlice(where, np.zeros(len(where), np.uint8), times)
        vcpus.append([Lane(part, size_table([8]), loops=loops, duration_ns=4000)])
    work = Workload(block, offset, vcpus, Pace("recorded") if timed else Pace())
    begins = [0] * len(streams)
    assert recorded_order(work, entries_of(blocks), begins).tolist() == expected(
        work, blocks, begins
    )
