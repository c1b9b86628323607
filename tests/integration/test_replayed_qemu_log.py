"""The faults of a real QEMU migration, read from its log, happen again: same pages, same order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support import scenario

from vmemu import events
from vmemu.config import Scenario
from vmemu.migration import Migration
from vmemu.traces.convert import convert
from vmemu.traces.recordings import open_recording

pytestmark = pytest.mark.usefixtures("userfault")

RECORDED = Path(__file__).parent.parent / "data" / "qemu72-postcopy-faults.dst.log.zst"
RAM_SIZE = 256 << 20

Faults = dict[int, list[int]]
"""By thread: offsets in pc.ram, in order."""


def faults_of(log: Path) -> Faults:
    """What a log of QEMU's form tells; pc.ram is its only block, so its addresses are offsets."""
    found: Faults = {}
    with open_recording(log) as reader:
        for chunk in reader.chunks():
            found.setdefault(chunk.stream, []).extend(chunk.addresses.tolist())
        assert [block.name for block in reader.blocks] == ["pc.ram"]
    return found


@pytest.fixture(scope="module")
def recorded() -> Faults:
    return faults_of(RECORDED)


@pytest.fixture
def replay(tmp_path: Path) -> Scenario:
    """A guest with the recorded machine's RAM; only what it touches is asked for."""
    trace = tmp_path / "qemu.vmtrace"
    convert(RECORDED, trace)
    blocks: list[dict[str, Any]] = [
        {
            "name": "pc.ram",
            "backing": "anonymous",
            "size": RAM_SIZE,
            "content": {"kind": "seeded", "zero_share": 0.9},
        }
    ]
    guest = {
        "vcpus": 2,
        "trace": {"file": str(trace), "map": {"kind": "blocks"}},
    }
    return scenario(blocks, guest=guest, migration={"postcopy": {"push": False}})


def run(wanted: Scenario, log: Path) -> None:
    result = Migration(wanted, events=str(log)).run()
    assert (result.status, result.error) == ("completed", None)


def first_touches(offsets: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(offsets))


def check_order(replayed: list[int], own: list[int], others: list[int]) -> None:
    """A vCPU faults on its pages in their recorded order; not on one that another had before it."""
    order = first_touches(own)
    assert replayed == [offset for offset in order if offset in set(replayed)]
    assert set(order) - set(replayed) <= set(others)


def test_the_recorded_pages_are_asked_for_in_recorded_order(
    replay: Scenario, recorded: Faults, tmp_path: Path
) -> None:
    assert sum(map(len, recorded.values())) == 271
    run(replay, tmp_path / "replay.jsonl")
    log = events.read(tmp_path / "replay.jsonl")

    asked = [e.args["offset"] for e in log if e.name == "postcopy_page_req_add"]
    pages = {offset for offsets in recorded.values() for offset in offsets}
    assert len(pages) == 252
    assert sorted(asked) == sorted(pages)

    begins = [e.args for e in log if e.name == "mark_postcopy_blocktime_begin"]
    first, second = (recorded[thread] for thread in sorted(recorded))
    for cpu, own, others in ((0, first, second), (1, second, first)):
        check_order([args["offset"] for args in begins if args["cpu"] == cpu], own, others)


def test_the_log_of_the_replay_reads_as_a_recording_of_the_same_faults(
    replay: Scenario, recorded: Faults, tmp_path: Path
) -> None:
    run(replay, tmp_path / "replay.log")
    replayed = faults_of(tmp_path / "replay.log")
    assert len(replayed) == 2
    assert {o for own in replayed.values() for o in own} == {
        o for own in recorded.values() for o in own
    }
