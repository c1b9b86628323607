"""``vmemu trace map``: where the pages of a trace will lie, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vmemu.config import Scenario
    from vmemu.trace_plan import LaidTrace
    from vmemu.traces.mapping.summary import Range, Summary

ROWS = 40
"""Ranges that are shown unless all are asked for."""

KINDS = ("auto", "compact", "regions", "blocks", "first_touch", "modulo")


@click.command("map")
@click.argument("source", metavar="SCENARIO.yaml|TRACE")
@click.option("--json", "json_file", metavar="FILE", help="Write it as JSON; - for stdout.")
@click.option("--all", "show_all", is_flag=True, help=f"Show more than {ROWS} ranges.")
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
    on blocks given with --block. Nothing is mapped; what a run would refuse is refused here with
    the same words.
    """
    from vmemu.cli.signals import strike
    from vmemu.plan import blocks_of, entries_of
    from vmemu.trace_plan import lay_traces

    strike()
    mapping = _mapping(**options)
    if blocks:
        scenario = _scenario_of(source, blocks, mapping)
    elif mapping:
        raise click.UsageError("how to map stands in the scenario; a TRACE needs --block NAME=SIZE")
    else:
        scenario = _load(source, overrides)
    laid = [(one, _summary(one)) for one in lay_traces(scenario, entries_of(blocks_of(scenario)))]
    if json_file is not None:
        document = {"traces": [_head(one) | summary.to_json() for one, summary in laid]}
        _write_json(document, json_file)
    if json_file != "-":
        for line in _shown(laid, None if show_all else ROWS):
            click.echo(line)


def _load(source: str, overrides: tuple[str, ...]) -> Scenario:
    from vmemu.config import load, split_override
    from vmemu.errors import ConfigError, InputError, TraceError
    from vmemu.traces import native

    try:
        return load(source, map(split_override, overrides))
    except ConfigError:
        # A trace is no YAML: its own words help more than what a reader of YAML makes of it.
        try:
            if native.is_native(source):
                what = "a trace alone does not say what it is laid on"
                raise InputError(f"{source}: {what}; add --block NAME=SIZE") from None
            is_recording = _is_recording(source)
        except (TraceError, OSError):
            is_recording = False
        if is_recording:
            raise InputError(
                f"{source}: a recording has to be converted first: vmemu trace convert {source}"
                " NAME.vmtrace"
            ) from None
        raise


def _is_recording(source: str) -> bool:
    from vmemu.errors import TraceError
    from vmemu.traces.recordings import open_recording

    try:
        open_recording(source).stream.close()
    except TraceError:
        return False
    return True


# ---- a trace without a scenario ----


def _mapping(
    *,
    kind: str | None,
    regions: tuple[str, ...],
    renames: tuple[str, ...],
    into: str | None,
    align: str | None,
    drop: bool,
) -> dict[str, Any]:
    """The options as the ``map`` of a scenario."""
    implied = "regions" if regions else "blocks" if renames else None
    fields = {
        "kind": kind or implied,
        "regions": list(regions) or None,
        "rename": dict(_pair("--rename", one, "RECORDED=BLOCK") for one in renames) or None,
        "block": into,
        "align": align,
        "outside": "drop" if drop else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _scenario_of(source: str, blocks: tuple[str, ...], mapping: dict[str, Any]) -> Scenario:
    """A scenario that has nothing but the trace on these blocks."""
    from vmemu.config import make

    trace = {"file": source, "map": mapping}
    data = {"blocks": [_block(text) for text in blocks], "guest": {"trace": trace}}
    return make(data, "vmemu trace map")


def _block(text: str) -> dict[str, str]:
    name, size = _pair("--block", text, "NAME=SIZE")
    size, slash, page_size = size.partition("/")
    if not slash or page_size == "4KiB":
        return {"name": name, "backing": "anonymous", "size": size}
    return {"name": name, "backing": "hugetlbfs", "size": size, "page_size": page_size}


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise click.BadParameter(f"{text!r} is not {form}", param_hint=option)
    return name, value


# ---- what is shown ----


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


def _shown(laid: Sequence[tuple[LaidTrace, Summary]], most: int | None) -> Iterator[str]:
    if not laid:
        yield "no trace is recorded: synthetic accesses are made on the blocks themselves"
    for number, (one, summary) in enumerate(laid):
        if number:
            yield ""
        yield from _lines(_head(one), summary, most)


def _lines(head: dict[str, Any], summary: Summary, most: int | None) -> Iterator[str]:
    yield (
        f"{head['field']}: {head['file']} ({head['address_kind']} addresses), by {head['kind']}:"
        f" {head['accesses']:,} accesses, {summary.pages_touched:,} pages"
    )
    yield ""
    rows = [_range_row(one) for one in summary.ranges(most)]
    yield from _table(("recorded", "lies in", "pages", "accesses"), rows, left=2)
    if (more := len(summary) - len(rows)) > 0:
        yield f"and {more:,} ranges more; --all shows them"
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
        yield (
            f"outside: {summary.accesses_outside:,} accesses touch {summary.pages_outside:,} pages"
            " that lie in no block; they are dropped, and counted"
        )
    if summary.merged:
        yield ""
        yield (
            f"merged: {summary.merged:,} of {summary.pages:,} recorded pages lie on memory that"
            " another one has"
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


def _write_json(document: dict[str, Any], file: str) -> None:
    from vmemu.errors import InputError

    try:
        with click.open_file(file, "w", encoding="utf-8") as out:
            json.dump(document, out, indent=1)
            out.write("\n")
    except OSError as error:
        raise InputError(f"{file}: can't be written: {error.strerror}") from None
