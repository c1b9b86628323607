"""Where each recorded page lies in the RAM blocks.

A mapping is made for the page dictionary of a trace and never for single accesses: two columns, an
entry a page. It is by explicit regions, for guest-physical recordings, or by order-keeping
compaction, for recordings whose addresses say nothing about RAM, such as those of a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.trace import CHUNK, Trace
from vmemu.units import format_size

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT

_ADDRESS_END = 1 << 64


class Block(Protocol):
    """What a mapping needs to know of a RAM block; a ``page_size`` counts too if it has one."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes."""


class Region(NamedTuple):
    """Addresses ``start`` (inclusive) to ``end`` (exclusive) lie in ``block`` from ``offset`` on.

    All three numbers are multiples of 4 KiB.
    """

    start: int
    end: int
    block: str
    offset: int


@dataclass(frozen=True)
class PageMap:
    """One entry for each page of a trace's dictionary, in its order."""

    block: NDArray[np.int32]
    """Index of the block in the sequence that was mapped on; -1 outside."""
    offset: NDArray[np.uint64]
    """Of the page in its block: bytes, a multiple of 4096; 0 outside."""

    @property
    def outside(self) -> NDArray[np.bool_]:
        """For each page whether it is in no block."""
        return self.block < 0


def map_regions(
    pages: NDArray[np.uint64],
    regions: Sequence[Region | tuple[int, int, str, int]],
    blocks: Sequence[Block],
    outside: str = "refuse",
    *,
    trace: Trace | None = None,
) -> PageMap:
    """Maps pages (sorted page numbers) by explicit regions.

    ``outside``: ``refuse`` pages in no region, or ``drop`` them. ``trace``: of these pages, to say
    how many accesses are outside when they are refused. Raises ``TraceError``, also for regions
    that overlap, are not aligned, or do not fit into their block.
    """
    if outside not in ("refuse", "drop"):
        raise ValueError(f"outside must be refuse or drop, not {outside!r}")
    ordered = sorted(Region(*region) for region in regions)
    _check_regions(ordered, blocks)
    index = {block.name: number for number, block in enumerate(blocks)}
    page_map = PageMap(np.full(len(pages), -1, np.int32), np.zeros(len(pages), np.uint64))
    for region in ordered:
        first, last = np.searchsorted(
            pages, np.array([region.start >> PAGE_SHIFT, region.end >> PAGE_SHIFT], np.uint64)
        )
        page_map.block[first:last] = index[region.block]
        into = (pages[first:last] - np.uint64(region.start >> PAGE_SHIFT)) << np.uint64(PAGE_SHIFT)
        page_map.offset[first:last] = into + np.uint64(region.offset)
    if outside == "refuse" and page_map.outside.any():
        raise _outside_error(pages, page_map, ordered, trace)
    return _frozen(page_map)


def map_compact(
    pages: NDArray[np.uint64],
    blocks: Sequence[Block],
    target: str | Sequence[str] | None = None,
) -> PageMap:
    """Packs pages (sorted page numbers) without gaps into the blocks, in order.

    Consecutive pages stay consecutive; a run is cut only where a block ends. ``target``: name or
    names of the blocks to use, in this order; all if None. Raises ``TraceError`` when they are too
    small.
    """
    chosen = _chosen(blocks, target)
    capacities = [blocks[index].size >> PAGE_SHIFT for index in chosen]
    if sum(capacities) < len(pages):
        raise _too_small_error(len(pages), [blocks[index] for index in chosen])
    page_map = PageMap(np.empty(len(pages), np.int32), np.empty(len(pages), np.uint64))
    start = 0
    for index, capacity in zip(chosen, capacities, strict=True):
        end = min(start + capacity, len(pages))
        page_map.block[start:end] = index
        slots = np.arange(end - start, dtype=np.uint64)
        page_map.offset[start:end] = slots << np.uint64(PAGE_SHIFT)
        start = end
    return _frozen(page_map)


def count_accesses_on(trace: Trace, pages: NDArray[np.bool_]) -> int:
    """How many entries of a trace touch one of the marked pages (a mark for each page)."""
    if not len(pages):
        return 0
    # The page after the last is never touched; its mark only keeps the index below in range.
    following = np.append(pages[1:], False)
    count = 0
    for stream in trace.streams:
        for start in range(0, stream.accesses, CHUNK):
            where = stream.where[start : start + CHUNK]
            sizes = trace.sizes[stream.what[start : start + CHUNK] >> 2]
            index = where >> 12
            over = (where & 0xFFF) + sizes > PAGE
            count += int(np.count_nonzero(pages[index] | (over & following[index])))
    return count


def _frozen(page_map: PageMap) -> PageMap:
    page_map.block.flags.writeable = False
    page_map.offset.flags.writeable = False
    return page_map


def _chosen(blocks: Sequence[Block], target: str | Sequence[str] | None) -> list[int]:
    if target is None:
        return list(range(len(blocks)))
    names = [target] if isinstance(target, str) else list(target)
    index = {block.name: number for number, block in enumerate(blocks)}
    for name in names:
        _check_name(name, index)
    if len(set(names)) != len(names):
        raise TraceError(f"map: a block is named twice as a target: {', '.join(names)}")
    return [index[name] for name in names]


def _check_name(name: str, known: dict[str, int]) -> None:
    if name not in known:
        raise TraceError(f"map: there is no block {name!r}; there are {', '.join(known) or 'none'}")


def _check_regions(ordered: list[Region], blocks: Sequence[Block]) -> None:
    index = {block.name: number for number, block in enumerate(blocks)}
    for region in ordered:
        _check_name(region.block, index)
        if not 0 <= region.start < region.end <= _ADDRESS_END or region.offset < 0:
            raise TraceError(f"map: region {_show(region)} is empty or not in 0 to 2^64")
        if region.start % PAGE or region.end % PAGE or region.offset % PAGE:
            raise TraceError(f"map: region {_show(region)} is not aligned to 4 KiB")
        block = blocks[index[region.block]]
        need = region.offset + region.end - region.start
        if need > block.size:
            raise TraceError(
                f"map: region {_show(region)} does not fit: block {block.name} has"
                f" {format_size(block.size)}",
                f"a size of {_rounded(need, block)} would do",
            )
    for one, other in pairwise(ordered):
        if other.start < one.end:
            raise TraceError(f"map: regions {_show(one)} and {_show(other)} overlap")


def _outside_error(
    pages: NDArray[np.uint64], page_map: PageMap, ordered: list[Region], trace: Trace | None
) -> TraceError:
    outside = page_map.outside
    first = int(pages[np.argmax(outside)]) << PAGE_SHIFT
    number = int(np.count_nonzero(outside))
    accesses = "" if trace is None else f"{count_accesses_on(trace, outside)} accesses to "
    return TraceError(
        f"map: {accesses}{number} of {len(pages)} pages are in no region, the first at {first:#x}"
        f" ({_nearest(first, ordered)})",
        "map them with a region, or drop them with outside: drop",
    )


def _nearest(page: int, ordered: list[Region]) -> str:
    """Where the page at that address lies, told by the nearest region."""
    if not ordered:
        return "there are no regions"

    def gap(region: Region) -> int:
        return region.start - (page + PAGE) if page < region.start else page - region.end

    region = min(ordered, key=gap)
    side = "before" if page < region.start else "behind"
    distance = format_size(gap(region)) if gap(region) else "right"
    return f"{distance} {side} the nearest region, {_show(region)}"


def _too_small_error(pages: int, blocks: list[Block]) -> TraceError:
    need = pages << PAGE_SHIFT
    have = sum(block.size for block in blocks)
    wanted = f"map: the trace has {pages} pages of 4 KiB ({format_size(need)})"
    if not blocks:
        return TraceError(f"{wanted} and there is no block for them")
    last = blocks[-1]
    enough = _rounded(last.size + need - sum(block.size & -PAGE for block in blocks), last)
    names = ", ".join(block.name for block in blocks)
    return TraceError(
        f"{wanted}, {names} only {format_size(have)}",
        f"a size of {enough} for {last.name} would do",
    )


def _rounded(size: int, block: Block) -> str:
    """Up to whole pages of the block, as a scenario writes it."""
    page_size = int(getattr(block, "page_size", PAGE))
    return format_size(-(-size // page_size) * page_size)


def _show(region: Region) -> str:
    return f"{region.start:#x}-{region.end:#x}={region.block}+{region.offset:#x}"
