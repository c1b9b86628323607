"""Directories of drmemtrace: ``DIR/trace/`` with one file a thread, or the files themselves."""

from __future__ import annotations

from pathlib import Path

from vmemu.errors import TraceError
from vmemu.traces.opening import open_stream
from vmemu.traces.reader import HEAD_BYTES
from vmemu.traces.readers.drmemtrace import DrmemtraceReader, Facts, facts_of

_BESIDE = (
    "modules.log",
    "funclist.log",
    "encodings.bin",
    "cpu_schedule.bin",
    "serial_schedule.bin",
)
"""How the names begin of what lies beside the threads' files and is none."""


def open_directory(path: Path, *, fetches: bool = False) -> DrmemtraceReader:
    """Opens all files of a trace directory, or raises ``TraceError``."""
    files = [(facts, file) for file in _trace_files(path) if (facts := _sniffed(file))]
    if not files:
        raise _no_trace_in(path)
    # A thread id may come twice, when it was given again: the older thread goes first.
    files.sort(key=lambda one: (0 if one[0].by_core else one[0].first_time or 0, one[1]))
    first, *further = (file for _, file in files)
    stream = open_stream(first)
    try:
        timed = all(facts.timed for facts, _ in files)
        return DrmemtraceReader(stream, fetches=fetches, further=further, timed=timed)
    except BaseException:
        stream.close()
        raise


def _trace_files(directory: Path) -> list[Path]:
    """The files that may be threads of the trace in ``directory``."""
    below = directory / "trace"
    where = below if below.is_dir() else directory
    try:
        # A trace of several windows may have a directory for each.
        windows = [place for place in where.iterdir() if place.match("window.*") and place.is_dir()]
        places = [where, *windows]
        files = sorted(file for place in places for file in place.iterdir() if file.is_file())
    except OSError as error:
        raise TraceError(f"{where}: can't be read: {error.strerror}") from None
    return [file for file in files if not file.name.startswith(_BESIDE) and ".raw" not in file.name]


def _sniffed(file: Path) -> Facts | None:
    """What a file of a directory is; None when it is no drmemtrace."""
    with open_stream(file) as stream:
        head = stream.head(HEAD_BYTES)
        return facts_of(head) if DrmemtraceReader.sniff(head) else None


def _no_trace_in(path: Path) -> TraceError:
    what = f"{path}: Is a directory"
    for raw in (path / "raw", path):
        if raw.is_dir() and any(raw.glob("*.raw*")):
            owner = raw.parent if raw.name == "raw" else raw
            return TraceError(
                f"{what} with raw files of drmemtrace, which only DynamoRIO can turn into a trace",
                f"do it with: drraw2trace -indir {owner}",
            )
    return TraceError(f"{what}, and neither a native trace nor one of drmemtrace")
