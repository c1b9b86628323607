"""Regions of memory that were accessed in an interval, as touches of their pages.

A recorder of regions samples one page of each and says that the region was accessed; which of its
pages were is not known. So each is touched once an interval, in the order of addresses: what was
accessed is among them, and so may be pages that were not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.reader import LOAD, Chunk

MOST_PAGES = 1 << 24
"""Pages of 4 KiB in one accessed region (64 GiB)."""
MOST_TOUCHES = 1 << 30
"""Touches of pages in a recording: a few bytes of it can stand for any number of them."""

MISSING = ("threads", "order", "sizes", "writes", "repeats", "pages", "instruction_fetches")
"""What no recorder of regions can say."""

_CHUNK = 1 << 18
_REMEDY = "record smaller regions, with damo's --monitoring_nr_regions_range or --regions"


class RegionTouches:
    """Turns the regions of one recording, ``name``, into chunks, in bounded memory."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._touches = 0

    def chunks(
        self,
        stream: int,
        starts: NDArray[np.uint64],
        ends: NDArray[np.uint64],
        times: NDArray[np.uint64],
    ) -> Iterator[Chunk]:
        """A load in each page of regions [start, end) of one stream, each region at its time (ns).

        Raises ``TraceError`` when a region, or all of them, have more pages than can be meant.
        """
        sound = ends > starts
        starts, ends, times = starts[sound], ends[sound], times[sound]
        first = starts >> np.uint64(12)
        counts = ((ends - np.uint64(1)) >> np.uint64(12)) - first + np.uint64(1)
        self._refuse_absurd(starts, ends, counts)
        behind = np.cumsum(counts, dtype=np.uint64)
        total = int(behind[-1]) if len(behind) else 0
        for low in range(0, total, _CHUNK):
            touch = np.arange(low, min(low + _CHUNK, total), dtype=np.uint64)
            region = np.searchsorted(behind, touch, side="right")
            page = first[region] + (touch - (behind[region] - counts[region]))
            addresses = np.maximum(page << np.uint64(12), starts[region])
            kinds = np.full(len(touch), LOAD, np.uint8)
            yield Chunk(stream, addresses, kinds, np.ones(len(touch), np.uint16), times[region])

    def _refuse_absurd(
        self, starts: NDArray[np.uint64], ends: NDArray[np.uint64], counts: NDArray[np.uint64]
    ) -> None:
        large = np.flatnonzero(counts > MOST_PAGES)
        if len(large):
            start, end = int(starts[large[0]]), int(ends[large[0]])
            raise TraceError(
                f"{self._name}: an accessed region, {start:#x} to {end:#x}, has"
                f" {(end - start) >> 30} GiB: at most {MOST_PAGES >> 18} GiB can be touched",
                _REMEDY,
            )
        self._touches += int(counts.sum(dtype=np.uint64))
        if self._touches > MOST_TOUCHES:
            raise TraceError(
                f"{self._name}: its accessed regions have more than {MOST_TOUCHES:,} pages in all",
                _REMEDY,
            )


class StreamNumbers:
    """Streams in the order in which their names, of any kind, are first seen."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}

    def of(self, name: object) -> int:
        return self._numbers.setdefault(name, len(self._numbers))


def address_kind_of(highest: int) -> str:
    """``virtual`` if the end of the highest region tells, else ``unknown``.

    What DAMON watches is not said where it is recorded. A process has its stack and its mappings
    at the top of a 47-bit address space, and no machine has memory there.
    """
    return "virtual" if highest > 1 << 46 else "unknown"
