"""Where a vCPU is going, as its faults show it, and how many pages are to come along."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu import core

MOST = 128
"""Pages of 4 KiB that may come along for one vCPU."""


class Walker:
    """A vCPU on one block whose pages come with its faults, and all that is sent along."""

    def __init__(self, pages: int = 1 << 16, page_shift: int = 12) -> None:
        self.ram = core.owned(core.lib.vm_ram_create(1), core.lib.vm_ram_destroy)
        assert (
            core.lib.vm_ram_set(self.ram, 0, b"ram", 0, pages << page_shift, page_shift, False) == 0
        )
        self.block = core.ffi.addressof(self.ram.block, 0)
        self.walker = core.ffi.new("struct vm_walker *")
        self.pages = pages
        self.faults = 0
        self.sent_along: list[int] = []

    def received(self, page: int) -> bool:
        return bool(self.block.received[page // 64] >> page % 64 & 1)

    def fault(self, page: int) -> list[int]:
        """Ask for a page; what comes along."""
        self.faults += 1
        stride = core.ffi.new("int64_t *")
        ahead = core.lib.vm_walker_ahead(self.walker, self.block, 0, page, stride)
        along = [page + stride[0] * (n + 1) for n in range(ahead)]
        assert all(0 <= one < self.pages for one in along)
        self.sent_along += along
        for one in (page, *along):
            core.lib.vm_ram_mark_received(self.block, one, 1)
        return along

    def touch(self, pages: Iterable[int]) -> int:
        """Go through pages, faulting where they are missing; how many faults it took."""
        before = self.faults
        for page in pages:
            if not self.received(page):
                self.fault(page)
        return self.faults - before


@pytest.mark.parametrize("step", [1, -1])
def test_side_by_side_the_window_doubles_up_to_its_limit(step):
    walker = Walker()
    page, windows = 30_000, []
    for _ in range(9):
        along = walker.fault(page)
        windows.append(len(along))
        assert along == [page + step * (n + 1) for n in range(len(along))]
        page += step * (len(along) + 1)
    assert windows == [0, 4, 8, 16, 32, 64, MOST, MOST, MOST]


@pytest.mark.parametrize("stride", [2, 7, -3, 64, 100, -4096])
def test_a_stride_is_followed_from_its_third_fault_on(stride):
    walker = Walker(pages=1 << 20)
    assert walker.touch(500_000 + stride * n for n in range(100)) < 12
    assert walker.sent_along[0] == 500_000 + 3 * stride
    assert all((page - 500_000) % stride == 0 for page in walker.sent_along)


def test_jumps_bring_nothing():
    walker = Walker(pages=1 << 24)
    dice = random.Random(1)
    walker.touch(dice.randrange(1 << 24) for _ in range(2000))
    assert len(walker.sent_along) < 100


def test_several_walks_in_turn_are_each_followed():
    walker = Walker()
    ways = [10_000, 20_000, 30_000, 40_000]
    faults = walker.touch(way + n for n in range(1000) for way in ways)
    assert faults < 4 * 20


def test_what_came_in_another_way_does_not_end_a_walk():
    walker = Walker()
    walker.touch(range(100, 120))
    for page in range(120, 200):
        core.lib.vm_ram_mark_received(walker.block, page, 1)
    before = len(walker.sent_along)
    walker.touch(range(120, 300))
    assert len(walker.sent_along) > before
    assert walker.faults < 12


def test_pages_in_between_that_are_there_make_no_stride():
    """As with fault-around, where each fault is on the first page of another window."""
    walker = Walker()
    for page in range(0, 64, 16):
        for near in range(page + 1, page + 16):
            core.lib.vm_ram_mark_received(walker.block, near, 1)
        along = walker.fault(page)
    assert along
    assert along == list(range(along[0], along[0] + len(along)))


def test_a_walk_that_turns_begins_anew():
    walker = Walker()
    walker.touch(range(1000, 1100))
    assert walker.fault(5000) == []
    assert len(walker.fault(5001)) == 4


@pytest.mark.parametrize(("page_shift", "most"), [(12, 128), (16, 8), (21, 1), (30, 0)])
def test_the_larger_pages_are_the_fewer_come_along(page_shift, most):
    walker = Walker(pages=4096, page_shift=page_shift)
    assert max(len(walker.fault(page)) for page in range(0, 4096)) == most


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(0, 299), st.integers(-9, 9), st.integers(1, 40)), max_size=30),
)
def test_what_comes_along_is_always_in_the_block(pages, walks):
    walker = Walker(pages=pages)
    for begin, stride, steps in walks:
        for page in (begin + stride * n for n in range(steps)):
            if 0 <= page < pages:
                assert len(walker.fault(page)) <= MOST


def test_a_vcpu_that_another_thread_looks_at_is_left_alone():
    walker = Walker()
    walker.touch(range(100, 120))
    walker.walker.busy = 1
    assert walker.fault(500) == []
    assert walker.walker.faults < walker.faults
