"""The event log of real migrations: it tells what the result tells, to the nanosecond."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Footprint, scenario, synthetic

from vmemu import core, eventcompare, events
from vmemu.config import Scenario
from vmemu.eventcompare import overlapped_from_events
from vmemu.eventfile import DESTINATION, LOG_EVENT, SOURCE
from vmemu.migration import Migration, Run
from vmemu.postcopy import IncomingPostcopy
from vmemu.results import document

pytestmark = pytest.mark.usefixtures("userfault")

RAM = {
    "name": "ram",
    "backing": "anonymous",
    "size": "3MiB",
    "content": {"kind": "seeded", "zero_share": 0.3},
}
SHARED = {"name": "vram", "backing": "shared", "size": "1MiB"}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "4MiB"}
LAYOUTS = {"small": [RAM, SHARED], "mixed": [RAM, SHARED, HUGEPAGES]}
PRECOPY = {"precopy": {"rounds": 1, "bandwidth": "64MiB/s"}, "flip_at": "80%"}
PRE_COPIED = pytest.mark.parametrize("before", [{}, PRECOPY], ids=["at-once", "precopy"])
VCPUS = pytest.mark.parametrize("vcpus", [1, 2, 4])


@pytest.fixture(params=LAYOUTS)
def blocks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Blocks of small pages, or of two sizes."""
    if request.param == "mixed":
        request.getfixturevalue("hugetlb")
    return LAYOUTS[request.param]


@pytest.fixture
def log_file(tmp_path: Path) -> str:
    return str(tmp_path / "events.jsonl")


def wanted(
    blocks: list[dict[str, Any]],
    *,
    vcpus: int = 2,
    before: dict[str, Any] | None = None,
    preempt: bool = True,
    push: bool = False,
) -> Scenario:
    """A guest that writes all over a round of pre-copy, and faults on what that makes missing."""
    shape = {"accesses": 800_000, "write_share": 0.001} if before else {"accesses": 20_000}
    guest = {"vcpus": vcpus, "trace": synthetic("uniform", **shape)}
    postcopy = {"preempt": preempt, "push": push}
    return scenario(blocks, guest=guest, migration=(before or {}) | {"postcopy": postcopy})


def result_of(wanted: Scenario, log_file: str) -> dict[str, Any]:
    run = Migration(wanted, events=log_file).run()
    assert (run.status, run.error) == ("completed", None)
    return document.build(run)


def widely_discarding(wanted: Scenario, log_file: str) -> dict[str, Any]:
    """The first run with more discards than blocks, so that somewhere a command was full: which
    writes fall behind a round depends on what else the machine does."""
    for _ in range(30):
        result = result_of(wanted, log_file)
        if result["discards"]["commands"] > len(wanted.blocks):
            return result
    raise AssertionError("no run discards all over")


def counts(log: events.Events) -> Counter[str]:
    return Counter(event.name for event in log)


# ---- blocktime ----


def check_blocktime(result: dict[str, Any], log_file: str) -> None:
    """What the log says of it is what the result says, of all vCPUs and of each."""
    overlapped = result["blocktime"]["overlapped_ns"]
    assert overlapped_from_events(events.read(log_file)) == overlapped
    figures = eventcompare.summarize(log_file)["blocktime"]
    assert figures["overlapped_ns"] == overlapped
    told = {vcpu["id"]: (vcpu["blocktime_ns"], vcpu["count"]) for vcpu in figures["vcpus"]}
    for vcpu in result["vcpus"]:
        assert told.get(vcpu["id"], (0, 0)) == (vcpu["blocktime_ns"], vcpu["faults"])


@VCPUS
@PRE_COPIED
@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_blocktime_is_that_of_the_log_to_the_nanosecond(
    blocks: list[dict[str, Any]], log_file: str, vcpus: int, before: dict[str, Any], preempt: bool
) -> None:
    result = result_of(wanted(blocks, vcpus=vcpus, before=before, preempt=preempt), log_file)
    assert result["faults"]["count"] > 0 or before
    check_blocktime(result, log_file)


@VCPUS
def test_blocktime_is_that_of_the_log_beside_a_push(log_file: str, vcpus: int) -> None:
    check_blocktime(result_of(wanted([RAM], vcpus=vcpus, push=True), log_file), log_file)


def test_the_blocktime_of_one_vcpu_is_all_overlapped(log_file: str) -> None:
    result = result_of(wanted([RAM], vcpus=1), log_file)
    assert result["blocktime"]["overlapped_ns"] == result["vcpus"][0]["blocktime_ns"] > 0


def test_an_idle_vcpu_leaves_nothing_overlapped(log_file: str) -> None:
    """The log says how many vCPUs there are: one that never stopped is in no other event."""
    guest = {"vcpus": 2, "trace": synthetic("uniform", accesses=1, write_share=0.0)}
    result = result_of(scenario([RAM], guest=guest), log_file)
    assert result["blocktime"]["overlapped_ns"] == 0
    check_blocktime(result, log_file)


# ---- counts ----


@PRE_COPIED
@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_the_log_counts_what_the_result_counts(
    blocks: list[dict[str, Any]], log_file: str, before: dict[str, Any], push: bool
) -> None:
    result = result_of(wanted(blocks, before=before, push=push), log_file)
    log = events.read(log_file)
    count = counts(log)
    faults = result["faults"]
    assert count["postcopy_ram_fault_thread_request"] == faults["messages"]
    assert count["mark_postcopy_blocktime_begin"] == faults["count"]
    assert count["mark_postcopy_blocktime_end"] == faults["count"]
    assert count["postcopy_page_req_add"] == faults["requests_sent"]
    assert count["ram_save_queue_pages"] == faults["requests_sent"]
    answered = count["get_queued_page"] + count["get_queued_page_not_dirty"]
    assert answered == faults["requests_sent"]
    assert log.tally.lost == 0
    assert not log.tally.unlike
    assert not log.tally.unknown_events


@PRE_COPIED
def test_on_demand_each_request_is_taken_back_when_its_page_comes(
    blocks: list[dict[str, Any]], log_file: str, before: dict[str, Any]
) -> None:
    result_of(wanted(blocks, before=before, push=False), log_file)
    waiting = 0
    for event in events.read(log_file):
        waiting += event.name == "postcopy_page_req_add"
        waiting -= event.name == "postcopy_page_req_del"
        assert 0 <= waiting <= 2
    assert waiting == 0


@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_without_pre_copy_every_placed_page_is_in_the_log(
    blocks: list[dict[str, Any]], log_file: str, push: bool
) -> None:
    result = result_of(wanted(blocks, push=push), log_file)
    for block in result["blocks"]:
        mine = [e for e in events.read(log_file) if e.args.get("block") == block["name"]]
        pages = sum(e.args["pages"] for e in mine if e.name == "postcopy_place_page")
        zeros = sum(e.args["pages"] for e in mine if e.name == "postcopy_place_page_zero")
        assert pages == block["pages"]["requested"] + block["pages"]["pushed"]
        assert zeros == block["pages"]["zero"]


def test_what_was_discarded_at_the_flip_is_placed_in_post_copy(
    blocks: list[dict[str, Any]], log_file: str
) -> None:
    result = widely_discarding(wanted(blocks, before=PRECOPY, push=True), log_file)
    placed = sum(
        event.args["length"]
        for event in events.read(log_file)
        if event.name in ("postcopy_place_page", "postcopy_place_page_zero")
    )
    assert placed == result["discards"]["bytes"]


def test_discards_are_counted_alike_at_both_ends_and_in_the_result(
    blocks: list[dict[str, Any]], log_file: str
) -> None:
    told = widely_discarding(wanted(blocks, before=PRECOPY), log_file)["discards"]
    found = eventcompare.summarize(log_file)["discards"]
    assert found["commands_sent"] == found["commands_received"] == told["commands"]
    assert found["ranges_sent"] == found["ranges_received"] == told["ranges"]
    assert sum(found["pages_sent"].values()) * 4096 == told["bytes"]
    assert sum(found["bytes_dropped"].values()) == told["bytes"]


def test_a_command_takes_twelve_ranges_and_the_last_of_a_block_the_rest(log_file: str) -> None:
    result_of(wanted([RAM, SHARED], before=PRECOPY), log_file)
    for name in ("ram", "vram"):
        lengths = [
            event.args["len"] // 16
            for event in events.read(log_file)
            if event.name == "loadvm_postcopy_ram_handle_discard_header"
            and event.args["block"] == name
        ]
        assert all(length == 12 for length in lengths[:-1])
        assert all(1 <= length <= 12 for length in lengths)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_threads_of_the_log_are_those_that_ran(log_file: str, threads: int) -> None:
    """The destination's are of this process, a fault is told by the thread that read it."""
    migration = {"postcopy": {"push": False, "fault_threads": threads}}
    guest = {"vcpus": 4, "trace": synthetic("permutation", write_share=0.0)}
    run = Migration(scenario([RAM], guest=guest, migration=migration), events=log_file).run()
    assert run.status == "completed"
    log = list(events.read(log_file))
    entered = {e.tid for e in log if e.name == "postcopy_ram_fault_thread_entry"}
    assert len(entered) == threads
    assert {e.tid for e in log if e.name == "postcopy_ram_fault_thread_request"} <= entered
    vcpus = {worker.figures.thread for worker in run.workers}
    assert {e.args["pid"] for e in log if e.name == "postcopy_ram_fault_thread_request"} <= vcpus
    stopped = {(e.tid, e.args["cpu"]) for e in log if e.name == "mark_postcopy_blocktime_begin"}
    assert stopped <= {(worker.figures.thread, worker.index) for worker in run.workers}


# ---- off ----


def test_without_a_file_there_is_no_log_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a log was made that nobody asked for")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(events.EventLog, "__init__", refuse)
    run = Migration(wanted([RAM])).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.incoming is not None
    assert run.incoming.figures.log == core.ffi.NULL
    assert {worker.figures.log for worker in run.workers} == {core.ffi.NULL}
    assert os.listdir(tmp_path) == []


def test_a_log_leaves_nothing_but_its_file(log_file: str) -> None:
    result_of(wanted([RAM]), log_file)  # what multiprocessing starts stays
    before = Footprint.now()
    result_of(wanted([RAM]), log_file)
    assert before.left_by(Footprint.now()) == {}
    assert os.listdir(os.path.dirname(log_file)) == ["events.jsonl"]


# ---- a source that is killed ----


def killed(wanted: Scenario, log_file: str, when: Callable[[IncomingPostcopy], bool]) -> Run:
    """Run it; the source is killed as soon as the destination is where ``when`` says."""
    migration = Migration(wanted, events=log_file)
    over = threading.Event()

    def strike() -> None:
        while not over.wait(0.001):
            incoming = migration.run_state.incoming
            if incoming is not None and when(incoming):
                os.kill(migration._source.process.pid, signal.SIGKILL)
                return

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        return migration.run()
    finally:
        over.set()
        killer.join()


def slow(**migration: Any) -> Scenario:
    """A guest that needs its source for much longer than it takes to kill it."""
    return scenario(
        [RAM | {"size": "128MiB"}, SHARED],
        guest={"vcpus": 2, "trace": synthetic("permutation", write_share=0.0)},
        migration=migration,
        verify={"reads": False, "final": False},
    )


def some_pages_are_here(incoming: IncomingPostcopy) -> bool:
    return incoming.running and incoming.ram.pages_received > 50


def pre_copy_has_begun(incoming: IncomingPostcopy) -> bool:
    return bool(incoming.figures.bytes_precopied)


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_a_killed_source_leaves_the_log_of_both_sides(log_file: str, preempt: bool) -> None:
    run = killed(slow(postcopy={"preempt": preempt, "push": False}), log_file, some_pages_are_here)
    assert run.status == "failed"
    assert "killed by SIGKILL" in str(run.error)
    log = events.read(log_file)
    assert {event.side for event in log if event.name == LOG_EVENT} == {DESTINATION, SOURCE}
    count = counts(log)
    assert 0 < count["get_queued_page"] <= count["ram_save_queue_pages"]
    assert count["ram_save_queue_pages"] <= count["postcopy_page_req_add"]
    states = [e.args["new_state"] for e in log if e.name == "migrate_set_state"]
    assert states == ["setup", "active", "postcopy-active"]
    assert count["postcopy_pause_incoming"] == 1
    assert log.events[-1].name == "postcopy_ram_incoming_cleanup_exit"
    check_blocktime(document.build(run), log_file)


def test_a_source_that_is_killed_in_pre_copy_leaves_its_events_too(log_file: str) -> None:
    wanted = slow(precopy={"rounds": 1, "bandwidth": "1MiB/s"})
    run = killed(wanted, log_file, pre_copy_has_begun)
    assert run.status == "failed"
    log = events.read(log_file)
    states = [e.args["new_state"] for e in log if e.name == "migrate_set_state"]
    assert states == ["setup", "active"]
    assert counts(log)["postcopy_init_range"] == 2
    assert counts(log)["postcopy_ram_incoming_cleanup_exit"] == 1


# ---- where it goes ----

SMALL = """\
name: small
blocks: [{name: ram, backing: anonymous, size: 256KiB}]
guest: {trace: {synthetic: {kind: uniform, accesses: 100}}}
"""


def vmemu_run(directory: Path, place: str) -> subprocess.CompletedProcess[str]:
    (directory / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "vmemu", "run", "small.yaml", "--json", "result.json"]
    return subprocess.run(
        [*command, "--events", place],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
    )


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("no/such/events.jsonl", "is no directory"),
        (".", "is a directory"),
        ("small.yaml/events.log", "is no directory"),
    ],
)
def test_a_place_that_can_not_be_written_is_refused_before_anything_runs(
    tmp_path: Path, place: str, why: str
) -> None:
    done = vmemu_run(tmp_path, place)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert os.listdir(tmp_path) == ["small.yaml"]  # no result either


@pytest.mark.parametrize("name", ["events.jsonl", "events.log"])
def test_the_verb_writes_both_sides_in_either_format(tmp_path: Path, name: str) -> None:
    done = vmemu_run(tmp_path, name)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == [name, "result.json", "small.yaml"]
    log = events.read(tmp_path / name)
    assert {event.side for event in log} == {DESTINATION, SOURCE}
    assert {event.args["of"] for event in log if event.name == LOG_EVENT} == {DESTINATION, SOURCE}
