"""Discards that the destination refuses, over the real channel: one clear error, nothing left."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import hostile_source
import pytest
from hostile_source import Lies
from support import HUGE, scenario, synthetic

from vmemu.channel import pack
from vmemu.errors import HostError, ProtocolError
from vmemu.migration import Migration, Run
from vmemu.protocol import Header, Message, pack_discard

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")

PAGE = 4096
RAM = {"name": "ram", "backing": "anonymous", "size": "64KiB"}
VRAM = {"name": "vram", "backing": "shared", "size": "32KiB"}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "4MiB"}


@pytest.fixture
def lied_to(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a migration whose source lies."""

    def run(lies: Lies, blocks: list[dict[str, Any]] | None = None) -> Run:
        made = partial(hostile_source.process, lies=lies)
        monkeypatch.setattr("vmemu.migration.SourceProcess", made)
        # No vCPU touches memory before the refusal can have come: it would wait for its page.
        guest = {"vcpus": 1, "trace": synthetic("uniform", accesses=1, write_share=0.0)}
        wanted = scenario(blocks or [RAM, VRAM], guest=guest, limits={"stall": "60s"})
        return Migration(wanted).run()

    return run


FLIP = pack(
    Message.FLIP,
    json.dumps(
        {
            "stopped_ns": 1,
            "rounds": 0,
            "precopy_pages": 0,
            "precopy_bytes": 0,
            "dirty_tracking": None,
            "vcpus": [],
            "mismatches": [],
        }
    ).encode(),
)
LISTEN, RUN = pack(Message.LISTEN), pack(Message.RUN)


def discard(name: str, *ranges: tuple[int, int]) -> bytes:
    return pack(Message.DISCARD, pack_discard(name, list(ranges)))


WHOLE = discard("ram", (0, 16 * PAGE))

REFUSED = {
    "an unknown block": (
        discard("rom", (0, PAGE)),
        "the source discards ranges of block 'rom', which does not exist",
    ),
    "behind the block": (
        discard("ram", (16 * PAGE, PAGE)),
        "block ram: a discard of 0x10000+0x1000 lies outside its 0x10000 bytes",
    ),
    "across the end": (
        discard("vram", (0, PAGE), (7 * PAGE, 2 * PAGE)),
        "block vram: a discard of 0x7000+0x2000 lies outside its 0x8000 bytes",
    ),
    "a sum that overflows": (
        discard("ram", ((1 << 64) - PAGE, PAGE)),
        "block ram: a discard of 0xfffffffffffff000+0x1000 lies outside",
    ),
    "half a page": (
        discard("ram", (0, PAGE // 2)),
        "block ram: a discard of 0x0+0x800 is no whole number of pages of 4KiB",
    ),
    "from the middle of a page": (
        discard("vram", (8, PAGE)),
        "block vram: a discard of 0x8+0x1000 is no whole number of pages of 4KiB",
    ),
    "nothing": (
        discard("ram", (0, 0)),
        "block ram: a discard of 0x0+0x0 is no whole number of pages of 4KiB",
    ),
    "thirteen ranges": (
        discard("ram", *[(page * PAGE, PAGE) for page in range(13)]),
        "a discard has 13 ranges; 1 to 12 are allowed",
    ),
    "no range": (discard("ram"), "a discard has 0 ranges; 1 to 12 are allowed"),
    "no payload": (pack(Message.DISCARD), "a discard of 0 bytes is not well formed"),
    "half a range": (
        pack(Message.DISCARD, pack_discard("ram", [(0, PAGE)])[:-8]),
        "a discard of 12 bytes is not well formed",
    ),
    "a good one first": (
        WHOLE + discard("rom", (0, PAGE)),
        "the source discards ranges of block 'rom', which does not exist",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_discard_that_can_not_be_is_refused_by_name(lied_to, case):
    said, words = REFUSED[case]
    run = lied_to(Lies(FLIP + said + LISTEN + RUN))
    assert run.status == "failed"
    assert isinstance(run.error, ProtocolError)
    assert words in str(run.error)
    assert run.incoming.discards.commands == (1 if case == "a good one first" else 0)


@pytest.mark.usefixtures("hugetlb")
@pytest.mark.parametrize("ranges", [(0, PAGE), (PAGE, HUGE), (HUGE, HUGE - PAGE)], ids=str)
def test_a_part_of_a_hugepage_can_not_be_discarded(lied_to, ranges):
    run = lied_to(Lies(FLIP + discard("huge", ranges)), [RAM, HUGEPAGES])
    assert isinstance(run.error, ProtocolError)
    assert "is no whole number of pages of 2MiB" in str(run.error)


IN_THE_WRONG_STATE = {
    "before hello": (
        Lies(instead_of_hello=WHOLE),
        "DISCARD came where HELLO was expected",
    ),
    "before the flip": (
        Lies(WHOLE + FLIP),
        "DISCARD came where FLIP was expected",
    ),
    "in pre-copy": (
        Lies(Header(Message.ROUND, pages=1).pack() + WHOLE + FLIP),
        "DISCARD came where FLIP was expected",
    ),
    "after listen": (
        Lies(FLIP + WHOLE + LISTEN + WHOLE + RUN),
        "DISCARD came where RUN was expected",
    ),
    "after run": (
        Lies(FLIP + WHOLE + LISTEN + RUN + WHOLE),
        f"message type {int(Message.DISCARD)} for block 0",
    ),
}


@pytest.mark.parametrize("case", IN_THE_WRONG_STATE)
def test_a_discard_in_the_wrong_state_is_refused(lied_to, case):
    lies, words = IN_THE_WRONG_STATE[case]
    run = lied_to(lies)
    assert run.status == "failed"
    assert isinstance(run.error, ProtocolError)
    assert words in str(run.error)


@pytest.mark.usefixtures("hugetlb")
def test_a_hugepage_that_came_in_part_must_be_discarded(lied_to):
    page = Header(Message.PRECOPY_PAGES, 0, 1, HUGE + PAGE, 1, PAGE).pack() + b"x" * PAGE
    run = lied_to(Lies(page + FLIP + WHOLE + LISTEN + RUN), [RAM, HUGEPAGES])
    assert isinstance(run.error, ProtocolError)
    assert "block huge: 1 page of 2MiB pre-copied in part and not discarded" in str(run.error)


@pytest.mark.parametrize("key", ["vcpus", "stopped_ns", "dirty_tracking"])
@pytest.mark.parametrize("value", [-1, 1 << 64, "1", [1], {}, True], ids=repr)
def test_a_flip_that_makes_no_sense_is_refused(lied_to, key, value):
    document = json.loads(FLIP[40:]) | {key: value}
    run = lied_to(Lies(pack(Message.FLIP, json.dumps(document).encode()) + LISTEN + RUN))
    assert isinstance(run.error, ProtocolError)
    assert "FLIP is not well formed" in str(run.error)


def test_a_source_that_this_host_can_not_serve_is_an_error_of_the_host(lied_to):
    """As where the kernel is asked to track dirty pages and can't."""
    failed = Header(Message.FAILED, pages=HostError.exit_code, length=9).pack() + b"no kernel"
    with pytest.raises(HostError, match="the source gave up: no kernel"):
        lied_to(Lies(failed))


def test_a_source_that_fails_otherwise_is_a_failed_migration(lied_to):
    run = lied_to(Lies(Header(Message.FAILED, pages=1, length=3).pack() + b"why"))
    assert run.status == "failed"
    assert "the source gave up: why" in str(run.error)
    assert not isinstance(run.error, ProtocolError)
