"""The checks that let C replay a trace without looking twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.native import npy
from vmemu.traces.native.trace import Stream, Trace
from vmemu.traces.reader import FETCH, LOAD, MODIFY, STORE
from vmemu.units import counted

SMALL_DICTIONARY = 1 << 20
"""Pages; up to so many, an index and an offset fit into 32 bits."""

_CHUNK = 1 << 18
_PAGE = 4096


def where_dtype(pages: int) -> np.dtype[np.uint32] | np.dtype[np.uint64]:
    """Type of the ``where`` columns of a trace with so many pages."""
    return np.dtype("<u4") if pages <= SMALL_DICTIONARY else np.dtype("<u8")


def check_columns(trace: Trace) -> None:
    """Raises ``TraceError`` unless all columns keep what the format promises."""
    _check_dictionary(trace)
    dtype = where_dtype(len(trace.pages))
    whats = np.zeros(256, np.int64)
    straddling = 0
    for stream, entry in zip(trace.streams, trace.meta.streams, strict=True):
        lengths = (len(stream.where), len(stream.what))
        if lengths != (entry.accesses, entry.accesses):
            raise _wrong(
                trace,
                f"stream {stream.id} has columns of {lengths[0]} and {lengths[1]} values,"
                f" meta.json says {entry.accesses}",
            )
        if stream.where.dtype != dtype:
            raise _wrong(trace, f"{stream.id}.where.npy must be {dtype.str} for so many pages")
        if stream.times is not None:
            _check_times(trace, stream)
        for start in range(0, len(stream.what), _CHUNK):
            whats += np.bincount(stream.what[start : start + _CHUNK], minlength=256)
            straddling += _check_chunk(trace, stream, start)
            npy.forget(stream.where)
            npy.forget(stream.what)
    _check_counts(trace, whats, straddling)


def _check_dictionary(trace: Trace) -> None:
    pages = trace.pages
    if len(pages) != trace.meta.pages:
        raise _wrong(
            trace, f"pages.npy has {counted(len(pages), 'page')}, meta.json says {trace.meta.pages}"
        )
    for start in range(0, len(pages), _CHUNK):
        piece = pages[start : start + _CHUNK + 1]
        if not bool((piece[1:] > piece[:-1]).all()):
            raise _wrong(trace, "pages.npy is not sorted, or has a page twice")
        npy.forget(pages)
    if len(pages) and int(pages[-1]) >> 52:
        raise _wrong(trace, "pages.npy has a page beyond the 64-bit address space")


def _check_times(trace: Trace, stream: Stream) -> None:
    times = stream.times
    assert times is not None
    assert trace.meta.time_range_ns is not None
    if len(times) != len(stream.what):
        raise _wrong(
            trace, f"{stream.id}.time.npy has {counted(len(times), 'value')}, not one an access"
        )
    first, last = trace.meta.time_range_ns
    for start in range(0, len(times), _CHUNK):
        piece = times[start : start + _CHUNK]
        if int(piece.min()) < first or int(piece.max()) > last:
            raise _wrong(trace, f"{stream.id}.time.npy has times outside of time_range_ns")
        npy.forget(times)


def _check_chunk(trace: Trace, stream: Stream, start: int) -> int:
    """Checks the indices of one chunk; returns how many data accesses straddle two pages."""
    pages, sizes, known = trace.pages, trace.sizes, len(trace.meta.sizes)
    where = stream.where[start : start + _CHUNK]
    what = stream.what[start : start + _CHUNK]
    if int(where.max()) >> 12 >= len(pages):
        at = start + int(np.argmax(where >> 12 >= len(pages)))
        raise _wrong(trace, f"{stream.id}.where.npy: access {at} is on a page not in pages.npy")
    if int(what.max()) >> 2 >= known:
        at = start + int(np.argmax(what >> 2 >= known))
        raise _wrong(trace, f"{stream.id}.what.npy: access {at} has a size not in meta.json")

    # Few accesses are near enough to the end of their page to look at their sizes.
    near = np.flatnonzero((where & 0xFFF) > _PAGE - int(sizes.max()))
    over = near[(where[near] & 0xFFF) + sizes[what[near] >> 2] > _PAGE]
    index = (where[over] >> 12).astype(np.int64)
    last = len(pages) - 1
    lost = (index == last) | (pages[np.minimum(index + 1, last)] != pages[index] + np.uint64(1))
    if lost.any():
        at = start + int(over[np.argmax(lost)])
        raise _wrong(
            trace, f"{stream.id}.where.npy: access {at} goes on in a page that is not in pages.npy"
        )
    return int(np.count_nonzero(what[over] & 3 != FETCH))


def _check_counts(trace: Trace, whats: NDArray[np.int64], over: int) -> None:
    counts = trace.meta.counts
    kinds = [int(whats[kind::4].sum()) for kind in range(4)]
    found = {
        "accesses": kinds[LOAD] + kinds[STORE] + kinds[MODIFY],
        "reads": kinds[LOAD],
        "writes": kinds[STORE],
        "modifies": kinds[MODIFY],
        "straddling": over,
    }
    if trace.meta.fetches:
        found["instruction_fetches"] = kinds[FETCH]
    elif kinds[FETCH]:
        raise _wrong(trace, "the columns hold instruction fetches, meta.json says that they don't")
    for key, value in found.items():
        if getattr(counts, key) != value:
            raise _wrong(
                trace, f"the columns hold {value} {key}, meta.json says {getattr(counts, key)}"
            )


def _wrong(trace: Trace, what: str) -> TraceError:
    return TraceError(f"{trace.name}: {what}")
