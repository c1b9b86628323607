"""Whole migrations whose vCPUs fetch their pages themselves: every byte right in every mode, and
each way out of a wait."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import scenario, synthetic

from vmemu import eventcompare, events
from vmemu.config import Scenario
from vmemu.errors import HostError
from vmemu.migration import Migration, Progress
from vmemu.results import document, schema
from vmemu.runstate import Run, StallError
from vmemu.userfault import NO_FEATURES, Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")

RAM = {"name": "ram", "backing": "anonymous", "size": "256KiB"}
SHARED = {
    "name": "vram",
    "backing": "shared",
    "size": "192KiB",
    "content": {"kind": "seeded", "zero_share": 0.5},
}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "4MiB"}
LAYOUTS = {"anonymous": [RAM], "shared": [SHARED], "hugetlbfs": [HUGEPAGES]}
LAYOUTS["mixed"] = [RAM, SHARED, HUGEPAGES]
TESTS = str(Path(__file__).parents[1])


@pytest.fixture(params=LAYOUTS)
def blocks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    if request.param in ("hugetlbfs", "mixed"):
        request.getfixturevalue("hugetlb")
    return LAYOUTS[request.param]


def guest(kind: str = "uniform", vcpus: int = 3, **fields: Any) -> dict[str, Any]:
    defaults = {"accesses": 3000, "write_share": 0.4}
    return {"vcpus": vcpus, "trace": synthetic(kind, **(defaults | fields))}


def by_itself(
    blocks: list[dict[str, Any]] | None = None, before: dict[str, Any] | None = None, **more: Any
) -> Scenario:
    """A scenario whose vCPUs serve themselves; ``more`` are sections, or fields of postcopy."""
    of_postcopy = {"push", "bandwidth", "release_ram"} & more.keys()
    postcopy = {"delivery": "sigbus"} | {name: more.pop(name) for name in of_postcopy}
    migration = (before or {}) | {"postcopy": postcopy}
    return scenario(blocks or [RAM, SHARED], migration=migration, **({"guest": guest()} | more))


def completed(wanted: Scenario, **options: Any) -> Run:
    """Run it: every byte was checked, every page came once, the result is valid and says how."""
    run = Migration(wanted, **options).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.verification is not None and run.incoming is not None and run.workload is not None
    size = sum(block.size for block in wanted.blocks)
    assert (run.verification.bytes_checked, run.verification.bytes_wrong) == (size, 0)
    for index, block in enumerate(wanted.blocks):
        arrived = run.incoming.ram.block[index].arrived
        pages = arrived.precopied + arrived.requested + arrived.pushed + arrived.zero
        assert pages == block.size // block.page_size
    told = document.build(run)
    schema.validate(told)
    assert told["faults"]["delivery"] == "sigbus"
    assert "SIGBUS" in told["host"]["userfault"]["features"]
    return run


# ---- what completes ----


@pytest.mark.parametrize("vcpus", [1, 3, 8])
@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_each_layout_migrates(blocks, push, vcpus):
    run = completed(by_itself(blocks, guest=guest(vcpus=vcpus), push=push))
    for worker in run.workers:
        assert len(worker.faults()) == worker.figures.faults
        assert worker.figures.reads_checked > 0
    if not push:
        assert sum(worker.figures.faults for worker in run.workers) > 0


def test_each_page_is_asked_for_once_by_the_vcpu_that_misses_it_first(blocks):
    run = completed(by_itself(blocks, guest=guest(vcpus=8), push=False))
    stats, requested = run.incoming.figures.stats, run.incoming.requested_pages()
    assert (stats.foreign, stats.spurious, stats.deferred, stats.of_clients) == (0, 0, 0, 0)
    assert stats.messages == stats.requests + stats.shared + stats.late
    assert stats.messages == sum(worker.figures.faults for worker in run.workers)
    pages = {(int(one["block"]), int(one["page"])) for one in requested}
    assert len(pages) == len(requested) == stats.requests
    assert set(requested["tid"]) <= {worker.figures.thread for worker in run.workers}
    times = [requested[f"{name}_ns"] for name in ("asked", "queued", "sent", "arrived", "placed")]
    for earlier, later in itertools.pairwise(times):
        assert (earlier <= later).all()


def test_no_fault_thread_runs_for_nobody():
    run = completed(by_itself())
    assert run.incoming.figures.fault_running == 0
    assert not any(thread.name.startswith("fault") for thread in run.incoming._threads)


@pytest.mark.parametrize("flip_at", ["0%", "40%", "100%"])
def test_after_rounds_of_pre_copy(blocks, flip_at):
    completed(by_itself(blocks, {"precopy": {"rounds": 2}, "flip_at": flip_at}, release_ram=True))


def test_beside_a_push_that_is_held_back():
    completed(by_itself([RAM | {"size": "2MiB"}], bandwidth="8MiB/s", guest=guest("permutation")))


def test_beside_a_balloon():
    completed(by_itself(guest=guest() | {"balloon": {"rate": 5000, "limit": 50}}))


def test_of_locked_memory():
    completed(by_itself(memory={"lock": True}))


@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_beside_clients_whose_faults_a_thread_serves(push):
    """A client's userfaultfd is its own, and gives messages as ever."""
    clients = [
        {"name": name, "block": "vram", "vcpus": 2, "trace": guest(accesses=2000)["trace"]}
        for name in ("one", "two")
    ]
    # The guest leaves most of what they share to them.
    run = completed(by_itself(clients=clients, push=push, guest=guest(accesses=10)))
    assert run.incoming.figures.fault_running == 1
    assert sum(client.figures.counters["reads_wrong"] for client in run.clients) == 0
    if not push:
        assert run.incoming.figures.stats.of_clients > 0


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    pages=st.integers(1, 90),
    zero_share=st.sampled_from([0.0, 0.5, 1.0]),
    wanted=st.builds(
        guest,
        st.sampled_from(["sequential", "uniform", "permutation", "zipf"]),
        st.integers(1, 6),
        accesses=st.just(600),
        write_share=st.sampled_from([0.0, 0.5, 1.0]),
    ),
    push=st.booleans(),
)
def test_any_small_guest_comes_over_whole(seed, pages, zero_share, wanted, push):
    content = {"kind": "seeded", "zero_share": zero_share}
    block = RAM | {"size": pages * 4096, "content": content}
    completed(by_itself([block], seed=seed, guest=wanted, push=push))


def test_several_migrations_at_a_time_share_the_handler():
    runs: list[Run] = []
    wanted = [by_itself(seed=seed, push=seed % 2 == 0) for seed in range(3)]

    def run(one: Scenario) -> None:
        runs.append(completed(one))

    threads = [threading.Thread(target=run, args=(one,)) for one in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == len(wanted)


def test_the_log_says_what_the_result_says(blocks, tmp_path):
    file = str(tmp_path / "events.jsonl")
    result = document.build(completed(by_itself(blocks, push=False), events=file))
    names = [event.name for event in events.read(file)]
    assert names.count("postcopy_ram_fault_thread_request") == result["faults"]["messages"]
    assert names.count("postcopy_page_req_add") == names.count("postcopy_page_req_del")
    figures = eventcompare.summarize(file)["blocktime"]
    assert figures["overlapped_ns"] == result["blocktime"]["overlapped_ns"]
    told = {vcpu["id"]: (vcpu["blocktime_ns"], vcpu["count"]) for vcpu in figures["vcpus"]}
    for vcpu in result["vcpus"]:
        assert told.get(vcpu["id"], (0, 0)) == (vcpu["blocktime_ns"], vcpu["faults"])


# ---- what ends a wait ----


def struck(wanted: Scenario, *signals: signal.Signals) -> Run:
    """Run it; the source gets the signals once the guest runs."""

    def strike(progress: Progress) -> None:
        if progress.phase == "guest":
            while left:
                os.kill(migration._source.process.pid, left.pop(0))

    left = list(signals)
    migration = Migration(wanted, progress=strike)
    return migration.run()


def endless(**more: Any) -> Scenario:
    """A guest that still needs pages of its source after a second, each of them once."""
    return by_itself(
        [RAM | {"size": "512MiB"}, SHARED],
        guest={"vcpus": 2, "trace": synthetic("permutation", write_share=0.4)},
        push=False,
        verify={"reads": False, "final": False},
        **more,
    )


@pytest.mark.parametrize("stopped_before", [False, True], ids=["running", "stopped"])
def test_a_source_that_is_killed_fails_the_run_plainly(stopped_before):
    before = [signal.SIGSTOP] if stopped_before else []
    run = struck(endless(), *before, signal.SIGKILL)
    assert run.status == "failed"
    assert "the source process was killed by SIGKILL" in str(run.error)


def test_a_source_that_stops_is_a_stall_that_names_who_waits_for_what():
    run = struck(endless(limits={"stall": "300ms"}), signal.SIGSTOP)
    assert run.status == "failed"
    assert isinstance(run.error, StallError)
    assert {one.vcpu for one in run.error.waiting} == {0, 1}
    assert "vCPU 0 waits for " in str(run.error)


def test_an_interrupt_ends_the_wait_for_a_source_that_stopped():
    def strike(progress: Progress) -> None:
        if progress.phase == "guest":
            os.kill(migration._source.process.pid, signal.SIGSTOP)
            signal.raise_signal(signal.SIGINT)

    migration = Migration(endless(), progress=strike)
    assert migration.run().status == "interrupted"


@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_a_page_that_was_sent_and_never_comes_is_a_stall_of_all_who_wait_for_it(push):
    """The source says that it went another way; both vCPUs wait for that, neither of them for ever
    in a read."""
    wanted = by_itself(
        [RAM],
        guest=guest("sequential", vcpus=2, accesses=4000),
        limits={"stall": "300ms"},
        push=push,
    )
    run = Migration(wanted, stalls=(("ram", 5 * 4096),)).run()
    assert run.status == "failed"
    assert isinstance(run.error, StallError)
    assert run.error.waiting
    assert all((one.block, one.offset // 4096) == ("ram", 5) for one in run.error.waiting)
    assert "1 page missing" in str(run.error) or not push


@pytest.mark.usefixtures("hugetlb")
def test_a_hugepage_that_never_comes_is_a_stall():
    wanted = by_itself([HUGEPAGES], limits={"stall": "300ms"}, push=False)
    run = Migration(wanted, stalls=(("huge", 0),)).run()
    assert isinstance(run.error, StallError)


def test_what_the_source_can_not_accept_is_told_in_its_own_words(monkeypatch):
    migration = Migration(by_itself(push=False, guest=guest(vcpus=1)))
    run_guest = migration._run_guest

    def lie_first() -> None:
        # Of a block that nobody has named.
        said = b"\x11\0" + bytes(14) + b"\1\0\0\0" + bytes(20)
        os.write(migration._source.ends.vcpus[0].return_path.fileno(), said)
        run_guest()

    monkeypatch.setattr(migration, "_run_guest", lie_first)
    run = migration.run()
    assert run.status == "failed"
    assert "the source gave up: return path: message type 17" in str(run.error)
    assert "no block was named before" in str(run.error)


# ---- what this process and this host are left with ----

WITHOUT_PYTEST = """
from pathlib import Path
from support import scenario
from vmemu.migration import Migration
def caught():
    lines = Path("/proc/self/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> {number} - 1 & 1)
during = []
postcopy = {{"delivery": "sigbus", "push": False}}
migration = Migration(
    scenario(migration={{"postcopy": postcopy}}),
    progress=lambda progress: during.append(caught()) if progress.phase == "guest" else None,
)
before, run = caught(), migration.run()
print(before, run.status, set(during), caught())
"""

FOREIGN = """
import ctypes, faulthandler, mmap, os, sys, tempfile, threading
from support import scenario
from vmemu.migration import Migration
{before}
def strike(progress):
    if progress.phase == "guest":
        with tempfile.TemporaryFile() as file:
            file.truncate(4096)
            memory = mmap.mmap(file.fileno(), 4096)
            file.truncate(0)
            print("touching", flush=True)
            memory[0]
postcopy = {{"delivery": "sigbus", "push": False}}
blocks = [{{"name": "ram", "backing": "anonymous", "size": "256MiB"}}]
guest = {{"vcpus": 2, "trace": {{"synthetic": {{"kind": "permutation"}}}}}}
Migration(scenario(blocks, guest=guest, migration={{"postcopy": postcopy}}), progress=strike).run()
"""


def program(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": TESTS}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=100
    )


def test_the_handler_is_there_while_memory_is_registered():
    done = program(WITHOUT_PYTEST.format(number=int(signal.SIGBUS)))
    assert done.stderr == ""
    assert done.stdout.split() in (
        ["False", "completed", "{True}", "False"],
        ["False", "completed", "set()", "False"],  # over before anybody looked
    )


@pytest.mark.parametrize("before", ["", "faulthandler.enable()"], ids=["default", "faulthandler"])
def test_a_foreign_sigbus_ends_the_process_as_ever(before):
    done = program(FOREIGN.format(before=before))
    assert "touching" in done.stdout
    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) == bool(before)
    assert ("in strike" in done.stderr) == bool(before)


def test_a_kernel_without_the_signal_is_refused_with_what_mends_it(monkeypatch):
    opened = Userfaultfd.__init__

    def without(self: Userfaultfd, wanted: Feature = NO_FEATURES) -> None:
        opened(self, wanted & ~Feature.SIGBUS)
        self.available &= ~Feature.SIGBUS

    monkeypatch.setattr(Userfaultfd, "__init__", without)
    with pytest.raises(HostError) as caught:
        Migration(by_itself()).run()
    assert "userfaultfd of this kernel lacks UFFD_FEATURE_SIGBUS" in str(caught.value)
    assert "use 'delivery: thread'" in str(caught.value)
