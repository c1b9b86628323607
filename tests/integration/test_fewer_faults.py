"""Pages that come along with answers, and orders of the push: fewer faults, every byte right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import HUGE, scenario, synthetic

from vmemu import config, events
from vmemu.config import Scenario
from vmemu.migration import Migration, Run
from vmemu.results import document, schema

pytestmark = pytest.mark.usefixtures("userfault")

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
PAGES = 512
RAM = {"name": "ram", "backing": "anonymous", "size": "2MiB", "content": {"zero_share": 0.3}}
SHARED = {"name": "vram", "backing": "shared", "size": "196KiB"}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": 2 * HUGE}
EVERYTHING = {"fault_around": 16, "prefetch": "adaptive", "push_order": "recorded"}
ONE_CHANNEL = pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])


def completed(wanted: Scenario, log: str | None = None) -> tuple[Run, dict[str, Any]]:
    """Run it; its result is whole, and every page is accounted for once."""
    run = Migration(wanted, events=log).run()
    assert (run.status, run.error) == ("completed", None)
    result = document.build(run)
    schema.validate(result)
    assert result["verify"]["ok"]
    for block in result["blocks"]:
        pages = block["pages"]
        came = sum(pages[name] for name in ("precopied", "requested", "pushed", "zero"))
        assert came == pages["total"]
    return run, result


def on_demand(modes: dict[str, Any], guest: dict[str, Any], preempt: bool) -> dict[str, Any]:
    migration = {"postcopy": {"push": False, "preempt": preempt, **modes}}
    return completed(scenario([RAM], guest=guest, migration=migration))[1]


def walking(kind: str = "sequential", **fields: Any) -> dict[str, Any]:
    """One vCPU that touches every page once, in order."""
    page = {"access_size": 4096, "accesses": PAGES} | fields
    return {"vcpus": 1, "trace": synthetic(kind, **page)}


@ONE_CHANNEL
@pytest.mark.parametrize(
    ("modes", "figure"),
    [({"fault_around": 16}, "around"), ({"prefetch": "adaptive"}, "ahead")],
    ids=["around", "prefetch"],
)
def test_a_vcpu_that_walks_faults_far_less(modes, figure, preempt):
    plain, fewer = (on_demand(mode, walking(), preempt) for mode in ({}, modes))
    assert plain["faults"]["requests_sent"] == PAGES
    assert plain["faults"]["carried"] == {"around": 0, "ahead": 0, "overtaken": 0}
    # Of each message one page may be waited for while it is on its way, and seldom is.
    assert fewer["faults"]["count"] < PAGES / 3
    assert fewer["faults"]["carried"][figure] > PAGES / 2


@ONE_CHANNEL
def test_strides_are_followed_too(preempt):
    strided = walking("strided", stride="12KiB", accesses=PAGES // 3)
    carried = on_demand({"prefetch": "adaptive"}, strided, preempt)["faults"]["carried"]
    assert carried["around"] == 0
    assert carried["ahead"] > PAGES / 6


def test_a_vcpu_that_jumps_is_not_followed():
    jumping = {"vcpus": 1, "trace": synthetic("permutation")}
    faults = on_demand({"prefetch": "adaptive"}, jumping, True)["faults"]
    assert faults["carried"]["ahead"] < PAGES / 4


@ONE_CHANNEL
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
def test_all_of_it_at_once_on_memory_of_each_kind(hugetlb, push, threads, preempt):
    modes = EVERYTHING | {"push": push, "preempt": preempt, "fault_threads": threads}
    guest = {"vcpus": 4, "trace": synthetic("zipf", accesses=5000, write_share=0.4)}
    completed(scenario([RAM, SHARED, HUGEPAGES], guest=guest, migration={"postcopy": modes}))


@pytest.mark.parametrize("order", ["sequential", "around_faults", "recorded"])
@ONE_CHANNEL
@pytest.mark.parametrize("flip_at", ["0%", "40%", "5ms"])
def test_each_order_of_the_push_sends_all_after_any_flip(order, preempt, flip_at):
    migration = {
        "precopy": {"rounds": 1},
        "flip_at": flip_at,
        "postcopy": EVERYTHING | {"push_order": order, "preempt": preempt, "release_ram": True},
    }
    guest = {"vcpus": 3, "trace": synthetic("uniform", accesses=3000, write_share=0.5)}
    completed(scenario([RAM, SHARED], guest=guest, migration=migration))


@ONE_CHANNEL
def test_clients_are_followed_as_vcpus_are(preempt):
    block = {"name": "vram", "backing": "shared", "size": "2MiB"}
    client = {"name": "vhost0", "block": "vram"} | walking()
    wanted = scenario(
        [block],
        guest={"vcpus": 1, "trace": synthetic("uniform", accesses=1)},
        clients=[client],
        migration={"postcopy": {"push": False, "preempt": preempt, "prefetch": "adaptive"}},
    )
    _, result = completed(wanted)
    assert result["faults"]["carried"]["ahead"] > PAGES / 2
    assert result["clients"][0]["faults"] < PAGES / 3


@ONE_CHANNEL
def test_what_comes_along_counts_against_the_bandwidth_and_holds_no_fault_back(preempt):
    """At 1 byte a second nothing would ever be pushed; so only what comes along ends the run."""
    modes = {"bandwidth": "1B/s", "fault_around": 256, "preempt": preempt}
    migration = {"postcopy": modes | {"push_order": "sequential"}}
    ram = RAM | {"content": {"zero_share": 0.0}}
    _, result = completed(scenario([ram], guest=walking(accesses=PAGES), migration=migration))
    assert result["faults"]["carried"]["around"] > PAGES / 2


@ONE_CHANNEL
def test_requests_and_placed_pages_of_the_log_agree(tmp_path: Path, preempt: bool) -> None:
    log = str(tmp_path / "events.jsonl")
    guest = {"vcpus": 2, "trace": synthetic("sequential", accesses=4000)}
    migration = {"postcopy": EVERYTHING | {"push": False, "preempt": preempt}}
    run, result = completed(scenario([RAM], guest=guest, migration=migration), log)
    found = list(events.read(log))
    placed = [
        event.args["offset"] // 4096 + page
        for event in found
        if event.name in ("postcopy_place_page", "postcopy_place_page_zero")
        for page in range(event.args["pages"])
    ]
    assert sorted(placed) == list(range(PAGES))
    asked = {e.args["offset"] for e in found if e.name == "postcopy_page_req_add"}
    resolved = {e.args["offset"] for e in found if e.name == "postcopy_page_req_del"}
    assert asked == resolved
    assert len(asked) == result["faults"]["requests_sent"]
    assert run.incoming is not None
    assert len(run.incoming.requested_pages()) <= len(asked)


@ONE_CHANNEL
def test_a_page_that_is_never_sent_stalls_the_run_all_the_same(preempt):
    modes = {"postcopy": EVERYTHING | {"preempt": preempt}}
    wanted = scenario([RAM], guest=walking(), migration=modes, limits={"stall": "500ms"})
    run = Migration(wanted, stalls=(("ram", 100 * 4096),)).run()
    assert run.status == "failed"
    assert "ram+0x64000" in str(run.error)


def test_a_recorded_boot_faults_five_times_less() -> None:
    """With the push throttled; how much less is counted, how fast it is is not."""
    counts = []
    for modes in ({}, EVERYTHING):
        overrides = {"bandwidth": "20MiB/s", **modes}
        wanted = config.load(
            QUICKSTART,
            [(f"migration.postcopy.{key}", str(value)) for key, value in overrides.items()],
        )
        counts.append(completed(wanted)[1]["faults"]["count"])
    assert counts[1] * 5 <= counts[0]
