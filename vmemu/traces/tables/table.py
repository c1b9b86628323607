"""What the readers of tables share: rows of a Parquet or Arrow batch become accesses.

:mod:`vmemu.traces.tables.columns` says which names of columns are known. What ``vmemu trace
convert`` wrote carries the trace's ``meta.json``, so that nothing is lost on the way.
"""

from __future__ import annotations

import re
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.native.meta import Meta, parse_meta
from vmemu.traces.opening import ByteStream
from vmemu.traces.reader import (
    FETCH,
    LOAD,
    MAX_ACCESS_SIZE,
    MODIFY,
    STORE,
    BlockBase,
    Chunk,
    Reader,
    by_stream,
)
from vmemu.traces.tables.arrowlib import META_KEY, pyarrow
from vmemu.traces.tables.columns import Columns, understand

ROWS = 1 << 17
"""Rows that are looked at together, at most."""

_COPY = 1 << 20
_BLOCK_SHIFT = 44
_MAX_BLOCKS = 64
_WORDS = {
    LOAD: "load read r l ld rd 0",
    STORE: "store write w s st wr 1",
    MODIFY: "modify m rw 2",
    FETCH: "fetch ifetch f i x exec execute 3",
}
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words.split()}
_ARROW_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_TIME_UNITS = {"time_ns": 1, "time_us": 10**3, "time_ms": 10**6, "time_s": 10**9, "time": 10**9}


class _Unreadable(Exception):
    """A column that can't be understood: its name and why."""


class TableReader(Reader):
    """One stream a thread. Rows that can't be understood are counted as unknown lines."""

    address_kind = "unknown"
    missing: tuple[str, ...] = ()

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        arrow = pyarrow(f"{stream.name}: {self.title}: reading it")
        self._blocks: dict[str, int] = {}
        self._rows = 0
        # A length that lies asks for memory that nobody has; a name that lies is no UTF-8.
        lies = (MemoryError, UnicodeDecodeError)
        self._errors = (arrow.ArrowException, OSError, EOFError, *lies)
        self._meta: Meta | None = None
        self._file: IO[bytes] = _seekable(stream)
        try:
            self._read_schema(self._open(arrow, self._file))
        except self._errors as error:
            self._file.close()
            raise self._damaged(error) from None
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()
        super().close()

    def _read_schema(self, schema: Any) -> None:
        meanings = understand(self.stream.name, schema.names).meanings
        self._wanted = [index for index, meaning in enumerate(meanings) if meaning]
        self._columns = Columns(tuple(meanings[index] for index in self._wanted))
        self.address_kind = self._columns.address_kind
        self.missing = self._columns.missing
        raw = (schema.metadata or {}).get(META_KEY)
        if raw is not None:
            self._meta = parse_meta(f"{self.stream.name}: metadata", raw)
            self._take_over(self._meta)

    @abstractmethod
    def _open(self, arrow: Any, file: IO[bytes]) -> Any:
        """Opens the table and returns its schema."""

    @abstractmethod
    def _batches(self) -> Iterator[Any]:
        """Its rows, ``ROWS`` at most at a time: the columns ``_wanted`` of the schema, in order."""

    def chunks(self) -> Iterator[Chunk]:
        try:
            for batch in self._batches():
                yield from self._accesses(batch)
                self._rows += batch.num_rows
                self._refuse_mostly_unknown(self._rows - self._unknown())
        except self._errors as error:
            raise self._damaged(error) from None
        if self._columns.address_kind == "ram-block" and self._meta is None:
            self.blocks = tuple(BlockBase(name, start) for name, start in self._blocks.items())

    def _take_over(self, meta: Meta) -> None:
        """What the table itself does not say."""
        self.origin = (meta.source.format, meta.source.file)
        self.address_kind, self.missing, self.blocks = meta.address_kind, meta.missing, meta.blocks
        self._blocks = {block.name: block.start for block in meta.blocks}
        self.tally.dropped = dict(meta.counts.dropped)
        self.tally.unknown_lines = self._unknown_before = meta.counts.unknown_lines
        self.tally.truncated = meta.truncated
        self.tally.instruction_fetches = meta.counts.instruction_fetches
        self.fetches = self.fetches or meta.fetches

    def _damaged(self, error: BaseException) -> TraceError:
        text = " ".join(str(error).split()) or type(error).__name__
        return TraceError(f"{self.stream.name}: not a whole {self.title}: {text[:200]}")

    def _accesses(self, batch: Any) -> Iterator[Chunk]:
        columns, count = self._columns, batch.num_rows
        try:
            good, addresses = self._places(batch)
            kinds = self._kinds(batch, good)
            sizes = self._numbers(batch, columns.index("size"), good, 1)
            streams = self._numbers(batch, columns.index("stream"), good, 0)
            times = self._times(batch, good)
        except _Unreadable as error:
            raise TraceError(f"{self.stream.name}: {error}") from None
        good &= (sizes >= 1) & (sizes <= MAX_ACCESS_SIZE) & (streams < 1 << 32)
        good &= addresses + (sizes - np.uint64(1)) >= addresses
        if not good.all():
            first = f"row {self._rows + int(np.argmin(good)) + 1}"
            self.tally.unknown(count - int(np.count_nonzero(good)), first)
        fetched = kinds == FETCH
        if self._meta is None:
            self.tally.instruction_fetches += int(np.count_nonzero(fetched & good))
        if not self.fetches:
            good &= ~fetched
        yield from by_stream(
            streams[good].astype(np.uint32),
            addresses[good],
            kinds[good],
            sizes[good].astype(np.uint16),
            None if times is None else times[good],
        )

    def _places(self, batch: Any) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        good = np.ones(batch.num_rows, np.bool_)
        columns = self._columns
        values = self._numbers(batch, columns.place, good, 0)
        meaning = columns.meanings[columns.place]
        if meaning == "page":
            good &= values < 1 << 52
            return good, values << np.uint64(12)
        if meaning == "offset":
            good &= values < 1 << _BLOCK_SHIFT
            return good, values + self._starts(batch)
        return good, values

    def _starts(self, batch: Any) -> NDArray[np.uint64]:
        """The address at which each row's block was laid."""
        index = self._columns.index("block")
        encoded = _decoded(batch.column(index)).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        for name in names:
            if not isinstance(name, str) or not name:
                raise _Unreadable(f"column {batch.schema.names[index]} holds no names of blocks")
            if name not in self._blocks:
                if len(self._blocks) == _MAX_BLOCKS:
                    raise _Unreadable(f"more than {_MAX_BLOCKS} RAM blocks")
                self._blocks[name] = len(self._blocks) << _BLOCK_SHIFT
        if encoded.null_count:
            raise _Unreadable(f"column {batch.schema.names[index]} has rows without a block")
        starts = np.array([self._blocks[name] for name in names], np.uint64)
        return starts[np.asarray(encoded.indices)] if len(names) else np.empty(0, np.uint64)

    def _numbers(
        self, batch: Any, index: int | None, good: NDArray[np.bool_], default: int
    ) -> NDArray[np.uint64]:
        """A column of whole numbers; rows without one, or with a negative one, are not good."""
        if index is None:
            return np.full(batch.num_rows, default, np.uint64)
        column, name = _decoded(batch.column(index)), batch.schema.names[index]
        if column.null_count:
            good &= np.asarray(column.is_valid())
            column = column.fill_null("0" if _is_text(column) else 0)
        if _is_text(column):
            return _parsed(column.dictionary_encode(), good)
        values = np.asarray(column)
        if values.dtype.kind not in "iu":
            raise _Unreadable(f"column {name} holds {column.type}, not whole numbers")
        if values.dtype.kind == "i":
            good &= values >= 0
        return values.astype(np.uint64)

    def _kinds(self, batch: Any, good: NDArray[np.bool_]) -> NDArray[np.uint8]:
        index = self._columns.index("kind")
        if index is None:
            index = self._columns.index("write")
            if index is None:
                return np.zeros(batch.num_rows, np.uint8)
            return self._truths(batch, index, good).astype(np.uint8)
        column = batch.column(index)
        if not _is_text(_decoded(column)):
            codes = self._numbers(batch, index, good, 0)
            good &= codes <= FETCH
            return np.minimum(codes, FETCH).astype(np.uint8)
        encoded = _decoded(column).dictionary_encode()
        words = [
            _KINDS.get(str(word).strip().lower(), 255) for word in encoded.dictionary.to_pylist()
        ]
        table = np.array([*words, 255], np.uint8)
        kinds: NDArray[np.uint8] = table[np.asarray(encoded.indices.fill_null(len(words)))]
        good &= kinds <= FETCH
        return kinds & np.uint8(3)

    def _truths(self, batch: Any, index: int, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
        column = _decoded(batch.column(index))
        if str(column.type) != "bool":
            numbers: NDArray[np.bool_] = self._numbers(batch, index, good, 0) != 0
            return numbers
        good &= np.asarray(column.is_valid())
        values: NDArray[np.bool_] = np.asarray(column.fill_null(False))
        return values

    def _times(self, batch: Any, good: NDArray[np.bool_]) -> NDArray[np.uint64] | None:
        index = self._columns.time
        if index is None:
            return None
        column = _decoded(batch.column(index))
        kind = str(column.type)
        if kind.startswith(("timestamp", "duration", "time64", "time32")):
            good &= np.asarray(column.is_valid())
            unit = _ARROW_UNITS[re.split(r"[\[\],]", kind)[1]]
            values = np.asarray(column.cast("int64").fill_null(0))
            good &= values >= 0
            return values.astype(np.uint64) * np.uint64(unit)
        unit = _TIME_UNITS[self._columns.meanings[index]]
        if kind in ("float", "double", "halffloat"):
            floats = np.asarray(column.fill_null(-1)).astype(np.float64) * unit
            valid = (floats >= 0) & (floats < 2.0**64)
            good &= valid
            return np.where(valid, floats, 0).astype(np.uint64)
        return self._numbers(batch, index, good, 0) * np.uint64(unit)


def _seekable(stream: ByteStream) -> IO[bytes]:
    """The input, or a copy of it in an unnamed file: the index of these formats is at their end."""
    plain = stream.seekable_file()
    if plain is not None:
        plain.seek(0)
        return plain
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the reader owns it
    try:
        while part := stream.read(_COPY):
            file.write(part)
        file.seek(0)
    except OSError as error:
        file.close()
        raise TraceError(f"{stream.name}: no room for a copy of it: {error.strerror}") from None
    except BaseException:
        file.close()
        raise
    return file


def _decoded(column: Any) -> Any:
    """The column in one of the types that are read: databases and old writers have others."""
    kind = str(column.type)
    if kind.startswith("dictionary"):
        return _decoded(column.dictionary_decode())
    if kind in ("binary", "large_binary"):
        return column.cast("string")
    if kind.startswith("decimal"):
        return column.cast("uint64")
    return column.cast("uint64") if kind == "null" else column


def _is_text(column: Any) -> bool:
    return str(column.type) in ("string", "large_string", "string_view")


def _parsed(encoded: Any, good: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Numbers that are written out, as addresses in hexadecimal often are; each text once."""
    texts = encoded.dictionary.to_pylist()
    numbers = np.zeros(len(texts), np.uint64)
    sound = np.ones(len(texts), np.bool_)
    for i, text in enumerate(texts):
        try:
            numbers[i] = int(text, 0)
        except (ValueError, OverflowError):
            sound[i] = False
    indices = np.asarray(encoded.indices)
    if len(indices):
        good &= sound[indices]
    parsed: NDArray[np.uint64] = numbers[indices]
    return parsed
