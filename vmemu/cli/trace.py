"""``vmemu trace``: convert recordings, and say what is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmemu.cli.tracemap import map_command

if TYPE_CHECKING:
    from vmemu.traces.meta import Meta
    from vmemu.traces.stats import TraceStats


@click.group()
def trace() -> None:
    """Recorded memory traces."""


trace.add_command(map_command)


@trace.command()
@click.argument("source", metavar="INPUT")
@click.argument("out", metavar="OUTPUT")
@click.option("--fetches", is_flag=True, help="Keep instruction fetches as accesses.")
@click.option(
    "--level",
    type=click.IntRange(1, 22),
    default=12,
    show_default=True,
    help="How hard zstd works on a packed output.",
)
@click.option("--force", is_flag=True, help="Replace a native trace that is there.")
def convert(source: str, out: str, fetches: bool, level: int, force: bool) -> None:
    """Convert a recording to a native trace.

    INPUT is a recording of any known format, compressed or not (- for standard input), or a native
    trace. OUTPUT is a directory NAME.vmtrace, or one packed file if it ends in .zst; nothing that
    is there is replaced without --force, and only native traces with it.
    """
    from vmemu.traces.convert import convert as convert_trace

    meta = convert_trace(source, out, fetches=fetches, level=level, replace=force)
    click.echo(f"{out}: {_converted(meta)}")
    for note in _notes(meta.counts.dropped, meta.counts.unknown_lines, "", meta.truncated):
        click.echo(f"note: {note}", err=True)


@trace.command()
@click.argument("path", metavar="PATH")
@click.option("--json", "json_file", metavar="FILE", help="Write them as JSON; - for stdout.")
def info(path: str, json_file: str | None) -> None:
    """Say what a native trace or a recording holds."""
    from vmemu.traces.stats import stats_of

    stats = stats_of(path)
    if json_file is not None:
        _write_json(stats, json_file)
    if json_file != "-":
        _print_table(stats)
    notes = _notes(stats.dropped, stats.unknown_lines, stats.first_unknown, stats.truncated)
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _converted(meta: Meta) -> str:
    counts = meta.counts
    held = sum(stream.accesses for stream in meta.streams)
    fetches = f", {held - counts.accesses:,} instruction fetches" if held > counts.accesses else ""
    streams = f"{len(meta.streams)} stream" + ("" if len(meta.streams) == 1 else "s")
    return f"{counts.accesses:,} accesses{fetches}, {meta.pages:,} pages, {streams}"


def _notes(dropped: dict[str, int], unknown: int, first: str, truncated: bool) -> list[str]:
    notes = [f"{count:,} accesses left out: {reason}" for reason, count in dropped.items() if count]
    if unknown:
        notes.append(f"{unknown:,} lines or records mean nothing" + (f"; {first}" if first else ""))
    if truncated:
        notes.append("the recording ends in the middle of something; what was whole is here")
    return notes


def _write_json(stats: TraceStats, file: str) -> None:
    import json

    from vmemu.errors import InputError

    text = json.dumps(stats.to_json(), indent=1)
    try:
        with click.open_file(file, "w", encoding="utf-8") as out:
            out.write(text + "\n")
    except OSError as error:
        raise InputError(f"{file}: can't be written: {error.strerror}") from None


def _print_table(stats: TraceStats) -> None:
    from vmemu.units import format_size

    rows = [
        ("format", stats.format),
        ("recorded format", stats.source or "not told"),
        ("addresses", stats.address_kind),
        ("accesses", f"{stats.accesses:,}"),
        ("  reads", _share(stats.reads, stats.accesses)),
        ("  writes", _share(stats.writes, stats.accesses)),
        ("  modifies", _share(stats.modifies, stats.accesses)),
        ("  straddling two pages", f"{stats.straddling:,}"),
        ("instruction fetches", _unless_missing("instruction_fetches", stats)),
        ("pages of 4 KiB", f"{stats.pages_4k:,}"),
        ("  written", _share(stats.pages_written, stats.pages_4k)),
        ("pages of 2 MiB", f"{stats.pages_2m:,}"),
        ("span", f"{format_size(stats.span_bytes, digits=4)} ({stats.span_bytes:,} bytes)"),
        ("threads or vCPUs", _unless_missing("threads", stats)),
        ("left out", _dropped(stats.dropped)),
        ("not recorded", ", ".join(stats.missing) or "-"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _unless_missing(name: str, stats: TraceStats) -> str:
    """A figure that the recording may know nothing of."""
    return "not recorded" if name in stats.missing else f"{getattr(stats, name):,}"


def _dropped(dropped: dict[str, int]) -> str:
    """Accesses left out on purpose, by reason."""
    reasons = [f"{count:,} accesses ({reason})" for reason, count in dropped.items() if count]
    return ", ".join(reasons) or "-"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"
