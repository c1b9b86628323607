"""How the pages of a trace are used again, and how many of them are in use at a time.

All of it is counted within each stream, whose order is recorded: what one thread did between two
accesses of another is not always known, and a native trace does not keep it. Memory is bounded: of
more than 262,144 pages only some are watched, chosen by a hash of their number (``_core/reuse.h``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.core import ffi, lib
from vmemu.errors import TraceError

WATCHED = 1 << 18
CURVE_PERCENTS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)

_PAGE_BITS = np.uint64(52)
_ENTRY = np.dtype([("key", "<u8"), ("first", "<u8"), ("last", "<u8"), ("count", "<u8")])


class AccessesPerPage(NamedTuple):
    mean: float
    median: float
    max: int


class ReuseTime(NamedTuple):
    """Accesses of the same stream from one access of a page to its next, that one included: 1 is
    the very next. Exact up to 127, behind that within 1 %."""

    p50: int
    p90: int
    p99: int


class Reuse(NamedTuple):
    """``pages_per_watched``: 1 when all pages were watched and all figures are exact; else each
    page that was watched stands for so many, and the figures are estimates."""

    accesses_per_page: AccessesPerPage
    pages_touched_once: float
    """Share of the pages."""
    accesses_to_known_pages: float
    """Share of the accesses that touch a page which was touched before."""
    time: ReuseTime | None
    """None when no page is touched again by the same stream."""
    pages_per_watched: int


class CurvePoint(NamedTuple):
    """Pages touched in the first ``percent`` of the accesses of each stream."""

    percent: int
    pages: int


class Window(NamedTuple):
    """Denning's mean working set: the pages touched in the last ``accesses`` of a stream, averaged
    over all its moments, and over the streams by their length."""

    accesses: int
    mean_pages: float


class ReuseCollector:
    """Gathers the figures from the accesses of each stream, in their order."""

    def __init__(self, watched: int = WATCHED) -> None:
        """``watched``: pages of streams at once, at least 8192."""
        self._reuse = core.owned(lib.vm_reuse_create(watched), lib.vm_reuse_destroy)
        self._numbers: dict[int, int] = {}

    def add(self, stream: int, addresses: NDArray[np.uint64]) -> None:
        """The next accesses of a stream. Raises ``TraceError`` when there are too many of them."""
        most = len(self._reuse.length)
        if stream not in self._numbers and len(self._numbers) == most:
            raise TraceError(f"more than {most} threads or vCPUs", "record fewer of them at once")
        number = self._numbers.setdefault(stream, len(self._numbers))
        with ffi.from_buffer("uint64_t[]", np.ascontiguousarray(addresses)) as raw:
            lib.vm_reuse_add(self._reuse, number, raw, len(addresses))

    def lengths(self) -> dict[int, int]:
        """Accesses of each stream."""
        return {stream: int(self._reuse.length[number]) for stream, number in self._numbers.items()}

    def reuse(self, pages: int) -> Reuse | None:
        """``pages``: how many there are. None without accesses."""
        entries = self._entries()
        if not len(entries):
            return None
        accesses = sum(self.lengths().values())
        counts = _by_page(entries, np.add, entries["count"])
        return Reuse(
            AccessesPerPage(accesses / pages, float(np.median(counts)), int(counts.max())),
            float(np.count_nonzero(counts == 1) / len(counts)),
            1 - pages / accesses,
            self._time(),
            int(self._reuse.weight),
        )

    def curve(self, pages: int) -> list[CurvePoint]:
        """How the number of pages grows, of ``pages`` in the end."""
        entries = self._entries()
        if not len(entries):
            return []
        reached = (entries["first"] * np.uint64(100)) // self._lengths_of(entries)
        percents = _by_page(entries, np.minimum, reached)
        shares = [
            np.count_nonzero(percents < percent) / len(percents) for percent in CURVE_PERCENTS
        ]
        return [
            CurvePoint(percent, round(float(share) * pages))
            for percent, share in zip(CURVE_PERCENTS, shares, strict=True)
        ]

    def windows(self) -> list[Window]:
        """The mean working set for windows of 1,000 accesses and more, up to the longest stream."""
        entries = self._entries()
        lengths = self.lengths().values()
        remaining = self._lengths_of(entries) - entries["last"]
        result = []
        for index in range(lib.VM_REUSE_WINDOWS):
            window = lib.VM_REUSE_FIRST_WINDOW * 10**index
            if window > max(lengths, default=0):
                break
            # A page is in the working set from each access until its next, for a window at most.
            at_end = np.minimum(remaining, np.uint64(window)).sum() * self._reuse.weight
            covered = float(self._reuse.covered[index]) + float(at_end)
            result.append(Window(window, covered / sum(lengths)))
        return result

    def _entries(self) -> NDArray[Any]:
        raw = ffi.buffer(self._reuse.entries, int(self._reuse.count) * _ENTRY.itemsize)
        return np.frombuffer(raw, _ENTRY)

    def _lengths_of(self, entries: NDArray[Any]) -> NDArray[np.uint64]:
        lengths = np.frombuffer(ffi.buffer(self._reuse.length), np.uint64)
        result: NDArray[np.uint64] = lengths[entries["key"] >> _PAGE_BITS]
        return result

    def _time(self) -> ReuseTime | None:
        times = np.frombuffer(ffi.buffer(self._reuse.times), np.float64)
        below = np.cumsum(times)
        if not below[-1]:
            return None
        at = [int(np.searchsorted(below, below[-1] * share)) for share in (0.5, 0.9, 0.99)]
        return ReuseTime(*map(_middle, at))


def _by_page(entries: NDArray[Any], gather: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
    """``values`` of the entries of each page (one a stream) as one."""
    pages = entries["key"] & np.uint64((1 << 52) - 1)
    order = np.argsort(pages, kind="stable")
    ordered = pages[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    result: NDArray[Any] = gather.reduceat(values[order], starts)
    return result


def _middle(bucket: int) -> int:
    """The time in the middle of a bucket of ``vm_reuse_bucket``."""
    steps = lib.VM_REUSE_STEPS
    if bucket < 2 * steps:
        return bucket
    shift = bucket // steps - 1
    return int((bucket - shift * steps << shift) + (1 << shift) // 2)
