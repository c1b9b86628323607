"""A recorded migration of QEMU 7.2 and one of ours, made like it: the same states and commands.

The recording is an excerpt: the whole way to the guest's run, some of its faults, and the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from vmemu import eventcompare, events
from vmemu.config import Scenario, load
from vmemu.eventfile import DESTINATION, SOURCE, Event
from vmemu.migration import Migration

pytestmark = pytest.mark.usefixtures("userfault")

DATA = Path(__file__).parents[1] / "data"
RECORDED = {
    DESTINATION: DATA / "qemu72-postcopy-excerpt.dst.log.zst",
    SOURCE: DATA / "qemu72-postcopy-excerpt.src.log",
}
LIKE_QEMU = Path(__file__).parents[2] / "configs" / "like-qemu.yaml"
QUICKER = [
    ("migration.precopy.max_time", "100ms"),
    ("migration.postcopy.bandwidth", "120MiB/s"),
]
"""A tenth of the pre-copy, and a push ten times as fast."""
BLOCKS = [
    ("pc.ram", 256 << 20),
    ("/rom@etc/acpi/tables", 128 << 10),
    ("pc.bios", 256 << 10),
    ("pc.rom", 128 << 10),
    ("/rom@etc/table-loader", 4096),
    ("/rom@etc/acpi/rsdp", 4096),
]
NAMES = [name for name, _ in BLOCKS]
STEPS = {
    SOURCE: {
        "migrate_set_state": "new_state",
        "postcopy_start": None,
        "postcopy_discard_send_range": "block",
        "ram_postcopy_send_discard_bitmap": None,
        "migration_completion_postcopy_end": None,
    },
    DESTINATION: {
        "postcopy_init_range": "block",
        "postcopy_nhp_range": "block",
        "loadvm_postcopy_ram_handle_discard_header": "block",
        "loadvm_postcopy_handle_run": None,
        "postcopy_ram_listen_thread_exit": None,
    },
}
"""The events that are no page's, and the argument of each that matters; both logs have them."""

Log = list[Event]
Step = tuple[str, Any]


def steps(log: Log, side: str) -> list[Step]:
    """What a side did, in its order; several ranges of one block in a row are one step."""
    wanted = STEPS[side]
    found = [
        (event.name, event.args[wanted[event.name]] if wanted[event.name] else "")
        for event in log
        if event.side == side and event.name in wanted
    ]
    return [step for step, _ in groupby(found)]


@pytest.fixture(scope="module")
def recorded() -> Log:
    """Both sides of QEMU's, in the order of time: they ran on one machine."""
    both = [event for path in RECORDED.values() for event in events.read(path)]
    return sorted(both, key=lambda event: event.t_ns)


class Ours:
    """What our migration logged, in the format that a suffix says; run and read once each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.log = functools.cache(self._log)

    def path(self, suffix: str) -> str:
        return str(self._directory / f"events{suffix}")

    def _log(self, suffix: str) -> Log:
        run = Migration(load(LIKE_QEMU, QUICKER), events=self.path(suffix)).run()
        assert (run.status, run.error) == ("completed", None)
        return list(events.read(self.path(suffix)))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    return Ours(tmp_path_factory.mktemp("like-qemu"))


@pytest.fixture(params=[".jsonl", ".log"], ids=["json", "text"])
def ours(request: pytest.FixtureRequest, logs: Ours) -> Log:
    """The log of ours, in each format."""
    return logs.log(request.param)


@pytest.fixture(params=["recorded", ".jsonl", ".log"], ids=["qemu", "json", "text"])
def either(request: pytest.FixtureRequest, recorded: Log, logs: Ours) -> Log:
    """The one and the other: what is said of it holds of both."""
    return recorded if request.param == "recorded" else logs.log(request.param)


# ---- the scenario ----


@pytest.fixture(scope="module")
def like_qemu() -> Scenario:
    """As it is, without what makes it quicker."""
    return load(LIKE_QEMU)


def test_the_scenario_has_the_recorded_blocks(like_qemu: Scenario, recorded: Log) -> None:
    announced = [
        (event.args["block"], event.args["length"])
        for event in recorded
        if event.name == "postcopy_init_range"
    ]
    assert announced == BLOCKS
    assert [(block.name, block.size) for block in like_qemu.blocks] == BLOCKS
    assert {block.page_size for block in like_qemu.blocks} == {4096}


def test_the_scenario_has_the_recorded_limits_and_rounds(like_qemu: Scenario) -> None:
    migration = like_qemu.migration
    assert (migration.precopy.rounds, migration.precopy.max_time) == (1, 1_000_000_000)
    assert migration.precopy.bandwidth == 4 << 20
    assert migration.postcopy.bandwidth == 12 << 20
    assert (migration.postcopy.preempt, migration.postcopy.push) == (False, True)
    assert like_qemu.guest.vcpus == 2


# ---- what was done, side by side ----


@pytest.mark.parametrize("side", [SOURCE, DESTINATION])
def test_each_side_does_what_qemus_did_in_the_same_order(
    recorded: Log, ours: Log, side: str
) -> None:
    assert steps(ours, side) == steps(recorded, side)


@pytest.mark.parametrize("suffix", [".jsonl", ".log"])
def test_the_comparison_shows_the_same_states(logs: Ours, suffix: str) -> None:
    """QEMU's recording has no event of advise and listen."""
    logs.log(suffix)
    qemu = eventcompare.summarize("+".join(map(str, RECORDED.values())))["states"]
    mine = eventcompare.summarize(logs.path(suffix))["states"]
    assert mine[SOURCE] == qemu[SOURCE]
    assert qemu[DESTINATION] == ["discard", "running", "end"]
    assert mine[DESTINATION] == ["advise", "discard", "listening", "running", "end"]


# ---- the order, of each ----


def when(log: Log, wanted: Callable[[Event], bool]) -> list[int]:
    """Where in the log the wanted events are; there are some."""
    found = [at for at, event in enumerate(log) if wanted(event)]
    assert found
    return found


def named(log: Log, name: str) -> list[int]:
    return when(log, lambda event: event.name == name)


def state(log: Log, new: str) -> int:
    (at,) = when(
        log, lambda event: event.name == "migrate_set_state" and event.args["new_state"] == new
    )
    return at


def names_of_blocks(log: Log, name: str) -> list[str]:
    return [event.args["block"] for event in log if event.name == name]


def test_the_source_goes_through_its_states(either: Log) -> None:
    states = [e.args["new_state"] for e in either if e.name == "migrate_set_state"]
    assert states == ["setup", "active", "postcopy-active", "completed"]


def test_every_block_is_emptied_between_setup_and_active(either: Log) -> None:
    assert names_of_blocks(either, "postcopy_init_range") == NAMES
    emptied = named(either, "postcopy_init_range")
    assert state(either, "setup") < emptied[0]
    assert emptied[-1] < state(either, "active")


def test_post_copy_starts_before_the_first_discard(either: Log) -> None:
    (start,) = named(either, "postcopy_start")
    assert state(either, "postcopy-active") < start
    assert start < named(either, "postcopy_discard_send_range")[0]


def test_hugepages_go_off_everywhere_before_the_first_discard(either: Log) -> None:
    assert names_of_blocks(either, "postcopy_nhp_range") == NAMES
    off = named(either, "postcopy_nhp_range")
    assert state(either, "postcopy-active") < off[0]
    assert off[-1] < named(either, "loadvm_postcopy_ram_handle_discard_header")[0]


def test_each_block_is_discarded_by_one_command(either: Log) -> None:
    assert names_of_blocks(either, "loadvm_postcopy_ram_handle_discard_header") == NAMES
    ranges = names_of_blocks(either, "postcopy_discard_send_range")
    lengths = [
        event.args["len"]
        for event in either
        if event.name == "loadvm_postcopy_ram_handle_discard_header"
    ]
    assert lengths == [16 * ranges.count(name) for name in NAMES]
    (sent_all,) = named(either, "ram_postcopy_send_discard_bitmap")
    assert named(either, "postcopy_discard_send_range")[-1] < sent_all


def test_all_but_what_pre_copy_brought_is_discarded(either: Log) -> None:
    sent = dict.fromkeys(NAMES, 0)
    for event in either:
        if event.name == "postcopy_discard_send_range":
            sent[event.args["block"]] += event.args["length"]
    sizes = {name: size // 4096 for name, size in BLOCKS}
    assert 0 < sent["pc.ram"] < sizes["pc.ram"]
    assert {name: sent[name] for name in NAMES[1:]} == {name: sizes[name] for name in NAMES[1:]}


def test_the_guest_runs_after_all_discards_and_faults_only_then(either: Log) -> None:
    (run,) = named(either, "loadvm_postcopy_handle_run")
    assert named(either, "loadvm_postcopy_ram_handle_discard_header")[-1] < run
    assert run < named(either, "postcopy_ram_fault_thread_request")[0]


def test_the_source_has_sent_all_before_the_destination_ends(either: Log) -> None:
    (sent,) = named(either, "migration_completion_postcopy_end")
    (listened,) = named(either, "postcopy_ram_listen_thread_exit")
    assert named(either, "get_queued_page")[-1] < sent < listened
    assert sent < state(either, "completed")


def test_the_destination_cleans_up_at_the_end(ours: Log) -> None:
    names = [event.name for event in ours if event.side == DESTINATION]
    assert names[-6:] == [
        "postcopy_ram_incoming_cleanup_entry",
        "postcopy_ram_fault_thread_quit",
        "postcopy_ram_fault_thread_exit",
        "postcopy_ram_incoming_cleanup_join",
        "postcopy_ram_incoming_cleanup_closeuf",
        "postcopy_ram_incoming_cleanup_exit",
    ]
