"""Page number modulo the pages of the blocks: any trace fits any memory, as a cache sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vmemu.traces.mapping.pagemap import (
    PAGE_SHIFT,
    Block,
    PageMap,
    check_room,
    chosen_blocks,
    fill,
)
from vmemu.traces.native.trace import Trace
from vmemu.traces.samememory import same_memory
from vmemu.units import counted


@dataclass(frozen=True)
class Modulo:
    """Lays a page on the one of the blocks' pages that its number modulo their count names.

    The blocks lie one behind the other, in their order. ``block``: the one to use; all if None.
    Several recorded pages may lie on one: ``PageMap.merged`` counts them.
    """

    kind: ClassVar[str] = "modulo"
    block: str | None = None

    def lay(self, trace: Trace, blocks: Sequence[Block]) -> PageMap:
        """Raises ``TraceError`` when the blocks have no page."""
        chosen = chosen_blocks(blocks, self.block)
        if not len(trace.pages):
            return PageMap(np.empty(0, np.int32), np.empty(0, np.uint64))
        check_room(f"the trace has {counted(len(trace.pages), 'page')}", blocks, chosen, 1)
        slots = sum(blocks[index].size >> PAGE_SHIFT for index in chosen)
        block, offset = fill(blocks, chosen, trace.pages % np.uint64(slots))
        return PageMap(block, offset, same_memory(block, offset))
