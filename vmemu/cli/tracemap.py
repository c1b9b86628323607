"""``vmemu trace map``: where the pages of a trace will lie, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from vmemu.cli import tracealone as alone
from vmemu.cli.streams import write_json
from vmemu.units import counted

if TYPE_CHECKING:
    from vmemu.config import Scenario
    from vmemu.trace_plan import LaidTrace
    from vmemu.traces.mapping.recorded import RecordedRange
    from vmemu.traces.mapping.summary import Range, Summary

ROWS = 40
"""Ranges that are shown unless all are asked for."""

KINDS = ("auto", "compact", "regions", "blocks", "first_touch", "modulo")


@click.command("map")
@click.argument("source", metavar="SCENARIO.yaml|TRACE")
@click.option("--json", "json_file", metavar="FILE", help="Write it as JSON; - for stdout.")
@click.option(
    "--all",
    "show_all",
    is_flag=True,
    help=f"Show more than {ROWS} ranges, and exact ones of a TRACE alone.",
)
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="In the place of the scenario's value; may be repeated.",
)
@click.option(
    "--block",
    "blocks",
    metavar="NAME=SIZE[/PAGE]",
    multiple=True,
    help="Lay a TRACE on this block, of 4 KiB pages or hugepages of that size; may be repeated.",
)
@click.option("--kind", type=click.Choice(KINDS), help="How; by default as its addresses are.")
@click.option("--region", "regions", metavar="START-END=BLOCK[+OFFSET]", multiple=True)
@click.option("--rename", "renames", metavar="RECORDED=BLOCK", multiple=True)
@click.option("--into", metavar="NAME", help="The one block to use.")
@click.option("--align", metavar="SIZE", help="Regions that compaction keeps as they are.")
@click.option("--drop", is_flag=True, help="Drop what lies outside instead of refusing it.")
def map_command(
    source: str,
    *,
    json_file: str | None,
    show_all: bool,
    overrides: tuple[str, ...],
    blocks: tuple[str, ...],
    **options: Any,
) -> None:
    """Show where recorded pages lie in the RAM blocks.

    Of a scenario: its trace and those of its clients, as a run would lay them. Of a native trace:
    on blocks given with --block; without any, the ranges of its addresses, for regions to be
    written from. Nothing is mapped; what a run would refuse is refused here with the same words.
    """
    from vmemu.results import document as documents

    if json_file is not None:
        documents.check_place(json_file, source)
    mapping = alone.mapping_of(**options)
    on_its_own = bool(blocks) or alone.is_native(source)
    if on_its_own and overrides:
        raise click.UsageError("--set is for a scenario; a TRACE has --kind, --region and so on")
    if mapping and not blocks:
        raise click.UsageError("how to map stands in the scenario; a TRACE needs --block NAME=SIZE")
    gap = 0 if show_all else None
    if blocks:
        with alone.in_options():
            laid = _laid(alone.scenario_of(source, blocks, mapping))
        document, lines = _mapped(laid, show_all, with_field=False)
    elif on_its_own:
        document, lines = _recorded(source, gap)
    else:
        document, lines = _mapped(_laid(_load(source, overrides)), show_all, with_field=True)
    if json_file is not None:
        write_json(document, json_file)
    if json_file != "-":
        for line in lines:
            click.echo(line)


def _load(source: str, overrides: tuple[str, ...]) -> Scenario:
    from vmemu.config import load, split_override
    from vmemu.errors import ConfigError, InputError

    try:
        return load(source, map(split_override, overrides))
    except ConfigError:
        # A recording is no YAML: its own words help more than what a reader of YAML makes of it.
        if alone.is_recording(source):
            raise InputError(alone.convert_first(source)) from None
        raise


def _laid(scenario: Scenario) -> list[tuple[LaidTrace, Summary]]:
    from vmemu.plan import blocks_of, entries_of
    from vmemu.trace_plan import lay_traces

    laid = lay_traces(scenario, entries_of(blocks_of(scenario)))
    return [(one, _summary(one)) for one in laid]


# ---- what is shown ----


def _mapped(
    laid: Sequence[tuple[LaidTrace, Summary]], show_all: bool, *, with_field: bool
) -> tuple[dict[str, Any], Iterator[str]]:
    """Mappings as a document and for people; without a scenario there is no field to name."""
    heads = [_head(one) if with_field else _head(one) | {"field": None} for one, _ in laid]
    summaries = [summary for _, summary in laid]
    document = {
        "traces": [head | one.to_json() for head, one in zip(heads, summaries, strict=True)]
    }
    return document, _shown(heads, summaries, None if show_all else ROWS)


def _recorded(source: str, gap: int | None) -> tuple[dict[str, Any], Iterator[str]]:
    """The ranges of a trace's addresses as a document and for people."""
    from vmemu.traces import native
    from vmemu.traces.mapping.recorded import GAP, recorded_ranges

    with native.looking_into(source) as trace:
        ranges = recorded_ranges(trace, GAP if gap is None else gap)
        head = {
            "field": None,
            "file": source,
            "address_kind": trace.meta.address_kind,
            "kind": None,
            "accesses": trace.accesses,
            "pages": len(trace.pages),
        }
    return (
        {"traces": [head | {"ranges": [asdict(one) for one in ranges]}]},
        _recorded_lines(head, ranges, exact=gap == 0),
    )


def _recorded_lines(
    head: dict[str, Any], ranges: Sequence[RecordedRange], *, exact: bool
) -> Iterator[str]:
    yield (
        f"{head['file']} ({head['address_kind']} addresses):"
        f" {counted(head['accesses'], 'access')}, {counted(head['pages'], 'page')}"
    )
    if not ranges:
        return
    yield ""
    of_blocks = any(one.block for one in ranges)
    rows = [
        (
            f"{one.start:#x}-{one.end:#x}",
            *((f"{one.block}+{one.offset:#x}" if one.block else "no block",) if of_blocks else ()),
            f"{one.pages:,}",
            f"{one.accesses:,}",
        )
        for one in ranges
    ]
    columns = ("recorded", *(("recorded block",) if of_blocks else ()), "pages", "accesses")
    yield from _table(columns, rows, left=len(columns) - 2)
    if not exact:
        yield ""
        yield "gaps of up to 2 MiB are within a range; --all shows the exact ones"


def _summary(laid: LaidTrace) -> Summary:
    from vmemu.traces.mapping import touched
    from vmemu.traces.mapping.summary import Summary

    parts = [(part.where, part.what) for part in laid.recipe.parts(laid.trace)]
    return Summary(laid.trace, laid.page_map, laid.blocks, touched(laid.trace, parts))


def _head(laid: LaidTrace) -> dict[str, Any]:
    recipe = laid.recipe
    return {
        "field": laid.field,
        "file": recipe.file,
        "address_kind": laid.trace.meta.address_kind,
        "kind": laid.kind,
        "accesses": sum(len(part.what) for part in recipe.parts(laid.trace)),
    }


def _shown(
    heads: Sequence[dict[str, Any]], summaries: Sequence[Summary], most: int | None
) -> Iterator[str]:
    if not heads:
        yield "no trace is recorded: synthetic accesses are made on the blocks themselves"
    for number, (head, summary) in enumerate(zip(heads, summaries, strict=True)):
        if number:
            yield ""
        yield from _lines(head, summary, most)


def _lines(head: dict[str, Any], summary: Summary, most: int | None) -> Iterator[str]:
    yield (
        f"{head['field']}: "
        * (head["field"] is not None)
        + f"{head['file']} ({head['address_kind']} addresses), by {head['kind']}:"
        f" {counted(head['accesses'], 'access')}, {counted(summary.pages_touched, 'page')}"
    )
    yield ""
    rows = [_range_row(one) for one in summary.ranges(most)]
    yield from _table(("recorded", "lies in", "pages", "accesses"), rows, left=2)
    if (more := len(summary) - len(rows)) > 0:
        yield f"and {counted(more, 'range')} more; --all shows {'it' if more == 1 else 'them'}"
    yield ""
    yield from _table(
        ("block", "size", "touched", "share", "host pages", "touched", "accesses"),
        list(_block_rows(summary)),
        left=1,
    )
    yield from _notes(summary)


def _range_row(one: Range) -> tuple[str, ...]:
    place = "outside" if one.block is None else f"{one.block}+{one.offset:#x}"
    return f"{one.start:#x}-{one.end:#x}", place, f"{one.pages:,}", f"{one.accesses:,}"


def _block_rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    from vmemu.units import format_size

    for use in summary.blocks():
        yield (
            use.name,
            format_size(use.size),
            format_size(use.touched_bytes, digits=4),
            f"{use.touched_bytes / use.size:.1%}",
            f"{use.host_pages:,} of {format_size(use.page_size)}",
            f"{use.host_pages_touched:,}",
            f"{use.accesses:,}",
        )


def _notes(summary: Summary) -> Iterator[str]:
    if summary.pages_outside:
        yield ""
        accesses, pages = summary.accesses_outside, summary.pages_outside
        yield (
            f"outside: {counted(accesses, 'access')} to {counted(pages, 'page')} in no block;"
            " dropped, and counted"
        )
    if summary.merged:
        yield ""
        yield (
            f"merged: {summary.merged:,} of {counted(summary.pages, 'recorded page')}, on memory"
            " that another one has"
        )


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int) -> Iterator[str]:
    """Aligned lines; the first ``left`` columns are words, the others figures."""
    lines = [columns, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
