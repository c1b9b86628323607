"""``vmemu trace record``, ``vmemu trace record-qemu``: leave a trace, or the way to one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vmemu.traces.record.recorder import Recorded

EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


@click.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True)
@click.option(
    "--tool",
    type=click.Choice(["perf", "lackey"]),
    help="perf: page faults, hardly slower; lackey of valgrind: every access, a hundred times"
    " slower. Default: the first of them that works here.",
)
@click.option(
    "-o",
    "--output",
    "out",
    metavar="OUTPUT",
    help="NAME.vmtrace, or NAME.vmtrace.zst. Default: named after the command, here.",
)
@click.option("--force", is_flag=True, help="Replace a native trace that is there.")
def record(command: tuple[str, ...], tool: str | None, out: str | None, force: bool) -> int:
    """Run a command and leave a trace of the memory that it touches.

    The command has the terminal, and Ctrl-C is for it; what was recorded until then is kept. Ends
    with 0, with 1 when the command failed, with 130 when it was interrupted; all three leave the
    trace.
    """
    from vmemu.cli.signals import strike
    from vmemu.traces.record.recorder import record as record_command

    strike()
    out = out or f"{Path(command[0]).name}.vmtrace"
    recorded = record_command(command, out, tool=tool, replace=force)
    _say(out, recorded)
    if recorded.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if recorded.status else EXIT_OK


def _say(out: str, recorded: Recorded) -> None:
    """On standard error: the standard output is the command's."""
    import shlex

    from vmemu.cli.traceinfo import converted
    from vmemu.cli.traceinfo import notes as notes_of
    from vmemu.traces.figures.missing import MEANING
    from vmemu.traces.record.command import how_it_ended

    meta = recorded.meta
    counts = meta.counts
    notes = notes_of(counts.dropped, counts.unknown_lines, counts.first_unknown, meta.truncated)
    if recorded.interrupted:
        notes.append("interrupted: the trace is of what the command did until then")
    elif recorded.status:
        ended = how_it_ended(recorded.status)
        notes.append(f"the command {ended}: the trace is of a failed command")
    notes += recorded.notes
    notes += [MEANING.get(key, key) for key in meta.missing]
    notes.append(f"not in it: {recorded.tool.not_in_it}")
    click.echo(f"{out}: {converted(meta)}, recorded with {recorded.tool.title}", err=True)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"next: vmemu trace info {shlex.quote(out)}", err=True)


@click.command("record-qemu")
@click.option("--plugin-source", is_flag=True, help="Write the source of the plugin.")
@click.option("-o", "--output", "out", metavar="FILE.c", help="Where to; default: standard output.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def record_qemu(plugin_source: bool, out: str | None, force: bool) -> None:
    """Record a guest of QEMU: write a TCG plugin for it, and the commands that build and use it.

    One source serves QEMU 7.2 and all later versions. It records the guest-physical accesses of
    every vCPU, for vmemu trace convert.
    """
    from vmemu.traces.record import plugin

    if not plugin_source:
        raise click.UsageError(
            "A guest is recorded inside QEMU, by a plugin that you build: vmemu trace record-qemu"
            f" --plugin-source -o {plugin.NAME} writes it, and says how."
        )
    path = Path(out or plugin.NAME)
    text = plugin.source(path.name)
    if out is None:
        click.echo(text, nl=False)
    else:
        _write(path, text, force)
    commands = plugin.Commands.of(path)
    for what, line in (
        ("build", commands.build),
        ("run", commands.run),
        ("then", commands.convert),
    ):
        click.echo(f"{what + ':':<6} {line}", err=True)


def _write(path: Path, text: str, force: bool) -> None:
    from vmemu.errors import InputError

    if path.suffix != ".c":
        raise InputError(f"{path}: the source must end in .c")
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: exists already; name another, or take --force") from None
    except OSError as error:
        raise InputError(f"{path}: can't be written: {error.strerror}") from None
