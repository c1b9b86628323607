"""What a trace or a recording holds, in one pass and bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vmemu.traces.figures.reuse import CurvePoint, Reuse, ReuseCollector, Window
from vmemu.traces.inputs import Input, TraceInput, open_input
from vmemu.traces.native.trace import Trace
from vmemu.traces.pageset import PageSet
from vmemu.traces.progress import Report, silent
from vmemu.traces.reader import FETCH, LOAD, MODIFY, STORE, BlockBase, Chunk

_PAGE_SHIFT = 12
_LAST_PAGE = (1 << 52) - 1


class StreamStats(NamedTuple):
    id: int
    accesses: int
    """Data accesses."""


class BlockStats(NamedTuple):
    """Of a recorded RAM block."""

    name: str
    pages_4k: int
    pages_written: int
    span_bytes: int
    """From its first page touched to the end of its last one."""


@dataclass(frozen=True)
class TraceStats:
    """Figures of the data accesses; a page is that of an access's first byte.

    ``missing`` says which of them mean nothing: with "writes" in it all accesses show as reads, and
    with "threads" in it the streams are not the threads there were.
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
    """From the lowest byte accessed to the end of the highest; of recorded RAM blocks, which lie
    anywhere, the sum of their spans."""
    straddling: int
    """Accesses that touch two 4 KiB pages."""
    threads: int
    """Streams; when ``missing`` has "threads" they say nothing about the threads there were."""
    time_range_ns: tuple[int, int] | None
    """First and last time of a data access."""
    unknown_lines: int
    missing: tuple[str, ...]

    recorded_format: str
    """Format of the recording that a native trace was made from, else the same as ``format``."""
    address_kind: str
    dropped: dict[str, int]
    """Accesses left out, by reason."""
    first_unknown: str
    truncated: bool
    reuse: Reuse | None
    """None where repeats are not recorded, and for a trace without accesses."""
    working_set: list[CurvePoint]
    windows: list[Window]
    """Empty where repeats or the order are not recorded."""
    streams: list[StreamStats]
    """Ascending by id."""
    blocks: list[BlockStats]

    def to_json(self) -> dict[str, Any]:
        """All fields under their names, as JSON has them."""
        values = {key: _plain(value) for key, value in vars(self).items()}
        values["missing"] = list(self.missing)
        return values


def stats_of(
    path: str | os.PathLike[str],
    report: Report = silent,
    *,
    trace_events: str | os.PathLike[str] | None = None,
) -> TraceStats:
    """Statistics of a native trace or a recording (``-``: standard input); or ``TraceError``.

    ``trace_events``: as in ``open_recording``.
    """
    with open_input(path, trace_events=trace_events) as accesses:
        return _stats(accesses, report)


def native_stats(trace: Trace) -> TraceStats:
    """Statistics of an open native trace."""
    return _stats(TraceInput(trace), silent)


def _stats(accesses: Input, report: Report) -> TraceStats:
    collector = Collector()
    for chunk in accesses.chunks():
        collector.add(chunk)
        report("reading", *accesses.position())
    return collector.stats(accesses)


class Collector:
    """Gathers the figures from chunks."""

    def __init__(self) -> None:
        self._kinds = np.zeros(4, np.int64)
        self._pages = PageSet()
        self._reuse = ReuseCollector()
        self._threads: set[int] = set()
        self._straddling = 0
        self._range: tuple[int, int] | None = None
        self._times: tuple[int, int] | None = None

    def add(self, chunk: Chunk) -> None:
        """Counts a chunk; its instruction fetches are left out."""
        if not len(chunk.kinds):
            return
        self._threads.add(chunk.stream)
        stream, addresses, kinds, sizes, times = _data_accesses(chunk)
        if not len(kinds):
            return
        self._kinds += np.bincount(kinds, minlength=4)
        self._pages.add(addresses, sizes, kinds)
        self._reuse.add(stream, addresses)
        last = addresses + (sizes - np.uint16(1))
        self._straddling += int(np.count_nonzero((last ^ addresses) >> np.uint64(_PAGE_SHIFT)))
        self._range = _stretched(self._range, int(addresses.min()), int(last.max()))
        if times is not None:
            self._times = _stretched(self._times, int(times.min()), int(times.max()))

    def stats(self, about: Input) -> TraceStats:
        """The figures; ``about`` has been read to its end and says the rest."""
        self._pages.sort()
        pages = self._pages.count()
        tally, missing = about.tally, about.missing
        blocks = _blocks(about.blocks, self._pages)
        lengths = self._reuse.lengths()
        repeats = "repeats" not in missing
        return TraceStats(
            format=about.format,
            accesses=int(self._kinds.sum()),
            reads=int(self._kinds[LOAD]),
            writes=int(self._kinds[STORE]),
            modifies=int(self._kinds[MODIFY]),
            instruction_fetches=tally.instruction_fetches,
            pages_4k=pages.pages,
            pages_2m=pages.huge,
            pages_written=pages.written,
            span_bytes=self._span(blocks, about.address_kind),
            straddling=self._straddling,
            threads=len(self._threads),
            time_range_ns=self._times,
            unknown_lines=tally.unknown_lines,
            missing=missing,
            recorded_format=about.source.format,
            address_kind=about.address_kind,
            dropped=tally.dropped,
            first_unknown=tally.first_unknown,
            truncated=tally.truncated,
            reuse=_known(self._reuse.reuse(pages.pages), missing) if repeats else None,
            working_set=self._reuse.curve(pages.pages),
            windows=self._reuse.windows() if repeats and "order" not in missing else [],
            streams=[StreamStats(id_, lengths.get(id_, 0)) for id_ in sorted(self._threads)],
            blocks=blocks,
        )

    def _span(self, blocks: list[BlockStats], address_kind: str) -> int:
        if address_kind == "ram-block":
            return sum(block.span_bytes for block in blocks)
        return self._range[1] + 1 - self._range[0] if self._range else 0


def _data_accesses(chunk: Chunk) -> Chunk:
    data = chunk.kinds != FETCH
    if data.all():
        return chunk
    stream, addresses, kinds, sizes, times = chunk
    times = None if times is None else times[data]
    return Chunk(stream, addresses[data], kinds[data], sizes[data], times)


def _stretched(known: tuple[int, int] | None, low: int, high: int) -> tuple[int, int]:
    return (low, high) if known is None else (min(known[0], low), max(known[1], high))


def _known(reuse: Reuse | None, missing: Iterable[str]) -> Reuse | None:
    """Without what depends on the order of accesses, if that is not recorded."""
    return reuse._replace(time=None) if reuse and "order" in missing else reuse


def _blocks(bases: tuple[BlockBase, ...], pages: PageSet) -> list[BlockStats]:
    ordered = sorted(bases, key=lambda base: base.start)
    starts = [base.start >> _PAGE_SHIFT for base in ordered]
    ends = [*(start - 1 for start in starts), _LAST_PAGE][1:]
    found = []
    for base, first, last in zip(ordered, starts, ends, strict=True):
        counts = pages.count(first, last)
        span = (counts.last + 1 - counts.first) << _PAGE_SHIFT if counts.pages else 0
        found.append(BlockStats(base.name, counts.pages, counts.written, span))
    return found


def _plain(value: Any) -> Any:
    """Tuples with names as objects, all the way down."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
