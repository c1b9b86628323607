"""Reader of QEMU's simple trace backend: the page faults of a post-copy destination, binary.

``_core/simpletrace.h`` says how the records lie. What a record's arguments are is not in the file:
it is told by the declarations of the events (``trace_events``), which are known here for QEMU 2.5
to 11, and can be given as the ``trace-events-all`` of another QEMU. The length of each record is
checked against them. Versions 2 and 3 of the format, before QEMU 2.8, number the events by that
file and can't be read without it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vmemu.core import ffi, lib
from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream
from vmemu.traces.reader import LOAD, Chunk, Reader, by_stream
from vmemu.traces.readers import qemu_faults
from vmemu.traces.readers.trace_events import KNOWN, Argument, Declarations

HEADER_BYTES = 24
HEADER_EVENT = (1 << 64) - 1
DROPPED_EVENT = (1 << 64) - 2
MAGIC = 0xF2B177CB0AA429B4
VERSIONS = (2, 3, 4)

_LOST = (Argument("lost", is_text=False),)
_DROPPED_LOST = "lost_by_qemu"
_BUFFER_BYTES = 1 << 22
_RECORDS_A_CALL = 1 << 17
_RECORD_HEAD = 24

_Places = NDArray[np.int64]
_U64 = NDArray[np.uint64]


class SimpletraceReader(Reader):
    """A stream a thread that faulted, or a vCPU where only blocktime was recorded."""

    format = "qemu-simpletrace"
    title = "QEMU simple trace"
    address_kind = "ram-block"
    missing = qemu_faults.missing(times=True, threads=True)

    def __init__(
        self,
        stream: ByteStream,
        *,
        fetches: bool = False,
        declarations: Declarations | None = None,
    ) -> None:
        super().__init__(stream, fetches=fetches)
        self._declared = declarations or {}
        self._version = self._read_header(declarations is not None)
        self._names: dict[int, str] = {}
        if declarations is not None and self._version < VERSIONS[-1]:
            self._names = dict(enumerate(declarations))
        self._blocks: dict[bytes, int] = {}
        self._used = ""
        self._records = 0
        self._threads = False
        self._given = 0

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return any(
            head[:16] == b"".join(n.to_bytes(8, order) for n in (HEADER_EVENT, MAGIC))
            for order in ("little", "big")
        )

    def chunks(self) -> Iterator[Chunk]:
        buffer = bytearray(_BUFFER_BYTES)
        view = memoryview(buffer)
        left = 0
        while got := self.stream.readinto(view[left:]):
            end = left + got
            start = 0
            while True:
                used, places = self._split(view[start:end])
                yield from self._faults(np.frombuffer(view[start:end], np.uint8), places)
                start += used
                if not used:
                    break
            left = end - start
            buffer[:left] = buffer[start:end]
            self._refuse_mostly_unknown(self._records - self.tally.unknown_lines)
        self.tally.truncated = self.stream.truncated or left > 0
        self._refuse_nothing_read()
        self._say_what_was_read()

    # ---- records ----

    def _read_header(self, declared: bool) -> int:
        raw, name = self.stream.read(HEADER_BYTES), self.stream.name
        if len(raw) < HEADER_BYTES:
            raise TraceError(f"{name}: not a {self.title}: it ends in its header")
        header = np.frombuffer(raw, "<u8")
        if header[1] != MAGIC:
            raise TraceError(
                f"{name}: a {self.title} of a big-endian host, which can't be read here"
            )
        version = int(header[2])
        if version not in VERSIONS:
            raise TraceError(f"{name}: version {version} of QEMU's simple trace is not known here")
        if version < VERSIONS[-1] and not declared:
            raise TraceError(
                f"{name}: version {version} of QEMU's simple trace doesn't name its events:"
                " give the trace-events-all of that QEMU with --trace-events"
            )
        return version

    def _split(self, raw: memoryview) -> tuple[int, _Places]:
        """Bytes of whole records at the beginning, and where each of them begins."""
        starts = np.empty(_RECORDS_A_CALL, np.uint32)
        state = ffi.new("struct vm_simpletrace *")
        state.typed = self._version == VERSIONS[-1]
        state.capacity = len(starts)
        state.starts = ffi.from_buffer("uint32_t[]", starts, require_writable=True)
        with ffi.from_buffer("char[]", raw) as data:
            used = int(lib.vm_simpletrace_split(state, data, len(raw)))
        count = int(state.count)
        self._records += count
        if state.damaged and not count:
            raise TraceError(
                f"{self.stream.name}: damaged: what follows record {self._records} is no record"
            )
        return used, starts[:count].astype(np.int64)

    def _faults(self, raw: NDArray[np.uint8], places: _Places) -> Iterator[Chunk]:
        if self._version == VERSIONS[-1]:
            names = _numbers(raw, places) == 0
            for place in places[names].tolist():
                self._take_name(raw[place + 8 :])
            places = places[~names] + 8
        if not len(places):
            return
        events = _numbers(raw, places)
        self._count_lost(raw, places[events == DROPPED_EVENT])
        of_kind = {
            name: places[events == number] for number, name in self._names.items() if name in KNOWN
        }
        yield from self._faults_of_kinds(raw, {k: v for k, v in of_kind.items() if len(v)})

    def _take_name(self, raw: NDArray[np.uint8]) -> None:
        length = int.from_bytes(raw[8:12].tobytes(), "little")
        number = int.from_bytes(raw[:8].tobytes(), "little")
        self._names[number] = raw[12 : 12 + length].tobytes().decode(errors="backslashreplace")

    def _faults_of_kinds(
        self, raw: NDArray[np.uint8], of_kind: dict[str, _Places]
    ) -> Iterator[Chunk]:
        shared = of_kind.pop(qemu_faults.SHARED, ())
        self.tally.drop(qemu_faults.DROPPED_SHARED, len(shared))
        if of_kind and not self._used:
            self._used = min(of_kind, key=list(KNOWN).index)
        for name, places in of_kind.items():
            if name == self._used:
                yield from self._faults_of(raw, name, places)
            else:
                self.tally.drop(qemu_faults.DROPPED_TWICE, len(places))

    def _faults_of(self, raw: NDArray[np.uint8], name: str, places: _Places) -> Iterator[Chunk]:
        """The accesses of one kind of event."""
        for arguments in (*self._declared.get(name, ()), *KNOWN[name]):
            fits, columns = _decoded(raw, places, arguments)
            if fits.any():
                yield from self._accesses(raw, places[fits], _kept(columns, fits))
            places = places[~fits]
        self._count_unknown(raw, places)

    def _accesses(
        self, raw: NDArray[np.uint8], places: _Places, columns: dict[str, _U64]
    ) -> Iterator[Chunk]:
        if self._used == qemu_faults.REQUEST:
            block = self._block_numbers(raw, columns["ramblock"], columns["ramblock.length"])
            good = (columns["offset"] >> np.uint64(qemu_faults.BLOCK_SHIFT) == 0) & (block >= 0)
            self._count_unknown(raw, places[~good])
            addresses = block.astype(np.uint64) << np.uint64(qemu_faults.BLOCK_SHIFT)
            addresses |= columns["offset"]
            threads = columns.get("pid", np.zeros(len(places), np.uint64))
            self._threads |= bool(threads.any())
        else:
            good = np.ones(len(places), np.bool_)
            addresses, threads = columns["addr"], columns["cpu"]
            self._threads = True
        count = int(np.count_nonzero(good))
        self._given += count
        yield from by_stream(
            (threads[good] & np.uint64(0xFFFFFFFF)).astype(np.uint32),
            addresses[good],
            np.full(count, LOAD, np.uint8),
            np.ones(count, np.uint16),
            _numbers(raw, places[good] + 8),
        )

    def _block_numbers(
        self, raw: NDArray[np.uint8], places: _U64, lengths: _U64
    ) -> NDArray[np.int64]:
        """Number of the block that each text names; -1 for an empty one."""
        numbers = np.full(len(places), -1, np.int64)
        found: list[tuple[int, bytes, NDArray[np.int64]]] = []
        for length in np.unique(lengths[lengths > 0]).tolist():
            rows = np.flatnonzero(lengths == length)
            bytes_of = raw[places[rows].astype(np.int64)[:, None] + np.arange(length)]
            texts = np.ascontiguousarray(bytes_of).view(f"S{length}")[:, 0]
            unique, first, inverse = np.unique(texts, return_index=True, return_inverse=True)
            for number, text in enumerate(unique.tolist()):
                found.append((int(rows[first[number]]), text, rows[inverse == number]))
        for _, text, rows in sorted(found, key=lambda one: one[0]):
            if text not in self._blocks and len(self._blocks) == qemu_faults.MAX_BLOCKS:
                raise qemu_faults.too_many_blocks(self.stream.name)
            numbers[rows] = self._blocks.setdefault(text, len(self._blocks))
        return numbers

    # ---- what is said of it ----

    def _refuse_nothing_read(self) -> None:
        if not self._used:
            raise qemu_faults.no_faults(self.stream.name)
        if not self._given:
            raise TraceError(
                f"{self.stream.name}: the arguments of its {self._used} are not those of any known"
                " QEMU: give the trace-events-all of that QEMU with --trace-events"
            )

    def _say_what_was_read(self) -> None:
        self.missing = qemu_faults.missing(times=True, threads=self._threads)
        if self._used == qemu_faults.REQUEST:
            names = (name.decode(errors="backslashreplace") for name in self._blocks)
            self.blocks = qemu_faults.laid(names)
        else:
            self.address_kind = "virtual"

    def _count_lost(self, raw: NDArray[np.uint8], places: _Places) -> None:
        fits, columns = _decoded(raw, places, _LOST)
        self.tally.drop(_DROPPED_LOST, int(columns["lost"][fits].sum()))
        self._count_unknown(raw, places[~fits])

    def _count_unknown(self, raw: NDArray[np.uint8], places: _Places) -> None:
        if not len(places):
            return
        head = raw[places[0] : places[0] + _RECORD_HEAD].tobytes().hex()
        self.tally.unknown(len(places), f"among the first {self._records} records: {head}")


def _numbers(raw: NDArray[np.uint8], places: _Places, size: int = 8) -> _U64:
    """The little-endian number at each place; too near to the end, whatever is there."""
    last = max(len(raw) - size, 0)
    bytes_of = raw[np.minimum(places, last)[:, None] + np.arange(size)]
    numbers: _U64 = bytes_of.view(f"<u{size}")[:, 0].astype(np.uint64)
    return numbers


def _decoded(
    raw: NDArray[np.uint8], places: _Places, arguments: tuple[Argument, ...]
) -> tuple[NDArray[np.bool_], dict[str, _U64]]:
    """The arguments of records, and for which of them these take exactly the record's length.

    A text becomes two columns: where its bytes are, and ``NAME.length``.
    """
    at = places + _RECORD_HEAD
    end = places + _numbers(raw, places + 16, 4).astype(np.int64)
    columns = {}
    for name, is_text in arguments:
        if is_text:
            length = _numbers(raw, at, 4)
            columns[name], columns[f"{name}.length"] = (at + 4).astype(np.uint64), length
            at = np.minimum(at + 4 + length.astype(np.int64), end + 1)
        else:
            columns[name] = _numbers(raw, at)
            at = at + 8
    return at == end, columns


def _kept(columns: dict[str, _U64], fits: NDArray[np.bool_]) -> dict[str, _U64]:
    return {name: column[fits] for name, column in columns.items()}
