"""Whole migrations, without the command line: all bytes are right, or they fail plainly."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import HUGE, scenario, synthetic

from vmemu import hugepages
from vmemu.config import Scenario
from vmemu.errors import CoreError, HostError, HugepageShortage
from vmemu.migration import Migration, Progress, Run
from vmemu.recipe import Recipe
from vmemu.results import document
from vmemu.runstate import StallError, VerificationError
from vmemu.workload import ASAP, Lane, StreamSlice, Workload

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")

ANONYMOUS = {"name": "ram", "backing": "anonymous", "size": "256KiB"}
SHARED = {"name": "vram", "backing": "shared", "size": "192KiB"}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "4MiB"}
BLOCKS = {"anonymous": [ANONYMOUS], "shared": [SHARED], "hugetlbfs": [HUGEPAGES]}
BLOCKS["mixed"] = [ANONYMOUS, SHARED, HUGEPAGES]
ENDLESS = 1 << 40
"""Accesses that no run finishes."""


@pytest.fixture(params=BLOCKS)
def layout(request: pytest.FixtureRequest) -> str:
    """A key of ``BLOCKS``."""
    if request.param in ("hugetlbfs", "mixed"):
        request.getfixturevalue("hugetlb")
    return request.param


def postcopy(preempt: bool = True, push: bool = True) -> dict[str, Any]:
    return {"postcopy": {"preempt": preempt, "push": push}}


def guest(kind: str = "uniform", vcpus: int = 2, **fields: Any) -> dict[str, Any]:
    defaults = {"accesses": 2000, "write_share": 0.4}
    return {"vcpus": vcpus, "trace": synthetic(kind, **(defaults | fields))}


def completed(wanted: Scenario) -> Run:
    """Run it; every byte was checked and every page accounted for once."""
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.workload is not None
    assert run.incoming is not None
    assert run.verification is not None
    assert run.flip is not None
    size = sum(block.size for block in wanted.blocks)
    assert (run.verification.bytes_checked, run.verification.bytes_wrong) == (size, 0)
    here = sum(worker.figures.accesses for worker in run.workers)
    at_source = run.flip.total("accesses")
    assert here + at_source == run.workload.accesses
    for index, block in enumerate(wanted.blocks):
        arrived = run.incoming.ram.block[index].arrived
        pages = arrived.precopied + arrived.requested + arrived.pushed + arrived.zero
        assert pages == block.size // block.page_size
    return run


# ---- what completes ----


@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_each_layout_migrates_in_each_mode(layout, preempt, push, vcpus):
    run = completed(
        scenario(BLOCKS[layout], guest=guest(vcpus=vcpus), migration=postcopy(preempt, push))
    )
    assert sum(worker.figures.reads_checked for worker in run.workers) > 0
    for worker in run.workers:
        assert len(worker.faults()) == worker.figures.faults
    if not push:
        assert sum(worker.figures.faults for worker in run.workers) > 0


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("threads", [2, 5, 16])
def test_several_fault_threads_give_every_byte_right(layout, preempt, threads):
    modes = {"preempt": preempt, "push": False, "fault_threads": threads}
    run = completed(
        scenario(
            BLOCKS[layout],
            guest=guest(vcpus=8, accesses=4000),
            migration={"postcopy": modes},
        )
    )
    figures = run.incoming.figures
    assert figures.fault_running == threads
    assert figures.stats.messages >= figures.stats.requests > 0
    requested = run.incoming.requested_pages()
    assert len(requested) == figures.stats.requests
    pages = {(int(one["block"]), int(one["page"])) for one in requested}
    assert len(pages) == len(requested)


@pytest.mark.parametrize("flip_at", ["0%", "1%", "40%", "100%"])
@pytest.mark.parametrize("kind", ["sequential", "uniform", "permutation"])
def test_accesses_add_up_over_source_and_destination(kind, flip_at):
    share = int(flip_at.removesuffix("%"))
    migration = postcopy() | {"precopy": {"rounds": 2}, "flip_at": flip_at}
    run = completed(scenario([ANONYMOUS, SHARED], guest=guest(kind, 3), migration=migration))
    vcpus = document.build(run)["vcpus"]
    wanted = run.workload.accesses_by_vcpu()
    assert [vcpu["accesses"] for vcpu in vcpus] == wanted
    assert [vcpu["accesses_at_source"] for vcpu in vcpus] == [n * share // 100 for n in wanted]
    for vcpu, worker in zip(vcpus, run.workers, strict=True):
        assert vcpu["accesses"] == vcpu["accesses_at_source"] + worker.figures.accesses
        assert vcpu["reads"] + vcpu["writes"] == vcpu["accesses"]


@pytest.mark.parametrize("kind", ["sequential", "uniform", "permutation"])
def test_each_kind_of_guest_migrates_on_each_layout(layout, kind):
    completed(scenario(BLOCKS[layout], guest=guest(kind)))


TURNS = [
    {"accesses": 900, "patterns": [{"kind": "zipf"}, {"kind": "hot_cold", "weight": 2}]},
    {"accesses": 1, "patterns": [{"kind": "uniform", "block": "vram"}]},
    {"accesses": 700, "patterns": [{"kind": "strided", "stride": "4KiB", "access_size": 4096}]},
    {"accesses": 400, "patterns": [{"kind": "pointer_chase", "start": "50%"}]},
]
WALKS: dict[str, dict[str, Any]] = {
    "strided": {"kind": "strided", "stride": "4160", "write_share": 0.3},
    "odd strides": {"kind": "sequential", "stride": 4093, "access_size": 32},
    "zipf": {"kind": "zipf", "unit": 256, "access_size": 256},
    "hot_cold": {"kind": "hot_cold", "period": 100, "scatter": True, "access_size": 1},
    "pointer_chase": {"kind": "pointer_chase", "write_share": 0.5, "block": "vram"},
    "bytes": {"kind": "uniform", "access_size": 1, "block": "ram", "start": "16KiB", "stop": "50%"},
    "pages": {"kind": "uniform", "access_size": 4096},
    "phases": {"kind": "phases", "repeat": 2, "phases": TURNS},
}


@pytest.mark.parametrize("flip_at", ["0%", "50%"])
@pytest.mark.parametrize("walk", WALKS)
def test_each_walk_migrates_with_every_byte_right(walk, flip_at):
    fields = WALKS[walk] if walk == "phases" else {"accesses": 4000} | WALKS[walk]
    migration = postcopy() | {"precopy": {"rounds": 2}, "flip_at": flip_at}
    guest = {"vcpus": 3, "trace": synthetic(**fields)}
    run = completed(scenario([ANONYMOUS, SHARED], guest=guest, migration=migration))
    assert run.workload.accesses == 4000 + 2 * (walk == "phases")
    assert sum(worker.figures.reads_checked for worker in run.workers) > 0
    # Each end has made them by itself: what one missed the other has done.
    flipped = run.flip.total("accesses")
    assert flipped == (
        0 if flip_at == "0%" else sum(n // 2 for n in run.workload.accesses_by_vcpu())
    )


@pytest.mark.usefixtures("hugetlb")
def test_a_walk_in_hugepages_touches_those_of_its_range_alone():
    fields = {"accesses": 500, "block": "huge", "start": "50%", "write_share": 1.0}
    guest = {"vcpus": 2, "trace": synthetic("zipf", **fields)}
    run = completed(scenario(BLOCKS["mixed"], guest=guest, migration=postcopy(push=False)))
    faults = np.concatenate([worker.faults() for worker in run.workers])
    assert set(faults["block"].tolist()) == {2}
    assert (faults["offset"] >= HUGE).all()


def test_on_demand_a_permutation_faults_on_every_page_once():
    run = completed(
        scenario(
            [ANONYMOUS, SHARED],
            guest=guest("permutation", accesses=None),
            migration=postcopy(push=False),
        )
    )
    assert run.incoming is not None
    stats = run.incoming.figures.stats
    assert (stats.requests, stats.shared, stats.foreign) == (112, 0, 0)
    assert sum(worker.figures.faults for worker in run.workers) == 112
    arrived = [run.incoming.ram.block[i].arrived for i in range(2)]
    assert sum(a.pushed for a in arrived) == 0


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_zero_pages_travel_as_such(layout, share):
    blocks = [
        block | {"content": {"kind": "seeded", "zero_share": share}} for block in BLOCKS[layout]
    ]
    run = completed(scenario(blocks, seed=5))
    assert run.incoming is not None
    zeros = sum(run.incoming.ram.block[i].arrived.zero for i in range(len(blocks)))
    if share == 1.0:
        assert zeros == run.incoming.ram.pages_total
        assert run.incoming.figures.bytes_received == 0


@pytest.mark.parametrize("length", [0, 10_001, 192 << 10])
def test_a_block_can_be_a_file(layout, length, tmp_path):
    path = tmp_path / "dump.raw"
    path.write_bytes(random.Random(1).randbytes(length))
    blocks = [block | {"content": {"kind": "file", "path": str(path)}} for block in BLOCKS[layout]]
    completed(scenario(blocks))


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, (1 << 64) - 1),
    kind=st.sampled_from(["sequential", "uniform", "permutation"]),
    pages=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    vcpus=st.integers(1, 5),
    accesses=st.integers(1, 3000),
    write_share=st.floats(0, 1),
    zero_share=st.floats(0, 1),
    preempt=st.booleans(),
    push=st.booleans(),
)
def test_any_small_guest_migrates(  # noqa: PLR0917
    seed, kind, pages, vcpus, accesses, write_share, zero_share, preempt, push
):
    blocks = [
        {
            "name": f"b{index}",
            "backing": ("anonymous", "shared")[index % 2],
            "size": count * 4096,
            "content": {"kind": "seeded", "zero_share": zero_share},
        }
        for index, count in enumerate(pages)
    ]
    vcpu = guest(kind, vcpus, accesses=accesses, write_share=write_share)
    completed(scenario(blocks, seed=seed, guest=vcpu, migration=postcopy(preempt, push)))


def test_many_blocks_and_many_vcpus():
    blocks = [ANONYMOUS | {"name": f"b{i}", "size": 4096 * (1 + i % 3)} for i in range(60)]
    completed(scenario(blocks, guest=guest(vcpus=32)))


def test_verification_can_be_left_out():
    run = Migration(scenario([ANONYMOUS], verify={"reads": False, "final": False})).run()
    assert (run.status, run.verification) == ("completed", None)
    assert sum(worker.figures.reads_checked for worker in run.workers) == 0


@pytest.mark.parametrize("accesses", [0, 1, 5])
def test_vcpus_without_a_share_of_a_recorded_trace_are_idle(accesses, monkeypatch):
    """A window, or more vCPUs than accesses, leaves some with nothing to do."""
    where = np.arange(accesses, dtype=np.uint32) * np.uint32(4096)
    stream = StreamSlice(where, np.zeros(accesses, np.uint8))
    parts = [StreamSlice(stream.where[i : i + 1], stream.what[i : i + 1]) for i in range(7)]

    recipe = Recipe((), ASAP)  # asked only for a source's guest

    def workload(_: Scenario, blocks: Any) -> tuple[Workload, Recipe]:
        block, offset = np.zeros(64, np.int32), np.arange(64, dtype=np.uint64) * np.uint64(4096)
        sizes = np.full(64, 8, np.uint16)
        return Workload(block, offset, [[Lane(part, sizes)] for part in parts]), recipe

    monkeypatch.setattr("vmemu.migration.make_workload", workload)
    completed(scenario([ANONYMOUS], guest=guest(vcpus=7)))


def test_progress_is_told_and_may_raise():
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        if progress.phase == "guest":
            seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    run = Migration(scenario([ANONYMOUS], guest=guest(accesses=ENDLESS)), progress=watch).run()
    assert run.status == "interrupted"
    assert len(seen) == 2
    assert seen[0].pages_total == 64


def test_a_migration_may_run_in_another_thread():
    runs: list[Run] = []
    threads = [
        threading.Thread(target=lambda: runs.append(completed(scenario([ANONYMOUS, SHARED]))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 2


# ---- flips ----


@pytest.mark.parametrize("offset", [0, 4095, 4096, 77_777, (256 << 10) - 1])
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["seeded", "zeros"])
def test_a_flipped_byte_is_found_and_named(offset, share):
    blocks = [ANONYMOUS | {"content": {"kind": "seeded", "zero_share": share}}, SHARED]
    wanted = scenario(blocks, guest=guest(accesses=1))
    run = Migration(wanted, flips=(("ram", offset),)).run()
    assert run.status == "failed"
    assert isinstance(run.error, VerificationError)
    assert f"1 byte of memory and 0 reads of the guest are wrong; first ram+{offset:#x}" in str(
        run.error
    )


def test_a_read_of_a_flipped_byte_is_found_too():
    wanted = scenario(
        [ANONYMOUS],
        guest=guest("sequential", vcpus=1, accesses=1, write_share=0.0),
        verify={"reads": True, "final": False},
    )
    run = Migration(wanted, flips=(("ram", 3),)).run()
    assert isinstance(run.error, VerificationError)
    assert "0 bytes of memory and 1 read " in str(run.error)
    assert (run.workers[0].mismatches()[0].block, run.workers[0].mismatches()[0].offset) == (
        "ram",
        3,
    )


@pytest.mark.usefixtures("hugetlb")
def test_a_flip_in_a_hugepage_is_found():
    run = Migration(
        scenario([HUGEPAGES], guest=guest(accesses=1)), flips=(("huge", HUGE + 9),)
    ).run()
    assert isinstance(run.error, VerificationError)
    assert f"huge+{HUGE + 9:#x}" in str(run.error)


# ---- a source that dies or stops ----


def struck(wanted: Scenario, *signals: signal.Signals, at: str = "guest") -> Run:
    """Run it; the source gets the signals once the phase has been reached."""

    def strike(progress: Progress) -> None:
        if progress.phase == at:
            while left:
                os.kill(migration._source.process.pid, left.pop(0))

    left = list(signals)
    migration = Migration(wanted, progress=strike)
    return migration.run()


def big_demand(preempt: bool, push: bool, **more: Any) -> Scenario:
    """A guest that still needs pages of its source after a second: memory too large for both."""
    return scenario(
        [ANONYMOUS | {"size": "512MiB"}, SHARED],
        guest=guest("permutation", vcpus=2, accesses=None),
        migration=postcopy(preempt, push),
        verify={"reads": False, "final": False},
        **more,
    )


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_a_source_that_is_killed_fails_the_run_plainly(preempt):
    run = struck(big_demand(preempt, push=False), signal.SIGKILL)
    assert run.status == "failed"
    assert "the source process was killed by SIGKILL" in str(run.error)


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_a_source_that_is_stopped_and_then_killed_fails_the_run_plainly(preempt):
    run = struck(big_demand(preempt, push=False), signal.SIGSTOP, signal.SIGKILL)
    assert run.status == "failed"
    assert "the source process was killed by SIGKILL" in str(run.error)


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_a_source_that_stops_is_a_stall_that_names_who_waits_for_what(preempt):
    wanted = big_demand(preempt, push=False, limits={"stall": "300ms"})
    run = struck(wanted, signal.SIGSTOP)
    assert run.status == "failed"
    assert isinstance(run.error, StallError)
    assert {one.vcpu for one in run.error.waiting} == {0, 1}
    assert "vCPU 0 waits for ram+0x" in str(run.error) or "vCPU 0 waits for vram+0x" in str(
        run.error
    )
    assert "missing" in str(run.error)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_source_that_ends_while_it_starts_is_told_plainly(number, monkeypatch):
    """Before it has said anything: there is nobody to ask why."""
    migration = Migration(scenario([ANONYMOUS], source={"startup_timeout": "300ms"}))
    receive = migration._receive

    def strike(message: Any) -> bytes:
        os.kill(migration._source.process.pid, number)
        return receive(message)

    monkeypatch.setattr(migration, "_receive", strike)
    run = migration.run()
    assert run.status == "failed"
    words = "killed by SIGKILL" if number == signal.SIGKILL else "no HELLO came in time"
    assert words in str(run.error)


def test_a_source_that_fails_is_quoted(tmp_path, monkeypatch):
    path = tmp_path / "dump.raw"
    path.write_bytes(b"x")
    blocks = [ANONYMOUS | {"content": {"kind": "file", "path": str(path)}}]
    migration = Migration(scenario(blocks))
    start = migration._start_source

    def remove_and_start() -> None:
        path.unlink()
        start()

    monkeypatch.setattr(migration, "_start_source", remove_and_start)
    run = migration.run()
    assert run.status == "failed"
    assert "the source gave up: content file" in str(run.error)
    assert "No such file" in str(run.error)


def test_ctrl_c_in_a_terminal_does_not_hit_the_source_while_it_starts(monkeypatch):
    migration = Migration(scenario([ANONYMOUS]))
    receive = migration._receive

    def strike(message: Any) -> bytes:
        os.kill(migration._source.process.pid, signal.SIGINT)
        return receive(message)

    monkeypatch.setattr(migration, "_receive", strike)
    assert migration.run().status == "completed"


def test_a_vcpu_that_fails_last_fails_the_run(monkeypatch):
    migration = Migration(scenario([ANONYMOUS], guest=guest(vcpus=1)))

    def fail() -> None:
        raise CoreError("memory for the page table of a vCPU", 12)

    run_guest = migration._run_guest

    def run() -> None:
        import vmemu.migration as module

        made = module.GuestWorker

        def make(*arguments: Any, **more: Any) -> Any:
            worker = made(*arguments, **more)
            worker.thread._function = fail
            return worker

        monkeypatch.setattr(module, "GuestWorker", make)
        run_guest()

    monkeypatch.setattr(migration, "_run_guest", run)
    result = migration.run()
    assert result.status == "failed"
    assert "page table of a vCPU" in str(result.error)


# ---- Ctrl-C ----


def interrupted(kind: str, values: list[float]) -> list[dict[str, Any]]:
    program = Path(__file__).with_name("interrupts.py")
    done = subprocess.run(
        [sys.executable, program, kind, *map(str, values)],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("part", range(3))
def test_an_interrupt_at_any_line_leaves_nothing(part):
    shares = [(part + random.Random(part * 100 + i).random()) / 3 for i in range(25)]
    outcomes = interrupted("lines", shares)
    for found in outcomes:
        assert (found["left"], found["file"]) == ({}, False), found
        assert found["status"] != "failed", found
    # Before its first step and after its last one, and behind the last line, it strikes elsewhere.
    assert sum(found["status"] == "interrupted" for found in outcomes) > 20


def test_an_interrupt_at_any_time_leaves_nothing():
    for found in interrupted("times", [0.001 + i * 0.004 for i in range(30)]):
        assert (found["left"], found["file"]) == ({}, False), found


def test_an_interrupt_while_a_vcpu_waits_for_a_stopped_source_ends_the_run():
    def strike(progress: Progress) -> None:
        if progress.phase == "guest":
            os.kill(migration._source.process.pid, signal.SIGSTOP)
            signal.raise_signal(signal.SIGINT)

    migration = Migration(big_demand(preempt=True, push=False), progress=strike)
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals strike the main thread only")
    assert migration.run().status == "interrupted"


# ---- what is not there ----


@pytest.mark.usefixtures("hugetlb")
def test_a_shortage_is_raised_or_skipped_as_the_scenario_says():
    pages = hugepages.pool(HUGE).total + 1
    blocks = [ANONYMOUS, HUGEPAGES | {"size": pages * HUGE}]
    with pytest.raises(HugepageShortage):
        Migration(scenario(blocks, on_unavailable="fail")).run()
    with pytest.raises(HugepageShortage):
        Migration(scenario(blocks, on_unavailable={"wait": "100ms"})).run()
    run = Migration(scenario(blocks, on_unavailable="skip")).run()
    assert run.status == "skipped"
    assert isinstance(run.error, HugepageShortage)


def test_what_this_host_can_never_do_is_raised():
    blocks = [SHARED | {"path": "/proc/vmemu-test"}]
    with pytest.raises(HostError, match="not on tmpfs"):
        Migration(scenario(blocks)).run()


@pytest.mark.usefixtures("hugetlb")
def test_a_run_that_waits_gets_its_hugepages():
    most = hugepages.pool(HUGE).total // 2 + 1
    blocks = [HUGEPAGES | {"size": most * HUGE}]
    wanted = scenario(
        blocks,
        guest=guest("sequential", accesses=100),
        verify={"reads": False, "final": False},
    )
    runs: list[str] = []
    threads = [
        threading.Thread(target=lambda: runs.append(Migration(wanted).run().status))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == ["completed", "completed"]
