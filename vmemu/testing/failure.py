"""A run that failed its test, in words: what is wrong, how to see it again, where its files are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from vmemu.testing.runs import MigrationRun

MOST_WRONG_BYTES = 5
NOT_JUDGED = "mark vmemu_limit: no run was judged by it; call vmemu_run() in the test"


def fail(text: str) -> NoReturn:
    """Fail the test with that text, and nothing of where in the plugin that was noticed."""
    raise pytest.fail.Exception(text, pytrace=False) from None


def headline(status: str, message: str) -> str:
    """The first line: the only one that a summary has room for."""
    return f"{status}: {message.removeprefix('vmemu: ')}" if message else status


def describe(run: MigrationRun, what: str, *, with_worst: bool = False) -> str:
    """The whole text; ``what`` is its first line."""
    return "\n".join([what, "", *_places(run), *_details(run, with_worst)])


def _places(run: MigrationRun) -> Iterator[str]:
    yield f"replay:  {run.command}"
    for name, file in (("result", run.result_file), ("events", run.events_file)):
        if file.exists():
            yield f"{name}:  {file}"


def _details(run: MigrationRun, with_worst: bool) -> Iterator[str]:
    if run.outcome.stopped:
        yield from ("", "stopped:", *(f"  {line}" for line in run.outcome.stopped))
    if wrong := run.result.get("verify", {}).get("mismatches"):
        yield from ("", "wrong bytes:", *table(_wrong_bytes(wrong)))
    if with_worst:
        yield from ("", "worst faults:", *table(_worst(run.worst_faults)))
    if run.outcome.stacks:
        yield from ("", "stacks:", run.outcome.stacks.rstrip())


def _wrong_bytes(wrong: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["block", "offset", "expected", "found"]]
    for one in wrong[:MOST_WRONG_BYTES]:
        values = f"{one['expected']:#04x}", f"{one['found']:#04x}"
        rows.append([one["block"], f"{one['offset']:#x}", *values])
    return rows


def _worst(faults: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    from vmemu.units import format_duration

    rows = [["vCPU", "block", "offset", "access", "latency", "at"]]
    for one in faults:
        times = (format_duration(one[key], digits=3) for key in ("latency_ns", "start_ns"))
        kind = "write" if one["write"] else "read"
        rows.append([str(one["vcpu"]), one["block"], f"{one['offset']:#x}", kind, *times])
    return rows


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (map(str.ljust, row, widths) for row in rows)
    return ["  " + "  ".join(cells).rstrip() for cells in padded]
