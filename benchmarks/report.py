"""The rows that were measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frame import Measured, Of, Row, Spread, Target, Verdict

SCHEMA = "vmemu-benchmarks/1"
_HEADINGS = ("row", "placement", "ours", "other", "what is judged", "target", "verdict")
_SIGN = {Target.AT_MOST: "<=", Target.AT_LEAST: ">="}


def listing(rows: Sequence[Row]) -> str:
    """A line a row: what it measures, where, beside what, and its target."""
    return "\n".join(_listed(row) for row in rows)


def _listed(row: Row) -> str:
    beside = f"beside {row.other_is}" if row.other_is else "alone"
    unit = "" if row.of is Of.RATIO else f" {row.unit}"
    target = "no target" if row.target is None else f"{row.of.value} {_target(row)}{unit}"
    quick = ("not with --quick",) if row.full_only else ()
    return f"{row.name}: " + "; ".join((row.what, row.placement, beside, target, *quick))


def table(done: Sequence[Measured], *, interrupted: bool = False) -> str:
    """Rows that were measured with their figures, then by reason those that missed their target and
    those that were not measured."""
    cells = [_cells(one) for one in done if one.ours]
    lines = [_HEADINGS, *cells] if cells else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    reasons: dict[tuple[Verdict, str], list[str]] = {}
    for one in done:
        if why := one.held_by or one.reason:
            reasons.setdefault((one.verdict, why), []).append(one.row.name)
    text += [
        f"{verdict.value}: {', '.join(names)}: {reason}"
        for (verdict, reason), names in reasons.items()
    ]
    return "\n".join([*text, _summary(done, interrupted)])


def _summary(done: Sequence[Measured], interrupted: bool) -> str:
    counts = [
        f"{count} {verdict.value}"
        for verdict in Verdict
        if (count := sum(one.verdict is verdict for one in done))
    ]
    rows = f"{len(done) or 'no'} row{'s' * (len(done) != 1)}"
    told = f"{rows}: {', '.join(counts)}" if counts else rows
    return f"interrupted after {told}" if interrupted else told


def document(
    done: Sequence[Measured], *, quick: bool, version: str, interrupted: bool = False
) -> dict[str, Any]:
    """Everything that was measured; every single figure is in it, in the order it was taken."""
    return {
        "schema": SCHEMA,
        "vmemu": version,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "interrupted": interrupted,
        "host": {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpu": _cpu_model(),
            "cpus": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
        },
        "rows": [_entry(one) for one in done],
    }


def _cells(one: Measured) -> tuple[str, ...]:
    row, judged = one.row, one.judged
    assert judged is not None
    other = f"{_number(statistics.median(one.other))} {row.unit}" if one.other else ""
    return (
        row.name,
        row.placement,
        f"{_number(statistics.median(one.ours))} {row.unit}",
        other and f"{other} ({row.other_is})",
        f"{row.of.value} {_spread(judged)}",
        _target(row),
        one.verdict.value,
    )


def _target(row: Row) -> str:
    return "" if row.target is None else f"{_SIGN[row.comparison]} {_number(row.target)}"


def _entry(one: Measured) -> dict[str, Any]:
    row = one.row
    return {
        "name": row.name,
        "what": row.what,
        "placement": row.placement,
        "unit": row.unit,
        "ours": _side(one.ours),
        "other": None if row.of is Of.FIGURE else {"is": row.other_is, **_side(one.other)},
        "judged": {"of": row.of.value, **_figures(one.judged)},
        "target": None
        if row.target is None
        else {"comparison": row.comparison.value, "value": row.target},
        "verdict": one.verdict.value.lower(),
        "reason": one.reason,
        "held_by": one.held_by,
    }


def _side(figures: Sequence[float]) -> dict[str, Any]:
    return {**_figures(Spread.of(figures) if figures else None), "figures": list(figures)}


def _figures(spread: Spread | None) -> dict[str, Any]:
    if spread is None:
        return {"median": None, "low": None, "high": None}
    return {"median": spread.median, "low": spread.low, "high": spread.high}


def _spread(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.low)} to {_number(spread.high)})"


def _number(value: float) -> str:
    """Three digits, and never an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
