"""A trace in memory: a page dictionary and the columns of its streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmemu.traces.native import npy
from vmemu.traces.native.meta import Meta
from vmemu.traces.reader import Chunk

CHUNK = 1 << 18
"""Accesses that are looked at together; bounds memory and keeps the columns in the cache."""

_MANY_PAGES = 1 << 22


@dataclass(frozen=True)
class Stream:
    """What one thread or vCPU did, in order: read-only columns of the same length."""

    id: int
    where: NDArray[np.uint32] | NDArray[np.uint64]
    what: NDArray[np.uint8]
    times: NDArray[np.uint64] | None = None
    """Nanoseconds as recorded; None in all streams of a trace without times."""

    @property
    def accesses(self) -> int:
        return len(self.what)


@dataclass(frozen=True)
class Trace:
    """A checked trace. The arrays are read-only, mapped from the files or, if packed, in memory."""

    name: str
    """The path it was opened by."""
    meta: Meta
    pages: NDArray[np.uint64]
    sizes: NDArray[np.uint16]
    """Bytes. Always 64 entries, as many as ``what`` can index; those behind the table are 0."""
    streams: list[Stream]

    @property
    def accesses(self) -> int:
        """Entries in all columns: data accesses, and instruction fetches where they are held."""
        return sum(stream.accesses for stream in self.streams)

    def chunks(self) -> Iterator[Chunk]:
        """All accesses with their addresses again, stream by stream, in bounded memory."""
        for stream in self.streams:
            for start in range(0, stream.accesses, CHUNK):
                where = stream.where[start : start + CHUNK]
                what = stream.what[start : start + CHUNK]
                addresses = self.pages[where >> 12] << np.uint64(12) | (where & 0xFFF)
                all_times = stream.times
                times = None if all_times is None else all_times[start : start + CHUNK]
                yield Chunk(stream.id, addresses, what & np.uint8(3), self.sizes[what >> 2], times)
                self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        for column in (stream.where, stream.what, stream.times):
            if column is not None:
                npy.forget(column)
        if len(self.pages) > _MANY_PAGES:
            npy.forget(self.pages)
