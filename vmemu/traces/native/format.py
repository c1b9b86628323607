"""The native trace format: what replay maps into memory.

A trace is a directory ``NAME.vmtrace/``. All numbers are little-endian, all ``.npy`` files are one
column of numpy's format 1.0.

``pages.npy``: ``u64``, sorted, each value once. The page dictionary: the numbers (address >> 12) of
all 4 KiB pages that an access touches, the second page of an access that straddles two included.

For each stream (a recorded thread or vCPU) with id N two columns of the same length, an access
each:

``N.where.npy``: ``u32``, or ``u64`` in all streams when there are more than 2^20 pages::

    bits  0-11  offset in the page
    bits 12-..  index into pages.npy

``N.what.npy``: ``u8``::

    bits  0-1   0 load, 1 store, 2 modify (load and store of the same bytes), 3 instruction fetch
    bits  2-7   index into "sizes" of meta.json

A trace with times has a third column for each stream, of the same length:

``N.time.npy``: ``u64``, nanoseconds as recorded, from whatever moment the recorder counts.

An access with offset + size > 4096 goes on at the start of the next page; that is page + 1, so it
is index + 1 of the dictionary. No access is longer than 4096 bytes, so none touches a third page.

``meta.json``, UTF-8::

    magic         "vmemu-trace"
    version       2; version 1, which has neither time_range_ns nor blocks, is read too
    page_shift    12
    address_kind  "virtual", "guest-physical", "ram-block" or "unknown"
    source        {format, file}: the recording it was made from; both may be ""
    sizes         [bytes], ascending, at most 64 of them, each from 1 to 4096
    pages         length of pages.npy
    streams       [{id, accesses}], ascending by id; accesses = length of the two columns
    fetches       whether the columns hold the instruction fetches
    counts        {accesses, reads, writes, modifies, straddling: data accesses;
                  instruction_fetches: of the recording, held or not;
                  dropped: {reason: accesses left out}; unknown_lines}
    truncated     whether the recording ended in the middle of something
    missing       what the recording can't say: "times", "threads", ...
    time_range_ns null, or the first and the last of all times: then there are columns of them
    blocks        [{name, start}], ascending by start: of a "ram-block" trace, the address at which
                  the first byte of each recorded RAM block was laid; else []

For transport the directory is a plain tar in one zstd frame, ``NAME.vmtrace.zst``, meta.json first,
which ``tar --zstd -xf`` opens. ``open`` reads both; the packed one is held in memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from vmemu.errors import TraceError
from vmemu.traces.native import npy, tarball
from vmemu.traces.native.check import check_columns
from vmemu.traces.native.meta import MAX_SIZES, META_NAME, Meta, parse_meta
from vmemu.traces.native.placing import (
    NATIVE,
    cant_write,
    hidden_sibling,
    move_into_place,
    refuse_to_take,
)
from vmemu.traces.native.trace import Stream, Trace
from vmemu.traces.opening import ByteStream, open_stream
from vmemu.traces.progress import Report, silent

PACKED_LIMIT = 4 << 30
"""Bytes of a packed trace that are read into memory at most."""
DEFAULT_LEVEL = 12

_WHERE = ("<u4", "<u8")
_META_LIMIT = 16 << 20
_SMALL = 32 << 20


def open(path: str | os.PathLike[str]) -> Trace:
    """Opens a trace, packed or not, and checks everything that replay relies on.

    After it, every index of every column is within its table and meta.json says the truth about
    them. Raises ``TraceError`` with the file and the reason otherwise. The files of a directory
    must not be changed while the trace is in use.
    """
    path = Path(path)
    try:
        is_directory = path.is_dir()
        trace = _open_directory(path) if is_directory else _open_packed(path, PACKED_LIMIT)
    except OSError as error:
        raise TraceError(f"{path}: can't be opened: {error.strerror or error}") from None
    check_columns(trace)
    return trace


@contextmanager
def looking_into(path: str | os.PathLike[str]) -> Iterator[Trace]:
    """A trace opened as by ``open`` and given up behind it, in bounded memory: one that is packed
    and not small is unpacked on disk meanwhile, where ``TMPDIR`` says."""
    path = Path(path)
    if path.is_dir():
        yield open(path)
        return
    with suppress(tarball.TooLarge):
        trace = _open_packed(path, _SMALL)
        check_columns(trace)
        yield trace
        return
    with tempfile.TemporaryDirectory(prefix="vmemu-") as directory:
        _extract(path, Path(directory))
        _meta_of(Path(directory), path)
        yield open(directory)


def _open_directory(path: Path) -> Trace:
    file = path / META_NAME
    if not file.is_file():
        raise TraceError(f"{path}: not a native trace: it has no {META_NAME}")
    if file.stat().st_size > _META_LIMIT:
        raise TraceError(f"{file}: more than {_META_LIMIT >> 20} MiB")
    meta = parse_meta(str(file), file.read_bytes())

    def column(name: str, dtypes: tuple[str, ...]) -> npy.Column:
        return npy.map_column(path / name, dtypes)

    return _assemble(str(path), meta, column)


def _open_packed(path: Path, limit: int) -> Trace:
    with open_stream(path) as stream:
        _refuse_other_formats(stream)
        files = tarball.read(stream, limit)
    raw = files.get(META_NAME)
    if raw is None or len(raw) > _META_LIMIT:
        raise TraceError(f"{path}: not a native trace: it has no {META_NAME} of a sensible size")
    meta = parse_meta(f"{path}: {META_NAME}", bytes(raw))

    def column(name: str, dtypes: tuple[str, ...]) -> npy.Column:
        if name not in files:
            raise TraceError(f"{path}: {name} is missing")
        return npy.parse_column(f"{path}: {name}", files[name], dtypes)

    return _assemble(str(path), meta, column)


def _refuse_other_formats(stream: ByteStream) -> None:
    head = stream.head(512)
    if not head and not stream.truncated:
        raise TraceError(f"{stream.name}: it is empty")
    if not tarball.looks_like_tar(head):
        raise TraceError(
            f"{stream.name}: not a native trace",
            f"if it is a recording, convert it: vmemu trace convert {stream.name} NAME.vmtrace",
        )


def _assemble(name: str, meta: Meta, column: Any) -> Trace:
    pages = column("pages.npy", ("<u8",))
    streams = [
        Stream(
            entry.id,
            column(f"{entry.id}.where.npy", _WHERE),
            column(f"{entry.id}.what.npy", ("|u1",)),
            column(f"{entry.id}.time.npy", ("<u8",)) if meta.time_range_ns else None,
        )
        for entry in meta.streams
    ]
    sizes = np.zeros(MAX_SIZES, np.uint16)
    sizes[: len(meta.sizes)] = meta.sizes
    return Trace(name, meta, pages, sizes, streams)


def file_names(meta: Meta) -> list[str]:
    """The files of a trace in the order in which they are packed."""
    kinds = ("where", "what", "time") if meta.time_range_ns else ("where", "what")
    columns = [f"{entry.id}.{kind}.npy" for entry in meta.streams for kind in kinds]
    return [META_NAME, "pages.npy", *columns]


def pack(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    level: int = DEFAULT_LEVEL,
    replace: bool = True,
    report: Report = silent,
) -> Meta:
    """Packs a trace directory into one file, ``out``.

    ``level``: of zstd, 1 to 22. ``replace``: whether it may replace a native trace of that name. In
    the tar the directory has the name of ``out``, so that the bytes do not depend on where it was
    made. Raises ``TraceError``, or ``OutputError`` when the disk is full; then ``out`` is as it
    was.
    """
    directory, out = Path(directory), Path(out)
    meta = open(directory).meta
    refuse_to_take(out, NATIVE, replace=replace)
    pack_files(directory, file_names(meta), out, level=level, replace=replace, report=report)
    return meta


def pack_files(
    directory: Path,
    names: list[str],
    out: Path,
    *,
    level: int,
    replace: bool,
    report: Report = silent,
) -> None:
    """Packs files of a directory that is known to be sound; see ``pack``."""
    partial = hidden_sibling(out)
    try:
        tarball.write(directory, names, inside_name(out), partial, level, report=report)
        move_into_place(partial, out, NATIVE, replace=replace)
    except OSError as error:
        raise cant_write(out, error) from None
    finally:
        partial.unlink(missing_ok=True)


def unpack(
    packed: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    replace: bool = True,
    report: Report = silent,
) -> Meta:
    """Unpacks into ``directory``; ``replace``: whether it may replace a native trace of that name.

    Raises ``TraceError``, also when what was packed is no sound trace, or ``OutputError`` when the
    disk is full; then ``directory`` is as it was.
    """
    packed, directory = Path(packed), Path(directory)
    refuse_to_take(directory, NATIVE, replace=replace)
    partial = hidden_sibling(directory)
    try:
        partial.mkdir()
        _extract(packed, partial, report)
        meta = _meta_of(partial, packed)
        move_into_place(partial, directory, NATIVE, replace=replace)
        return meta
    except OSError as error:
        raise cant_write(directory, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _meta_of(unpacked: Path, packed: Path) -> Meta:
    """Of what was just unpacked; errors are about what it was unpacked from."""
    try:
        return open(unpacked).meta
    except TraceError as error:
        raise TraceError(error.what.replace(str(unpacked), str(packed)), error.remedy) from None


def _extract(packed: Path, directory: Path, report: Report = silent) -> None:
    try:
        with open_stream(packed) as stream:
            _refuse_other_formats(stream)
            tarball.extract(stream, directory, report)
    except OSError as error:
        raise cant_write(directory, error) from None


def inside_name(out: Path) -> str:
    """Name of the directory inside a packed trace."""
    stem = out.name.removesuffix(".zst")
    return stem if stem.endswith(".vmtrace") else f"{stem}.vmtrace"
