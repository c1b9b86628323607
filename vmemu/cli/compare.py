"""``vmemu compare``: event logs of migrations, ours and QEMU's, side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import click

Document = dict[str, Any]
Row = tuple[str, list[str]]

_QUANTILES = ("p50", "p90", "p99", "max")
_NOTHING = "-"


@click.command()
@click.argument("logs", metavar="LOG...", nargs=-1, required=True)
@click.option("--json", "json_file", metavar="FILE", help="Write the figures; - for stdout.")
def compare(logs: tuple[str, ...], *, json_file: str | None) -> None:
    """Lay the event logs of migrations side by side.

    Each LOG is one migration: a file of vmemu run --events, or what QEMU's log trace backend wrote
    with -msg timestamp=on, compressed or not. Its destination's and its source's log go together
    with a + between: qemu.dst.log+qemu.src.log.
    """
    from vmemu import eventcompare
    from vmemu.results import document, terminal

    if json_file is not None:
        document.check_place(json_file)
    result = eventcompare.compare(logs)
    if json_file is not None:
        document.write(result, json_file)
    if json_file != "-":
        terminal.write_text(table(result), sys.stdout)
    for note in _notes(result["runs"]):
        click.echo(f"note: {note}", err=True)


def table(result: Document) -> str:
    """The comparison as aligned text: a row a figure, a column a migration."""
    from vmemu.units import printable

    runs = result["runs"]
    rows: list[Row] = [("", _heads(runs))]
    for title, part in _PARTS:
        found = [
            (f"  {name}", cells) for name, cells in part(runs) if any(c != _NOTHING for c in cells)
        ]
        if found:
            rows += [("", []), (title, []), *found]
    rows = [(printable(name, 80), [printable(cell, 40) for cell in cells]) for name, cells in rows]
    name_width = max(len(name) for name, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows if cells) for i in range(len(runs))]
    lines = []
    for name, cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
        lines.append("  ".join([name.ljust(name_width), *padded]).rstrip())
    return "\n".join(lines) + "\n"


# ---- cells ----


def _heads(runs: list[Document]) -> list[str]:
    names = [os.path.basename(run["name"].split("+")[0]) for run in runs]
    return names if len(set(names)) == len(names) else [run["name"] for run in runs]


def _count(value: int | None) -> str:
    return f"{value:,}" if value else _NOTHING


def _time(value: int | None) -> str:
    from vmemu.units import format_duration

    return _NOTHING if value is None else format_duration(value, digits=3)


def _each(runs: list[Document], pick: Callable[[Document], str]) -> list[str]:
    return [pick(run) for run in runs]


# ---- parts ----


def _states(runs: list[Document]) -> Iterator[Row]:
    for side in ("source", "destination"):
        columns = [run["states"][side] for run in runs]
        for step, states in enumerate(zip_longest(*columns, fillvalue=_NOTHING)):
            yield side if step == 0 else "", list(states)


def _times(runs: list[Document]) -> Iterator[Row]:
    yield "whole log", _each(runs, lambda run: _time(run["duration_ns"]))
    yield "post-copy", _each(runs, lambda run: _time(run["postcopy_ns"]))


def _discards(runs: list[Document]) -> Iterator[Row]:
    names = ("commands_sent", "commands_received", "ranges_sent", "ranges_received")
    for name in names:
        label = name.replace("_", " ")
        yield label, [_count(run["discards"][name]) for run in runs]
    for block in _blocks(runs, "discards", "pages_sent"):
        yield (
            f"pages of {block}",
            [_count(run["discards"]["pages_sent"].get(block)) for run in runs],
        )
    for block in _blocks(runs, "discards", "bytes_dropped"):
        cells = [_count(run["discards"]["bytes_dropped"].get(block)) for run in runs]
        yield f"bytes dropped of {block}", cells


def _blocks(runs: list[Document], part: str, key: str) -> list[str]:
    """Every block that a run names, in the order in which they come."""
    return list(dict.fromkeys(block for run in runs for block in run[part][key]))


def _requests(runs: list[Document]) -> Iterator[Row]:
    labels = {
        "faults": "faults",
        "pages": "pages asked for",
        "repeats": "repeats",
        "queued": "queued at the source",
        "served": "served from the queue",
        "sent_before": "sent before",
    }
    for key, label in labels.items():
        yield label, [_count(run["requests"][key]) for run in runs]
    for block in _blocks(runs, "requests", "faults_by_block"):
        cells = [_count(run["requests"]["faults_by_block"].get(block)) for run in runs]
        yield f"faults on {block}", cells


def _placed(runs: list[Document]) -> Iterator[Row]:
    yield "pages", [_count(run["placed"]["pages"]) for run in runs]
    yield "zero pages", [_count(run["placed"]["zero"]) for run in runs]


def _latency(runs: list[Document]) -> Iterator[Row]:
    yield "pages", [_count(run["latency_ns"]["count"]) for run in runs]
    for quantile in _QUANTILES:
        yield quantile, [_quantile(run["latency_ns"], quantile) for run in runs]
    for stage, label in (
        ("request", "to the source"),
        ("queue", "in its queue"),
        ("answer", "sent to placed"),
    ):
        for quantile in ("p50", "p99"):
            cells = [_quantile((run["stages_ns"] or {}).get(stage), quantile) for run in runs]
            yield f"{label}, {quantile}", cells


def _quantile(distribution: Document | None, quantile: str) -> str:
    if not distribution or not distribution["count"]:
        return _NOTHING
    return _time(distribution[quantile])


def _blocktime(runs: list[Document]) -> Iterator[Row]:
    tables = [{one["id"]: one for one in run["blocktime"]["vcpus"]} for run in runs]
    has = [bool(one) for one in tables]
    both = zip(runs, has, strict=True)
    yield (
        "all vCPUs at once",
        [_time(run["blocktime"]["overlapped_ns"]) if any_ else _NOTHING for run, any_ in both],
    )
    told = [run["blocktime"]["overlapped_told_ns"] for run in runs]
    yield "  as the log says", [_time(value) for value in told]
    for cpu in sorted({cpu for one in tables for cpu in one}):
        cells = [_time(one[cpu]["blocktime_ns"]) if cpu in one else _NOTHING for one in tables]
        yield f"vCPU {cpu}", cells
        for quantile in _QUANTILES:
            yield f"  {quantile}", [_quantile(one.get(cpu), quantile) for one in tables]


_PARTS: tuple[tuple[str, Callable[[list[Document]], Iterator[Row]]], ...] = (
    ("states", _states),
    ("duration", _times),
    ("discards", _discards),
    ("requests", _requests),
    ("placed", _placed),
    ("request to placed", _latency),
    ("blocktime", _blocktime),
)


def _notes(runs: list[Document]) -> Iterator[str]:
    from vmemu.units import counted

    for run in runs:
        events, name = run["events"], run["name"]
        if events["lost"]:
            yield f"{name}: {counted(events['lost'], 'event')} lost, the figures are too low"
        for key, what in (("unknown", "is not known"), ("unlike", "is written in another way")):
            for event, count in events[key].items():
                yield f"{name}: {event} {what}: {count:,} left out"
        if events["unknown_lines"]:
            yield f"{name}: {counted(events['unknown_lines'], 'line')} without a meaning"
        if events["truncated"]:
            yield f"{name}: ends in the middle of something"
