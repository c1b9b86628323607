"""A run that failed its test, in words: what is wrong, how to see it again, where its files are."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from vmemu.testing.migrationrun import MigrationRun

MOST_WRONG_BYTES = 5
NOT_JUDGED = "mark vmemu_limit: no run was judged by it; call vmemu_run() in the test"


def fail(text: str) -> NoReturn:
    """Fail the test with that text, and nothing of where in the plugin that was noticed."""
    raise pytest.fail.Exception(text, pytrace=False) from None


def headline(status: str, message: str) -> str:
    """The first line: the only one that a summary has room for."""
    if status == "failed" and message:  # pytest itself puts "Failed: " before it
        return message.removeprefix("vmemu: ")
    return f"{status}: {message.removeprefix('vmemu: ')}" if message else status


def why_skipped(run: MigrationRun, test: Path) -> str:
    """Why a run was skipped, and which, unless that is said already: by the reason, or because the
    scenario itself is the test."""
    scenario, reason = run.outcome.job.scenario, run.message.removeprefix("vmemu: ")
    told = scenario == test or scenario.name in reason.partition("\n")[0]
    return reason if told else f"{scenario.name}: {reason}"


def describe(run: MigrationRun, what: str, note: str = "", *, with_worst: bool = False) -> str:
    """The whole text; ``what`` is its first line, ``note`` what a replay does otherwise."""
    return "\n".join([what, "", *_places(run, note), *_details(run, with_worst)])


def without_outcome(what: str, command: str, called: Sequence[str]) -> str:
    """The same of a run of which there is no more to tell; ``what`` is the first line."""
    return "\n".join([what, "", *_labelled("called", called), f"replay:  {command}"])


def not_ended(command: str, called: Sequence[str]) -> str:
    """The same of one that runs now: it stays where nobody is left to say more. A report directory
    may be used again, and keeps what tests left that are not run this time."""
    begun = time.strftime("%Y-%m-%d %H:%M:%S")
    what = f"not ended: its worker, or the whole session, ended before it did; begun {begun}"
    return without_outcome(f"{what} by process {os.getpid()}", command, called)


def elsewhere(run: MigrationRun) -> str:
    """How a run that did not complete ends when it is replayed: there nobody kills it."""
    ends = {"stuck": "the scenario's limits.stall ends it, or Ctrl-C", "timeout": "it goes on"}
    return f"there nothing kills it: {ends[run.status]}" if run.status in ends else ""


def without_limit(run: MigrationRun) -> str:
    """How a run that broke a limit ends when it is replayed."""
    text = "the limit is the test's: there it completes, and shows its figures"
    cpus = run.outcome.job.cpus
    if not cpus or cpus == os.sched_getaffinity(0):
        return text
    few = ",".join(map(str, sorted(cpus)))
    return f"{text}; here it had CPU {few} alone, as with 'taskset -c {few}' before it"


def _labelled(label: str, lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{'' if number else label + ':':9}{line}"


def _places(run: MigrationRun, note: str) -> Iterator[str]:
    yield from _labelled("called", run.called)
    yield f"replay:  {run.command}"
    if note:
        yield f"         ({note})"
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
    if run.outcome.stacks and run.status != "timeout":  # whoever is slow stands nowhere
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
