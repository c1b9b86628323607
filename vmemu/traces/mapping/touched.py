"""What the accesses of a trace touch: counted page by page, or on a chosen set of pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmemu.traces.mapping.pagemap import PAGE
from vmemu.traces.native.trace import CHUNK, Stream, Trace

Columns = tuple[NDArray[np.uint32] | NDArray[np.uint64], NDArray[np.uint8]]
"""``where`` and ``what`` of accesses, as in ``Stream``."""


@dataclass(frozen=True)
class Touched:
    """Accesses page by page: those that begin in it, and those that come over from the one before.

    Both are needed to count an access once that touches two pages of the same range.
    """

    begin: NDArray[np.int64]
    over: NDArray[np.int64]

    @property
    def pages(self) -> NDArray[np.bool_]:
        """Which pages are touched at all."""
        return (self.begin + self.over) > 0

    def on(self, chosen: NDArray[np.bool_]) -> int:
        """How many accesses touch a chosen page (a mark for each)."""
        before = np.append(np.zeros(min(len(chosen), 1), np.bool_), chosen[:-1])
        return int(self.begin[chosen].sum() + self.over[chosen & ~before].sum())

    def in_ranges(self, starts: NDArray[np.intp]) -> NDArray[np.int64]:
        """How many accesses touch each range of pages; they begin at ``starts``, the first at 0,
        and each ends where the next begins."""
        return np.add.reduceat(self.begin, starts) + self.over[starts]


def touched(trace: Trace, parts: Iterable[Columns]) -> Touched:
    """What some accesses of a trace touch, a few at a time."""
    pages = len(trace.pages)
    begin, over = np.zeros(pages, np.int64), np.zeros(pages, np.int64)
    # Each count goes over all pages: not less at once than there are of them.
    at_once = max(CHUNK, pages)
    for all_where, all_what in parts:
        for start in range(0, len(all_what), at_once):
            where = all_where[start : start + at_once]
            index = (where >> 12).astype(np.intp)
            begin += np.bincount(index, minlength=pages)
            beyond = beyond_page(trace, where, all_what[start : start + at_once])
            over += np.bincount(index[beyond] + 1, minlength=pages)
    return Touched(begin, over)


def count_accesses_on(trace: Trace, pages: NDArray[np.bool_]) -> int:
    """How many entries of a trace touch one of the marked pages (a mark for each page)."""
    if not len(pages):
        return 0
    # The page after the last is never touched; its mark only keeps the index below in range.
    following = np.append(pages[1:], False)
    count = 0
    for where, what in _chunks(trace.streams):
        index = where >> 12
        hit = pages[index]
        beyond = beyond_page(trace, where, what)
        hit[beyond] |= following[index[beyond]]
        count += int(np.count_nonzero(hit))
    return count


def _chunks(streams: Iterable[Stream]) -> Iterator[Columns]:
    for stream in streams:
        for start in range(0, stream.accesses, CHUNK):
            yield stream.where[start : start + CHUNK], stream.what[start : start + CHUNK]


def beyond_page(
    trace: Trace,
    where: NDArray[np.uint32] | NDArray[np.uint64],
    what: NDArray[np.uint8],
) -> NDArray[np.intp]:
    """Which accesses go on in the next page."""
    offset = where & 0xFFF
    # Few are near enough to the end of their page to look at their sizes.
    near = np.flatnonzero(offset > PAGE - int(trace.sizes.max()))
    over: NDArray[np.intp] = near[offset[near] + trace.sizes[what[near] >> 2] > PAGE]
    return over
