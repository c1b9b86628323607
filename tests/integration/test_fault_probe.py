"""A probe in C: it serves faults, tells apart what can go wrong, and never waits for ever."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support import Footprint, anonymous, block_of, shared, vm_flags

from vmemu import core, hugepages
from vmemu.errors import CoreError
from vmemu.manager import MemoryManager
from vmemu.ramblock import BASE_PAGE, RAMBlock
from vmemu.userfault import MODE_MISSING, MODE_WP, Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault")
MISSING, MINOR, WRITE_PROTECT = 0, 1, 2
MODE_MINOR = 1 << 2
LONG_NS = 60_000_000_000
WANTED = (
    Feature.MISSING_SHMEM
    | Feature.MISSING_HUGETLBFS
    | Feature.MINOR_SHMEM
    | Feature.MINOR_HUGETLBFS
    | Feature.PAGEFAULT_FLAG_WP
    | Feature.WP_HUGETLBFS_SHMEM
)
UFFDIO_COPY, UFFDIO_UNREGISTER = 0xC028AA03, 0x8010AA01


@pytest.fixture
def uffd() -> Iterator[Userfaultfd]:
    with Userfaultfd(WANTED) as uffd:
        yield uffd


@pytest.fixture(params=["anonymous", "shared", "hugetlbfs"])
def block(request) -> Iterator[RAMBlock]:
    if request.param == "hugetlbfs":
        request.getfixturevalue("hugetlb")
    with mapped(block_of(request.param)) as block:
        yield block


@contextmanager
def mapped(block: RAMBlock) -> Iterator[RAMBlock]:
    with MemoryManager([block], wait_s=60) as memory:
        memory.map()
        yield block


@contextmanager
def second_mapping(block: RAMBlock) -> Iterator[RAMBlock]:
    other = RAMBlock("other", block.backing, block.size, block.page_size)
    other.attach(block.share())
    try:
        yield other
    finally:
        other.unmap()


def probe(uffd: Userfaultfd, block: RAMBlock, kind: int, wait_ns: int = LONG_NS) -> Any:
    """(outcome, error or None, times) of a probe of the whole block."""
    took = core.ffi.new("uint64_t[]", block.pages)
    p = core.ffi.new("struct vm_probe *")
    p.uffd, p.kind, p.wait_ns, p.took_ns = uffd.fd, kind, wait_ns, took
    p.address, p.page_size, p.pages = block.address, block.page_size, block.pages
    try:
        core.call(core.lib.vm_probe, p)
    except CoreError as error:
        return p.outcome, error, list(took)
    return p.outcome, None, list(took)


def fill(block: RAMBlock) -> None:
    core.call(core.lib.vm_probe_populate, block.address, block.size)
    core.lib.vm_probe_stamp(block.address, block.page_size, block.pages)


class Threads:
    """The threads of this process now, also those that Python knows nothing of."""

    def __init__(self) -> None:
        self._before = set(os.listdir("/proc/self/task"))

    def left(self) -> set[str]:
        """Those that came and stayed: one that was joined is still listed for a moment."""
        deadline = time.monotonic() + 10
        while new := set(os.listdir("/proc/self/task")) - self._before:
            if time.monotonic() > deadline:
                return new
            time.sleep(0.001)
        return set()


# ---- what works ----


def test_every_missing_page_is_served_and_timed(uffd, block):
    outcome, error, took = probe(uffd, block, MISSING)
    assert (outcome, error) == (core.lib.VM_PROBE_WORKS, None)
    assert all(took)
    assert not {"um", "uw", "ui"} & vm_flags(block.address)
    assert len({block.read(page * block.page_size, 8) for page in range(block.pages)}) == (
        block.pages
    )


@pytest.mark.parametrize("backing", ["shared", "hugetlbfs"])
def test_every_minor_fault_is_served_and_timed(uffd, backing, request):
    if backing == "hugetlbfs":
        request.getfixturevalue("hugetlb")
    with mapped(block_of(backing)) as block, second_mapping(block) as other:
        fill(other)
        outcome, error, took = probe(uffd, block, MINOR)
    assert (outcome, error) == (core.lib.VM_PROBE_WORKS, None)
    assert all(took)


def test_every_write_to_protected_memory_is_served_and_stays(uffd, block):
    fill(block)
    before = block.read(0, block.size)
    assert probe(uffd, block, WRITE_PROTECT)[:2] == (core.lib.VM_PROBE_WORKS, None)
    after = block.read(0, block.size)
    for start in range(0, block.size, block.page_size):
        written, rest = slice(start, start + 8), slice(start + 8, start + block.page_size)
        assert after[written] == bytes(~byte & 0xFF for byte in before[written])
        assert after[rest] == before[rest]


def test_memory_can_be_probed_again(uffd):
    with mapped(anonymous()) as block:
        for _ in range(3):
            assert probe(uffd, block, MISSING)[0] == core.lib.VM_PROBE_WORKS
            assert probe(uffd, block, WRITE_PROTECT)[0] == core.lib.VM_PROBE_WORKS
            fill(block)
            block.discard()


# ---- what does not ----


def test_a_touch_without_a_fault_ends_at_once_and_says_so(uffd, block):
    """The page is there already; the deadline is too far away to have ended it."""
    fill(block)
    threads = Threads()
    outcome, error, _ = probe(uffd, block, MISSING)
    assert outcome == core.lib.VM_PROBE_SILENT
    assert "none came, though page 0 of" in str(error)
    assert error.address == block.address
    assert threads.left() == set()
    assert not {"um", "uw", "ui"} & vm_flags(block.address)


def test_pages_that_fault_and_then_one_that_does_not(uffd):
    with mapped(anonymous()) as block:
        core.call(core.lib.vm_probe_populate, block.address + 5 * BASE_PAGE, BASE_PAGE)
        outcome, error, took = probe(uffd, block, MISSING)
    assert outcome == core.lib.VM_PROBE_SILENT
    assert "page 5 of 16" in str(error)
    assert all(took[:6])
    assert not any(took[6:])


def test_memory_that_nobody_protects_is_written_without_a_fault(uffd):
    """Protecting pages that were never touched protects nothing."""
    with mapped(anonymous()) as block:
        assert probe(uffd, block, WRITE_PROTECT)[0] == core.lib.VM_PROBE_SILENT


@pytest.mark.parametrize("kind", [MISSING, WRITE_PROTECT])
def test_a_deadline_lets_go_of_whoever_touches(uffd, block, kind):
    """A deadline that is over at once, wherever the thread that touches is by then."""
    fill(block)
    before, threads = Footprint.now(), Threads()
    for _ in range(100):
        if kind == MISSING:
            block.discard()
        outcome, error, _ = probe(uffd, block, kind, wait_ns=0)
        assert outcome == core.lib.VM_PROBE_SILENT
        assert "none came" in str(error)
        assert threads.left() == set()
        # What replaced the memory is ordinary.
        assert block.read(0, 1) in (b"\0", b"\1", b"\xfe")
        block.unmap()
        block.map()
        fill(block)
    # By their number: mapped alone, a hugetlb block has another than within its reservation.
    assert len(Footprint.now().descriptors) == len(before.descriptors)


def test_memory_that_has_no_such_fault_is_refused(uffd):
    with mapped(anonymous()) as block:
        outcome, error, _ = probe(uffd, block, MINOR)
    assert outcome == core.lib.VM_PROBE_REFUSED
    assert (error.operation, error.errno) == ("UFFDIO_REGISTER", errno.EINVAL)


def test_a_file_on_an_ordinary_disk_is_refused(uffd, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4 * BASE_PAGE))
    if hugepages.filesystem_of(str(path))[0] == "tmpfs":
        pytest.skip("temporary files lie in memory here")
    with path.open("r+b") as file:
        block = shared(pages=4)
        block.attach(os.dup(file.fileno()))
        try:
            outcome, error, _ = probe(uffd, block, MISSING)
        finally:
            block.unmap()
    assert outcome == core.lib.VM_PROBE_REFUSED
    assert error.errno == errno.EINVAL


@pytest.mark.parametrize("kind", [MINOR, WRITE_PROTECT])
def test_other_content_than_was_due_is_told(uffd, kind):
    with mapped(shared()) as block, second_mapping(block) as other:
        fill(other)
        other.write(3 * BASE_PAGE + BASE_PAGE // 2, b"spoilt")
        if kind == WRITE_PROTECT:
            block.read(0, block.size)  # into its page table
        outcome, error, _ = probe(uffd, block, kind)
        assert outcome == core.lib.VM_PROBE_WRONG_DATA
        assert error.address == block.address + 3 * BASE_PAGE
        assert "746c696f7073" in str(error)  # "spoilt", lowest byte last


@pytest.mark.parametrize(
    ("kind", "filled", "came", "due"),
    [
        (WRITE_PROTECT, False, "missing", "write-protect"),
        (MINOR, False, "missing", "minor"),
        (MISSING, True, "minor", "missing"),
    ],
)
def test_a_fault_of_another_kind_is_told_and_nobody_stays_stuck(uffd, kind, filled, came, due):
    """The memory is registered for more than is tried: the kernel leaves that as it is."""
    threads = Threads()
    with mapped(shared()) as block, second_mapping(block) as other:
        if filled:
            fill(other)
        uffd.register(block.address, block.size, MODE_MISSING | MODE_WP | MODE_MINOR)
        outcome, error, _ = probe(uffd, block, kind)
    assert outcome == core.lib.VM_PROBE_OTHER_FAULT
    assert f"a {came} fault came, where a {due} one was due" in str(error)
    assert threads.left() == set()


def test_a_fault_elsewhere_is_told_and_nobody_stays_stuck(uffd):
    """The userfaultfd tells of another block, whose page somebody waits for."""
    with mapped(anonymous("here")) as block, mapped(anonymous("elsewhere")) as other:
        uffd.register(other.address, other.size)
        waiting = Thread(target=other.read, args=(0, 1), daemon=True)
        waiting.start()
        try:
            while not pending(uffd):
                os.sched_yield()
            outcome, error, _ = probe(uffd, block, MISSING)
        finally:
            uffd.unregister(other.address, other.size)
            waiting.join()
    assert outcome == core.lib.VM_PROBE_OTHER_FAULT
    assert "of another page than page 0" in str(error)


def pending(uffd: Userfaultfd) -> int:
    """Faults that wait to be read, as the kernel tells them beside the descriptor."""
    lines = Path(f"/proc/self/fdinfo/{uffd.fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("pending:"))


def test_a_descriptor_that_is_none_is_an_error(uffd):
    with mapped(anonymous()) as block:
        uffd.close()
        outcome, error, _ = probe(uffd, block, MISSING)
    assert outcome == core.lib.VM_PROBE_REFUSED
    assert error.errno == errno.EBADF


# ---- what a container may deny ----

DENIED = """
import json, sys
from support import anonymous, Footprint
from seccomp import deny_ioctl
from test_fault_probe import MISSING, Threads, WANTED, mapped, probe
from vmemu.userfault import Userfaultfd
found = []
with Userfaultfd(WANTED) as uffd:
    before, threads = Footprint.now(), Threads()
    deny_ioctl(*map(int, sys.argv[1:3]))
    for _ in range(int(sys.argv[3])):
        with mapped(anonymous()) as block:
            outcome, error, _ = probe(uffd, block, MISSING, 100_000_000)
        found.append([outcome, error.operation, error.errno, len(threads.left())])
    left = before.left_by(Footprint.now())
print(json.dumps([found, len(left)]))
"""


def denied(request: int, with_errno: int = errno.EPERM, times: int = 20) -> Any:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", DENIED, str(request), str(with_errno), str(times)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_page_that_may_not_be_placed_leaves_nobody_waiting():
    """The thread waits for its page in the kernel when serving it fails."""
    found, left = denied(UFFDIO_COPY)
    assert found == [[core.lib.VM_PROBE_FAILED, "UFFDIO_COPY", errno.EPERM, 0]] * 20
    assert left == 0


def test_a_page_that_is_served_in_vain_leaves_nobody_waiting():
    """The kernel says that it was placed, and the thread waits on: only the deadline ends it."""
    found, left = denied(UFFDIO_COPY, 0, 3)
    assert found == [[core.lib.VM_PROBE_STUCK, "served page", 0, 0]] * 3
    assert left == 0


def test_memory_that_may_not_be_unregistered_is_an_error():
    found, left = denied(UFFDIO_UNREGISTER)
    assert found == [[core.lib.VM_PROBE_FAILED, "UFFDIO_UNREGISTER", errno.EPERM, 0]] * 20
    assert left == 0
