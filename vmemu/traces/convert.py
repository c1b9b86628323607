"""From a recording of any known format, or a native trace, to a trace in another shape.

The kind of an output is told by the suffix of its name, here and nowhere else (``OUTPUTS``).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from vmemu.errors import TraceError
from vmemu.interrupts import Interrupts
from vmemu.traces import native
from vmemu.traces.collapse import DROPPED, Collapse
from vmemu.traces.inputs import Input, file_of, open_input
from vmemu.traces.native.meta import Meta
from vmemu.traces.native.placing import NATIVE, hidden_sibling, refuse_to_take
from vmemu.traces.pageset import GROUPS
from vmemu.traces.progress import Report, silent
from vmemu.traces.reader import Chunk
from vmemu.traces.recordings import Recording
from vmemu.traces.tables import export


@dataclass(frozen=True)
class Options:
    """How an output is made."""

    level: int = native.DEFAULT_LEVEL
    """Of zstd, 1 to 22."""
    collapse: bool = False
    replace: bool = False
    report: Report = silent
    interrupts: Interrupts = field(default_factory=Interrupts)
    """A signal strikes while a chunk is waited for and when something is reported."""

    @property
    def groups(self) -> int:
        """Of each ``PageSet``: collapsing has one of its own beside that of the writer."""
        return GROUPS // 2 if self.collapse else GROUPS


Write = Callable[[Input, Path, Options], Meta]


def convert(
    source: Recording,
    out: str | os.PathLike[str],
    *,
    fetches: bool = False,
    collapse: bool = False,
    level: int = native.DEFAULT_LEVEL,
    replace: bool = False,
    trace_events: str | os.PathLike[str] | None = None,
    report: Report = silent,
) -> Meta:
    """Converts a recording (``-``: standard input) or a native trace; returns its ``meta.json``.

    A recording that is a stream is read as it comes, and closed at the end.
    ``out``: ``NAME.vmtrace``, a directory; ``NAME.vmtrace.zst``, packed; or ``.csv``, ``.parquet``,
    ``.arrow``, a table. It appears when it is whole, in the place of a native trace or table of a
    trace of that name only with ``replace``. ``fetches``: keep instruction fetches as accesses.
    ``collapse``: leave out the accesses that can't fault. ``level``: of zstd, 1 to 22.
    ``trace_events``: as in ``open_recording``. A native trace is packed or unpacked as it
    is, unless it is collapsed. Raises ``TraceError``, or ``OutputError`` when the disk is full;
    then nothing is left behind, nor is after a KeyboardInterrupt.
    """
    out = Path(out)
    file = file_of(source)
    if file and out.exists() and out.samefile(file):
        raise TraceError(f"{out}: input and output are the same")
    write = checked_output(out, replace=replace)
    with Interrupts() as interrupts:

        def report_and_strike(what: str, done: int, total: int | None) -> None:
            with interrupts.allowed():
                report(what, done, total)

        options = Options(level, collapse, replace, report_and_strike, interrupts)
        if not collapse and file and native.is_native(file):
            return _convert_native(file, out, options)
        with ExitStack() as stack:
            with interrupts.allowed():
                accesses = stack.enter_context(
                    open_input(source, fetches=fetches, trace_events=trace_events)
                )
            return write(accesses, out, options)


def checked_output(out: Path, *, replace: bool) -> Write:
    """How ``out`` is written. Raises ``TraceError`` unless it may be."""
    for suffix, write in OUTPUTS.items():
        if out.name.removesuffix(suffix) not in ("", out.name):
            kind = export.TABLE if suffix in export.SUFFIXES else NATIVE
            refuse_to_take(out, kind, replace=replace)
            return write
    names = [f"NAME{suffix}" for suffix in OUTPUTS]
    raise TraceError(f"{out}: the output must be {', '.join(names[:-1])}, or {names[-1]}")


def write_directory(accesses: Input, out: Path, options: Options) -> Meta:
    """A native trace as a directory."""
    return _write(accesses, out, options, name=out, replace=options.replace)


def _write(
    accesses: Input, directory: Path, options: Options, *, name: Path, replace: bool = False
) -> Meta:
    collapse = Collapse(options.groups) if options.collapse else None
    with native.TraceWriter(
        directory,
        source=accesses.source,
        fetches=accesses.fetches,
        groups=options.groups,
        name=name,
        replace=replace,
    ) as writer:
        for chunk in _watched(accesses, options):
            writer.append(*(collapse(chunk) if collapse else chunk))
        if not writer.accesses:
            raise _nothing_kept(accesses)
        writer.address_kind, writer.missing = accesses.address_kind, accesses.missing
        writer.blocks = accesses.blocks
        tally = accesses.tally
        if collapse:
            tally = dataclasses.replace(tally, dropped=dict(tally.dropped))
            tally.drop(DROPPED, collapse.dropped)
            writer.missing = tuple(dict.fromkeys((*writer.missing, DROPPED)))
        return writer.finish(tally, options.report)


def _nothing_kept(accesses: Input) -> TraceError:
    """A trace without accesses can't be replayed: why there are none."""
    tally = accesses.tally
    name = accesses.source.file or "standard input"
    if tally.instruction_fetches and not accesses.fetches:
        what = f"{tally.instruction_fetches:,} instruction fetches and no other access"
        return TraceError(f"{name}: {what}", "keep them with --fetches")
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
    return TraceError(f"{name}: no access is left: {reasons or 'there was none'}")


def write_packed(accesses: Input, out: Path, options: Options) -> Meta:
    """A native trace in one file."""
    partial = hidden_sibling(out)
    try:
        meta = _write(accesses, partial, options, name=out)
        accesses.close()
        names = native.file_names(meta)
        native.pack_files(
            partial,
            names,
            out,
            level=options.level,
            replace=options.replace,
            report=options.report,
        )
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def write_table(accesses: Input, out: Path, options: Options) -> Meta:
    """A table for other programs, made from a native trace that is removed again."""
    partial = hidden_sibling(out)
    try:
        meta = _write(accesses, partial, options, name=out)
        accesses.close()
        with native.looking_into(partial) as trace:
            export.export(trace, out, options.report, replace=options.replace)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


OUTPUTS: dict[str, Write] = {
    ".vmtrace": write_directory,
    ".vmtrace.zst": write_packed,
    **dict.fromkeys(export.SUFFIXES, write_table),
}
"""By how the output's name ends."""


def _watched(accesses: Input, options: Options) -> Iterator[Chunk]:
    """The chunks; a signal may strike while one is waited for, and it is told how far they are."""
    chunks = accesses.chunks()
    while True:
        with options.interrupts.allowed():
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk
        options.report("reading", *accesses.position())


def _convert_native(source: Path, out: Path, options: Options) -> Meta:
    """A native trace as it is: packed, unpacked, or as a table."""
    if out.suffix in export.SUFFIXES:
        with native.looking_into(source) as trace:
            export.export(trace, out, options.report, replace=options.replace)
            return trace.meta
    packing = out.suffix == ".zst"
    if source.is_dir() == packing:
        replace, report = options.replace, options.report
        if packing:
            return native.pack(source, out, level=options.level, replace=replace, report=report)
        return native.unpack(source, out, replace=replace, report=report)
    state = "packed" if packing else "unpacked"
    raise TraceError(f"{source}: a native trace, {state} already; copy it")
