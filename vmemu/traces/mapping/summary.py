"""A mapping as people want to see it: ranges of recorded addresses, and what is touched of each
block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu.traces.mapping.pagemap import PAGE, PAGE_SHIFT, Block, PageMap
from vmemu.traces.mapping.touched import Touched
from vmemu.traces.native.trace import Trace


@dataclass(frozen=True)
class Range:
    """Recorded addresses ``start`` to ``end`` (exclusive) lie in ``block`` from ``offset`` on.

    ``block`` and ``offset`` are None outside. ``pages`` are those that the trace has in it, which
    may be fewer than it spans; ``accesses`` are those that touch it.
    """

    start: int
    end: int
    block: str | None
    offset: int | None
    pages: int
    accesses: int


@dataclass(frozen=True)
class BlockUse:
    """What the accesses touch of a block; sizes in bytes."""

    name: str
    size: int
    page_size: int
    touched_bytes: int
    """Of pages of 4 KiB."""
    host_pages: int
    host_pages_touched: int
    accesses: int


class Summary:
    """The mapping of a trace on blocks, and what some of its accesses touch."""

    def __init__(
        self, trace: Trace, page_map: PageMap, blocks: Sequence[Block], accesses: Touched
    ) -> None:
        self._trace, self._map, self._blocks, self._touched = trace, page_map, blocks, accesses
        self._starts = _range_starts(trace.pages, page_map)

    @property
    def pages(self) -> int:
        """Pages that the trace has."""
        return len(self._trace.pages)

    @property
    def pages_touched(self) -> int:
        """Pages that the accesses touch."""
        return int(np.count_nonzero(self._touched.pages))

    @property
    def merged(self) -> int:
        """Pages that lie on memory where another one lies already."""
        return self._map.merged

    @property
    def pages_outside(self) -> int:
        """Pages in no block."""
        return int(np.count_nonzero(self._map.outside))

    @property
    def accesses_outside(self) -> int:
        """Accesses that touch a page in no block."""
        return self._touched.on(self._map.outside)

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._starts)

    def ranges(self, most: int | None = None) -> Iterator[Range]:
        """The ranges by ascending address, or the first ``most`` of them."""
        if not len(self._starts):
            return
        accesses = self._touched.in_ranges(self._starts)
        bounds = [*self._starts[: len(self) if most is None else most + 1].tolist(), self.pages]
        for number, (first, behind) in enumerate(pairwise(bounds)):
            if number == most:
                return
            index = int(self._map.block[first])
            yield Range(
                start=int(self._trace.pages[first]) << PAGE_SHIFT,
                end=(int(self._trace.pages[behind - 1]) + 1) << PAGE_SHIFT,
                block=self._blocks[index].name if index >= 0 else None,
                offset=int(self._map.offset[first]) if index >= 0 else None,
                pages=behind - first,
                accesses=int(accesses[number]),
            )

    def blocks(self) -> list[BlockUse]:
        """What is touched of each block."""
        return [self._use(index, block) for index, block in enumerate(self._blocks)]

    def _use(self, index: int, block: Block) -> BlockUse:
        page_size = int(getattr(block, "page_size", PAGE))
        here = self._map.block == index
        offsets = self._map.offset[here & self._touched.pages]
        return BlockUse(
            name=block.name,
            size=block.size,
            page_size=page_size,
            touched_bytes=len(np.unique(offsets)) << PAGE_SHIFT,
            host_pages=block.size // page_size,
            host_pages_touched=len(np.unique(offsets // np.uint64(page_size))),
            accesses=self._touched.on(here),
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data; sizes in bytes."""
        return {
            "pages": self.pages,
            "pages_touched": self.pages_touched,
            "outside": {"pages": self.pages_outside, "accesses": self.accesses_outside},
            "merged_pages": self.merged,
            "blocks": [asdict(use) for use in self.blocks()],
            "ranges": [asdict(one) for one in self.ranges()],
        }


def _range_starts(pages: NDArray[np.uint64], page_map: PageMap) -> NDArray[np.intp]:
    """The indices at which the pages stop to lie in step with their addresses."""
    if not len(pages):
        return np.empty(0, np.intp)
    step = pages - (page_map.offset >> np.uint64(PAGE_SHIFT))
    step[page_map.outside] = 0
    new = np.ones(len(pages), np.bool_)
    new[1:] = (np.diff(step) != 0) | (np.diff(page_map.block) != 0)
    return np.flatnonzero(new)
