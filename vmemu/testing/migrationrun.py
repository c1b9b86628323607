"""A run that has ended, as a test sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmemu.jobs.supervised import Outcome
from vmemu.testing.limits import FIGURES


@dataclass(frozen=True, repr=False)
class MigrationRun:
    """A run that has ended. ``outcome`` says what became of it, ``command`` replays it; ``called``
    are the lines that led to it, the test's own first.

    ``result`` is the result document (docs/results.md), empty when the run left none. Times are
    nanoseconds.
    """

    outcome: Outcome
    command: str
    called: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<MigrationRun {self.status}: {self.command}>"

    @property
    def status(self) -> str:
        """How it ended, a word of ``Outcome.status``: completed, failed, timeout or another."""
        return self.outcome.status

    @property
    def ok(self) -> bool:
        """Whether it completed, and every byte was right."""
        return self.outcome.status == "completed"

    @property
    def message(self) -> str:
        """Why it did not complete; empty when it did."""
        return self.outcome.message

    @property
    def result(self) -> Mapping[str, Any]:
        """The result document."""
        return self.outcome.result or {}

    @property
    def seed(self) -> int | None:
        """The seed, None when there is none but the scenario's and it left no result."""
        seed: int | None = self.result.get("seed", self.outcome.job.seed)
        return seed

    @property
    def result_file(self) -> Path:
        """Its result document as a file; gone after a test that passes without a report."""
        return self.outcome.result_file

    @property
    def events_file(self) -> Path:
        """Its event log (docs/events.md); gone as the result is."""
        return self.outcome.events_file

    @property
    def measured(self) -> bool:
        """Whether it has figures: a run that was skipped has a result whose figures are all 0."""
        return bool(self.result) and self.status != "skipped"

    @property
    def worst_faults(self) -> Sequence[Mapping[str, Any]]:
        """The ten longest faults, the longest first."""
        worst: Sequence[Mapping[str, Any]] = self.result["faults"]["worst"]
        return worst

    def __getattr__(self, name: str) -> int:
        """``p99_ns``, ``downtime_ns``, ``faults``: what can be limited, by the limit's name."""
        figure = FIGURES.get(name.removesuffix("_ns"))
        if figure is None or figure.time != name.endswith("_ns"):
            raise AttributeError(f"a run has no '{name}'")
        if not self.measured:
            raise AttributeError(f"a run that is {self.status} has no figures: {self.message}")
        if (measured := figure.read(self.result)) is None:
            raise AttributeError(f"a run without {figure.needs} has no '{name}'")
        return measured
