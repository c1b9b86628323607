"""`collapse: on_complete` on real memory: regions become hugepages, and no byte is lost to it."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import HUGE, anonymous, await_true, scenario, shared, synthetic

from vmemu import collapse, core
from vmemu.check.judge import judge
from vmemu.collapse import Collapse, why_not
from vmemu.config import Scenario
from vmemu.cthread import Bell
from vmemu.manager import MemoryManager
from vmemu.migration import Migration, Run
from vmemu.ramblock import BASE_PAGE, Backing, RAMBlock
from vmemu.results import document, schema
from vmemu.runstate import StallError
from vmemu.userfault import Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault")

PAGES = HUGE // BASE_PAGE
RAM = {"name": "ram", "backing": "anonymous", "size": "8196KiB", "collapse": "on_complete"}
VRAM = {"name": "vram", "backing": "shared", "size": "6MiB", "collapse": "on_complete"}
BEFORE = {"name": "bios", "backing": "anonymous", "size": "256KiB"}


@pytest.fixture(autouse=True)
def _here() -> None:
    for backing in (Backing.ANONYMOUS, Backing.SHARED):
        if why := why_not(backing):
            pytest.skip(why)


# ---- whole migrations ----


def migrate(*blocks: dict[str, Any], **sections: Any) -> Run:
    """Run it; every byte was checked."""
    guest = {"vcpus": 2, "trace": synthetic("uniform", accesses=20000, write_share=0.4)}
    wanted = scenario(list(blocks), **({"guest": guest} | sections))
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.verification is not None
    assert run.verification.bytes_wrong == 0
    assert run.verification.bytes_checked == sum(block.size for block in wanted.blocks)
    return run


def require_collapsed(run: Run) -> None:
    """All that could be is hugepages, and the kernel says so too."""
    result = document.build(run)
    schema.validate(result)
    for block in result["blocks"]:
        told = block["collapse"]
        if told is None:
            continue
        regions = block["size"] // HUGE
        assert told["possible"] == told["collapsed"] == regions * HUGE, told
        assert told["mapped"] in (None, told["collapsed"])
        assert (told["failed"], told["why"]) == ({}, "")
        assert 0 < told["longest_ns"] <= told["time_ns"]


def zeros(block: dict[str, Any], share: float) -> dict[str, Any]:
    return block | {"content": {"kind": "seeded", "zero_share": share}}


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_complete_regions_become_hugepages(preempt: bool, push: bool, share: float) -> None:
    postcopy = {"preempt": preempt, "push": push, "fault_threads": 2}
    blocks = BEFORE, zeros(RAM, share), zeros(VRAM, share)
    run = migrate(*blocks, migration={"postcopy": postcopy})
    require_collapsed(run)
    assert document.build(run)["blocks"][0]["collapse"] is None


def test_what_was_pre_copied_becomes_hugepages_too() -> None:
    """Pages of zeros were only read then, and the advice against hugepages came late."""
    migration = {"precopy": {"rounds": 2}, "flip_at": "40%"}
    run = migrate(zeros(RAM, 0.5), zeros(VRAM, 0.5), migration=migration)
    require_collapsed(run)
    assert all(block["pages"]["precopied"] for block in document.build(run)["blocks"])


def test_with_a_client_on_the_block() -> None:
    trace = synthetic("uniform", accesses=5000, write_share=0.5)
    clients = [{"name": "vhost0", "block": "vram", "vcpus": 2, "trace": trace}]
    require_collapsed(migrate(zeros(RAM, 0.2), zeros(VRAM, 0.2), clients=clients))


def test_with_a_balloon_that_gives_pages_of_hugepages_back() -> None:
    guest = {
        "vcpus": 2,
        "trace": synthetic("uniform", accesses=20000, write_share=0.4),
        "balloon": {"rate": 100000, "limit": 500},
    }
    run = migrate(RAM, VRAM, guest=guest)
    require_collapsed(run)
    assert document.build(run)["balloon"]["bytes_given_back"] > 0


def test_in_locked_memory() -> None:
    require_collapsed(migrate(RAM, VRAM, memory={"lock": True}))


def test_in_a_file_on_a_tmpfs() -> None:
    require_collapsed(migrate(VRAM | {"path": "/dev/shm/vmemu-collapse"}))


def test_a_stalled_run_ends_and_tells_what_was_collapsed_until_then() -> None:
    """A region with a missing page stays as it is."""
    wanted = scenario([RAM, VRAM], limits={"stall": "500ms"})
    run = Migration(wanted, stalls=(("ram", 3 * HUGE + 4096),)).run()
    assert (run.status, type(run.error)) == ("failed", StallError)
    told = document.build(run)["blocks"][0]["collapse"]
    assert told["possible"] == 4 * HUGE
    assert told["collapsed"] <= 3 * HUGE


@pytest.fixture
def thp_switched_off() -> Iterator[None]:
    libc, set_thp_disable = ctypes.CDLL(None), 41
    libc.prctl(set_thp_disable, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(set_thp_disable, 0, 0, 0, 0)


@pytest.mark.usefixtures("thp_switched_off")
def test_where_it_is_switched_off_a_run_completes_on_small_pages() -> None:
    run = migrate(RAM, VRAM)
    result = document.build(run)
    schema.validate(result)
    for block in result["blocks"]:
        assert (block["collapse"]["collapsed"], block["collapse"]["time_ns"]) == (0, 0)
        assert "switched off" in block["collapse"]["why"]
    assert [warning.split(":")[0] for warning in result["warnings"]] == [
        "block ram stays in small pages",
        "block vram stays in small pages",
    ]


SCENARIO = """\
name: small to huge
blocks:
  - {name: ram, backing: anonymous, size: 4MiB, collapse: on_complete}
  - {name: bios, backing: shared, size: 256KiB}
guest: {trace: {synthetic: {kind: uniform, accesses: 1000}}}
"""


@pytest.mark.usefixtures("thp_switched_off")
def test_a_check_says_so_before(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(SCENARIO)
    report = judge(file)
    assert report.verdict == "degraded"
    (reason,) = report.blocks[0].reasons
    assert (reason.code, reason.verdict) == ("collapse", "degraded")
    assert reason.place.endswith(":3:59: blocks[0].collapse")
    assert "switched off" in reason.message
    assert report.blocks[1].reasons == ()


def test_a_check_finds_nothing_where_it_works(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(SCENARIO)
    assert judge(file).blocks[0].reasons == ()


# ---- the thread alone ----


def make(backing: str, regions: int, tail: int = 0) -> RAMBlock:
    maker = {"anonymous": anonymous, "shared": shared}[backing]
    block = maker(pages=regions * PAGES + tail)
    block.collapse = True
    return block


class Incoming:
    """Registered blocks, a table of what is received, and the thread that collapses."""

    def __init__(self, memory: MemoryManager, uffd: Userfaultfd) -> None:
        self.block: RAMBlock = memory.blocks[0]
        self.uffd = uffd
        self.collapse = Collapse(memory.blocks)
        self.bell, self.quit = Bell(), Bell()
        self.ram = memory.blocks.table()
        self.structure = core.ffi.new("struct vm_incoming *")
        self.structure.ram, self.structure.quit_fd = self.ram, self.quit.fd
        self.block.set_thp(False)
        memory.register(uffd)
        self.collapse.prepare()
        self.collapse.allow()

    def start(self) -> None:
        self.thread = self.collapse.start(self.structure, self.bell)

    def place(self, first: int, count: int, byte: int = 0x5A) -> None:
        address = self.block.address + first * BASE_PAGE
        data = bytes([byte]) * (count * BASE_PAGE)
        assert self.uffd.copy(address, data, len(data), BASE_PAGE)
        entry = core.ffi.addressof(self.ram.block[0])
        self.ram.pages_received += core.lib.vm_ram_mark_received(entry, first, count)

    def end(self) -> collapse.Collapsed:
        self.quit.ring()
        assert self.thread is not None
        assert self.thread.join(5)
        assert self.thread.error is None
        self.collapse.close()
        figures = self.collapse.figures(0)
        assert figures is not None
        return figures

    def close(self) -> None:
        self.bell.close()
        self.quit.close()


@pytest.fixture(params=["anonymous", "shared"])
def incoming(request: pytest.FixtureRequest) -> Iterator[Incoming]:
    with Userfaultfd() as uffd, MemoryManager([make(request.param, 3, tail=5)]) as memory:
        memory.map()
        incoming = Incoming(memory, uffd)
        try:
            yield incoming
        finally:
            incoming.close()


def test_a_region_waits_for_its_last_page(incoming: Incoming) -> None:
    incoming.start()
    incoming.place(PAGES, PAGES)
    await_true(lambda: collapse.huge_bytes(incoming.block) in (None, HUGE))
    incoming.place(0, PAGES - 1)
    figures = incoming.end()
    assert (figures.possible, figures.collapsed, figures.failed) == (3 * HUGE, HUGE, ())
    incoming.place(PAGES - 1, 1, byte=0xA5)
    assert incoming.block.read(0, 2 * HUGE) == (
        b"\x5a" * (HUGE - BASE_PAGE) + b"\xa5" * BASE_PAGE + b"\x5a" * HUGE
    )


def test_all_regions_end_the_thread_before_the_tail_has_come(incoming: Incoming) -> None:
    incoming.start()
    incoming.place(0, 3 * PAGES)
    await_true(lambda: incoming.collapse.done)
    assert incoming.end().collapsed == 3 * HUGE


@pytest.mark.parametrize("incoming", ["shared"], indirect=True)
def test_a_page_that_counts_as_received_and_is_missing_is_not_filled(incoming: Incoming) -> None:
    """The last line of defence is the kernel's: it refuses, and the region is given up. Of
    anonymous memory the thread would wait for the page, as whoever touches it."""
    incoming.place(0, 3 * PAGES)
    hole = 17 * BASE_PAGE
    incoming.block.discard(hole, BASE_PAGE)
    incoming.start()
    await_true(lambda: incoming.collapse.done)
    figures = incoming.end()
    assert (figures.collapsed, figures.failed) == (2 * HUGE, (("busy", 1),))
    assert figures.why.startswith("1 region: ")
    address = incoming.block.address + hole
    assert incoming.uffd.copy(address, b"\x11" * BASE_PAGE, BASE_PAGE, BASE_PAGE)
    assert incoming.block.read(hole, BASE_PAGE) == b"\x11" * BASE_PAGE


def test_the_kernels_own_figures_agree(incoming: Incoming) -> None:
    incoming.start()
    incoming.place(0, 3 * PAGES)
    await_true(lambda: incoming.collapse.done)
    figures = incoming.end()
    kinds = ("AnonHugePages:", "ShmemPmdMapped:")
    low, high = incoming.block.address, incoming.block.address + incoming.block.size
    mapped, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, end = (int(part, 16) for part in words[0].split("-"))
            here = start < high and end > low
        elif here and words[0] in kinds:
            mapped += int(words[1]) << 10
    assert mapped == 3 * HUGE
    assert figures.mapped in (None, mapped)


def test_a_refusal_is_no_last_word() -> None:
    """The kernel also says EINVAL of what works a moment later: each region is tried again. Of
    memory that it never does this for, all are given up in the end."""
    block = make("anonymous", 2)
    with Userfaultfd() as uffd, MemoryManager([block]) as memory:
        memory.map()
        incoming = Incoming(memory, uffd)
        try:
            incoming.place(0, 2 * PAGES)
            block.set_thp(False)
            incoming.start()
            await_true(lambda: incoming.collapse.done)
            figures = incoming.end()
        finally:
            incoming.close()
    assert (figures.collapsed, figures.failed) == (0, (("refused", 2),))


# ---- proof by doing ----


@pytest.mark.parametrize("backing", [Backing.ANONYMOUS, Backing.SHARED])
def test_a_kernel_that_fills_holes_is_found_out(
    backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "_collapse", lambda region: 0)
    assert "fills pages that are missing" in why_not(backing)


@pytest.mark.parametrize("backing", [Backing.ANONYMOUS, Backing.SHARED])
def test_a_kernel_without_it_is_found_out_and_a_lack_of_memory_is_no_reason(
    backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapse, "_collapse", lambda region: errno.EINVAL)
    assert "MADV_COLLAPSE (Linux 6.1) does not work" in why_not(backing)
    monkeypatch.setattr(collapse, "_collapse", lambda region: errno.ENOMEM)
    assert why_not(backing) == ""


# ---- the scenario ----


def loaded(**fields: Any) -> Scenario:
    return scenario([{"name": "ram", "backing": "anonymous", "size": "4MiB"} | fields])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"collapse": "always"}, "on_complete"),
        ({"collapse": "on_complete", "size": "1MiB"}, "no hugepage of 2MiB fits in 1MiB"),
        (
            {"collapse": "on_complete", "backing": "hugetlbfs", "page_size": "2MiB"},
            "hugetlbfs has hugepages already",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        loaded(**fields)


def test_a_block_is_never_collapsed_by_default() -> None:
    assert loaded().blocks[0].collapse == "never"
    assert np.all([not block.collapse for block in (anonymous(), shared())])
