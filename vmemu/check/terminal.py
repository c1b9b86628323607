"""What a person sees of a check: each scenario, its verdict, its blocks, why, and what mends it.

Plain aligned text of 100 columns or as many as a terminal has, with colour where it is asked for. A
command stands on a line of its own, whole, so that it can be copied.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from vmemu.check.verdict import BlockReport, Reason, ScenarioReport, Verdict
from vmemu.errors import Advice
from vmemu.units import counted, format_size, printable

WIDTH = 100
_LONGEST = 4096
_COLUMNS = ("block", "backing", "page size", "size", "verdict")
_COLOURS = {
    Verdict.OK: 32,
    Verdict.DEGRADED: 33,
    Verdict.UNKNOWN: 35,
    Verdict.INCOMPATIBLE: 31,
}


def lines(report: ScenarioReport, *, colour: bool = False, width: int = WIDTH) -> Iterator[str]:
    """One scenario: its verdict, what concerns it as a whole, its blocks each with why."""
    yield f"{printable(report.path, 300)}: {_word(report.verdict, colour)}"
    for reason in report.reasons:
        yield from _why(reason, "  ", width)
    rows = [_row(block) for block in report.blocks]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    if rows:
        yield _aligned(_COLUMNS, widths)
    for block, row in zip(report.blocks, rows, strict=True):
        yield _aligned((*row[:-1], _word(block.verdict, colour)), widths)
        for reason in block.reasons:
            yield from _why(reason, "      ", width)


def summary(reports: Sequence[ScenarioReport], refused: int, *, colour: bool = False) -> str:
    """How many scenarios have which verdict, and how many files are ``refused`` as none."""
    counts = dict.fromkeys(Verdict, 0)
    for report in reports:
        counts[report.verdict] += 1
    parts = [f"{count} {_word(verdict, colour)}" for verdict, count in counts.items() if count]
    if refused:
        parts.append(f"{refused} can't be read as {'one' if refused == 1 else 'such'}")
    return f"{counted(len(reports) + refused, 'scenario')}: {', '.join(parts)}"


def _row(block: BlockReport) -> tuple[str, ...]:
    sizes = ("?" if size is None else format_size(size) for size in (block.page_size, block.size))
    return (printable(block.name), block.backing or "?", *sizes, str(block.verdict))


def _aligned(cells: Iterable[str], widths: Sequence[int]) -> str:
    """Names and words to the left, sizes to the right; the last cell may have invisible colours."""
    name, backing, page_size, size, verdict = cells
    return (
        f"  {name:<{widths[0]}}  {backing:<{widths[1]}}  {page_size:>{widths[2]}}"
        f"  {size:>{widths[3]}}  {verdict}"
    )


def _why(reason: Reason, indent: str, width: int) -> Iterator[str]:
    place = f"{reason.place}: " if reason.place else ""
    message = printable(f"{place}{reason.message}", _LONGEST)
    yield from _wrapped(message, f"{indent}{reason.verdict}: ", f"{indent}  ", width)
    mending = printable(reason.mending, _LONGEST)
    if isinstance(reason.remedy, Advice):
        yield from _wrapped(mending, f"{indent}  ", f"{indent}  ", width)
    elif mending:
        yield f"{indent}  {mending}"


def _wrapped(text: str, first: str, further: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _word(verdict: Verdict, colour: bool) -> str:
    return f"\x1b[{_COLOURS[verdict]}m{verdict}\x1b[0m" if colour else str(verdict)
