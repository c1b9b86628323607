"""``vmemu trace``: convert recordings, and say what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmemu.cli.record import record, record_qemu
from vmemu.cli.streams import write_json
from vmemu.cli.tracemap import map_command

if TYPE_CHECKING:
    pass


_trace_events = click.option(
    "--trace-events",
    metavar="FILE",
    help="Of a QEMU simple trace: the trace-events-all of that QEMU; not needed for 2.8 to 11.",
)


@click.group()
def trace() -> None:
    """Recorded memory traces."""


trace.add_command(map_command)
trace.add_command(record)
trace.add_command(record_qemu)


@trace.command()
@click.argument("source", metavar="INPUT")
@click.argument("out", metavar="OUTPUT")
@click.option("--fetches", is_flag=True, help="Keep instruction fetches as accesses.")
@click.option(
    "--collapse",
    is_flag=True,
    help="Leave out accesses that can't fault: those that repeat what the stream did to the page.",
)
@click.option(
    "--level",
    type=click.IntRange(1, 22),
    default=12,
    show_default=True,
    help="How hard zstd works on a packed output.",
)
@click.option("--force", is_flag=True, help="Replace a native trace or table that is there.")
@click.option("--quiet", "-q", is_flag=True, help="Show nothing unless something is wrong.")
@_trace_events
def convert(source: str, out: str, *, quiet: bool, force: bool, **options: Any) -> None:
    """Convert a recording to a native trace, or to a table.

    INPUT is a recording of any known format, compressed or not (- for standard input), or a native
    trace. OUTPUT is a directory NAME.vmtrace, one packed file NAME.vmtrace.zst, or a table
    NAME.csv, NAME.parquet or NAME.arrow. Nothing that is there is replaced without --force, and
    only native traces and tables of traces with it.
    """
    from vmemu.cli.signals import strike
    from vmemu.cli.traceinfo import converted, notes
    from vmemu.cli.traceprogress import progress
    from vmemu.traces.convert import convert as convert_trace

    strike()
    with progress(not quiet) as report:
        meta = convert_trace(source, out, replace=force, report=report, **options)
    if not quiet:
        click.echo(f"{out}: {converted(meta)}")
    dropped = {key: count for key, count in meta.counts.dropped.items() if key != "repeats"}
    shown, counts = {} if quiet else dropped, meta.counts
    for note in notes(shown, counts.unknown_lines, counts.first_unknown, meta.truncated):
        click.echo(f"note: {note}", err=True)
    if out.endswith(".csv") and meta.lost_in_csv and not quiet:
        lost = ", ".join(meta.lost_in_csv)
        click.echo(f"note: CSV can't tell what was not recorded: {lost}", err=True)


@trace.command()
@click.argument("path", metavar="PATH")
@click.option("--json", "json_file", metavar="FILE", help="Write them as JSON; - for stdout.")
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@_trace_events
def info(path: str, json_file: str | None, quiet: bool, trace_events: str | None) -> None:
    """Say what a native trace or a recording holds."""
    from vmemu.cli import traceinfo
    from vmemu.cli.signals import strike
    from vmemu.cli.traceprogress import progress
    from vmemu.results import document
    from vmemu.traces.figures.stats import stats_of

    if json_file is not None:
        document.check_place(json_file, path)
    strike()
    with progress(not quiet) as report:
        stats = stats_of(path, report, trace_events=trace_events)
    if json_file is not None:
        write_json(stats.to_json(), json_file)
    if json_file != "-":
        for line in traceinfo.lines(stats):
            click.echo(line)
    for note in traceinfo.notes(
        stats.dropped, stats.unknown_lines, stats.first_unknown, stats.truncated
    ):
        click.echo(f"note: {note}", err=True)
