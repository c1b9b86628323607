"""A stress run that has ended, as its document and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from vmemu.stress import document
from vmemu.stress.kinds import HostKinds
from vmemu.stress.loop import Plan, Status
from vmemu.stress.tally import PARTS, Tally
from vmemu.stress.variations import Variations
from vmemu.units import counted, format_duration, format_size
from vmemu.version import installed

MOST_REASONS = 5
WIDTH = 100
_TOGETHER = "\N{NO-BREAK SPACE}"
"""Between words that stay in one line."""


def summarise(
    tally: Tally, variations: Variations, plan: Plan, status: Status, seconds: float
) -> document.StressDocument:
    """The document of a stress run that has ended."""
    return document.StressDocument(
        vmemu=installed(),
        scenario=str(variations.file),
        given=variations.given,
        seed=variations.seed,
        first=plan.first,
        jobs=plan.jobs,
        status=status,
        duration_ns=round(seconds * 1e9),
        host=host_of(variations.kinds),
        totals=tally.totals,
        seen=tally.seen,
        failure=tally.failure,
        runs=tuple(sorted(tally.runs, key=lambda ran: ran.variation)),
    )


def host_of(kinds: HostKinds) -> document.Host:
    """What decides the variations, for the document."""
    memory = (
        document.Memory(backing=backing, page_size=page_size) for backing, page_size in kinds.memory
    )
    return document.Host(
        memory=tuple(memory),
        pools={str(size): pages for size, pages in kinds.pools.items()},
        lockable=kinds.lockable,
        dirty_tracking=kinds.tracking,
    )


def drawn_from(host: document.Host) -> str:
    """The same in words: hosts of which they are equal draw the same variations."""
    memory = ", ".join(_kind(host, of) for of in host.memory)
    lockable = "unlimited" if host.lockable is None else format_size(host.lockable)
    tracking = ", ".join(host.dirty_tracking)
    return f"{memory}; dirty_tracking {tracking}; lockable memory {lockable}"


def _kind(host: document.Host, of: document.Memory) -> str:
    pages = host.pools.get(str(of.page_size)) if of.backing == "hugetlbfs" else None
    pool = f" ({counted(pages, 'page')})" if pages is not None else ""
    return f"{of.backing} {format_size(of.page_size)}{pool}"


def text(result: document.StressDocument, width: int = WIDTH) -> str:
    """What a person sees: how it ended, what was seen, and of a failure all that there is."""
    lines = [_verdict(result), *_failure(result.failure), "", *_figures(result, width)]
    return "\n".join(lines) + "\n"


def _verdict(result: document.StressDocument) -> str:
    totals = result.totals
    runs = f"{counted(totals.runs, 'run')} in {format_duration(result.duration_ns, digits=3)}"
    if result.failure is not None:
        return (
            f"{result.failure.status}: variation {result.failure.variation} of seed {result.seed},"
            f" after {runs}"
        )
    if result.status == "interrupted":
        return f"interrupted: {runs}, none failed"
    if not totals.completed:
        return f"skipped: {runs}, and none could be done"
    skipped = f", {totals.skipped:,} skipped" if totals.skipped else ""
    right = f"{counted(totals.bytes_checked, 'byte')} right"
    return f"completed: {runs}{skipped}, none failed; {right}"


def _failure(failure: document.Failure | None) -> Iterator[str]:
    if failure is None:
        return
    yield from failure.reason.splitlines()
    for name, value in (
        ("run it again", failure.command),
        ("as here", failure.again),
        ("result", failure.result_file),
        ("events", failure.events_file),
    ):
        if value is not None:
            yield f"  {name:<13} {value}"
    yield from (f"  stopped       {one}" for one in failure.stopped)
    if failure.stacks:
        yield from ("", *failure.stacks.splitlines())


def _figures(result: document.StressDocument, width: int) -> Iterator[str]:
    totals, seen = result.totals, result.seen
    failed = f", {totals.failed:,} failed" if totals.failed else ""
    ended = f", {totals.ended:,} ended early" if totals.ended else ""
    figures = [
        ("seed", f"{result.seed}, from variation {result.first} on"),
        ("drawn from", drawn_from(result.host)),
        ("runs", f"{totals.completed:,} completed, {totals.skipped:,} skipped{failed}{ended}"),
        *_skips(totals.skip_reasons),
        ("checked", f"{counted(totals.bytes_checked, 'byte')}, {counted(totals.faults, 'fault')}"),
    ]
    if totals.slowest is not None:
        worst = format_duration(totals.slowest.p99_ns, digits=3)
        figures.append(("slowest p99", f"{worst} in variation {totals.slowest.variation}"))
    sizes = {format_size(int(size)): count for size, count in seen.page_sizes.items()}
    for name, counts in (("backings", seen.backings), ("pages", sizes), *_modes(seen.modes)):
        if counts:
            each = (f"{what} {count}".replace(" ", _TOGETHER) for what, count in counts.items())
            figures.append((name, ", ".join(each)))
    return (line for name, value in figures for line in _in_columns(name, value, width))


def _modes(counts: dict[str, int]) -> Iterator[tuple[str, dict[str, int]]]:
    """What the runs did, a part of the scenario a line."""
    for part, names in PARTS.items():
        yield part, {name: counts[name] for name in names if name in counts}


def _in_columns(name: str, value: str, width: int) -> list[str]:
    """A figure, in as many lines as it takes."""
    lines = textwrap.wrap(
        value,
        width,
        initial_indent=f"{name:<14}",
        subsequent_indent=" " * 14,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_TOGETHER, " ") for line in lines]


def _skips(reasons: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The usual ones; reasons have figures in them, and there may be many."""
    for why, count in list(reasons.items())[:MOST_REASONS]:
        yield "", f"skipped {counted(count, 'time')}: {why}"
    if len(reasons) > MOST_REASONS:
        yield "", f"and for {counted(len(reasons) - MOST_REASONS, 'other reason')}"
