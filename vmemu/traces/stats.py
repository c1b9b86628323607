"""What a trace or a recording holds, in one pass and bounded memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu.traces import native
from vmemu.traces.pageset import PageSet
from vmemu.traces.reader import FETCH, LOAD, MODIFY, STORE, Chunk
from vmemu.traces.recordings import open_recording
from vmemu.traces.trace import Trace

NATIVE_FORMAT = "vmtrace"


@dataclass(frozen=True)
class TraceStats:
    """Figures of the data accesses; a page is that of an access's first byte.

    ``to_json`` has the keys that other programs may rely on; the rest is for people.
    """

    format: str
    accesses: int
    """Data accesses; a modify counts once."""
    reads: int
    writes: int
    modifies: int
    instruction_fetches: int
    pages_4k: int
    pages_2m: int
    pages_written: int
    """4 KiB pages with a store or a modify."""
    span_bytes: int
    """From the lowest byte accessed to the end of the highest."""
    straddling: int
    """Accesses that touch two 4 KiB pages."""
    threads: int
    """Streams; when ``missing`` has "threads" they say nothing about the threads there were."""
    time_range_ns: tuple[int, int] | None
    unknown_lines: int
    missing: tuple[str, ...]

    source: str
    """Format of the recording that a native trace was made from, else the same as ``format``."""
    address_kind: str
    dropped: dict[str, int]
    first_unknown: str
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        """The stable keys."""
        keys = (
            "format accesses reads writes modifies instruction_fetches pages_4k pages_2m"
            " pages_written span_bytes straddling threads time_range_ns unknown_lines missing"
            " address_kind dropped"
        )
        values = {key: getattr(self, key) for key in keys.split()}
        values["recorded_format"] = self.source
        values["missing"] = list(self.missing)
        values["time_range_ns"] = None if self.time_range_ns is None else list(self.time_range_ns)
        return values


def stats_of(path: str | os.PathLike[str]) -> TraceStats:
    """Statistics of a native trace or a recording (``-``: standard input); or ``TraceError``."""
    if os.fspath(path) != "-" and native.is_native(path):
        return native_stats(native.open(path))
    collector = Collector()
    with open_recording(path) as reader:
        for chunk in reader.chunks():
            collector.add(chunk)
        tally = reader.tally
        return collector.stats(
            format=reader.format,
            source=reader.format,
            instruction_fetches=tally.instruction_fetches,
            unknown_lines=tally.unknown_lines,
            missing=reader.missing,
            address_kind=reader.address_kind,
            dropped=tally.dropped,
            first_unknown=tally.first_unknown,
            truncated=tally.truncated,
        )


def native_stats(trace: Trace) -> TraceStats:
    """Statistics of an open native trace."""
    collector = Collector()
    for chunk in trace.chunks():
        collector.add(chunk)
    meta = trace.meta
    return collector.stats(
        format=NATIVE_FORMAT,
        source=meta.source.format,
        instruction_fetches=meta.counts.instruction_fetches,
        unknown_lines=meta.counts.unknown_lines,
        missing=meta.missing,
        address_kind=meta.address_kind,
        dropped=meta.counts.dropped,
        first_unknown="",
        truncated=meta.truncated,
    )


class Collector:
    """Gathers the figures from chunks."""

    def __init__(self) -> None:
        self._kinds = np.zeros(4, np.int64)
        self._pages = PageSet()
        self._written = PageSet()
        self._threads: set[int] = set()
        self._straddling = 0
        self._lowest = -1
        self._highest = -1

    def add(self, chunk: Chunk) -> None:
        """Counts a chunk; its instruction fetches are left out."""
        if not len(chunk.kinds):
            return
        self._threads.add(chunk.stream)
        kinds, addresses, sizes = chunk.kinds, chunk.addresses, chunk.sizes
        data = kinds != FETCH
        if not data.all():
            kinds, addresses, sizes = kinds[data], addresses[data], sizes[data]
        if not len(kinds):
            return
        self._kinds += np.bincount(kinds, minlength=4)
        pages = addresses >> np.uint64(12)
        self._pages.add(pages)
        self._written.add(pages[kinds != LOAD])
        last = addresses + (sizes - np.uint16(1))
        self._straddling += int(np.count_nonzero(last >> np.uint64(12) != pages))
        self._stretch(int(addresses.min()), int(last.max()))

    def _stretch(self, lowest: int, highest: int) -> None:
        self._lowest = lowest if self._lowest < 0 else min(self._lowest, lowest)
        self._highest = max(self._highest, highest)

    def stats(self, **rest: Any) -> TraceStats:
        """The figures; ``rest`` are the fields of ``TraceStats`` that accesses don't tell."""
        pages: NDArray[np.uint64] = self._pages.pages()
        return TraceStats(
            accesses=int(self._kinds.sum()),
            reads=int(self._kinds[LOAD]),
            writes=int(self._kinds[STORE]),
            modifies=int(self._kinds[MODIFY]),
            pages_4k=len(pages),
            pages_2m=len(np.unique(pages >> np.uint64(9))),
            pages_written=len(self._written.pages()),
            span_bytes=self._highest + 1 - self._lowest if self._lowest >= 0 else 0,
            straddling=self._straddling,
            threads=len(self._threads),
            time_range_ns=None,
            **rest,
        )
