"""From recorded pages to offsets in RAM blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.mapping import (
    Auto,
    ByBlock,
    Compact,
    FirstTouch,
    Layout,
    Modulo,
    PageMap,
    Region,
    Regions,
    count_accesses_on,
    first_touch,
    same_memory,
    touched,
)
from vmemu.traces.mapping.summary import Summary
from vmemu.traces.native.meta import Counts, Meta, Source, StreamMeta
from vmemu.traces.native.trace import Stream, Trace
from vmemu.traces.reader import BlockBase

DATA = Path(__file__).parent.parent / "data"
PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
SIZES = [1, 8, 4096]

Access = tuple[int, int, int]
"""Address, size, time."""


@dataclass(frozen=True)
class Block:
    name: str
    size: int
    page_size: int = PAGE


def pages(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, np.uint64)


def trace_of(
    numbers: Sequence[int] | NDArray[np.uint64],
    streams: Sequence[Sequence[Access]] = (),
    *,
    timed: bool = False,
    blocks: Sequence[BlockBase] = (),
) -> Trace:
    """A trace of these pages and accesses."""
    dictionary = np.array(numbers, np.uint64)
    columns = [_stream(number, one, dictionary, timed) for number, one in enumerate(streams)]
    times = [time for one in streams for _, _, time in one]
    meta = Meta(
        address_kind="ram-block" if blocks else "virtual",
        source=Source(),
        sizes=tuple(SIZES),
        pages=len(dictionary),
        streams=tuple(StreamMeta(one.id, one.accesses) for one in columns),
        fetches=False,
        counts=Counts(),
        truncated=False,
        missing=(),
        time_range_ns=(min(times, default=0), max(times, default=0)) if timed else None,
        blocks=tuple(blocks),
    )
    sizes = np.zeros(64, np.uint16)
    sizes[: len(SIZES)] = SIZES
    return Trace("test", meta, dictionary, sizes, columns)


def _stream(
    number: int, accesses: Sequence[Access], dictionary: NDArray[np.uint64], timed: bool
) -> Stream:
    at = np.array([address for address, _, _ in accesses], np.uint64)
    where = np.searchsorted(dictionary, at >> np.uint64(12)).astype(np.uint32) << 12
    what = np.array([SIZES.index(size) << 2 for _, size, _ in accesses], np.uint8)
    times = np.array([time for _, _, time in accesses], np.uint64) if timed else None
    return Stream(number, where | (at & np.uint64(0xFFF)).astype(np.uint32), what, times)


def lay(layout: Layout, numbers: Sequence[int] | NDArray[np.uint64], blocks: Any) -> PageMap:
    return layout.lay(trace_of(numbers), blocks)


def places(page_map: PageMap) -> list[tuple[int, int]]:
    return list(zip(page_map.block.tolist(), page_map.offset.tolist(), strict=True))


def regions(*given: tuple[int, int, str, int], outside: str = "refuse") -> Regions:
    return Regions(given, outside)


RAM = Block("pc.ram", 128 * MIB)
BIOS = Block("pc.bios", MIB // 4)
BOOT_REGIONS = [
    Region(0, 128 * MIB, "pc.ram", 0),
    Region(0x107FC0000, 0x108000000, "pc.bios", 0),
]


class TestRegions:
    def test_page_by_page(self) -> None:
        page_map = lay(regions(*BOOT_REGIONS), [0, 2, 0x7FFF, 0x107FC0, 0x107FFF], [BIOS, RAM])
        assert places(page_map) == [(1, 0), (1, 0x2000), (1, 0x7FFF000), (0, 0), (0, 0x3F000)]
        assert page_map.block.dtype == np.int32
        assert page_map.offset.dtype == np.uint64
        assert page_map.merged == 0

    def test_regions_in_any_order_and_into_the_middle_of_a_block(self) -> None:
        given = [(0x8000, 0xA000, "b", 0x4000), (0x1000, 0x2000, "b", 0)]
        page_map = lay(regions(*given), [1, 8, 9], [Block("b", MIB)])
        assert places(page_map) == [(0, 0), (0, 0x4000), (0, 0x5000)]

    def test_up_to_the_end_of_the_address_space(self) -> None:
        layout = regions(((1 << 64) - PAGE, 1 << 64, "b", 0))
        assert places(lay(layout, [(1 << 52) - 1], [Block("b", PAGE)])) == [(0, 0)]

    def test_dropped_pages(self) -> None:
        layout = regions((0x5000, 0x6000, "b", 0), outside="drop")
        page_map = lay(layout, [0, 5, 6], [Block("b", PAGE)])
        assert page_map.outside.tolist() == [True, False, True]
        assert places(page_map) == [(-1, 0), (0, 0), (-1, 0)]

    def test_ram_of_a_pc_is_split_below_and_above_4_gib(self) -> None:
        ram = Block("pc.ram", 5 * GIB)
        layout = regions((0, 3 * GIB, "pc.ram", 0), (4 * GIB, 6 * GIB, "pc.ram", 3 * GIB))
        below, above = 3 * GIB // PAGE - 1, 4 * GIB // PAGE
        page_map = lay(layout, [0, below, above, 6 * GIB // PAGE - 1], [ram])
        offsets = [0, 3 * GIB - PAGE, 3 * GIB, 5 * GIB - PAGE]
        assert places(page_map) == [(0, offset) for offset in offsets]
        hole = replace(layout, outside="drop").lay(trace_of([below + 1, above - 1, above]), [ram])
        assert hole.outside.tolist() == [True, True, False]

    def test_the_region_above_4_gib_is_told_when_it_is_missing(self) -> None:
        ram = Block("pc.ram", 5 * GIB)
        numbers = [0, 4 * GIB // PAGE + 3, 6 * GIB // PAGE - 1]
        with pytest.raises(TraceError) as caught:
            lay(regions((0, 3 * GIB, "pc.ram", 0)), numbers, [ram, BIOS])
        line = "0x100000000-0x180000000=pc.ram+0xc0000000"
        assert f"; add the region {line}, which covers them (`vmemu trace map" in str(caught.value)
        told = regions((0, 3 * GIB, "pc.ram", 0), (0x100000000, 0x180000000, "pc.ram", 0xC0000000))
        assert not lay(told, numbers, [ram, BIOS]).outside.any()
        with pytest.raises(TraceError, match="; map them with a region \\("):
            lay(regions((0, 3 * GIB, "pc.ram", 0)), numbers, [Block("pc.ram", 5 * GIB - PAGE)])

    def test_the_longer_region_is_told(self) -> None:
        blocks = [Block("b", 8 * PAGE)]
        with pytest.raises(TraceError, match="which covers 2 of them") as caught:
            lay(
                regions((0, 2 * PAGE, "b", 0), (6 * PAGE, 7 * PAGE, "b", 5 * PAGE)),
                [3, 4, 9],
                blocks,
            )
        assert "lengthen 0x0-0x2000=b+0x0 to 0x0-0x5000=b+0x0" in str(caught.value)
        fixed = regions((0, 5 * PAGE, "b", 0), (6 * PAGE, 7 * PAGE, "b", 5 * PAGE), outside="drop")
        assert lay(fixed, [3, 4, 9], blocks).outside.tolist() == [False, False, True]

    def test_regions_on_the_same_memory_merge_their_pages(self) -> None:
        layout = regions((0, 4 * PAGE, "b", 0), (8 * PAGE, 10 * PAGE, "b", PAGE))
        page_map = lay(layout, [0, 1, 2, 8, 9], [Block("b", 4 * PAGE)])
        assert page_map.merged == 2
        assert page_map.same is not None
        assert page_map.same.tolist() == [0, 1, 2, 1, 2]

    def test_refusal_names_count_place_neighbour_and_remedy(self) -> None:
        with pytest.raises(TraceError) as caught:
            lay(regions(BOOT_REGIONS[0]), [0, 0x8003, 0x107FD2], [RAM])
        assert str(caught.value) == (
            "0 accesses to 2 of 3 pages are in no region: 0x8003000-0x8004000 (1 page),"
            " 0x107fd2000-0x107fd3000 (1 page), the lowest 12KiB behind the nearest region,"
            " 0x0-0x8000000=pc.ram+0x0; map them with a region (`vmemu trace map test` shows the"
            " ranges), or drop them with outside: drop"
        )
        for page, place in ((3, "4KiB before"), (4, "right before"), (6, "right behind")):
            with pytest.raises(TraceError, match=rf"lowest {place} the nearest region"):
                lay(regions((0x5000, 0x6000, "b", 0)), [page], [Block("b", PAGE)])
        with pytest.raises(TraceError, match="there are no regions"):
            lay(regions(), [4], [RAM])
        with pytest.raises(ValueError, match="refuse or drop"):
            regions(outside="ignore")

    def test_real_recording(self, tmp_path: Path) -> None:
        convert(DATA / "gpa-boot-excerpt.bin.zst", tmp_path / "t.vmtrace")
        trace = native.open(tmp_path / "t.vmtrace")
        page_map = regions(*BOOT_REGIONS).lay(trace, [RAM, BIOS])
        assert np.count_nonzero(page_map.block == 0) == 8389
        assert np.count_nonzero(page_map.block == 1) == 46

        outside = trace.pages >= 0x8000
        expected = sum(
            int(np.count_nonzero(chunk.addresses + chunk.sizes > 128 * MIB))
            for chunk in trace.chunks()
        )
        assert count_accesses_on(trace, outside) == expected
        with pytest.raises(TraceError, match=f"{expected} accesses to 46 of 8,435 pages"):
            regions(BOOT_REGIONS[0]).lay(trace, [RAM])

    @pytest.mark.parametrize(
        ("region", "message"),
        [
            ((0, PAGE, "no", 0), "no block 'no'; there are pc.ram"),
            ((PAGE, PAGE, "pc.ram", 0), "is empty"),
            ((0, (1 << 64) + PAGE, "pc.ram", 0), "not in 0 to"),
            ((0, PAGE, "pc.ram", -PAGE), "not in 0 to"),
            ((0, PAGE + 1, "pc.ram", 0), "not aligned"),
            ((0, 129 * MIB, "pc.ram", 0), "pc.ram has 128MiB; a size of 129MiB would do"),
            ((0, 128 * MIB, "pc.ram", PAGE), "a size of 131076KiB would do"),
        ],
    )
    def test_wrong_regions(self, region: tuple[int, int, str, int], message: str) -> None:
        with pytest.raises(TraceError, match=message):
            lay(regions(region), [0], [RAM])

    def test_overlap(self) -> None:
        given = [(0, 2 * PAGE, "pc.ram", 0), (PAGE, 3 * PAGE, "pc.ram", 0)]
        with pytest.raises(TraceError, match="overlap"):
            lay(regions(*given), [0], [RAM])


numbers_of_pages = st.sets(st.integers(0, 100), min_size=1, max_size=50).map(sorted)


@st.composite
def compactions(draw: st.DrawFn) -> tuple[list[int], list[Block]]:
    numbers = draw(numbers_of_pages)
    sizes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))
    missing = max(0, len(numbers) - sum(sizes))
    blocks = [Block(f"b{i}", size * PAGE) for i, size in enumerate([*sizes, missing])]
    return numbers, blocks


class TestCompact:
    @given(compactions())
    def test_keeps_order_and_runs(self, case: tuple[list[int], list[Block]]) -> None:
        numbers, blocks = case
        where = places(lay(Compact(), numbers, blocks))
        assert where == sorted(set(where))
        for block, offset in where:
            assert offset % PAGE == 0
            assert offset + PAGE <= blocks[block].size
        neighbours = zip(numbers, numbers[1:], where, where[1:], strict=False)
        for page, following, (block, offset), (next_block, next_offset) in neighbours:
            if following == page + 1 and next_block == block:
                assert next_offset == offset + PAGE
            if next_block != block:
                assert offset + PAGE == blocks[block].size
                assert next_offset == 0

    @given(numbers_of_pages, st.sampled_from([1, 2, 4, 16]), st.integers(0, 3))
    def test_aligned_regions_stay_as_they_are(
        self, numbers: list[int], region: int, before: int
    ) -> None:
        align = region * PAGE
        blocks = [Block("a", before * align + PAGE), Block("b", 101 * align)]
        where = places(lay(Compact(align=align), numbers, blocks))
        assert where == sorted(set(where))
        homes: dict[int, tuple[int, int]] = {}
        for page, (block, offset) in zip(numbers, where, strict=True):
            assert offset % align == page * PAGE % align
            assert offset + PAGE <= blocks[block].size
            home = (block, offset // align)
            assert homes.setdefault(page // region, home) == home
        slots = [(block, i) for block in (0, 1) for i in range(blocks[block].size // align)]
        assert list(homes.values()) == slots[: len(homes)]  # packed: no region is skipped

    def test_one_block(self) -> None:
        blocks = [Block("a", PAGE), Block("b", PAGE), Block("c", PAGE)]
        assert places(lay(Compact("b"), [4], blocks)) == [(1, 0)]
        with pytest.raises(TraceError, match="no block 'd'; there are a, b, c"):
            lay(Compact("d"), [4], blocks)

    def test_too_small_says_which_size_would_do(self) -> None:
        blocks = [Block("a", 2 * PAGE), Block("huge", 2 * MIB, 2 * MIB)]
        numbers = np.arange(515, dtype=np.uint64)
        with pytest.raises(TraceError) as caught:
            lay(Compact(), numbers, blocks)
        assert str(caught.value) == (
            "the trace has 515 pages of 4 KiB (2060KiB), a, huge only 2056KiB;"
            " a size of 4MiB for huge would do"
        )
        lay(Compact(), numbers, [blocks[0], Block("huge", 4 * MIB, 2 * MIB)])
        with pytest.raises(TraceError, match="no block"):
            lay(Compact(), numbers, [])

    def test_too_small_for_aligned_regions(self) -> None:
        with pytest.raises(TraceError) as caught:
            lay(Compact(align=2 * MIB), [0, 512, 5120], [Block("a", 5 * MIB)])
        assert str(caught.value) == (
            "the trace has pages in 3 regions of 2MiB (6MiB), a only 5MiB, where 2 fit;"
            " a size of 6MiB for a would do"
        )
        with pytest.raises(ValueError, match="power of two"):
            Compact(align=3 * PAGE)

    def test_no_pages(self) -> None:
        for layout in (Compact(), Compact(align=MIB), regions(), FirstTouch(), Modulo(), Auto()):
            assert places(lay(layout, [], [RAM])) == []


BASES = [BlockBase("pc.ram", 0x10000), BlockBase("vga.vram", 0x30000)]


class TestByBlock:
    def test_by_name_and_offset(self) -> None:
        trace = trace_of([0x10, 0x12, 0x30, 0x31], blocks=BASES)
        blocks = [Block("vga.vram", 2 * PAGE), Block("pc.ram", 3 * PAGE)]
        assert places(ByBlock().lay(trace, blocks)) == [(1, 0), (1, 0x2000), (0, 0), (0, 0x1000)]
        assert places(Auto().lay(trace, blocks)) == places(ByBlock().lay(trace, blocks))

    def test_renamed(self) -> None:
        trace = trace_of([0x10, 0x11, 0x31], blocks=BASES)
        blocks = [Block("ram", 2 * PAGE)]
        layout = ByBlock((("pc.ram", "ram"), ("vga.vram", "ram")))
        page_map = layout.lay(trace, blocks)
        assert places(page_map) == [(0, 0), (0, 0x1000), (0, 0x1000)]
        assert page_map.merged == 1
        with pytest.raises(TraceError, match=r"'rom', a RAM block that was not .* 'pc.ram', 'vga"):
            ByBlock((("rom", "ram"),)).lay(trace, blocks)
        with pytest.raises(TraceError, match="no block 'x'; there are ram"):
            ByBlock((("pc.ram", "x"),)).lay(trace, blocks)

    def test_unknown_blocks_are_refused_or_dropped(self) -> None:
        accesses = [(0x10000, 8, 0), (0x30FFF, 8, 0), (0x2000, 1, 0)]
        trace = trace_of([2, 0x10, 0x30, 0x31], [accesses], blocks=BASES)
        with pytest.raises(TraceError) as caught:
            ByBlock().lay(trace, [RAM])
        assert str(caught.value) == (
            "2 accesses to 3 of 4 pages are in recorded RAM blocks that there are not:"
            " 'vga.vram' (2 pages), before the first recorded block (1 page); there are pc.ram;"
            " add such blocks, lay them on another with map: {kind: blocks, rename: {RECORDED:"
            " NAME}}, or drop them with outside: drop"
        )
        page_map = ByBlock(outside="drop").lay(trace, [RAM])
        assert places(page_map) == [(-1, 0), (0, 0), (-1, 0), (-1, 0)]

    @pytest.mark.parametrize("outside", ["refuse", "drop"])
    def test_a_block_too_small_says_which_size_would_do(self, outside: str) -> None:
        trace = trace_of([0x10, 0x14], blocks=BASES)
        with pytest.raises(TraceError) as caught:
            ByBlock(outside=outside).lay(trace, [Block("pc.ram", 2 * PAGE, 2 * PAGE)])
        assert str(caught.value) == (
            "block pc.ram of 8KiB ends before 1 of 2 pages recorded of 'pc.ram';"
            " a size of 24KiB for pc.ram would do"
        )
        ByBlock(outside=outside).lay(trace, [Block("pc.ram", 6 * PAGE, 2 * PAGE)])

    def test_a_trace_that_names_no_blocks(self) -> None:
        with pytest.raises(TraceError, match=r"are virtual; use map: \{kind: compact"):
            ByBlock().lay(trace_of([1]), [RAM])
        assert places(Auto().lay(trace_of([1]), [RAM])) == [(0, 0)]

    @given(
        st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True).map(sorted),
        numbers_of_pages,
        st.integers(0, 4),
    )
    def test_every_page_lies_in_its_block_or_is_outside(
        self, starts: list[int], numbers: list[int], known: int
    ) -> None:
        bases = [BlockBase(f"b{start}", start * PAGE) for start in starts]
        blocks = [Block(base.name, 200 * PAGE) for base in bases[:known]]
        page_map = ByBlock(outside="drop").lay(trace_of(numbers, blocks=bases), blocks)
        for page, place in zip(numbers, places(page_map), strict=True):
            before = [index for index, start in enumerate(starts) if start <= page]
            if before and before[-1] < known:
                assert place == (before[-1], (page - starts[before[-1]]) * PAGE)
            else:
                assert place == (-1, 0)


@st.composite
def touches(draw: st.DrawFn) -> tuple[bool, list[list[Access]]]:
    access = st.tuples(st.integers(0, 8 * PAGE - 1), st.sampled_from(SIZES), st.integers(0, 20))
    streams = draw(st.lists(st.lists(access, max_size=20), min_size=1, max_size=4))
    return draw(st.booleans()), streams


def touched_pages(streams: list[list[Access]]) -> list[int]:
    return sorted({page for one in streams for access in one for page in pages_of(access)})


def pages_of(access: Access) -> list[int]:
    address, size, _ = access
    return list(range(address // PAGE, (address + size - 1) // PAGE + 1))


class TestFirstTouch:
    @given(touches(), st.sampled_from([1, 3, 1000]))
    def test_slots_are_in_the_order_of_first_touches(
        self, case: tuple[bool, list[list[Access]]], chunk: int
    ) -> None:
        timed, streams = case
        numbers = touched_pages(streams)
        moments = sorted(
            (access[2] if timed else Fraction(position, len(one)), stream, position, access)
            for stream, one in enumerate(streams)
            for position, access in enumerate(one)
        )
        order = dict.fromkeys(page for *_, access in moments for page in pages_of(access))
        trace = trace_of(numbers, streams, timed=timed)
        blocks = [Block("a", 3 * PAGE), Block("b", 10 * PAGE)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(first_touch, "CHUNK", chunk)
            page_map = FirstTouch().lay(trace, blocks)
        slots = [(0, 0), (0, PAGE), (0, 2 * PAGE), *((1, i * PAGE) for i in range(10))]
        laid = dict(zip(numbers, places(page_map), strict=True))
        assert [laid[page] for page in order] == slots[: len(order)]

    def test_one_block_and_one_too_small(self) -> None:
        trace = trace_of([3, 4], [[(4 * PAGE, 1, 0), (3 * PAGE, 1, 0)]])
        blocks = [Block("a", PAGE), Block("b", 2 * PAGE)]
        assert places(FirstTouch("b").lay(trace, blocks)) == [(1, PAGE), (1, 0)]
        with pytest.raises(
            TraceError, match=r"2 pages .*, a only 4KiB; a size of 8KiB for a would"
        ):
            FirstTouch("a").lay(trace, blocks)


class TestModulo:
    @given(
        st.sets(st.integers(0, (1 << 52) - 1), min_size=1, max_size=50).map(sorted),
        st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    )
    def test_each_page_at_its_remainder(self, numbers: list[int], sizes: list[int]) -> None:
        blocks = [Block(f"b{i}", size * PAGE) for i, size in enumerate(sizes)]
        slots = [(b, page * PAGE) for b, size in enumerate(sizes) for page in range(size)]
        page_map = lay(Modulo(), numbers, blocks)
        where = places(page_map)
        assert where == [slots[number % len(slots)] for number in numbers]
        assert page_map.merged == len(numbers) - len(set(where))
        if page_map.same is not None:
            assert page_map.same.tolist() == [where.index(place) for place in where]

    def test_one_block_or_none(self) -> None:
        blocks = [Block("a", PAGE), Block("b", 2 * PAGE)]
        assert places(lay(Modulo("b"), [5], blocks)) == [(1, PAGE)]
        with pytest.raises(TraceError, match="no block for them"):
            lay(Modulo(), [5], [])


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 3)), max_size=20))
def test_the_first_page_on_the_same_memory(where: list[tuple[int, int]]) -> None:
    block = np.array([block for block, _ in where], np.int32)
    offset = np.array([page * PAGE for _, page in where], np.uint64)
    same = same_memory(block, offset)
    expected = [index if place[0] < 0 else where.index(place) for index, place in enumerate(where)]
    assert (list(range(len(where))) if same is None else same.tolist()) == expected
    assert (same is None) == (expected == list(range(len(where))))


class TestSummary:
    @given(touches(), st.sampled_from(["regions", "modulo", "compact"]))
    def test_every_page_and_access_is_in_it(
        self, case: tuple[bool, list[list[Access]]], kind: str
    ) -> None:
        _, streams = case
        numbers = touched_pages(streams)
        trace = trace_of(numbers, streams)
        blocks = [Block("a", 4 * PAGE, 2 * PAGE), Block("b", 8 * PAGE)]
        layouts: dict[str, Layout] = {
            "regions": regions(
                (PAGE, 3 * PAGE, "a", 0), (5 * PAGE, 7 * PAGE, "b", 0), outside="drop"
            ),
            "modulo": Modulo("a"),
            "compact": Compact(),
        }
        page_map = layouts[kind].lay(trace, blocks)
        parts = [(stream.where, stream.what) for stream in trace.streams]
        summary = Summary(trace, page_map, blocks, touched(trace, parts))
        ranges = list(summary.ranges())
        assert sum(one.pages for one in ranges) == len(numbers)
        assert len(summary) == len(ranges)
        assert list(summary.ranges(1)) == ranges[:1]
        every = [access for one in streams for access in one]
        where = dict(zip(numbers, places(page_map), strict=True))
        for one in ranges:
            inside = [p for p in numbers if one.start <= p * PAGE < one.end]
            assert len(inside) == one.pages
            assert one.accesses == sum(bool(set(pages_of(a)) & set(inside)) for a in every)
            for page in inside:
                block, offset = where[page]
                if one.block is None:
                    assert block == -1
                else:
                    assert blocks[block].name == one.block
                    assert offset == one.offset + page * PAGE - one.start
        outside = {page for page, (block, _) in where.items() if block < 0}
        assert summary.pages_outside == len(outside)
        assert summary.accesses_outside == sum(bool(set(pages_of(a)) & outside) for a in every)
        for index, use in enumerate(summary.blocks()):
            here = {page: offset for page, (block, offset) in where.items() if block == index}
            assert use.touched_bytes == len(set(here.values())) * PAGE
            assert use.host_pages_touched == len({o // use.page_size for o in here.values()})
            assert use.accesses == sum(bool(set(pages_of(a)) & set(here)) for a in every)


class TestCounting:
    def test_an_access_counts_once_by_either_of_its_pages(self, tmp_path: Path) -> None:
        with native.TraceWriter(tmp_path / "t.vmtrace") as writer:
            writer.append(
                0,
                np.array([0x1000, 0x1FFC, 0x2000, 0x1FF8], np.uint64),
                np.zeros(4, np.uint8),
                np.full(4, 8, np.uint16),
            )
            writer.finish()
        trace = native.open(tmp_path / "t.vmtrace")
        assert count_accesses_on(trace, np.array([True, False])) == 3
        assert count_accesses_on(trace, np.array([False, True])) == 2
        assert count_accesses_on(trace, np.array([True, True])) == 4
        assert count_accesses_on(trace, np.array([False, False])) == 0
