"""Whole migrations with a life before the flip: every byte is right, every page counted once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support import HUGE, scenario, synthetic

from vmemu import migration as migration_module
from vmemu import postcopy
from vmemu.config import Scenario
from vmemu.migration import Migration, Run
from vmemu.protocol import Message
from vmemu.results.document import build
from vmemu.userfault import Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")

PAGE = 4096
RUN_BYTES = 256 << 10
MOST_RANGES = 12
ZEROS = {"kind": "seeded", "zero_share": 0.3}
ANONYMOUS = {"name": "ram", "backing": "anonymous", "size": "512KiB", "content": ZEROS}
SHARED = {"name": "vram", "backing": "shared", "size": "256KiB", "content": ZEROS}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "4MiB"}
LAYOUTS = {"anonymous": [ANONYMOUS], "shared": [SHARED], "hugetlbfs": [HUGEPAGES]}
LAYOUTS["mixed"] = [ANONYMOUS, SHARED, HUGEPAGES]
FLIPS: list[Any] = ["0%", "30%", "100%", 777, "5ms"]


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    if request.param in ("hugetlbfs", "mixed"):
        request.getfixturevalue("hugetlb")
    return LAYOUTS[request.param]


def guest(kind: str = "uniform", vcpus: int = 2, **fields: Any) -> dict[str, Any]:
    defaults = {"accesses": 20_000, "write_share": 0.3}
    return {"vcpus": vcpus, "trace": synthetic(kind, **(defaults | fields))}


def migration(flip_at: Any = "30%", rounds: int = 1, **sections: dict[str, Any]) -> dict[str, Any]:
    precopy = {"rounds": rounds, **sections.get("precopy", {})}
    return {"flip_at": flip_at, "precopy": precopy, "postcopy": sections.get("postcopy", {})}


def completed(wanted: Scenario) -> Run:
    """Run it; every byte and every read is right, every page arrived once, every access was made
    once."""
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.verification is not None
    size = sum(block.size for block in wanted.blocks)
    assert (run.verification.bytes_checked, run.verification.bytes_wrong) == (size, 0)
    check_pages(wanted, run)
    check_vcpus(run)
    return run


def check_pages(wanted: Scenario, run: Run) -> None:
    assert run.incoming is not None
    discards = run.incoming.discards
    total = 0
    for index, block in enumerate(wanted.blocks):
        found = run.incoming.ram.block[index]
        arrived = found.arrived
        pages = arrived.precopied + arrived.requested + arrived.pushed + arrived.zero
        assert pages == block.size // block.page_size
        assert found.discarded <= arrived.requested + arrived.pushed + arrived.zero
        total += found.discarded * block.page_size
    assert total <= discards.bytes
    assert discards.commands <= discards.ranges <= discards.commands * MOST_RANGES


def check_vcpus(run: Run) -> None:
    """Each vCPU goes on where it stopped: nothing is replayed twice or left out."""
    assert run.workload is not None
    assert run.flip is not None
    shares = run.workload.accesses_by_vcpu()
    before = run.flip.vcpus or tuple({"accesses": 0, "position": 0} for _ in shares)
    for worker, stopped, share in zip(run.workers, before, shares, strict=True):
        assert stopped["position"] == stopped["accesses"]
        assert worker.figures.position == share
        assert stopped["accesses"] + worker.figures.accesses == share
    assert run.flip.total("reads_wrong") == sum(w.figures.reads_wrong for w in run.workers) == 0


# ---- the matrix ----


@pytest.mark.parametrize("rounds", range(4))
@pytest.mark.parametrize("flip_at", FLIPS, ids=str)
def test_each_flip_after_each_number_of_rounds(layout, flip_at, rounds):
    run = completed(scenario(layout, guest=guest(), migration=migration(flip_at, rounds)))
    assert run.flip is not None
    assert run.incoming is not None
    at_source = run.flip.total("accesses")
    if flip_at == "0%":
        assert (run.flip.vcpus, run.flip.dirty_tracking) == ((), None)
    elif flip_at != "5ms":
        share = {"30%": 3000, "100%": 10_000, 777: 388}[flip_at]
        assert [vcpu["accesses"] for vcpu in run.flip.vcpus] == [share] * 2
        assert at_source == share * 2
    if flip_at != "5ms":
        assert run.flip.rounds == rounds
    if rounds == 0:
        assert run.flip.precopy_pages == 0
        # All of it is dirty, and a block without a gap is one range.
        assert run.incoming.discards.ranges == len(layout)
    elif flip_at == "0%":
        # Nobody writes, so one round brings everything, whatever comes after it.
        assert run.flip.precopy_pages * PAGE == sum(
            run.memory.blocks[i].size for i in range(len(layout))
        )
        assert run.incoming.discards.commands == 0
        assert run.incoming.figures.stats.requests == 0


@pytest.mark.parametrize("switch", ["at_once", "converged"])
@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_each_mode_of_post_copy_after_pre_copy(layout, switch, preempt, push):
    wanted = migration(
        "50%",
        2,
        precopy={"switch": switch, "max_downtime": "1ms"},
        postcopy={"preempt": preempt, "push": push},
    )
    completed(scenario(layout, guest=guest(vcpus=3), migration=wanted))


@pytest.mark.parametrize("method", ["kernel", "replay"])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_either_way_to_track_dirty_pages(layout, method, vcpus):
    if method == "kernel":
        with Userfaultfd() as uffd:
            if not uffd.available & Feature.WP_ASYNC:
                pytest.skip("this kernel has no UFFD_FEATURE_WP_ASYNC")
    wanted = migration("60%", 3, precopy={"dirty_tracking": method})
    run = completed(scenario(layout, guest=guest(vcpus=vcpus), migration=wanted))
    assert run.flip is not None
    assert run.flip.dirty_tracking is not None
    assert run.flip.dirty_tracking.method == method
    assert run.flip.dirty_tracking.reason == "the scenario asks for it"


@pytest.mark.parametrize("flip_at", ["50%", "20ms"])
def test_a_pre_copy_with_a_limit(flip_at):
    wanted = migration(flip_at, 1, precopy={"bandwidth": "8MiB/s"})
    completed(scenario([ANONYMOUS, SHARED], guest=guest(), migration=wanted))


def test_a_guest_that_is_done_does_not_wait_for_the_time_of_the_flip():
    run = completed(scenario([ANONYMOUS], guest=guest(), migration=migration("10min", 1)))
    assert run.flip is not None
    assert run.flip.total("accesses") == 20_000


def test_the_way_back_to_the_place_of_the_flip_is_downtime():
    """The destination makes the synthetic accesses before the flip again."""
    wanted = guest(vcpus=1, accesses=20_000_000)
    run = completed(scenario([ANONYMOUS], guest=wanted, migration=migration("100%", 0)))
    assert run.flip is not None
    (worker,) = run.workers
    (guest_phase,) = (phase for phase in run.phases if phase.name == "guest")
    assert worker.figures.started_ns > run.started_ns + guest_phase.start_ns
    assert build(run)["downtime_ns"] == worker.figures.started_ns - run.flip.stopped_ns


def test_a_pre_copy_too_slow_for_the_time_is_no_stall():
    """It says that it is alive while it waits for a token; what it did not send is dirty."""
    wanted = migration("1500ms", 1, precopy={"bandwidth": "1KiB/s"})
    blocks = [ANONYMOUS | {"content": {"kind": "seeded"}}]
    run = completed(scenario(blocks, guest=guest(), migration=wanted, limits={"stall": "700ms"}))
    assert run.flip is not None
    assert run.flip.precopy_bytes == RUN_BYTES


@pytest.mark.parametrize("seed", range(30))
def test_any_scenario_of_many(seed, request):
    choose = random.Random(seed)
    layouts = ["anonymous", "shared", "hugetlbfs", "mixed"]
    blocks = LAYOUTS[choose.choice(layouts)]
    if HUGEPAGES in blocks:
        request.getfixturevalue("hugetlb")
    vcpu = guest(
        choose.choice(["uniform", "sequential", "permutation"]),
        choose.randint(1, 6),
        accesses=choose.randint(1, 60_000),
        write_share=choose.choice([0.01, 0.2, 0.9]),
    )
    accesses = vcpu["trace"]["synthetic"]["accesses"]
    wanted = migration(
        choose.choice(["0%", "1%", "99.9%", "100%", choose.randint(0, accesses), "1ms", "30ms"]),
        choose.randint(0, 5),
        precopy={
            "bandwidth": choose.choice(["unlimited", "50MiB/s"]),
            "switch": choose.choice(["at_once", "converged"]),
            "dirty_tracking": choose.choice(["auto", "replay"]),
        },
        postcopy={
            "preempt": choose.random() < 0.5,
            "push": choose.random() < 0.7,
            "release_ram": choose.random() < 0.5,
            "bandwidth": choose.choice(["unlimited", "50MiB/s"]),
            "fault_threads": choose.randint(1, 3),
        },
    )
    completed(scenario(blocks, seed=seed, guest=vcpu, migration=wanted))


# ---- what the guest writes while pages go ----


def until(found: Callable[[Run], bool], make: Callable[[int], Scenario]) -> Run:
    """The first run that shows it, over seeds: which writes fall behind a round is chance."""
    for seed in range(30):
        run = completed(make(seed))
        if found(run):
            return run
    raise AssertionError("no run shows it")


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_more_than_twelve_ranges_are_told_in_several_commands(preempt):
    def make(seed: int) -> Scenario:
        return scenario(
            [ANONYMOUS | {"size": "8MiB"}],
            seed=seed,
            guest=guest(accesses=400_000, write_share=0.002),
            migration=migration("90%", 1, postcopy={"preempt": preempt}),
        )

    def many(run: Run) -> bool:
        return run.incoming is not None and run.incoming.discards.ranges > 2 * MOST_RANGES

    run = until(many, make)
    assert run.incoming is not None
    discards = run.incoming.discards
    # One block: as few commands as can be.
    assert discards.commands == -(-discards.ranges // MOST_RANGES)
    assert run.incoming.ram.block[0].discarded * PAGE == discards.bytes


@pytest.mark.usefixtures("hugetlb")
def test_a_hugepage_that_is_dirty_in_part_is_discarded_and_sent_whole():
    def make(seed: int) -> Scenario:
        return scenario(
            [HUGEPAGES],
            seed=seed,
            guest=guest(accesses=300_000, write_share=0.0005),
            migration=migration("90%", 1),
        )

    def discarded(run: Run) -> bool:
        return run.incoming is not None and run.incoming.ram.block[0].discarded > 0

    run = until(discarded, make)
    assert run.incoming is not None
    block = run.incoming.ram.block[0]
    assert run.incoming.discards.bytes == block.discarded * HUGE
    assert block.arrived.requested + block.arrived.pushed == block.discarded
    assert run.incoming.figures.bytes_received == block.discarded * HUGE


# ---- what is released, what is held back ----


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("flip_at", ["0%", "50%"])
def test_a_source_that_frees_what_it_has_sent_loses_nothing(layout, preempt, flip_at):
    post = {"preempt": preempt, "release_ram": True}
    completed(scenario(layout, guest=guest(), migration=migration(flip_at, 1, postcopy=post)))


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_pages_that_are_asked_for_come_although_the_push_may_send_one_run_only(preempt, push):
    """At a byte a second its second run is due in days: what else comes was not held back."""
    post = {"preempt": preempt, "push": push, "bandwidth": "1B/s"}
    run = completed(
        scenario(
            [ANONYMOUS | {"size": "4MiB", "content": {"kind": "seeded"}}],
            guest=guest("permutation", accesses=None),
            migration=migration("0%", 0, postcopy=post),
        )
    )
    assert run.incoming is not None
    arrived = run.incoming.ram.block[0].arrived
    assert arrived.pushed * PAGE <= RUN_BYTES
    assert arrived.requested == 1024 - arrived.pushed
    assert run.incoming.figures.stats.requests >= arrived.requested


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
def test_at_a_mebibyte_a_second_only_the_push_is_counted(preempt):
    """What was pushed fits into the limit for the time that it took; the rest was asked for."""
    post = {"preempt": preempt, "bandwidth": "1MiB/s"}
    run = completed(
        scenario(
            [ANONYMOUS | {"size": "4MiB", "content": {"kind": "seeded"}}],
            guest=guest("permutation", accesses=None),
            migration=migration("0%", 0, postcopy=post),
        )
    )
    assert run.incoming is not None
    arrived = run.incoming.ram.block[0].arrived
    seconds = (run.postcopy_ended_ns - run.postcopy_started_ns) / 1e9
    assert arrived.pushed * PAGE <= (1 << 20) * (seconds + 0.01) + RUN_BYTES
    assert arrived.requested == 1024 - arrived.pushed


# ---- downtime ----


@pytest.mark.parametrize("flip_at", ["0%", "50%"])
def test_the_guest_is_laid_on_its_memory_before_the_source_may_flip(
    flip_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make the image of what its reads must find takes a while, in which it would stand still.
    ADVISE is what lets the source go on."""
    events: list[str] = []

    class Guest(migration_module.Guest):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            assert self.shared.expected
            events.append("guest")

    def send(end: Any, message: Message, *rest: Any, **options: Any) -> None:
        events.append(message.name)
        sends(end, message, *rest, **options)

    def unpack_flip(*args: Any) -> Any:
        events.append("flip")
        return unpacks(*args)

    sends, unpacks = postcopy.send, migration_module.unpack_flip
    monkeypatch.setattr(migration_module, "Guest", Guest)
    monkeypatch.setattr(postcopy, "send", send)
    monkeypatch.setattr(migration_module, "unpack_flip", unpack_flip)
    completed(scenario([ANONYMOUS], guest=guest(), migration=migration(flip_at)))
    assert [e for e in events if e in ("guest", "ADVISE", "flip")] == ["guest", "ADVISE", "flip"]
