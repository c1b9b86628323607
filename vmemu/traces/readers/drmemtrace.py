"""Reader of DynamoRIO's drmemtrace traces.

Packed little-endian entries, of 12 bytes, or of 8 where a 32-bit process was traced::

    byte  0  u16  type
    byte  2  u16  size: of the access or the instruction; of a marker, which one it is
    byte  4  u64  address, thread, or the marker's value (u32 in entries of 8 bytes)

The first entry is the header with the version of the format. An entry of type 22 says whose the
entries behind it are. Timestamp markers stand where the recorder began a new buffer and around
system calls, so that an access has the time of the last one before it, and not its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream, open_stream
from vmemu.traces.reader import (
    FETCH,
    LOAD,
    MAX_ACCESS_SIZE,
    STORE,
    Chunk,
    Reader,
    by_stream,
)

WIDE = np.dtype([("type", "<u2"), ("size", "<u2"), ("value", "<u8")])
NARROW = np.dtype([("type", "<u2"), ("size", "<u2"), ("value", "<u4")])

_THREAD, _HEADER, _MARKER = 22, 25, 28
_TYPES = 50
_FETCHES = (10, 11, 12, 13, 14, 15, 16, 31, 48, 49)
"""Instructions: by what they branch to, sysenter, and conditional jumps taken or not. Not 29, a
further round of a repeated instruction that is not fetched again."""
_ONLINE_ONLY = (17, 30)
"""What a tracer sends to a simulator beside it, and no file holds."""

_TIMESTAMP, _FILETYPE = 2, 9
_KERNEL_BEGINS, _KERNEL_ENDS = (27, 34), (28, 35)
"""Markers around a system call's or a context switch's trace of the kernel."""

_INSTRUCTIONS_ONLY, _FILTERED, _CORE_SHARDED = 0x4, 0x1 | 0x80 | 0x100, 0x10000

_MAX_VERSION = 255
_SNIFFED_ENTRIES = 512
_ENTRIES_A_CHUNK = 1 << 18
_UNIX_EPOCH_US = 11_644_473_600 * 1_000_000
"""Timestamps count from 1601."""
_MAX_STAMP = np.uint64((1 << 63) // 1000 + _UNIX_EPOCH_US)
_NO_MARKER = np.uint16(0xFFFF)

_OTHER, _UNKNOWN, _CONTROL = 4, 5, 6
"""What an entry may be beside an access's kind: nothing for a replay, unknown, or about others."""

_Entries = NDArray[np.void]


def _meanings() -> NDArray[np.uint8]:
    table = np.full(1 << 16, _UNKNOWN, np.uint8)
    table[:_TYPES] = _OTHER
    table[list(_ONLINE_ONLY)] = _UNKNOWN
    table[0], table[1] = LOAD, STORE
    table[list(_FETCHES)] = FETCH
    table[[_THREAD, _MARKER]] = _CONTROL
    return table


_MEANING = _meanings()


class Facts(NamedTuple):
    """What the beginning of a file tells of it."""

    wide: bool
    """Whether its values have 64 bits."""
    filetype: int
    first_time: int | None
    """Nanoseconds, of the first timestamp if it stands before all accesses."""

    @property
    def by_core(self) -> bool:
        """Whether the trace was cut into cores, each with the threads that ran on it."""
        return bool(self.filetype & _CORE_SHARDED)

    @property
    def timed(self) -> bool:
        # The timestamps of 32 bits wrap, and on a core those of several threads are mixed.
        return self.wide and self.first_time is not None and not self.by_core


class DrmemtraceReader(Reader):
    """One stream a thread; in a trace that was cut into cores, one stream a core."""

    format = "drmemtrace"
    title = "DynamoRIO drmemtrace"
    address_kind = "virtual"
    missing: tuple[str, ...] = ("exact_times", "modifies")

    def __init__(
        self,
        stream: ByteStream,
        *,
        fetches: bool = False,
        further: Sequence[Path] = (),
        timed: bool = True,
    ) -> None:
        """``further``: files of the same trace, read after the first. ``timed``: all have times."""
        super().__init__(stream, fetches=fetches)
        facts = facts_of(self._head())
        self._further = tuple(further)
        self._refuse_instructions_only(facts)
        self._timed = timed and facts.timed
        self._by_core = facts.by_core
        self.missing = ("exact_times" if self._timed else "times", "modifies")
        if facts.filetype & _FILTERED:
            self.missing += ("cached",)
        self._entries = 0

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        if len(head) < 2 * NARROW.itemsize:
            return False
        entries = _head_entries(head)
        types, header = entries["type"], entries[0]
        return bool(
            header["type"] == _HEADER
            and header["size"] == 0
            and 1 <= header["value"] <= _MAX_VERSION
            and len(entries) > 1
            and types[1] in (_THREAD, _MARKER)
            and (_MEANING[types] != _UNKNOWN).all()
        )

    def chunks(self) -> Iterator[Chunk]:
        yield from self._chunks_of_file(0)
        for number, path in enumerate(self._further, start=1):
            self.stream.close()
            self.stream = open_stream(path)
            yield from self._chunks_of_file(number)

    def _chunks_of_file(self, number: int) -> Iterator[Chunk]:
        facts = facts_of(self._head())
        self._refuse_instructions_only(facts)
        dtype = WIDE if facts.wide else NARROW
        buffer = bytearray(_ENTRIES_A_CHUNK * dtype.itemsize)
        state = _State(number if self._by_core else 0, facts.first_time or 0, False)
        while size := self.stream.readinto(buffer):
            self.tally.truncated |= size % dtype.itemsize != 0
            entries = np.frombuffer(buffer, dtype, size // dtype.itemsize)
            columns, state = self._accesses(entries, state)
            yield from by_stream(*columns)
            self._refuse_mostly_unknown(self._entries - self.tally.unknown_lines)
        self.tally.truncated |= self.stream.truncated

    def _accesses(self, entries: _Entries, state: _State) -> tuple[_Columns, _State]:
        """The accesses among some entries, and what holds for those behind them."""
        meanings = _MEANING[entries["type"]]
        control = _Control.of(entries, np.flatnonzero(meanings == _CONTROL), state)
        fetched = np.flatnonzero(meanings == FETCH)
        self.tally.instruction_fetches += int(np.count_nonzero(~control.kernel(fetched)))
        at = np.flatnonzero(meanings <= FETCH if self.fetches else meanings < FETCH)
        kernel = control.kernel(at)
        if kernel.any():
            self.tally.drop("kernel", int(np.count_nonzero(meanings[at[kernel]] != FETCH)))
            at = at[~kernel]
        addresses = entries["value"][at].astype(np.uint64)
        # A few are recorded with a size of 0.
        sizes = np.maximum(entries["size"][at], np.uint16(1))
        good = (sizes <= MAX_ACCESS_SIZE) & (addresses + (sizes - np.uint16(1)) >= addresses)
        if not good.all():
            self._count_unknown(entries, at[~good])
            at, addresses, sizes = at[good], addresses[good], sizes[good]
        self._count_unknown(entries, np.flatnonzero(meanings == _UNKNOWN))
        self._entries += len(entries)
        threads = np.full(len(at), state.thread, np.uint32) if self._by_core else control.thread(at)
        times = control.time(at) if self._timed else None
        after = control.state_after()
        if self._by_core:
            after = after._replace(thread=state.thread)
        return (threads, addresses, meanings[at], sizes, times), after

    def _count_unknown(self, entries: _Entries, at: NDArray[np.intp]) -> None:
        if not len(at):
            return
        raw = entries[at[0]].tobytes().hex()
        self.tally.unknown(len(at), f"record {self._entries + int(at[0]) + 1}: {raw}")

    def _refuse_instructions_only(self, facts: Facts) -> None:
        if facts.filetype & _INSTRUCTIONS_ONLY and not self.fetches:
            raise TraceError(
                f"{self.stream.name}: a drmemtrace of instructions only, without data accesses",
                "record it without -instr_only_trace, or convert with --fetches",
            )


class _State(NamedTuple):
    """What the entries so far say of those that follow."""

    thread: int
    time: int
    """Nanoseconds."""
    kernel: bool
    """Whether a trace of the kernel is going on."""


_Columns = tuple[
    NDArray[np.uint32],
    NDArray[np.uint64],
    NDArray[np.uint8],
    NDArray[np.uint16],
    NDArray[np.uint64] | None,
]


class _Control(NamedTuple):
    """Entries that hold for those behind them: each by where it stands and what it says.

    The first of each kind stands before all entries and says what held there.
    """

    thread_at: NDArray[np.intp]
    threads: NDArray[np.uint32]
    time_at: NDArray[np.intp]
    times: NDArray[np.uint64]
    kernel_at: NDArray[np.intp]
    kernels: NDArray[np.bool_]

    @classmethod
    def of(cls, entries: _Entries, at: NDArray[np.intp], before: _State) -> _Control:
        """``at``: the threads and markers among the entries."""
        found = entries[at]
        values = found["value"].astype(np.uint64)
        markers = np.where(found["type"] == _MARKER, found["size"], _NO_MARKER)
        threads = found["type"] == _THREAD
        stamps = (markers == _TIMESTAMP) & (values <= _MAX_STAMP)
        kernels = np.isin(markers, (*_KERNEL_BEGINS, *_KERNEL_ENDS))
        begins = np.isin(markers[kernels], _KERNEL_BEGINS)
        return cls(
            np.append(-1, at[threads]),
            np.append(np.uint32(before.thread), values[threads].astype(np.uint32)),
            np.append(-1, at[stamps]),
            np.append(np.uint64(before.time), _nanoseconds(values[stamps])),
            np.append(-1, at[kernels]),
            np.append(before.kernel, begins),
        )

    def thread(self, at: NDArray[np.intp]) -> NDArray[np.uint32]:
        return self.threads[_last_before(self.thread_at, at)]

    def time(self, at: NDArray[np.intp]) -> NDArray[np.uint64]:
        return self.times[_last_before(self.time_at, at)]

    def kernel(self, at: NDArray[np.intp]) -> NDArray[np.bool_]:
        return self.kernels[_last_before(self.kernel_at, at)]

    def state_after(self) -> _State:
        return _State(int(self.threads[-1]), int(self.times[-1]), bool(self.kernels[-1]))


def _last_before(ordered: NDArray[np.intp], at: NDArray[np.intp]) -> NDArray[np.intp]:
    """For each of ``at``, which of ``ordered`` is the last before it."""
    if len(ordered) == 1:
        return np.zeros(len(at), np.intp)
    # The few say how often each holds, which is cheaper than a search for each of the many.
    bounds = np.append(np.searchsorted(at, ordered), len(at))
    return np.repeat(np.arange(len(ordered)), np.diff(bounds))


def _nanoseconds(stamps: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Since 1970, of microseconds since 1601."""
    epoch = np.uint64(_UNIX_EPOCH_US)
    return np.where(stamps >= epoch, stamps - epoch, stamps) * np.uint64(1000)


def _head_entries(head: bytes) -> _Entries:
    """The first entries. The upper half of a version is zero where values have 64 bits."""
    dtype = WIDE if head[8:12] == bytes(4) else NARROW
    count = min(len(head) // dtype.itemsize, _SNIFFED_ENTRIES)
    return np.frombuffer(head, dtype, count)


def facts_of(head: bytes) -> Facts:
    """``head``: of a file that is a trace."""
    dtype = WIDE if head[8:12] == bytes(4) else NARROW
    entries = np.frombuffer(head, dtype, len(head) // dtype.itemsize)
    accesses = np.flatnonzero(_MEANING[entries["type"]] <= FETCH)
    before = entries[: accesses[0]] if len(accesses) else entries
    markers = before[before["type"] == _MARKER]
    filetypes = markers["value"][markers["size"] == _FILETYPE]
    stamps = markers["value"][markers["size"] == _TIMESTAMP].astype(np.uint64)
    stamps = stamps[stamps <= _MAX_STAMP]
    return Facts(
        wide=dtype is WIDE,
        filetype=int(filetypes[0]) if len(filetypes) else 0,
        first_time=int(_nanoseconds(stamps[:1])[0]) if len(stamps) else None,
    )
