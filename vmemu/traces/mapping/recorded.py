"""Where the addresses of a trace lie, before anything is laid on blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmemu.traces.mapping.pagemap import PAGE_SHIFT
from vmemu.traces.mapping.touched import touched
from vmemu.traces.native.trace import Trace
from vmemu.units import MIB, counted

GAP = 2 * MIB
"""Bytes without a page up to which two runs are one range, unless the exact ones are asked for."""
_TOLD = 4


@dataclass(frozen=True)
class RecordedRange:
    """Recorded addresses ``start`` to ``end`` (exclusive), which lie ``offset`` bytes into the
    recorded RAM ``block``, if blocks were recorded; else both are None.

    ``pages`` are those that the trace has in it, ``accesses`` those that touch it.
    """

    start: int
    end: int
    block: str | None
    offset: int | None
    pages: int
    accesses: int


def recorded_ranges(trace: Trace, gap: int = GAP) -> list[RecordedRange]:
    """The ranges of a trace by ascending address; gaps up to ``gap`` bytes are in them, 0: none.

    No range goes over the border of a recorded RAM block.
    """
    bases = trace.meta.blocks
    starts = run_starts(trace.pages, gap, [base.start for base in bases])
    if not len(starts):
        return []
    all_accesses = touched(trace, [(stream.where, stream.what) for stream in trace.streams])
    found = []
    for (start, end, pages), accesses in zip(
        _runs(trace.pages, starts), all_accesses.in_ranges(starts).tolist(), strict=True
    ):
        base = max((b for b in bases if b.start <= start), key=lambda b: b.start, default=None)
        found.append(
            RecordedRange(
                start,
                end,
                block=base.name if base else None,
                offset=start - base.start if base else None,
                pages=pages,
                accesses=accesses,
            )
        )
    return found


def run_starts(
    pages: NDArray[np.uint64], gap: int = GAP, cuts: Iterable[int] = ()
) -> NDArray[np.intp]:
    """The indices at which a range of ``pages`` (sorted numbers) begins: more than ``gap`` bytes
    behind the page before, or at one of ``cuts`` (addresses) or behind it."""
    if not len(pages):
        return np.empty(0, np.intp)
    at = np.array(sorted(cut >> PAGE_SHIFT for cut in cuts), np.uint64)
    new = np.ones(len(pages), np.bool_)
    new[1:] = np.diff(pages) > (gap >> PAGE_SHIFT) + 1
    new[1:] |= np.diff(np.searchsorted(at, pages, side="right")) != 0
    return np.flatnonzero(new)


def told(pages: NDArray[np.uint64], cuts: Sequence[int]) -> str:
    """The largest ranges of ``pages`` in a few words; ``cuts`` as in ``run_starts``."""
    runs = sorted(_runs(pages, run_starts(pages, GAP, cuts)), key=lambda run: (-run[2], run[0]))
    shown = [f"{start:#x}-{end:#x} ({counted(count, 'page')})" for start, end, count in runs]
    more = len(shown) - _TOLD
    return ", ".join(shown[:_TOLD]) + (f" and {counted(more, 'range')} more" if more > 0 else "")


def _runs(pages: NDArray[np.uint64], starts: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    """Start, end (exclusive) and number of pages of each range."""
    stops = np.append(starts[1:], len(pages))
    first, last = pages[starts].tolist(), pages[stops - 1].tolist()
    for low, high, count in zip(first, last, (stops - starts).tolist(), strict=True):
        yield low << PAGE_SHIFT, (high + 1) << PAGE_SHIFT, count
