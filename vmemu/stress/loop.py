"""Runs of variations beside each other, until there are enough of them or one fails.

Numbers are handed out in their order, whatever ends first: which variations are run depends on no
timing, only how many are.
"""

from __future__ import annotations

import math
import select
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vmemu.cleanup import run_all
from vmemu.config import CpuLists, Scenario, Wait
from vmemu.errors import HostError, InputError, VmemuError
from vmemu.interrupts import Interrupts
from vmemu.jobs.cpus import deal
from vmemu.jobs.supervised import Job, Outcome, SupervisedRun
from vmemu.memoryneed import memory_needed
from vmemu.stress import TIMEOUT_S, document
from vmemu.stress.refusals import would_run
from vmemu.stress.tally import Tally
from vmemu.stress.variations import Variation, Variations
from vmemu.units import format_duration

RESULT, EVENTS = ".json", ".events.jsonl"
HEARTBEAT_S = 0.5
"""How often whoever watches is called when nothing happens, seconds."""

Status = Literal["completed", "failed", "interrupted"]


@dataclass(frozen=True)
class Plan:
    """What is to be run: ``runs`` variations from number ``first`` on, None for as many as begin
    within ``duration_s``; ``jobs`` at a time, each for ``timeout_s`` at most, and for as long as it
    may wait for hugepages.

    ``memory`` is how many bytes all runs together may take; one that needs more runs alone.
    """

    jobs: int
    first: int = 0
    runs: int | None = None
    duration_s: float = math.inf
    timeout_s: float = TIMEOUT_S
    memory: float = math.inf
    inject: tuple[str, ...] = ()

    def options(self) -> Iterator[str]:
        """Of ``vmemu stress``, where one run of it would not be the same without."""
        yield from (word for point in self.inject for word in ("--inject", point))
        if self.timeout_s != TIMEOUT_S:
            yield from ("--timeout", self.timeout)

    @property
    def timeout(self) -> str:
        """As it is written."""
        return format_duration(round(self.timeout_s * 1e9))


@dataclass
class _Slot:
    """A run under way, on its share of the CPUs."""

    number: int
    variation: Variation
    run: SupervisedRun
    until: float


class Loop:
    """One stress run. Files of runs go to ``directory``, which nobody else uses; those of a failure
    stay there, or go to ``report``."""

    def __init__(
        self, variations: Variations, plan: Plan, directory: Path, report: Path | None = None
    ) -> None:
        self.tally = Tally()
        self._variations = variations
        self._plan = plan
        self._directory = directory
        self._report = report
        self._running: list[_Slot] = []
        self._next = plan.first
        self._waiting: Variation | None = None
        self._doubted: list[Variation] = []
        self._tried_again: set[int] = set()
        self._ends_at = math.inf

    @property
    def under_way(self) -> tuple[int, ...]:
        """The numbers of the variations that run now."""
        return tuple(slot.variation.number for slot in self._running)

    def run(self, watch: Callable[[], None]) -> Status:
        """Run until the plan is done, a run has failed, or Ctrl-C; nothing is under way then.

        ``watch`` is called whenever something has happened, and every ``HEARTBEAT_S``. Raises
        HostError when not even the scenario itself can run here, InputError when it is refused.
        """
        self._ends_at = time.monotonic() + self._plan.duration_s
        try:
            with Interrupts() as interrupts:
                try:
                    return self._run(watch, interrupts)
                finally:
                    self._end_all()
        except KeyboardInterrupt:
            return "failed" if self.tally.failure is not None else "interrupted"

    def _run(self, watch: Callable[[], None], interrupts: Interrupts) -> Status:
        while True:
            self._start_runs()
            watch()
            if not self._running:
                return "completed"
            with interrupts.allowed():
                self._await_event()
            for slot, outcome in self._ended():
                self._count(slot, outcome)
                if self.tally.failure is not None:
                    return "failed"

    # ---- starting ----

    def _start_runs(self) -> None:
        if self._doubted:
            if not self._running:
                self._start(self._doubted.pop())
            return
        while len(self._running) < self._plan.jobs:
            variation = self._waiting or self._draw()
            if variation is None:
                return
            if self._running and not self._fits(variation):
                self._waiting = variation  # and none behind it: they go in their order
                return
            self._waiting = None
            self._start(variation)

    def _draw(self) -> Variation | None:
        """The next variation; None when there are enough, or the time is over."""
        plan = self._plan
        if plan.runs is not None and self._next >= plan.first + plan.runs:
            return None
        if time.monotonic() >= self._ends_at:
            return None
        self._next += 1
        return self._variations.of(self._next - 1)

    def _fits(self, variation: Variation) -> bool:
        scenarios = [variation.scenario, *(slot.variation.scenario for slot in self._running)]
        return sum(map(memory_of, scenarios)) <= self._plan.memory

    def _start(self, variation: Variation) -> None:
        number = min(set(range(self._plan.jobs)) - {slot.number for slot in self._running})
        job = Job(
            scenario=Path(self._variations.file),
            seed=variation.seed,
            overrides=variation.overrides,
            inject=self._plan.inject,
            cpus=_cpus_for(variation.scenario, number, self._plan.jobs),
        )
        name = f"variation-{variation.number}"
        run = SupervisedRun(job, self._directory, name, keep=False)
        try:
            run.start()
        except OSError as error:
            raise HostError(f"a run can't be started: {error.strerror}") from error
        until = time.monotonic() + self._plan.timeout_s + waiting_s(variation.scenario)
        self._running.append(_Slot(number, variation, run, until))

    # ---- waiting ----

    def _await_event(self) -> None:
        """Until a run has ended or its time is over, or for a heartbeat."""
        poll = select.poll()
        for slot in self._running:
            poll.register(slot.run.fileno(), select.POLLIN)
        left_s = min(slot.until for slot in self._running) - time.monotonic()
        poll.poll(math.ceil(min(max(left_s, 0), HEARTBEAT_S) * 1000))

    def _ended(self) -> Iterator[tuple[_Slot, Outcome]]:
        """Whose runs have ended, by themselves or because their time is over; in their order."""
        for slot in sorted(self._running, key=lambda slot: slot.variation.number):
            outcome = slot.run.poll()
            if outcome is None and time.monotonic() >= slot.until:
                outcome = slot.run.wait(0)
            if outcome is not None:
                self._running.remove(slot)
                yield slot, outcome

    # ---- judging ----

    def _count(self, slot: _Slot, outcome: Outcome) -> None:
        try:
            status, reason = judge(slot.variation, outcome)
        except VmemuError:
            self._forget(slot.variation)
            raise
        if status == "stuck":
            reason = f"{reason}; --timeout is {self._plan.timeout}"
        refused = outcome.status == "refused" and status == "skipped"
        if refused and would_run(self._variations.file, slot.variation):
            if self._tries_again(slot.variation):
                return
            status, reason = "refused", f"{reason}; and vmemu check has nothing against it"
        self.tally.add(slot.variation, outcome, status, reason)
        if status in ("completed", "skipped"):
            self._forget(slot.variation)
        else:
            self.tally.failure = self._failure(slot.variation, outcome, status, reason)

    def _tries_again(self, variation: Variation) -> bool:
        """Run once more, and alone, what was refused for want of something that is there now:
        others may have had it. False when that was done."""
        if variation.number in self._tried_again:
            return False
        self._tried_again.add(variation.number)
        self._doubted.append(variation)
        return True

    def _files_of(self, variation: Variation) -> list[Path]:
        return list(self._directory.glob(f"variation-{variation.number}.*"))

    def _forget(self, variation: Variation) -> None:
        """Nobody will want to read what that run has left."""
        for file in self._files_of(variation):
            file.unlink(missing_ok=True)

    def _keep(self, file: Path) -> Path:
        """Where a file of a failure stays: in a report, which may have those of other stress runs,
        under the scenario's name and the seed."""
        if self._report is None:
            return file
        stem = Path(self._variations.file).stem
        place = self._report / f"{stem}-seed-{self._variations.seed}-{file.name}"
        try:
            shutil.move(file, place)
        except OSError:  # a full disk, a directory that is gone: better there than nowhere
            return file
        return place

    def _failure(
        self, variation: Variation, outcome: Outcome, status: document.Status, reason: str
    ) -> document.Failure:
        kept = [self._keep(file) for file in self._files_of(variation)]
        result = next((str(file) for file in kept if file.name.endswith(RESULT)), None)
        events = next((str(file) for file in kept if file.name.endswith(EVENTS)), None)
        return document.Failure(
            variation=variation.number,
            status=status,
            reason=reason,
            command=outcome.job.command(),
            again=self._variations.command(variation.number, *self._plan.options()),
            result_file=result,
            events_file=events,
            stopped=outcome.stopped,
            stacks=outcome.stacks,
        )

    # ---- ending ----

    def _end_all(self) -> None:
        """Kill what is under way; nothing of it stays."""
        slots, self._running = self._running, []
        run_all([partial(self._end, slot) for slot in slots])

    def _end(self, slot: _Slot) -> None:
        slot.run.kill()
        outcome = slot.run.poll()
        if outcome is None:
            return
        self.tally.add(slot.variation, outcome, "ended", "")
        self._forget(slot.variation)


def judge(variation: Variation, outcome: Outcome) -> tuple[document.Status, str]:
    """What an outcome means here, and why.

    A variation that this host can't run now, as another program has the hugepages, is skipped. The
    scenario itself was promised to run: raises HostError when it is refused for the host, and
    InputError when it is for its input.
    """
    if outcome.status == "refused" and variation.number == 0:
        raise (InputError if outcome.exit_code == 2 else HostError)(outcome.message)
    if outcome.status == "refused" and outcome.exit_code == 3:
        return "skipped", outcome.message
    if outcome.status != "completed" or outcome.result is None:
        return _STATUS[outcome.status], outcome.message
    verify = outcome.result["verify"]
    size = sum(block.size for block in variation.scenario.blocks)
    if verify["ok"] is not True or verify["bytes_checked"] != size:
        return (
            "failed",
            f"completed, and of {size:,} bytes {verify['bytes_checked']:,} were checked",
        )
    return "completed", ""


_STATUS: dict[str, document.Status] = {
    "completed": "died",  # without a result
    "skipped": "skipped",
    "failed": "failed",
    "interrupted": "interrupted",
    "refused": "refused",
    "stuck": "stuck",
    "timeout": "timeout",
    "died": "died",
}


def _cpus_for(scenario: Scenario, number: int, jobs: int) -> frozenset[int]:
    """Those that a job is dealt; all of them where the scenario itself says which."""
    return frozenset() if isinstance(scenario.placement, CpuLists) else deal(number, jobs)


def waiting_s(scenario: Scenario) -> float:
    """How long a run may stand and wait for hugepages, seconds."""
    wait = scenario.on_unavailable
    return wait.wait / 1e9 if memory_needed(scenario).hugepages and isinstance(wait, Wait) else 0.0


def memory_of(scenario: Scenario) -> int:
    """Bytes that both sides of a run may take together."""
    need = memory_needed(scenario)
    return need.together + need.extra
