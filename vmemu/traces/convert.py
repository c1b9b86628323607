"""From a recording of any known format, or a native trace, to a native trace or a table."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmemu.errors import TraceError
from vmemu.traces import export, native, tarball
from vmemu.traces.meta import Meta, Source
from vmemu.traces.recordings import open_recording

_SUFFIXES = ("", ".vmtrace", ".zst")


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    fetches: bool = False,
    level: int = native.DEFAULT_LEVEL,
    replace: bool = False,
) -> Meta:
    """Converts a recording (``-``: standard input) to a native trace; returns its ``meta.json``.

    ``out``: packed if it ends in ``.zst``, a table if in ``.csv``, ``.parquet`` or ``.arrow``, else
    a directory; it appears when it is whole, in the
    place of a native trace of that name only with ``replace``. ``fetches``: keep instruction
    fetches as accesses. ``level``: of zstd, 1 to 22. A native trace is packed or unpacked as it is.
    Raises ``TraceError``; then nothing is left behind.
    """
    out = Path(out)
    _refuse_output(source, out, replace)
    is_native = os.fspath(source) != "-" and native.is_native(source)
    if out.suffix in export.SUFFIXES:
        return _to_table(source, out, fetches, is_native)
    if is_native:
        return _convert_native(Path(source), out, level)
    if out.suffix != ".zst":
        return _convert_recording(source, out, fetches)
    with _unpacked(source, out, fetches) as partial:
        native.pack(partial, out, level=level)
        return native.open(partial).meta


def _refuse_output(source: str | os.PathLike[str], out: Path, replace: bool) -> None:
    """Raises ``TraceError`` unless ``out`` is of a kind that is written, and may be written."""
    if out.suffix not in (*_SUFFIXES, *export.SUFFIXES):
        kinds = ", ".join((*_SUFFIXES[1:], *export.SUFFIXES))
        raise TraceError(f"{out}: the output must end in one of {kinds}")
    if os.fspath(source) != "-" and out.exists() and out.samefile(source):
        raise TraceError(f"{out}: input and output are the same")
    if out.suffix in export.SUFFIXES:
        if out.exists() and not (replace and out.is_file()):
            raise TraceError(f"{out}: exists already", "name another, or replace it with --force")
        return
    native.refuse_to_replace(out)
    if not replace and native.is_native(out):
        raise TraceError(f"{out}: exists already", "name another, or replace it with --force")


def _to_table(source: str | os.PathLike[str], out: Path, fetches: bool, is_native: bool) -> Meta:
    if is_native:
        trace = native.open(source)
        export.export(trace, out)
        return trace.meta
    with _unpacked(source, out, fetches) as partial:
        trace = native.open(partial)
        export.export(trace, out)
        return trace.meta


@contextmanager
def _unpacked(source: str | os.PathLike[str], out: Path, fetches: bool) -> Iterator[Path]:
    """A recording as a native trace that is only on the way to ``out``."""
    partial = tarball.hidden_sibling(out)
    try:
        _convert_recording(source, partial, fetches)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert_recording(source: str | os.PathLike[str], out: Path, fetches: bool) -> Meta:
    name = "" if os.fspath(source) == "-" else Path(source).name
    with (
        open_recording(source, fetches=fetches) as reader,
        native.TraceWriter(
            out,
            source=Source(*(reader.origin or (reader.format, name))),
            fetches=reader.fetches and "instruction_fetches" not in reader.missing,
        ) as writer,
    ):
        for chunk in reader.chunks():
            writer.append(*chunk)
        writer.address_kind, writer.missing = reader.address_kind, reader.missing
        writer.blocks = reader.blocks
        return writer.finish(reader.tally)


def _convert_native(source: Path, out: Path, level: int) -> Meta:
    packing = out.suffix == ".zst"
    if source.is_dir() == packing:
        if packing:
            native.pack(source, out, level=level)
        else:
            native.unpack(source, out)
        return native.open(out).meta
    state = "packed" if packing else "unpacked"
    raise TraceError(f"{source}: a native trace, {state} already; copy it")
