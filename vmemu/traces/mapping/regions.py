"""Explicit regions of recorded addresses: for guest-physical recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.mapping.pagemap import (
    PAGE,
    PAGE_SHIFT,
    Block,
    PageMap,
    check_name,
    check_outside,
    rounded,
)
from vmemu.traces.mapping.recorded import told
from vmemu.traces.mapping.touched import count_accesses_on
from vmemu.traces.native.trace import Trace
from vmemu.traces.samememory import same_memory
from vmemu.units import counted, format_size

_ADDRESS_END = 1 << 64
_4GIB = 1 << 32


class Region(NamedTuple):
    """Addresses ``start`` (inclusive) to ``end`` (exclusive) lie in ``block`` from ``offset`` on.

    All three numbers are multiples of 4 KiB.
    """

    start: int
    end: int
    block: str
    offset: int

    @property
    def stop(self) -> int:
        """Where it ends in its block."""
        return self.offset + self.end - self.start

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}={self.block}+{self.offset:#x}"


@dataclass(frozen=True)
class Regions:
    """Lays pages by explicit regions, (start, end, block, offset) as in ``Region``.

    No two may share an address; they may share memory. ``outside``: ``refuse`` pages in no region,
    or ``drop`` them.
    """

    kind: ClassVar[str] = "regions"
    regions: tuple[tuple[int, int, str, int], ...]
    outside: str = "refuse"

    def __post_init__(self) -> None:
        check_outside(self.outside)

    def lay(self, trace: Trace, blocks: Sequence[Block]) -> PageMap:
        """Raises ``TraceError``, also for regions that overlap, are not aligned, or do not fit."""
        ordered = sorted(Region(*region) for region in self.regions)
        _check_regions(ordered, blocks)
        block, offset = _laid(trace.pages, ordered, [one.name for one in blocks])
        if self.outside == "refuse" and (block < 0).any():
            raise _outside_error(trace, block < 0, ordered, blocks)
        return PageMap(block, offset, same_memory(block, offset) if _share(ordered) else None)


def _laid(
    pages: NDArray[np.uint64], ordered: list[Region], names: list[str]
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    block, offset = np.full(len(pages), -1, np.int32), np.zeros(len(pages), np.uint64)
    for region in ordered:
        bounds = np.array([region.start >> PAGE_SHIFT, region.end >> PAGE_SHIFT], np.uint64)
        first, last = np.searchsorted(pages, bounds)
        block[first:last] = names.index(region.block)
        offset[first:last] = (pages[first:last] - bounds[0]) << np.uint64(PAGE_SHIFT)
        offset[first:last] += np.uint64(region.offset)
    return block, offset


def _check_regions(ordered: list[Region], blocks: Sequence[Block]) -> None:
    index = {block.name: number for number, block in enumerate(blocks)}
    for region in ordered:
        check_name(region.block, list(index))
        if not 0 <= region.start < region.end <= _ADDRESS_END or region.offset < 0:
            raise TraceError(f"region {region} is empty or not in 0 to 2^64")
        if region.start % PAGE or region.end % PAGE or region.offset % PAGE:
            raise TraceError(f"region {region} is not aligned to 4 KiB")
        block = blocks[index[region.block]]
        if region.stop > block.size:
            raise TraceError(
                f"region {region} does not fit: block {block.name} has {format_size(block.size)}",
                f"a size of {rounded(region.stop, block)} would do",
            )
    for one, other in pairwise(ordered):
        if other.start < one.end:
            raise TraceError(f"regions {one} and {other} overlap")


def _share(regions: list[Region]) -> bool:
    """Whether two regions lie on the same memory, as the shadows of a PC's BIOS do."""
    placed = sorted((region.block, region.offset, region.stop) for region in regions)
    return any(
        one[0] == other[0] and other[1] < one[2]  # sorted: neighbours overlap if any do
        for one, other in pairwise(placed)
    )


# ---- what to say of pages outside ----


def _outside_error(
    trace: Trace, outside: NDArray[np.bool_], ordered: list[Region], blocks: Sequence[Block]
) -> TraceError:
    pages = trace.pages[outside]
    accesses = counted(count_accesses_on(trace, outside), "access")
    first = int(pages[0]) << PAGE_SHIFT
    ranges = told(pages, [region.start for region in ordered])
    return TraceError(
        f"{accesses} to {len(pages):,} of {counted(len(outside), 'page')} are in no region:"
        f" {ranges}, the lowest {_nearest(first, ordered)}",
        f"{_remedy(pages, ordered, blocks)} (`vmemu trace map {trace.name}` shows the ranges),"
        " or drop them with outside: drop",
    )


def _nearest(page: int, ordered: list[Region]) -> str:
    """Where the page at that address lies, told by the nearest region."""
    if not ordered:
        return "where there are no regions"

    def gap(region: Region) -> int:
        return region.start - (page + PAGE) if page < region.start else page - region.end

    region = min(ordered, key=gap)
    side = "before" if page < region.start else "behind"
    distance = format_size(gap(region), digits=4) if gap(region) else "right"
    return f"{distance} {side} the nearest region, {region}"


def _remedy(pages: NDArray[np.uint64], ordered: list[Region], blocks: Sequence[Block]) -> str:
    """The region that would cover the first pages outside, where it can be told."""
    first = int(pages[0]) << PAGE_SHIFT
    before = max((r for r in ordered if r.start <= first), default=None)
    limit = min((r.start for r in ordered if r.start > first), default=_ADDRESS_END)
    region = _above_4gib(pages, before, limit, ordered, blocks)
    if region is not None:
        advice = f"add the region {region}"
    elif (region := _longer(first, before, limit, ordered, blocks)) is not None:
        advice = f"lengthen {before} to {region}"
    else:
        return "map them with a region"
    low, high = region.start >> PAGE_SHIFT, region.end >> PAGE_SHIFT
    covered = int(np.count_nonzero((pages >= np.uint64(low)) & (pages < np.uint64(high))))
    return f"{advice}, which covers {'them' if covered == len(pages) else f'{covered:,} of them'}"


def _longer(
    first: int, before: Region | None, limit: int, ordered: list[Region], blocks: Sequence[Block]
) -> Region | None:
    """The region before the page, grown into what is free behind it in its block.

    None when the page is only above a hole that ends at 4 GiB: memory is not in step with it there.
    """
    if before is None or before.end < _4GIB <= first:
        return None
    size = next(block.size for block in blocks if block.name == before.block)
    taken = [r.offset for r in ordered if r.block == before.block and r.offset >= before.stop]
    end = min(before.start + min([size, *taken]) - before.offset, limit)
    return before._replace(end=end) if first < end else None


def _above_4gib(
    pages: NDArray[np.uint64],
    before: Region | None,
    limit: int,
    ordered: list[Region],
    blocks: Sequence[Block],
) -> Region | None:
    """The rest of a block from 4 GiB on: a PC has its RAM below and above a hole that ends there.

    None unless there is one block for it with room for all that is outside up to the next region.
    """
    first = int(pages[0]) << PAGE_SHIFT
    if first < _4GIB or (before is not None and before.end >= _4GIB):
        return None
    wanted = pages[pages < np.uint64(limit >> PAGE_SHIFT)] if limit < _ADDRESS_END else pages
    last = int(wanted[-1]) << PAGE_SHIFT
    found = []
    for block in blocks:
        stops = [region.stop for region in ordered if region.block == block.name]
        stop = max(stops, default=block.size)
        end = min(_4GIB + block.size - stop, limit)
        if last < end:
            found.append(Region(_4GIB, end, block.name, stop))
    return found[0] if len(found) == 1 else None
