"""From recorded pages to offsets in RAM blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.mapping import PageMap, Region, count_accesses_on, map_compact, map_regions

DATA = Path(__file__).parent.parent / "data"
PAGE = 4096
MIB = 1 << 20


@dataclass(frozen=True)
class Block:
    name: str
    size: int
    page_size: int = PAGE


def pages(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, np.uint64)


def places(page_map: PageMap) -> list[tuple[int, int]]:
    return list(zip(page_map.block.tolist(), page_map.offset.tolist(), strict=True))


RAM = Block("pc.ram", 128 * MIB)
BIOS = Block("pc.bios", MIB // 4)
BOOT_REGIONS = [
    Region(0, 128 * MIB, "pc.ram", 0),
    Region(0x107FC0000, 0x108000000, "pc.bios", 0),
]


class TestRegions:
    def test_page_by_page(self) -> None:
        page_map = map_regions(
            pages(0, 2, 0x7FFF, 0x107FC0, 0x107FFF),
            BOOT_REGIONS,
            [BIOS, RAM],
        )
        assert places(page_map) == [
            (1, 0),
            (1, 0x2000),
            (1, 0x7FFF000),
            (0, 0),
            (0, 0x3F000),
        ]
        assert page_map.block.dtype == np.int32
        assert page_map.offset.dtype == np.uint64

    def test_regions_in_any_order_and_into_the_middle_of_a_block(self) -> None:
        regions = [(0x8000, 0xA000, "b", 0x4000), (0x1000, 0x2000, "b", 0)]
        page_map = map_regions(pages(1, 8, 9), regions, [Block("b", MIB)])
        assert places(page_map) == [(0, 0), (0, 0x4000), (0, 0x5000)]

    def test_up_to_the_end_of_the_address_space(self) -> None:
        regions = [Region((1 << 64) - PAGE, 1 << 64, "b", 0)]
        assert places(map_regions(pages((1 << 52) - 1), regions, [Block("b", PAGE)])) == [(0, 0)]

    def test_dropped_pages(self) -> None:
        page_map = map_regions(
            pages(0, 5, 6), [(0x5000, 0x6000, "b", 0)], [Block("b", PAGE)], "drop"
        )
        assert page_map.outside.tolist() == [True, False, True]
        assert places(page_map) == [(-1, 0), (0, 0), (-1, 0)]

    def test_refusal_names_count_place_neighbour_and_remedy(self) -> None:
        with pytest.raises(TraceError) as caught:
            map_regions(pages(0, 0x8003, 0x107FD2), BOOT_REGIONS[:1], [RAM])
        assert str(caught.value) == (
            "map: 2 of 3 pages are in no region, the first at 0x8003000 (12KiB behind the"
            " nearest region, 0x0-0x8000000=pc.ram+0x0); map them with a region, or drop them with"
            " outside: drop"
        )
        for page, place in ((3, "4KiB before"), (4, "right before"), (6, "right behind")):
            with pytest.raises(TraceError, match=rf"\({place} the nearest region"):
                map_regions(pages(page), [(0x5000, 0x6000, "b", 0)], [Block("b", PAGE)])
        with pytest.raises(TraceError, match="there are no regions"):
            map_regions(pages(4), [], [RAM])

    def test_real_recording(self, tmp_path: Path) -> None:
        convert(DATA / "gpa-boot-excerpt.bin.zst", tmp_path / "t.vmtrace")
        trace = native.open(tmp_path / "t.vmtrace")
        page_map = map_regions(trace.pages, BOOT_REGIONS, [RAM, BIOS], trace=trace)
        assert np.count_nonzero(page_map.block == 0) == 8389
        assert np.count_nonzero(page_map.block == 1) == 46

        outside = trace.pages >= 0x8000
        expected = sum(
            int(np.count_nonzero(chunk.addresses + chunk.sizes > 128 * MIB))
            for chunk in trace.chunks()
        )
        assert count_accesses_on(trace, outside) == expected
        with pytest.raises(TraceError, match=f"map: {expected} accesses to 46 of 8435 pages"):
            map_regions(trace.pages, BOOT_REGIONS[:1], [RAM], trace=trace)

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
            map_regions(pages(0), [region], [RAM])

    def test_overlap(self) -> None:
        regions = [(0, 2 * PAGE, "pc.ram", 0), (PAGE, 3 * PAGE, "pc.ram", 0)]
        with pytest.raises(TraceError, match="overlap"):
            map_regions(pages(0), regions, [RAM])


@st.composite
def compactions(draw: st.DrawFn) -> tuple[NDArray[np.uint64], list[Block]]:
    numbers = sorted(draw(st.sets(st.integers(0, 100), min_size=1, max_size=50)))
    sizes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))
    missing = max(0, len(numbers) - sum(sizes))
    blocks = [Block(f"b{i}", size * PAGE) for i, size in enumerate([*sizes, missing])]
    return pages(*numbers), blocks


class TestCompact:
    @given(compactions())
    def test_keeps_order_and_runs(self, case: tuple[NDArray[np.uint64], list[Block]]) -> None:
        numbers, blocks = case
        page_map = map_compact(numbers, blocks)
        where = places(page_map)
        assert where == sorted(set(where))
        for block, offset in where:
            assert offset % PAGE == 0
            assert offset + PAGE <= blocks[block].size
        neighbours = zip(numbers.tolist(), numbers[1:].tolist(), where, where[1:], strict=False)
        for page, following, (block, offset), (next_block, next_offset) in neighbours:
            if following == page + 1 and next_block == block:
                assert next_offset == offset + PAGE
            if next_block != block:
                assert offset + PAGE == blocks[block].size
                assert next_offset == 0

    def test_targets(self) -> None:
        blocks = [Block("a", PAGE), Block("b", PAGE), Block("c", PAGE)]
        assert places(map_compact(pages(4, 9), blocks, ["c", "a"])) == [(2, 0), (0, 0)]
        assert places(map_compact(pages(4), blocks, "b")) == [(1, 0)]
        with pytest.raises(TraceError, match="no block 'd'; there are a, b, c"):
            map_compact(pages(4), blocks, "d")
        with pytest.raises(TraceError, match="named twice"):
            map_compact(pages(4), blocks, ["a", "a"])

    def test_too_small_says_which_size_would_do(self) -> None:
        blocks = [Block("a", 2 * PAGE), Block("huge", 2 * MIB, 2 * MIB)]
        numbers = np.arange(515, dtype=np.uint64)
        with pytest.raises(TraceError) as caught:
            map_compact(numbers, blocks)
        assert str(caught.value) == (
            "map: the trace has 515 pages of 4 KiB (2060KiB), a, huge only 2056KiB;"
            " a size of 4MiB for huge would do"
        )
        map_compact(numbers, [blocks[0], Block("huge", 4 * MIB, 2 * MIB)])
        with pytest.raises(TraceError, match="no block"):
            map_compact(numbers, [])

    def test_no_pages(self) -> None:
        assert places(map_compact(pages(), [RAM])) == []
        assert places(map_regions(pages(), [], [RAM])) == []


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
