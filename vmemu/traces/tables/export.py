"""A native trace as a table for other programs: CSV, Parquet, or an Arrow file.

The columns are ``thread``, ``time_ns`` if the trace has times, ``kind`` (load, store, modify,
fetch), the place, and ``size`` in bytes. The place is one column named after the kind of address
(``virtual_address``, ``guest_physical_address``, ``address``), or ``block`` and ``offset``. Rows
are stream by stream, as the trace has them. Parquet and Arrow carry ``meta.json`` along, so that
they are read back as the same trace; CSV has the accesses alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vmemu.core import ffi, lib
from vmemu.errors import TraceError
from vmemu.traces.native.placing import Kind, cant_write, hidden_sibling, move_into_place
from vmemu.traces.native.trace import Trace
from vmemu.traces.progress import Report, silent
from vmemu.traces.reader import Chunk
from vmemu.traces.readers.arrow import ArrowReader, ParquetReader
from vmemu.traces.readers.csv import CsvReader
from vmemu.traces.recordings import open_recording
from vmemu.traces.tables.arrowlib import META_KEY, pyarrow
from vmemu.traces.tables.columns import ADDRESS_NAMES

SUFFIXES = (".csv", ".parquet", ".arrow")
_LINES = 1 << 15
_KINDS = ("load", "store", "modify", "fetch")


def is_table(path: Path) -> bool:
    """Whether ``path`` is a table of a trace, by what it holds."""
    if not path.is_file():
        return False
    try:
        reader = open_recording(path)
    except TraceError:
        return False
    reader.close()
    return isinstance(reader, (CsvReader, ParquetReader, ArrowReader))


TABLE = Kind("table of a trace", is_table)


def export(trace: Trace, out: Path, report: Report = silent, *, replace: bool = True) -> None:
    """Writes ``out``, in the format that its suffix says; it appears when it is whole, in the place
    of a table of a trace if it may replace one.

    Raises ``TraceError`` or ``OutputError``, and ``HostError`` without pyarrow where it is needed.
    """
    writers = {".csv": _write_csv, ".parquet": _write_parquet, ".arrow": _write_arrow}
    partial = hidden_sibling(out)
    try:
        with partial.open("xb") as file:
            writers[out.suffix](trace, file, report)
        move_into_place(partial, out, TABLE, replace=replace)
    except OSError as error:
        raise cant_write(out, error) from None
    finally:
        partial.unlink(missing_ok=True)


def _has_blocks(trace: Trace) -> bool:
    return bool(trace.meta.blocks)


def _names(trace: Trace) -> list[str]:
    """The columns. What the recording could not say is no column: nothing is made up."""
    meta = trace.meta
    reads_only = meta.counts.reads == trace.accesses
    columns = {
        "thread": "threads" not in meta.missing or [entry.id for entry in meta.streams] != [0],
        "time_ns": meta.time_range_ns is not None,
        "kind": "writes" not in meta.missing or not reads_only,
        ADDRESS_NAMES.get(meta.address_kind, "address"): not _has_blocks(trace),
        "block": _has_blocks(trace),
        "offset": _has_blocks(trace),
        "size": "sizes" not in meta.missing or meta.sizes != (1,),
    }
    return [name for name, there in columns.items() if there]


def _chunks(trace: Trace, report: Report) -> Iterator[Chunk]:
    done = 0
    for chunk in trace.chunks():
        yield chunk
        done += len(chunk.kinds)
        report("writing", done, trace.accesses)


def _parts(trace: Trace, report: Report) -> Iterator[Chunk]:
    for chunk in _chunks(trace, report):
        for start in range(0, len(chunk.kinds), _LINES):
            part = slice(start, start + _LINES)
            times = None if chunk.times is None else chunk.times[part]
            columns = (chunk.addresses[part], chunk.kinds[part], chunk.sizes[part], times)
            yield Chunk(chunk.stream, *columns)


# ---- CSV ----


def _write_csv(trace: Trace, file: IO[bytes], report: Report) -> None:
    file.write((",".join(_names(trace)) + "\n").encode())
    layout, keep = _csv_layout(trace)
    text = bytearray(_LINES * lib.vm_csv_room(layout))
    with ffi.from_buffer("char[]", text, require_writable=True) as room:
        for part in _parts(trace, report):
            columns, arrays = _csv_columns(part)
            length = lib.vm_csv_write(layout, part.stream, columns, len(part.kinds), room)
            file.write(memoryview(text)[:length])
            del arrays
    del keep


def _csv_layout(trace: Trace) -> tuple[Any, Any]:
    """A ``struct vm_csv_layout``, and what it points to."""
    layout = ffi.new("struct vm_csv_layout *")
    written = _names(trace)
    layout.stream, layout.time = "thread" in written, "time_ns" in written
    layout.kind, layout.size = "kind" in written, "size" in written
    names = [ffi.new("char[]", _csv_word(block.name).encode()) for block in trace.meta.blocks]
    starts = ffi.new("uint64_t[]", [block.start for block in trace.meta.blocks])
    table = ffi.new("char *[]", names)
    if names:
        layout.block, layout.start, layout.blocks = table, starts, len(names)
        layout.longest_block = max(len(name) for name in names)
    return layout, (names, starts, table)


def _csv_word(name: str) -> str:
    """A name as a value, in quotes where it must be; quotes in it can't be written."""
    name = name.replace('"', "'").replace("\n", " ")
    return f'"{name}"' if set(name) & set(',;\t" #') else name


def _csv_columns(part: Chunk) -> tuple[Any, Any]:
    """A ``struct vm_columns`` of a chunk, and what it points to."""
    columns = ffi.new("struct vm_columns *")
    fields = [("addresses", "uint64_t[]"), ("kinds", "uint8_t[]"), ("sizes", "uint16_t[]")]
    if part.times is not None:
        fields.append(("times", "uint64_t[]"))
    keep = []
    for name, ctype in fields:
        array: NDArray[Any] = np.ascontiguousarray(getattr(part, name))
        pointer = ffi.from_buffer(ctype, array)
        setattr(columns, name, pointer)
        keep.append(pointer)
    return columns, keep


# ---- Parquet and Arrow ----


def _write_parquet(trace: Trace, file: IO[bytes], report: Report) -> None:
    arrow = pyarrow("writing Parquet")
    schema = _schema(arrow, trace)
    with arrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in _chunks(trace, report):
            writer.write_batch(_batch(arrow, schema, trace, part))


def _write_arrow(trace: Trace, file: IO[bytes], report: Report) -> None:
    arrow = pyarrow("writing Arrow")
    schema = _schema(arrow, trace)
    options = arrow.ipc.IpcWriteOptions(compression="zstd")
    with arrow.ipc.new_file(file, schema, options=options) as writer:
        for part in _chunks(trace, report):
            writer.write_batch(_batch(arrow, schema, trace, part))


def _schema(arrow: Any, trace: Trace) -> Any:
    words = arrow.dictionary(arrow.int8(), arrow.string())
    types = {
        "thread": arrow.uint32(),
        "time_ns": arrow.uint64(),
        "kind": words,
        "block": words,
        "size": arrow.uint16(),
    }
    fields = [(name, types.get(name, arrow.uint64())) for name in _names(trace)]
    return arrow.schema(fields, metadata={META_KEY: trace.meta.to_json()})


def _batch(arrow: Any, schema: Any, trace: Trace, part: Chunk) -> Any:
    starts = np.array([entry.start for entry in trace.meta.blocks] or [0], np.uint64)
    block = np.maximum(np.searchsorted(starts, part.addresses, "right"), 1) - 1
    columns = {
        "thread": lambda: arrow.array(np.full(len(part.kinds), part.stream, np.uint32)),
        "time_ns": lambda: arrow.array(part.times),
        "kind": lambda: _encoded(arrow, part.kinds, _KINDS),
        "block": lambda: _encoded(arrow, block, [entry.name for entry in trace.meta.blocks]),
        "offset": lambda: arrow.array(part.addresses - starts[block]),
        "size": lambda: arrow.array(part.sizes),
    }

    def address() -> Any:
        return arrow.array(part.addresses)

    made = [columns.get(name, address)() for name in schema.names]
    return arrow.record_batch(made, schema=schema)


def _encoded(arrow: Any, codes: NDArray[Any], words: Any) -> Any:
    return arrow.DictionaryArray.from_arrays(codes.astype(np.int8), list(words))
