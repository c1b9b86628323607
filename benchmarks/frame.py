"""What a row of the table is, how its two sides are measured, and what is said of the figures."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Side = Callable[[], float | None]
"""Runs one repetition and returns its figure. None, or ``NotHere`` with the reason: can't here."""


class NotHere(Exception):
    """This side can't be measured here; the row is listed as skipped, with the reason."""


class Failed(Exception):
    """This side should have run and did not; the row is listed as failed, with the reason."""


class Target(enum.Enum):
    AT_MOST = "at most"
    AT_LEAST = "at least"


class Of(enum.Enum):
    """What the target limits."""

    RATIO = "ratio"  # ours / other
    DIFFERENCE = "difference"  # ours - other
    FIGURE = "figure"  # ours alone: there is no other side


UNEXPLAINED = "not yet explained"
"""What is said of a missed target that nobody has found the reason of."""


class Verdict(enum.Enum):
    MET = "met"
    MISSED = "MISSED"
    SHOWN = "shown"  # a row without a target
    SKIPPED = "skipped"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Row:
    name: str
    """Words joined by hyphens, unique: what the command line chooses rows by."""
    what: str
    """What is measured, in words."""
    unit: str
    """Of the figures of both sides: us, ns, ms, GiB/s, ..."""
    placement: str
    """Where both sides run, in words: one CPU, all CPUs, ..."""
    ours: Side
    other: Side | None = None
    other_is: str = ""
    """The other side in words; empty without one."""
    target: float | None = None
    """Limit of ``of``; None: the row is shown without a verdict."""
    comparison: Target = Target.AT_MOST
    of: Of = Of.RATIO
    repeats: int | None = None
    """How often at most each side runs; None: as often as the command line says."""
    full_only: bool = False
    """Takes too long for --quick."""
    held_by: str = ""
    """What keeps it from its target where that is missed, as found by profiling."""

    def __post_init__(self) -> None:
        if (self.other is None) != (self.of is Of.FIGURE):
            raise ValueError(f"row {self.name}: {self.of.value} with or without another side")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Quartiles lie between figures as numpy's default has them; of one figure all are it."""
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0])
        low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Measured:
    row: Row
    ours: tuple[float, ...] = ()
    other: tuple[float, ...] = ()
    verdict: Verdict = Verdict.SKIPPED
    reason: str = ""
    """Of a row that was skipped or failed."""

    @property
    def held_by(self) -> str:
        """Why the target is missed; empty where it is not."""
        return (self.row.held_by or UNEXPLAINED) if self.verdict is Verdict.MISSED else ""

    @property
    def judged(self) -> Spread | None:
        """What the target is held against: the ratios, differences or figures of the repetitions.

        Each repetition's two figures were taken one right after the other, so what changes the
        machine's speed between repetitions is in both.
        """
        if not self.ours:
            return None
        match self.row.of:
            case Of.RATIO:
                return Spread.of([a / b for a, b in zip(self.ours, self.other, strict=True)])
            case Of.DIFFERENCE:
                return Spread.of([a - b for a, b in zip(self.ours, self.other, strict=True)])
            case Of.FIGURE:
                return Spread.of(self.ours)


def measure(row: Row, repeats: int) -> Measured:
    """Both sides in turn, A B A B ..., so often; a side that can't run ends it with the reason."""
    ours: list[float] = []
    other: list[float] = []
    try:
        for _ in range(min(repeats, row.repeats or repeats)):
            ours.append(_figure(row.ours, "ours"))
            if row.other is not None:
                other.append(_figure(row.other, row.other_is))
    except NotHere as reason:
        return Measured(row, verdict=Verdict.SKIPPED, reason=str(reason))
    except Failed as reason:
        return Measured(row, verdict=Verdict.FAILED, reason=str(reason))
    if row.of is Of.RATIO and not all(other):
        return Measured(row, verdict=Verdict.FAILED, reason=f"{row.other_is}: the figure is 0")
    done = Measured(row, tuple(ours), tuple(other))
    return Measured(row, done.ours, done.other, judge(row, done.judged))


def judge(row: Row, judged: Spread | None) -> Verdict:
    """The median against the target; equal to it is met."""
    if judged is None:
        return Verdict.SKIPPED
    if row.target is None:
        return Verdict.SHOWN
    if row.comparison is Target.AT_MOST:
        met = judged.median <= row.target
    else:
        met = judged.median >= row.target
    return Verdict.MET if met else Verdict.MISSED


def _figure(side: Side, name: str) -> float:
    figure = side()
    if figure is None:
        raise NotHere(f"{name}: no figure here")
    return float(figure)
