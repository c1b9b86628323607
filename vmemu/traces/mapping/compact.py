"""Compaction that keeps the order: for recordings whose addresses say nothing about RAM, such as
those of a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vmemu.traces.mapping.pagemap import (
    PAGE,
    PAGE_SHIFT,
    Block,
    PageMap,
    check_room,
    chosen_blocks,
    fill,
)
from vmemu.traces.native.trace import Trace
from vmemu.units import counted, format_size


@dataclass(frozen=True)
class Compact:
    """Packs pages without gaps into the blocks, in the order of their addresses.

    Consecutive pages stay consecutive; a run is cut only where a block ends. ``block``: the one to
    use; all if None. ``align`` (bytes, a power of two from 4096 on): recorded regions of this size
    that have a page are packed as they are, each page at its place in its region, so that the pages
    that shared a hugepage still do.
    """

    kind: ClassVar[str] = "compact"
    block: str | None = None
    align: int = PAGE

    def __post_init__(self) -> None:
        if self.align < PAGE or self.align & (self.align - 1):
            raise ValueError(f"align must be a power of two from {PAGE} on, not {self.align}")

    def lay(self, trace: Trace, blocks: Sequence[Block]) -> PageMap:
        """Raises ``TraceError`` when the blocks are too small."""
        chosen = chosen_blocks(blocks, self.block)
        pages, shift = trace.pages, self.align.bit_length() - 1 - PAGE_SHIFT
        regions = pages >> np.uint64(shift)
        new = np.append(np.zeros(min(len(pages), 1), np.uint64), regions[1:] != regions[:-1])
        slots = np.cumsum(new, dtype=np.uint64)
        count = int(slots[-1]) + 1 if len(slots) else 0
        check_room(self._wanted(len(pages), count), blocks, chosen, count, self.align)
        if not count:
            return PageMap(np.empty(0, np.int32), np.empty(0, np.uint64))
        block, offset = fill(blocks, chosen, slots, self.align)
        offset |= (pages & np.uint64((1 << shift) - 1)) << np.uint64(PAGE_SHIFT)
        return PageMap(block, offset)

    def _wanted(self, pages: int, regions: int) -> str:
        if self.align == PAGE:
            need = format_size(pages << PAGE_SHIFT)
            return f"the trace has {counted(pages, 'page')} of 4 KiB ({need})"
        need, each = format_size(regions * self.align), format_size(self.align)
        return f"the trace has pages in {counted(regions, 'region')} of {each} ({need})"
