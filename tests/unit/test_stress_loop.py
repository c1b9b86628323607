"""The loop of a stress run, with runs that end when the test says so; what outcomes come to."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmemu.errors import HostError, InputError
from vmemu.jobs.supervised import Job, Outcome
from vmemu.stress import loop as loop_module
from vmemu.stress.document import StressDocument
from vmemu.stress.kinds import HostKinds
from vmemu.stress.loop import Loop, Plan, judge, memory_of
from vmemu.stress.summary import drawn_from, host_of, summarise, text
from vmemu.stress.tally import PARTS, modes
from vmemu.stress.variations import Variations

SCENARIO = Path(__file__).parents[1] / "data/stress-small.yaml"
VARIATIONS = Variations(SCENARIO, 1, HostKinds())


def outcome_of(job: Job, status: str = "completed", message: str = "", code: int = 0) -> Outcome:
    """An outcome as a run of the job would have it; one that completed has checked every byte."""
    number = next(n for n in range(200) if VARIATIONS.of(n).overrides == job.overrides)
    size = sum(block.size for block in VARIATIONS.of(number).scenario.blocks)
    result: dict[str, Any] | None = None
    if status == "completed":
        result = {
            "verify": {"ok": True, "bytes_checked": size},
            "faults": {"count": 3, "latency_ns": {"p99": 1000 + number}},
        }
    nowhere = Path("/nowhere/result.json")
    return Outcome(job, status, code, message, result, nowhere, nowhere, 0.5)


def written(path: Path) -> str:
    """As a command line has it."""
    return Job(path).arguments()[1]


class Stage:
    """Stands for the processes: which runs there are, and how the next one ends."""

    def __init__(self) -> None:
        self.started: list[FakeRun] = []
        self.most = 0

    @property
    def running(self) -> list[FakeRun]:
        return [run for run in self.started if run.outcome is None]

    @property
    def numbers(self) -> list[int]:
        return [run.number for run in self.started]


class FakeRun:
    stage = Stage()

    def __init__(self, job: Job, directory: Path, name: str, *, keep: bool) -> None:
        assert not keep
        self.job = job
        self.number = int(name.removeprefix("variation-"))
        self.outcome: Outcome | None = None
        self.killed = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)

    def start(self) -> None:
        self.stage.started.append(self)
        self.stage.most = max(self.stage.most, len(self.stage.running))
        assert len({run.job.cpus for run in self.stage.running}) <= os.cpu_count() or 1

    def fileno(self) -> int:
        return self._fd

    def end(self, status: str = "completed", message: str = "", code: int = 0) -> None:
        self.outcome = outcome_of(self.job, status, message, code)
        os.eventfd_write(self._fd, 1)

    def poll(self) -> Outcome | None:
        return self.outcome

    def wait(self, timeout_s: float) -> Outcome:
        assert timeout_s == 0
        self.end("stuck", "not done in time")
        assert self.outcome is not None
        return self.outcome

    def kill(self) -> None:
        self.killed = self.outcome is None
        if self.killed:
            self.end("interrupted")


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(loop_module, "SupervisedRun", FakeRun)
    FakeRun.stage = Stage()
    return FakeRun.stage


def loop_of(tmp_path: Path, **fields: Any) -> Loop:
    return Loop(VARIATIONS, Plan(**fields), tmp_path)


# ---- which runs there are ----


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    numbers=st.tuples(st.integers(1, 5), st.integers(0, 4), st.integers(1, 12)),
    order=st.randoms(use_true_random=False),
)
def test_numbers_go_out_in_order_whatever_ends_first(
    stage: Stage, tmp_path: Path, numbers: tuple[int, int, int], order: random.Random
) -> None:
    jobs, first, runs = numbers
    stage.started, stage.most = [], 0

    def watch() -> None:
        if stage.running:
            order.choice(stage.running).end()

    made = loop_of(tmp_path, jobs=jobs, first=first, runs=runs)
    assert made.run(watch) == "completed"
    assert stage.numbers == list(range(first, first + runs))
    assert stage.most == min(jobs, runs)
    assert sorted(ran.variation for ran in made.tally.runs) == stage.numbers
    assert made.tally.totals.completed == runs


def test_each_run_has_a_share_of_the_cpus_of_its_own(stage: Stage, tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    jobs = len(allowed)

    def watch() -> None:
        shares = [run.job.cpus for run in stage.running]
        assert len(set(shares)) == len(shares)
        assert not shares or frozenset().union(*shares) <= allowed
        if stage.running:
            stage.running[-1].end()

    loop_of(tmp_path, jobs=jobs, runs=3 * jobs).run(watch)


def test_nothing_begins_when_the_time_is_over_and_what_is_under_way_ends(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(loop_module.time, "monotonic", lambda: now[0])

    def watch() -> None:
        now[0] += 1
        if now[0] > 8 and stage.running:
            stage.running[0].end()

    made = loop_of(tmp_path, jobs=2, duration_s=5.0, timeout_s=1000.0)
    monkeypatch.setattr(loop_module, "HEARTBEAT_S", 0.001)
    assert made.run(watch) == "completed"
    assert stage.numbers == [0, 1]
    assert not any(run.killed for run in stage.started)


def test_runs_that_memory_has_no_room_for_wait_and_keep_their_order(
    stage: Stage, tmp_path: Path
) -> None:
    room = 2 * memory_of(VARIATIONS.base) + 1

    def watch() -> None:
        needed = sum(memory_of(VARIATIONS.of(run.number).scenario) for run in stage.running)
        assert needed <= room or len(stage.running) == 1
        if stage.running:
            stage.running[0].end()

    loop_of(tmp_path, jobs=8, runs=12, memory=room).run(watch)
    assert stage.numbers == list(range(12))
    assert stage.most == 2


def test_one_that_needs_more_than_there_is_runs_alone(stage: Stage, tmp_path: Path) -> None:
    made = loop_of(tmp_path, jobs=4, runs=4, memory=1)
    assert made.run(lambda: [run.end() for run in stage.running]) == "completed"  # type: ignore[func-returns-value]
    assert stage.most == 1


# ---- how it ends ----


@pytest.mark.parametrize("status", ["failed", "died", "stuck", "timeout", "refused", "interrupted"])
def test_the_first_failure_ends_all(stage: Stage, tmp_path: Path, status: str) -> None:
    left = tmp_path / "variation-5.events.jsonl"

    def watch() -> None:
        for run in stage.running:
            if run.number == 4 and len(stage.started) > 5:
                run.end(status, "one byte is wrong", 2)
            elif run.number < 4:
                run.end()
        left.touch()

    made = loop_of(tmp_path, jobs=2, runs=100)
    assert made.run(watch) == "failed"
    assert stage.running == []
    failure = made.tally.failure
    assert failure is not None
    reason = "one byte is wrong" + ("; --timeout is 1min" if status == "stuck" else "")
    assert (failure.variation, failure.status, failure.reason) == (4, status, reason)
    assert failure.command == stage.started[4].job.command()
    assert failure.again == f"vmemu stress {written(SCENARIO)} --seed 1 --first 4 --runs 1"
    assert [(ran.variation, ran.status) for ran in made.tally.runs][-1] == (5, "ended")
    assert not left.exists()


def test_a_run_whose_time_is_over_is_stuck(stage: Stage, tmp_path: Path) -> None:
    made = loop_of(tmp_path, jobs=2, runs=2, timeout_s=0.01)
    assert made.run(lambda: None) == "failed"
    assert made.tally.failure is not None
    assert (made.tally.failure.variation, made.tally.failure.status) == (0, "stuck")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_and_counts_what_was_done(
    stage: Stage, tmp_path: Path, number: signal.Signals
) -> None:
    def raise_interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def watch() -> None:
        if len(stage.started) == 2:
            stage.running[0].end()
        if len(stage.started) == 3:
            os.kill(os.getpid(), number)

    before = signal.signal(number, raise_interrupt)
    try:
        made = loop_of(tmp_path, jobs=2, runs=100)
        assert made.run(watch) == "interrupted"
    finally:
        signal.signal(number, before)
    assert stage.running == []
    totals = made.tally.totals
    assert (totals.completed, totals.ended, totals.failed) == (1, 2, 0)


# ---- what an outcome means ----


def test_what_an_outcome_means() -> None:
    first, second = VARIATIONS.of(0), VARIATIONS.of(1)
    job = Job(SCENARIO, second.seed, second.overrides)
    assert judge(second, outcome_of(job)) == ("completed", "")
    assert judge(second, outcome_of(job, "skipped", "no room")) == ("skipped", "no room")
    taken = outcome_of(job, "refused", "the pool is taken", 3)
    assert judge(second, taken) == ("skipped", "the pool is taken")
    wrong = outcome_of(job, "refused", "no such field", 2)
    assert judge(second, wrong) == ("refused", "no such field")
    with pytest.raises(HostError, match="the pool is taken"):
        judge(first, taken)
    with pytest.raises(InputError, match="no such field"):
        judge(first, wrong)


@pytest.mark.parametrize("verdicts", [[True, True], [True, False], [False]])
def test_a_refusal_is_held_against_what_check_says(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdicts: list[bool]
) -> None:
    """Others may have had the memory, so that the run has another chance, alone."""
    said = iter(verdicts)
    monkeypatch.setattr(loop_module, "would_run", lambda file, variation: next(said))

    def watch() -> None:
        for run in stage.running:
            if run.number == 2:
                assert stage.numbers.count(2) == 1 or len(stage.running) == 1
                run.end("refused", "no userfaultfd", 3)
            else:
                run.end()

    made = loop_of(tmp_path, jobs=2, runs=6)
    wrong = all(verdicts)
    assert made.run(watch) == ("failed" if wrong else "completed")
    assert next(said, None) is None
    assert stage.numbers.count(2) == len(verdicts)
    (ran,) = (ran for ran in made.tally.runs if ran.variation == 2)
    assert ran.status == ("refused" if wrong else "skipped")
    assert ran.reason.startswith("no userfaultfd")
    if wrong:
        assert made.tally.failure is not None
        assert "vmemu check has nothing against it" in made.tally.failure.reason


@pytest.mark.parametrize(
    "verify", [{"ok": None, "bytes_checked": 0}, {"ok": True, "bytes_checked": 4096}]
)
def test_a_run_that_has_not_checked_every_byte_has_failed(verify: dict[str, Any]) -> None:
    second = VARIATIONS.of(1)
    outcome = outcome_of(Job(SCENARIO, second.seed, second.overrides))
    assert outcome.result is not None
    outcome.result["verify"] = verify
    status, reason = judge(second, outcome)
    assert status == "failed"
    assert f"{verify['bytes_checked']:,} were checked" in reason


# ---- the summary ----


def test_the_summary_counts_what_was_done(stage: Stage, tmp_path: Path) -> None:
    def watch() -> None:
        for run in stage.running:
            skipped = run.number in (2, 3)
            run.end("skipped" if skipped else "completed", "the pool is taken" if skipped else "")

    plan = Plan(jobs=3, runs=6)
    made = Loop(VARIATIONS, plan, tmp_path)
    result = summarise(made.tally, VARIATIONS, plan, made.run(watch), 12.5)
    again = StressDocument.model_validate(json.loads(json.dumps(result.model_dump(by_alias=True))))
    assert again == result
    assert result.duration_ns == 12_500_000_000
    assert [ran.variation for ran in result.runs] == list(range(6))
    assert [ran.seed for ran in result.runs] == [VARIATIONS.of(n).scenario.seed for n in range(6)]
    totals = result.totals
    assert (totals.runs, totals.completed, totals.skipped, totals.failed) == (6, 4, 2, 0)
    assert totals.skip_reasons == {"the pool is taken": 2}
    assert totals.faults == 12
    done = [VARIATIONS.of(number).scenario for number in (0, 1, 4, 5)]
    assert totals.bytes_checked == sum(b.size for scenario in done for b in scenario.blocks)
    assert totals.slowest is not None
    assert (totals.slowest.variation, totals.slowest.p99_ns) == (5, 1005)
    assert (
        sum("shared" in {b.backing for b in s.blocks} for s in done)
        == result.seen.backings["shared"]
    )
    shown = text(result)
    assert shown.startswith("completed: 6 runs in 12.5s, 2 skipped, none failed; ")
    assert "skipped 2 times: the pool is taken" in shown


def test_lines_of_the_summary_are_not_too_long_to_read(stage: Stage, tmp_path: Path) -> None:
    def watch() -> None:
        for run in stage.running:
            run.end()

    plan = Plan(jobs=4, runs=40)
    made = Loop(VARIATIONS, plan, tmp_path)
    result = summarise(made.tally, VARIATIONS, plan, made.run(watch), 1.0)
    lines = text(result).splitlines()
    assert max(map(len, lines)) <= 100
    begin = next(at for at, line in enumerate(lines) if line.startswith("channels "))
    assert [line.split("  ")[0] for line in lines[begin:] if line[0] != " "] == [
        part for part, modes in PARTS.items() if set(modes) & set(result.seen.modes)
    ]
    shown = ", ".join(line[14:].rstrip(",") for line in lines[begin:]).split(", ")
    assert sorted(shown) == sorted(f"{mode} {n}" for mode, n in result.seen.modes.items())


def test_hosts_that_draw_the_same_are_told_from_others() -> None:
    kinds = HostKinds(
        memory=(("anonymous", 4096), ("shared", 4096), ("hugetlbfs", 2 << 20)),
        pools={2 << 20: 160},
        lockable=None,
        tracking=("auto", "kernel", "replay"),
    )
    assert drawn_from(host_of(kinds)) == (
        "anonymous 4KiB, shared 4KiB, hugetlbfs 2MiB (160 pages); dirty_tracking auto, kernel, "
        "replay; lockable memory unlimited"
    )
    assert drawn_from(host_of(HostKinds(lockable=65536))) == (
        "anonymous 4KiB, shared 4KiB; dirty_tracking auto, replay; lockable memory 64KiB"
    )


def test_every_mode_is_of_one_part() -> None:
    words = [word for part in PARTS.values() for word in part]
    assert len(words) == len(set(words))
    seen = {word for number in range(80) for word in modes(VARIATIONS.of(number).scenario)}
    assert len(seen) > 8
    assert seen <= set(words)


def test_a_failure_is_shown_with_all_that_there_is(stage: Stage, tmp_path: Path) -> None:
    work, report = tmp_path / "work", tmp_path / "report"
    work.mkdir()
    report.mkdir()
    (report / "stress-small-seed-1-variation-6.json").touch()  # of a stress run before

    def watch() -> None:
        for run in stage.running:
            run.end("stuck", "no page came for 60s")
            assert run.outcome is not None
            object.__setattr__(run.outcome, "stopped", ("vCPU 1 at pc.ram+0x3000, 58 s",))
            object.__setattr__(run.outcome, "stacks", "Thread 0x7f (most recent call first):")
            (work / "variation-7.json").touch()

    plan = Plan(jobs=1, first=7, duration_s=math.inf)
    made = Loop(VARIATIONS, plan, work, report)
    result = summarise(made.tally, VARIATIONS, plan, made.run(watch), 1.0)
    assert result.status == "failed"
    shown = text(result).splitlines()
    assert shown[0] == "stuck: variation 7 of seed 1, after 1 run in 1s"
    assert shown[1] == "no page came for 60s; --timeout is 1min"
    assert "  stopped       vCPU 1 at pc.ram+0x3000, 58 s" in shown
    assert f"  result        {report / 'stress-small-seed-1-variation-7.json'}" in shown
    assert not any(line.startswith("  events ") for line in shown)
    assert "Thread 0x7f (most recent call first):" in shown
    assert any(line.startswith("  run it again  vmemu run ") for line in shown)
    assert len(list(report.iterdir())) == 2
    assert list(work.iterdir()) == []
