"""Guests with a pace: recorded times, rates, loops, several traces; and how late they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import scenario, synthetic

from vmemu.config import Scenario
from vmemu.errors import ConfigError
from vmemu.migration import Migration
from vmemu.plan import blocks_of, make_workload
from vmemu.results import document, schema
from vmemu.runstate import Progress, Run
from vmemu.traces import native
from vmemu.traces.native import TraceWriter

pytestmark = pytest.mark.usefixtures("userfault")

MS = 1_000_000
BEGIN = 1 << 55
BLOCKS = [
    {"name": "ram", "backing": "anonymous", "size": "256KiB", "content": {"zero_share": 0.2}},
    {"name": "vram", "backing": "shared", "size": "256KiB"},
]


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """3000 accesses of three threads with the ids 0, 3 and 5, over 90 ms."""
    path = tmp_path / "timed.vmtrace"
    random = np.random.default_rng(1)
    with TraceWriter(path) as writer:
        for thread in (0, 3, 5):
            times = np.linspace(0, 90 * MS, 1000).astype(np.uint64) + np.uint64(BEGIN)
            addresses = random.integers(0, 40 * 4096 - 8, 1000).astype(np.uint64)
            kinds = random.integers(0, 3, 1000).astype(np.uint8)
            writer.append(thread, addresses, kinds, np.full(1000, 8, np.uint16), times)
        writer.finish()
    return path


@pytest.fixture
def untimed(tmp_path: Path) -> Path:
    path = tmp_path / "untimed.vmtrace"
    with TraceWriter(path) as writer:
        addresses = np.arange(0, 30 * 4096, 8, dtype=np.uint64)
        kinds = (np.arange(len(addresses)) % 3).astype(np.uint8)
        writer.append(0, addresses, kinds, np.full(len(addresses), 8, np.uint16))
        writer.finish()
    return path


def recorded(file: Path, **fields: Any) -> dict[str, Any]:
    return {"file": str(file), "map": {"block": "ram"}, **fields}


def guest(trace: Any, pace: dict[str, Any] | None = None, vcpus: int = 2) -> dict[str, Any]:
    return {"vcpus": vcpus, "trace": trace} | ({"pace": pace} if pace else {})


def completed(wanted: Scenario) -> tuple[Run, dict[str, Any]]:
    """Run it; every byte was checked, and each access made once."""
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    result = document.build(run)
    schema.validate(result)
    assert result["verify"]["ok"]
    assert run.workload is not None
    assert [vcpu["accesses"] for vcpu in result["vcpus"]] == run.workload.accesses_by_vcpu()
    return run, result


def replay_ns(result: dict[str, Any]) -> int:
    """How long the guest ran here."""
    return sum(p["duration_ns"] for p in result["phases"] if p["name"] == "guest")


@pytest.mark.parametrize(("factor", "loops"), [(1.0, 1), (3.0, 1), (1.5, 2)])
def test_a_recording_takes_its_time_at_least(timed, factor, loops):
    pace = {"kind": "recorded", "factor": factor}
    _, result = completed(scenario(BLOCKS, guest=guest(recorded(timed, loops=loops), pace)))
    assert replay_ns(result) >= 90 * MS * loops / factor
    assert result["pace"] == pace
    for vcpu in result["vcpus"]:
        lag = vcpu["lag_ns"]
        assert 0 < lag["mean"] <= lag["max"]
        assert lag["end"] <= lag["max"]


def test_a_rate_takes_its_time_at_least():
    trace = synthetic("uniform", accesses=2000, write_share=0.4)
    pace = {"kind": "rate", "accesses_per_second": 20_000}
    _, result = completed(scenario(BLOCKS, guest=guest(trace, pace)))
    assert replay_ns(result) >= 999 * 1_000_000_000 // 20_000  # the first is due at once
    assert all(vcpu["lag_ns"]["max"] > 0 for vcpu in result["vcpus"])


def test_as_fast_as_possible_there_is_no_lag(timed):
    _, result = completed(scenario(BLOCKS, guest=guest(recorded(timed))))
    assert result["pace"] == {"kind": "asap"}
    assert [vcpu["lag_ns"] for vcpu in result["vcpus"]] == [None, None]


def test_a_guest_that_can_not_keep_up_is_late_by_what_it_lacks(timed):
    """All is due within 9 ns: the last access is late by as long as the guest has run, and some
    pages have to be waited for."""
    pace = {"kind": "recorded", "factor": 1e7}
    run, result = completed(scenario(BLOCKS, guest=guest(recorded(timed), pace)))
    for vcpu, worker in zip(result["vcpus"], run.workers, strict=True):
        assert 0 < vcpu["lag_ns"]["max"] <= vcpu["lag_ns"]["end"] + 10
        last = max((int(fault["end_ns"]) for fault in worker.faults()), default=0)
        assert vcpu["lag_ns"]["max"] + 10 >= last - int(worker._guest.shared.pace.start_ns)


def test_several_traces_are_on_one_guest(timed, untimed):
    traces = [
        recorded(timed, threads="by_id", window={"start": "10%"}),
        recorded(untimed, map={"block": "vram"}, loops=3),
        synthetic("permutation", accesses=500),
        synthetic("permutation", accesses=500),
    ]
    run, _ = completed(scenario(BLOCKS, guest=guest(traces)))
    assert run.workload is not None
    assert run.workload.accesses == 2700 + 3 * 15360 + 1000
    # The two synthetic traces have their pages in common, and not their randomness.
    assert len(run.workload.block) == pages_of(timed) + pages_of(untimed) + 128
    made = [lane.work.seed for lane in run.workload.vcpus[0][-2:]]
    assert made[0] != made[1]


def pages_of(file: Path) -> int:
    return len(native.open(file).pages)


def test_several_traces_are_on_one_client(timed, untimed):
    traces = [recorded(timed, map={}), recorded(untimed, map={}, loops=2)]
    client = {"name": "c", "block": "vram", "vcpus": 2, "trace": traces}
    rate = {"kind": "rate", "accesses_per_second": 200_000}
    guests = guest(synthetic("uniform", accesses=1000), rate)
    _, result = completed(scenario(BLOCKS, guest=guests, clients=[client]))
    assert result["clients"][0]["accesses"] == 3000 + 2 * 15360


@pytest.mark.parametrize("kind", ["asap", "recorded", "rate"])
@pytest.mark.parametrize("flip_at", ["50%", 4321])
def test_a_flip_in_the_middle_of_loops(timed, kind, flip_at):
    paces = {
        "asap": {"kind": "asap"},
        "recorded": {"kind": "recorded", "factor": 4},
        "rate": {"kind": "rate", "accesses_per_second": 100_000},
    }
    trace = [
        recorded(timed, loops=3),
        recorded(timed, threads="by_id", map={"block": "vram"}, loops=2),
    ]
    wanted = scenario(
        BLOCKS,
        guest=guest(trace, paces[kind]),
        migration={"flip_at": flip_at, "precopy": {"rounds": 2}},
    )
    run, result = completed(wanted)
    at_source = sum(vcpu["accesses_at_source"] for vcpu in result["vcpus"])
    assert run.workload is not None
    total = run.workload.accesses
    assert total == 15_000
    asked = total // 2 if flip_at == "50%" else flip_at
    assert asked - 2 < at_source <= asked
    if kind != "asap":
        # Both sides' lags are in it, weighted by their accesses.
        for vcpu, worker, before in zip(result["vcpus"], run.workers, run.flip.vcpus, strict=True):
            here = worker.figures
            assert (here.paced, before["paced"]) == (here.accesses, before["accesses"])
            total_ns = here.paced * here.lag_mean_ns + before["paced"] * before["lag_mean_ns"]
            assert vcpu["lag_ns"]["mean"] == total_ns // (here.paced + before["paced"])
            assert vcpu["lag_ns"]["max"] == max(here.lag_max_ns, before["lag_max_ns"])


def test_a_flip_at_a_time_stops_a_guest_that_sleeps(timed):
    """The whole trace takes a second, the flip comes long before its end."""
    wanted = scenario(
        BLOCKS,
        guest=guest(recorded(timed), {"kind": "recorded", "factor": 0.09}),
        migration={"flip_at": "20ms"},
    )
    _, result = completed(wanted)
    assert sum(vcpu["accesses_at_source"] for vcpu in result["vcpus"]) < 3000


def test_a_guest_that_sleeps_is_interrupted(timed):
    def interrupt(progress: Progress) -> None:
        if progress.phase == "guest" and progress.accesses:
            raise KeyboardInterrupt

    wanted = scenario(BLOCKS, guest=guest(recorded(timed), {"kind": "recorded", "factor": 1e-9}))
    run = Migration(wanted, progress=interrupt).run()
    assert run.status == "interrupted"
    schema.validate(document.build(run))
    assert all(worker.join(0) for worker in run.workers)
    assert 0 < sum(worker.figures.accesses for worker in run.workers) < 100


def test_the_end_of_the_source_ends_a_guest_that_sleeps_there(timed):
    """Its owner is interrupted while the guest would run at the source for years."""

    def interrupt(progress: Progress) -> None:
        if progress.phase == "precopy":
            raise KeyboardInterrupt

    wanted = scenario(
        BLOCKS,
        guest=guest(recorded(timed), {"kind": "recorded", "factor": 1e-9}),
        migration={"flip_at": "90%"},
    )
    assert Migration(wanted, progress=interrupt).run().status == "interrupted"


# ---- what is refused ----


def test_recorded_pace_needs_recorded_times(timed, untimed):
    traces = [recorded(timed), recorded(untimed)]
    wanted = scenario(BLOCKS, guest=guest(traces, {"kind": "recorded"}))
    with pytest.raises(ConfigError) as caught:
        make_workload(wanted, blocks_of(wanted))
    (problem,) = caught.value.problems
    assert problem.field == "guest.pace.kind"
    assert "guest.trace[1].file" in problem.what
    assert "has no recorded times" in problem.what
    assert "'kind: rate'" in problem.remedy


def test_loops_that_last_longer_than_any_clock_are_refused(tmp_path):
    with TraceWriter(tmp_path / "long.vmtrace") as writer:
        times = np.array([0, 1 << 60], np.uint64)
        kinds, sizes = np.zeros(2, np.uint8), np.full(2, 8, np.uint16)
        writer.append(0, np.zeros(2, np.uint64), kinds, sizes, times)
        writer.finish()
    trace = recorded(tmp_path / "long.vmtrace", loops=4)
    wanted = scenario(BLOCKS, guest=guest([trace], {"kind": "recorded"}))
    with pytest.raises(ConfigError) as caught:
        make_workload(wanted, blocks_of(wanted))
    (problem,) = caught.value.problems
    assert problem.field == "guest.trace[0].loops"
    assert "at most 3 loops" in problem.remedy


def test_errors_of_one_trace_of_several_name_it(timed):
    traces = [recorded(timed), recorded(timed, window={"start": 5000})]
    wanted = scenario(BLOCKS, guest=guest(traces))
    with pytest.raises(ConfigError, match=r"guest\.trace\[1\]\.window\.start"):
        make_workload(wanted, blocks_of(wanted))


def test_times_that_go_back_wait_for_those_before_them(tmp_path):
    with TraceWriter(tmp_path / "back.vmtrace") as writer:
        times = np.array([50, 70, 60, 10, 90], np.uint64)
        kinds, sizes = np.zeros(5, np.uint8), np.full(5, 8, np.uint16)
        writer.append(0, np.zeros(5, np.uint64), kinds, sizes, times)
        writer.finish()
    trace = recorded(tmp_path / "back.vmtrace")
    wanted = scenario(BLOCKS, guest=guest(trace, {"kind": "recorded"}, vcpus=1))
    workload, _ = make_workload(wanted, blocks_of(wanted))
    (lane,) = workload.vcpus[0]
    assert lane.work.times.tolist() == [50, 70, 70, 70, 90]
    assert (lane.origin_ns, lane.duration_ns) == (50, 40)
