"""The frame of benchmarks/: what is taken, how it is judged, and what is said of it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

# benchmarks/ is on the path by pytest's pythonpath, as it is for run.py.
import report
import run
from accesses import write_trace
from context import Context, Rounds
from frame import Failed, Measured, NotHere, Of, Row, Spread, Target, Verdict, judge, measure
from vmemu.traces.native import format as native


def counting(figures: list[float], calls: list[str], name: str) -> Callable[[], float]:
    left: Iterator[float] = iter(figures)

    def side() -> float:
        calls.append(name)
        return next(left)

    return side


def row(ours: list[float], other: list[float], calls: list[str], **others: object) -> Row:
    return Row(
        "some-row",
        "something",
        "us",
        "one CPU",
        counting(ours, calls, "A"),
        counting(other, calls, "B"),
        "the other",
        **others,  # type: ignore[arg-type]
    )


def test_the_sides_run_in_turn() -> None:
    calls: list[str] = []
    measure(row([1, 1, 1], [1, 1, 1], calls), 3)
    assert "".join(calls) == "ABABAB"


def test_a_row_may_limit_its_repetitions() -> None:
    calls: list[str] = []
    measure(row([1, 1, 1], [1, 1, 1], calls, repeats=2), 3)
    assert "".join(calls) == "ABAB"


def test_ratios_are_of_figures_that_were_taken_together() -> None:
    """The machine is ten times slower in the second repetition, and the ratio is the same."""
    done = measure(row([2, 20, 2], [1, 10, 1], []), 3)
    assert done.judged == Spread(2, 2, 2)


@given(st.lists(st.floats(0.001, 1e9), min_size=1, max_size=20))
def test_quartiles(figures: list[float]) -> None:
    spread = Spread.of(figures)
    assert spread.median == pytest.approx(statistics.median(figures))
    expected = np.quantile(figures, [0.25, 0.5, 0.75])
    assert [spread.low, spread.median, spread.high] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("ours", "comparison", "target", "verdict"),
    [
        (1.15, Target.AT_MOST, 1.15, Verdict.MET),
        (1.16, Target.AT_MOST, 1.15, Verdict.MISSED),
        (0.9, Target.AT_LEAST, 0.9, Verdict.MET),
        (0.89, Target.AT_LEAST, 0.9, Verdict.MISSED),
        (7.0, Target.AT_MOST, None, Verdict.SHOWN),
    ],
)
def test_verdicts(ours: float, comparison: Target, target: float | None, verdict: Verdict) -> None:
    assert measure(row([ours], [1], [], comparison=comparison, target=target), 1).verdict is verdict


def test_a_difference_is_judged_as_one() -> None:
    done = measure(row([300, 310], [100, 100], [], of=Of.DIFFERENCE, target=250), 2)
    assert done.judged == Spread(205, 202.5, 207.5)
    assert done.verdict is Verdict.MET


def test_a_figure_has_no_other_side() -> None:
    alone = Row("alone", "", "GiB/s", "", lambda: 21.0, target=20, of=Of.FIGURE)
    assert measure(alone, 3).verdict is Verdict.MISSED
    assert judge(alone, None) is Verdict.SKIPPED
    with pytest.raises(ValueError, match="row alone"):
        Row("alone", "", "GiB/s", "", lambda: 21.0)


def raising(error: Exception) -> Callable[[], float]:
    def side() -> float:
        raise error

    return side


@pytest.mark.parametrize(
    ("side", "verdict", "reason"),
    [
        (raising(NotHere("no hugepages")), Verdict.SKIPPED, "no hugepages"),
        (lambda: None, Verdict.SKIPPED, "the peer: no figure here"),
        (raising(Failed("ended with 1")), Verdict.FAILED, "ended with 1"),
        (lambda: 0.0, Verdict.FAILED, "the peer: the figure is 0"),
    ],
)
def test_a_side_that_gives_no_figure(
    side: Callable[[], float | None], verdict: Verdict, reason: str
) -> None:
    done = measure(Row("r", "", "us", "", lambda: 1.0, side, "the peer"), 3)
    assert (done.verdict, done.reason, done.ours) == (verdict, reason, ())


def test_rows_share_the_rounds_of_their_programs() -> None:
    calls: list[str] = []

    def program(name: str, start: int) -> Callable[[], dict[str, float]]:
        figures = iter(range(start, start + 10))

        def once() -> dict[str, float]:
            calls.append(name)
            figure = next(figures)
            return {"p50": figure, "p99": 10 * figure}

        return once

    rounds = Rounds(ours=program("A", 1), floor=program("B", 5))
    p50 = [rounds.figure(name, lambda figures: figures["p50"]) for name in ("ours", "floor")]
    p99 = [rounds.figure(name, lambda figures: figures["p99"]) for name in ("ours", "floor")]
    first = measure(Row("p50", "", "us", "", p50[0], p50[1], "floor"), 3)
    second = measure(Row("p99", "", "us", "", p99[0], p99[1], "floor"), 3)
    assert "".join(calls) == "ABABAB"
    assert (first.ours, first.other) == ((1, 2, 3), (5, 6, 7))
    assert (second.ours, second.other) == ((10, 20, 30), (50, 60, 70))


def some_measured() -> list[Measured]:
    missed = measure(row([3, 3, 6], [1, 1, 1], [], target=1.15), 3)
    skipped = [
        measure(Row(name, "", "us", "", raising(NotHere("no stress-ng")), lambda: 1.0, "it"), 3)
        for name in ("first", "second")
    ]
    return [missed, *skipped]


def test_the_table_says_what_was_missed_and_why_something_is_not_in_it() -> None:
    lines = report.table(some_measured()).splitlines()
    assert lines[1].split("  ")[0] == "some-row"
    assert "ratio 3 (3 to 4.5)" in lines[1]
    assert lines[1].endswith("<= 1.15  MISSED")
    assert lines[2:] == [
        "MISSED: some-row: not yet explained",
        "skipped: first, second: no stress-ng",
        "3 rows: 1 MISSED, 2 skipped",
    ]


def test_a_missed_target_stands_beside_what_holds_it() -> None:
    def measured(ours: float) -> Measured:
        return measure(row([ours], [1], [], target=1.15, held_by="memory that is in no cache"), 1)

    missed, met = measured(3), measured(1)
    assert report.table([missed]).splitlines()[2:] == [
        "MISSED: some-row: memory that is in no cache",
        "1 row: 1 MISSED",
    ]
    assert "no cache" not in report.table([met])
    document = report.document([missed, met, *some_measured()], quick=True, version="0")
    assert [one["held_by"] for one in document["rows"]] == [
        "memory that is in no cache", "", "not yet explained", "", "",
    ]  # fmt: skip


def test_what_was_interrupted_says_so() -> None:
    assert report.table([], interrupted=True) == "interrupted after no rows"
    done = [measure(row([1], [1], [], target=2), 1)]
    assert report.table(done, interrupted=True).endswith("\ninterrupted after 1 row: 1 met")
    assert report.document(done, quick=True, version="0", interrupted=True)["interrupted"]


def test_ctrl_c_in_the_first_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed() -> float:
        raise KeyboardInterrupt

    first = Row("first", "", "us", "", pressed, target=1, of=Of.FIGURE)
    monkeypatch.setattr(run, "all_rows", lambda _: [first])
    monkeypatch.setattr("sys.argv", ["run.py"])
    assert run.main() == 130
    said = capsys.readouterr()
    assert said.out == "interrupted after no rows\n"
    assert said.err == "first ... interrupted\n"


def test_a_document_that_has_no_place_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--json", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 2
    assert "this is a directory; name a file in it" in capsys.readouterr().err


def test_a_document_that_finds_no_room_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "all_rows", lambda _: [])
    monkeypatch.setattr("sys.argv", ["run.py", "--json", "/dev/full"])
    assert run.main() == 1
    assert capsys.readouterr().err == "--json /dev/full: No space left on device\n"


def test_the_peak_of_a_run_is_not_that_of_who_started_it(tmp_path: Path) -> None:
    ballast = b"x" * (256 << 20)
    program = Path(run.__file__).with_name("peak.py")
    subprocess.run([sys.executable, program, tmp_path / "peak", "--version"], check=True)
    assert 0 < int((tmp_path / "peak").read_text()) < len(ballast)


def test_the_list_tells_rows_apart(tmp_path: Path) -> None:
    lines = report.listing(run.all_rows(Context(tmp_path))).splitlines()
    said = [line.partition(": ")[2] for line in lines]
    assert len(set(said)) == len(said)
    assert lines[0] == (
        "fault-4k-one-p50: p50 of faults on 4 KiB anonymous pages through a pipe; one CPU;"
        " beside floor, one thread; ratio <= 1.15"
    )
    of = {line.partition(":")[0]: line for line in lines}
    assert of["shm-push"].endswith("; all CPUs; alone; figure >= 20 GiB/s")
    assert of["start"].endswith("; beside a bare interpreter; difference <= 250 ms")
    assert of["shm-push-floor"].endswith("; beside floor, UFFDIO_CONTINUE; no target")
    assert of["replay-1e9"].endswith("; ratio >= 0.9; not with --quick")


def test_the_document_has_every_figure() -> None:
    document = report.document(some_measured(), quick=True, version="0")
    assert json.loads(json.dumps(document)) == document
    missed, skipped, _ = document["rows"]
    assert missed["ours"]["figures"] == [3, 3, 6]
    assert missed["judged"] == {"of": "ratio", "median": 3, "low": 3, "high": 4.5}
    assert missed["target"] == {"comparison": "at most", "value": 1.15}
    assert (missed["verdict"], skipped["verdict"]) == ("missed", "skipped")
    assert (skipped["reason"], skipped["ours"]["figures"]) == ("no stress-ng", [])


def test_every_row_has_a_name_of_its_own_and_is_chosen_by_it(tmp_path: Path) -> None:
    found = run.all_rows(Context(tmp_path))
    assert run.choose(found, []) == found
    assert [one.name for one in run.choose(found, ["start"])] == ["start"]
    assert {one.name for one in run.choose(found, ["blocks-*"])} == {"blocks-16", "blocks-1024"}


def test_a_name_of_no_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.choose([], ["strat"])
    assert ended.value.code == 2
    assert "strat: no row has this name" in capsys.readouterr().err


def test_a_command_runs_on_its_cpus_and_ends_as_it_should(tmp_path: Path) -> None:
    context = Context(tmp_path)
    before = os.sched_getaffinity(0)
    said = context.run(["sh", "-c", "grep Cpus_allowed_list /proc/self/status"], context.one_cpu)
    assert said.split() == ["Cpus_allowed_list:", str(max(before))]
    assert os.sched_getaffinity(0) == before
    with pytest.raises(NotHere, match=r"sh -c .* ended with 3: no pages"):
        context.run(["sh", "-c", "echo no pages >&2; exit 3"], context.all_cpus)
    with pytest.raises(Failed, match="ended with 1: nothing said"):
        context.run(["sh", "-c", "exit 1"], context.all_cpus)


def test_the_trace_of_accesses_is_one(tmp_path: Path) -> None:
    trace = native.open(write_trace(tmp_path / "some.vmtrace", 1000))
    assert trace.meta.counts.accesses == 1000
    assert trace.meta.counts.writes == 334
