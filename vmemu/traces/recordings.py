"""Recordings of every known format: the reader is chosen by what a file holds, not by its name."""

from __future__ import annotations

import os
from pathlib import Path

from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream, open_stream
from vmemu.traces.reader import HEAD_BYTES, Reader
from vmemu.traces.readers.arrow import ArrowReader, ParquetReader
from vmemu.traces.readers.csv import CsvReader
from vmemu.traces.readers.damo import DamoReader
from vmemu.traces.readers.damon import DamonReader
from vmemu.traces.readers.dramsim3 import Dramsim3Reader
from vmemu.traces.readers.drmemtrace import DrmemtraceReader
from vmemu.traces.readers.drmemtrace_directory import open_directory
from vmemu.traces.readers.drview import DrviewReader
from vmemu.traces.readers.execlog import ExeclogReader
from vmemu.traces.readers.gpa import GpaReader
from vmemu.traces.readers.lackey import LackeyReader
from vmemu.traces.readers.perf import PerfReader
from vmemu.traces.readers.qemu_log import QemuLogReader
from vmemu.traces.readers.ramulator import RamulatorReader
from vmemu.traces.readers.reap import ReapReader
from vmemu.traces.readers.simpletrace import SimpletraceReader
from vmemu.traces.readers.trace_events import read_declarations

_LOOK_FURTHER = 1 << 20
"""Bytes of a head that tells nothing, as one of comments or of a header, before it is given up."""
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

Recording = str | os.PathLike[str] | ByteStream
"""A file, ``-`` for standard input, or what is being recorded just now."""


def known_readers() -> tuple[type[Reader], ...]:
    """All readers, in the order in which they are asked, strict before lax."""
    return (
        ParquetReader,
        ArrowReader,
        SimpletraceReader,
        DrmemtraceReader,
        LackeyReader,
        ExeclogReader,
        DrviewReader,
        Dramsim3Reader,
        DamonReader,
        PerfReader,
        DamoReader,
        ReapReader,
        CsvReader,
        QemuLogReader,
        GpaReader,
        RamulatorReader,
    )


def open_recording(
    source: Recording,
    *,
    fetches: bool = False,
    trace_events: str | os.PathLike[str] | None = None,
) -> Reader:
    """Opens a recording with the reader that knows its content.

    A directory is taken for one of drmemtrace. ``trace_events``: a file that declares the events of
    a QEMU simple trace, for that format alone. Raises ``TraceError`` when it can't be opened or
    when no reader knows it.
    """
    if isinstance(source, ByteStream):
        stream = source
    elif os.fspath(source) != "-" and Path(source).is_dir():
        return open_directory(Path(source), fetches=fetches)
    else:
        stream = open_stream(source)
    try:
        reader = _reader_of(stream)
        if trace_events is None:
            return reader(stream, fetches=fetches)
        if reader is SimpletraceReader:
            return SimpletraceReader(stream, declarations=read_declarations(trace_events))
        raise TraceError(
            f"{stream.name}: a {reader.title}: --trace-events is for QEMU simple traces"
        )
    except BaseException:
        stream.close()
        raise


def _reader_of(stream: ByteStream) -> type[Reader]:
    """The reader that knows what ``stream`` begins with."""
    head = stream.head(HEAD_BYTES)
    if head.startswith(_UTF8_MARK) and b"\0" not in head:
        stream.read(len(_UTF8_MARK))
    for size in (HEAD_BYTES, _LOOK_FURTHER):
        head = stream.head(size)
        for reader in known_readers():
            if reader.sniff(head):
                return reader
        if len(head) < size:
            break
    if head.startswith(_UTF16_MARKS):
        raise TraceError(
            f"{stream.name}: text in UTF-16, which can't be read here",
            "turn it into UTF-8: iconv -f UTF-16 -t UTF-8 FILE",
        )
    raise TraceError(_unknown_format(stream, head))


def _unknown_format(stream: ByteStream, head: bytes) -> str:
    if not head:
        why = "its compressed data is cut off" if stream.truncated else "it is empty"
        return f"{stream.name}: not a recording: {why}"
    titles = ", ".join(reader.title for reader in known_readers())
    return f"{stream.name}: not a recording of a known format (known: {titles}, native traces)"
