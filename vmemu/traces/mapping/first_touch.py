"""Pages in the order in which they were first touched, as a guest that has just booted hands out
its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmemu.traces.mapping.pagemap import (
    PAGE_SHIFT,
    Block,
    PageMap,
    check_room,
    chosen_blocks,
    fill,
)
from vmemu.traces.mapping.touched import beyond_page
from vmemu.traces.native.trace import CHUNK, Stream, Trace
from vmemu.units import counted, format_size


@dataclass(frozen=True)
class FirstTouch:
    """Packs pages without gaps into the blocks, in the order in which the trace first touches them.

    That is by recorded time over all streams. Without times the streams are taken to advance side
    by side, each at its own pace from its first access to its last, as windows of a trace take
    them. What comes at the same moment is in the order of streams and their accesses. ``block``:
    the one to use; all if None.
    """

    kind: ClassVar[str] = "first_touch"
    block: str | None = None

    def lay(self, trace: Trace, blocks: Sequence[Block]) -> PageMap:
        """Reads all accesses of the trace. Raises ``TraceError`` when the blocks are too small."""
        chosen = chosen_blocks(blocks, self.block)
        count = len(trace.pages)
        wanted = (
            f"the trace has {counted(count, 'page')} of 4 KiB ({format_size(count << PAGE_SHIFT)})"
        )
        check_room(wanted, blocks, chosen, count)
        if not count:
            return PageMap(np.empty(0, np.int32), np.empty(0, np.uint64))
        slots = np.empty(count, np.uint64)
        slots[order_of_first_touch(trace)] = np.arange(count, dtype=np.uint64)
        return PageMap(*fill(blocks, chosen, slots))


def order_of_first_touch(trace: Trace) -> NDArray[np.intp]:
    """The indices of all pages of the dictionary, in the order in which they are first touched."""
    firsts = _Firsts(len(trace.pages), trace.meta.time_range_ns is not None)
    for number, stream in enumerate(trace.streams):
        for touches in _candidates(trace, stream):
            firsts.add(number, touches)
    return np.lexsort((firsts.position, firsts.stream, firsts.moment))


class _Touches(NamedTuple):
    """Some touches of a stream, in their order."""

    page: NDArray[np.intp]
    """Index in the dictionary."""
    moment: NDArray[Any]
    """Nanoseconds as recorded (uint64), or the share of the stream that lies before (float64)."""
    position: NDArray[np.uint64]
    """In the stream, counted in halves: an access that straddles two pages touches the second half
    a position later."""


def _candidates(trace: Trace, stream: Stream) -> Iterator[_Touches]:
    """The touches of a stream among which is the first one of each page: a few, chunk by chunk."""
    seen = np.zeros(len(trace.pages), np.bool_)
    highest = 0
    for start in range(0, stream.accesses, CHUNK):
        where = stream.where[start : start + CHUNK]
        times = None if stream.times is None else stream.times[start : start + CHUNK]
        page = where >> 12
        over = beyond_page(trace, where, stream.what[start : start + CHUNK])
        fresh, fresh_over = ~seen[page], ~seen[page[over] + 1]
        if times is not None:
            # Times may go backwards, as those of a recorder that has a buffer for each CPU do: then
            # a page that was seen before may have been touched earlier here.
            if times[0] < highest or (times[1:] < times[:-1]).any():
                fresh[:], fresh_over[:] = True, True
            highest = max(highest, int(times.max()))
        own, over = np.flatnonzero(fresh), over[fresh_over]
        index = np.append(own, over)
        pages = np.append(page[own], page[over] + 1).astype(np.intp)
        seen[pages] = True
        position = (index.astype(np.uint64) + np.uint64(start)) * np.uint64(2)
        moment = position / (2.0 * stream.accesses) if times is None else times[index]
        position[len(own) :] += np.uint64(1)
        yield _Touches(pages, moment, position)


class _Firsts:
    """For each page its earliest touch so far: moment, then stream, then position."""

    def __init__(self, pages: int, timed: bool) -> None:
        never = np.uint64((1 << 64) - 1) if timed else np.float64(np.inf)
        self.moment = np.full(pages, never)
        self.stream = np.full(pages, -1, np.int32)
        self.position = np.zeros(pages, np.uint64)

    def add(self, number: int, touches: _Touches) -> None:
        """Touches of a stream, which come after those of streams with a lower number."""
        before = touches.moment < self.moment[touches.page]
        earlier = np.flatnonzero(before | (self.stream[touches.page] < 0))
        page, moment, position = (column[earlier] for column in touches)
        order = np.lexsort((position, moment))
        pages, at = np.unique(page[order], return_index=True)
        first = order[at]
        self.moment[pages] = moment[first]
        self.stream[pages] = number
        self.position[pages] = position[first]
