"""MemoryManager on real memory of every backing: all or nothing, and nothing left behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import HUGE, MIB, Footprint, anonymous, huge, mapped_at, shared, vm_flags

from vmemu import hugepages
from vmemu.errors import CoreError, HostError, HugepageShortage, InputError
from vmemu.manager import MemoryManager
from vmemu.ramblock import RAMBlock
from vmemu.userfault import Ioctl

uses_hugepages = pytest.mark.usefixtures("hugetlb", "pool_lock")


def mounted(kind: str, options: str, directory: Path) -> Path:
    subprocess.run(["mount", "-t", kind, "-o", options, "vmemu-test", directory], check=True)
    return directory


@pytest.fixture
def hugetlbfs(own_mounts, tmp_path: Path) -> Path:
    return mounted("hugetlbfs", "pagesize=2M", tmp_path)


@pytest.fixture
def small_hugetlbfs(own_mounts, tmp_path: Path) -> Path:
    return mounted("hugetlbfs", "pagesize=2M,size=4M", tmp_path)


@pytest.fixture
def small_tmpfs(own_mounts, tmp_path: Path) -> Path:
    return mounted("tmpfs", "size=1M", tmp_path)


def reserved_on(block: RAMBlock) -> int:
    """Pages that the kernel has promised to the block and not handed out, from its own figures.

    All other users of the pool are out: whoever asks holds ``pool_alone``.
    """
    return hugepages.pool(block.page_size).reserved


# ---- mapping ----


def test_every_block_is_mapped_registered_in_the_list_and_given_back():
    before = Footprint.now()
    with MemoryManager([anonymous("a"), shared("s")]) as memory:
        memory.map()
        addresses = [block.address for block in memory.blocks]
        for block in memory.blocks:
            assert memory.blocks.find(block.address + 5) == (block, 5)
    assert not any(mapped_at(address) for address in addresses)
    assert memory.blocks.find(addresses[0]) is None
    assert before.left_by(Footprint.now()) == {}


def test_an_exception_gives_everything_back():
    before = Footprint.now()

    def fail() -> None:
        with MemoryManager([anonymous("a"), shared("s")]) as memory:
            memory.map()
            memory.blocks[0].discard()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert before.left_by(Footprint.now()) == {}


def test_one_block_that_cannot_be_mapped_means_that_none_is():
    before = Footprint.now()
    bad = shared("bad", path="/dev/shm/no/such/directory/x")
    memory = MemoryManager([anonymous("a"), shared("s"), bad])
    with pytest.raises(HostError, match="block bad"):
        memory.map()
    assert [block.address for block in memory.blocks] == [0, 0, 0]
    assert before.left_by(Footprint.now()) == {}


@uses_hugepages
def test_all_three_backings_live_side_by_side():
    with MemoryManager([anonymous(), huge(), shared()], wait_s=60) as memory:
        memory.map()
        for block in memory.blocks:
            block.write(block.size - 3, b"end")
            assert block.read(block.size - 4, 4) == b"\0end"
        assert memory.blocks.named("huge").address % HUGE == 0


# ---- discarding, THP ----


@pytest.mark.parametrize("make", [anonymous, shared])
def test_a_block_is_emptied_and_may_be_without_transparent_hugepages(make):
    with MemoryManager([make(pages=1024)]) as memory:
        memory.map()
        block = memory.blocks[0]
        block.write(0, b"x" * block.size)
        block.discard()
        block.set_thp(False)
        assert "nh" in vm_flags(block.address)
        assert block.read(0, block.size) == bytes(block.size)
        block.set_thp(True)
        assert "hg" in vm_flags(block.address)
        assert "nh" not in vm_flags(block.address)


@uses_hugepages
def test_a_discarded_hugepage_is_zeros_and_the_others_stay():
    with MemoryManager([huge(pages=3)], wait_s=60) as memory:
        memory.map()
        block = memory.blocks[0]
        for page in range(3):
            block.write(page * HUGE, b"abc")
        block.discard(HUGE, HUGE)
        assert [block.read(page * HUGE, 3) for page in range(3)] == [b"abc", bytes(3), b"abc"]
        with pytest.raises(ValueError, match="not whole pages"):
            block.discard(4096, HUGE)


def test_discarding_keeps_the_reservation_of_hugepages(pool_alone):
    pool_alone.resize(8)
    with MemoryManager([huge(pages=4)], wait_s=60) as memory:
        other = reserved_on(memory.blocks[0])
        memory.map()
        block = memory.blocks[0]
        assert reserved_on(block) - other == 4
        for page in range(4):
            block.write(page * HUGE, b"x")
        assert reserved_on(block) - other == 0
        block.discard(HUGE, HUGE)
        assert reserved_on(block) - other == 1
        block.discard()
        assert reserved_on(block) - other == 4
    assert reserved_on(block) == other


# ---- paths ----


@uses_hugepages
def test_a_file_on_hugetlbfs_has_no_name_once_it_is_mapped(hugetlbfs):
    path = hugetlbfs / "huge0"
    with MemoryManager([huge(path=str(path))], wait_s=60) as memory:
        memory.map()
        assert list(hugetlbfs.iterdir()) == []
        memory.blocks[0].write(HUGE - 1, b"xy")
        assert memory.blocks[0].read(HUGE - 1, 2) == b"xy"


@uses_hugepages
def test_a_path_that_is_taken_on_hugetlbfs_is_left_alone(hugetlbfs):
    (hugetlbfs / "huge0").touch()
    with pytest.raises(InputError, match="exists already"):
        MemoryManager([huge(path=str(hugetlbfs / "huge0"))], wait_s=60).map()
    assert (hugetlbfs / "huge0").exists()


def test_shared_memory_on_hugetlbfs_is_refused(hugetlbfs):
    with pytest.raises(HostError, match=r"lies on hugetlbfs \(.*\) on this host, not on tmpfs"):
        MemoryManager([shared(path=str(hugetlbfs / "x"))]).map()


def test_a_mount_with_an_odd_name_is_found(small_tmpfs):
    odd = small_tmpfs / "sp ace\\ü"
    odd.mkdir()
    mounted("tmpfs", "size=1M", odd)
    assert hugepages.filesystem_of(str(odd / "file")) == ("tmpfs", str(odd))


@uses_hugepages
def test_a_hugetlbfs_that_is_too_small_is_not_taken_for_a_shortage_of_the_pool(small_hugetlbfs):
    block = huge(pages=3, path=str(small_hugetlbfs / "x"))
    with pytest.raises(HostError, match="4MiB free of 4MiB") as caught:
        MemoryManager([block], wait_s=0).map()
    assert not isinstance(caught.value, HugepageShortage)
    place = re.search(r"use 'path: (\S+)'", str(caught.value))[1]
    if caught.value.remedy:  # nothing that would do is mounted yet
        subprocess.run(caught.value.remedy, shell=True, check=True)
    try:
        with MemoryManager([huge(pages=3, path=f"{place}-{os.getpid()}")], wait_s=60) as memory:
            memory.map()
    finally:
        if caught.value.remedy:
            subprocess.run(["umount", Path(place).parent], check=True)
            Path(place).parent.rmdir()


def test_a_tmpfs_that_is_too_small_is_an_error_now_and_no_sigbus_later(small_tmpfs):
    block = shared(pages=2 * MIB // 4096, path=str(small_tmpfs / "x"))
    with pytest.raises(HostError, match="1MiB free of 1MiB") as caught:
        MemoryManager([block]).map()
    subprocess.run(caught.value.remedy, shell=True, check=True)
    with MemoryManager([block]) as memory:
        memory.map()
        block.write(0, b"x" * block.size)


@pytest.mark.parametrize("apart", [False, True], ids=["one directory", "two"])
def test_blocks_that_fit_a_tmpfs_alone_and_not_together_are_refused(small_tmpfs, apart):
    (small_tmpfs / "sub").mkdir()
    places = [small_tmpfs / "a", small_tmpfs / ("sub/b" if apart else "b")]
    blocks = [shared(f"s{i}", pages=150, path=str(place)) for i, place in enumerate(places)]
    memory = MemoryManager(blocks)
    with pytest.raises(HostError, match="blocks s0, s1 need 1200KiB, and ") as caught:
        memory.map()
    assert "1MiB free of 1MiB" in str(caught.value)
    assert [block.address for block in blocks] == [0, 0]
    subprocess.run(caught.value.remedy, shell=True, check=True)
    with memory:
        memory.map()
        for block in blocks:
            block.write(0, b"x" * block.size)


@uses_hugepages
def test_blocks_that_fit_a_hugetlbfs_alone_and_not_together_are_refused(small_hugetlbfs):
    blocks = [
        huge(f"h{i}", pages=count, path=str(small_hugetlbfs / f"{i}"))
        for i, count in enumerate([2, 1])
    ]
    with pytest.raises(HostError, match="blocks h0, h1 need 6MiB, and ") as caught:
        MemoryManager(blocks, wait_s=60).map()
    assert not isinstance(caught.value, HugepageShortage)
    assert "4MiB free of 4MiB" in str(caught.value)
    with MemoryManager(blocks[:1], wait_s=60) as memory:
        memory.map()


@pytest.mark.parametrize("backing", ["shared", "hugetlbfs"])
def test_a_file_path_leaves_nothing_even_after_sigkill(backing, request):
    if backing == "hugetlbfs":
        request.getfixturevalue("hugetlb")
        request.getfixturevalue("pool_lock")
        directory, size = request.getfixturevalue("hugetlbfs"), HUGE
    else:
        directory, size = Path("/dev/shm"), 4096
    path = directory / f"vmemu-test-{os.getpid()}"
    code = (
        "import sys, time\n"
        "from vmemu.manager import MemoryManager\n"
        "from vmemu.ramblock import Backing, RAMBlock\n"
        f"block = RAMBlock('b', Backing({backing!r}), {size}, {size}, {str(path)!r})\n"
        "MemoryManager([block], wait_s=60).map()\n"
        "block.write(0, b'x')\n"
        "print('mapped', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "mapped\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert not path.exists()


# ---- unregistering ----


def test_a_block_that_cannot_be_unregistered_keeps_no_other_registered():
    class Refusing:
        def __init__(self) -> None:
            self.unregistered: list[int] = []

        def register(self, start: int, length: int, mode: int) -> Ioctl:
            return ~Ioctl(0)

        def unregister(self, start: int, length: int) -> None:
            self.unregistered.append(start)
            if len(self.unregistered) != 2:
                raise CoreError("UFFDIO_UNREGISTER", errno.EINVAL, start)

    uffd = Refusing()
    with MemoryManager([anonymous("a"), shared("b"), anonymous("c")]) as memory:
        memory.map()
        memory.register(uffd)
        addresses = [block.address for block in memory.blocks]
        with pytest.raises(CoreError) as caught:
            memory.unregister()
        assert uffd.unregistered == addresses
        assert caught.value.address == addresses[0]
        (note,) = caught.value.__notes__
        assert f"{addresses[2]:#x}" in note
        memory.unregister()  # nothing is left to do
        assert uffd.unregistered == addresses


# ---- shortage ----


@uses_hugepages
def test_a_shortage_names_the_pool_and_what_mends_it_and_leaves_nothing():
    before = Footprint.now()
    total = hugepages.pool(HUGE).total
    memory = MemoryManager([anonymous(), huge(pages=total + 1)])
    with pytest.raises(HugepageShortage) as caught:
        memory.map()
    assert f"block huge needs {total + 1} hugepages of 2MiB" in str(caught.value)
    assert f"{total} in all" in str(caught.value)
    assert caught.value.exit_code == 3
    assert before.left_by(Footprint.now()) == {}


@pytest.mark.parametrize("pages", [[18], [7, 7, 7], [18, 2, 3], [3, 18, 2]], ids=str)
def test_the_remedy_of_a_shortage_really_mends_it(pool_alone, pages):
    pool_alone.resize(16)
    memory = MemoryManager([huge(f"huge{i}", pages=count) for i, count in enumerate(pages)])
    with pytest.raises(HugepageShortage) as caught:
        memory.map()
    subprocess.run(caught.value.remedy, shell=True, check=True, capture_output=True)
    with memory:
        memory.map()
        for block in memory.blocks:
            block.write(block.size - 1, b"x")


def test_an_empty_pool_is_a_shortage_too(pool_alone):
    pool_alone.resize(0)
    with pytest.raises(HugepageShortage, match="0 free") as caught:
        MemoryManager([huge()]).map()
    assert caught.value.remedy.endswith("=2") or "echo 2 >" in caught.value.remedy


@uses_hugepages
def test_who_waits_gets_the_pages_that_another_gives_back():
    most = hugepages.pool(HUGE).total // 2 + 1
    first = MemoryManager([huge(pages=most)], wait_s=60)
    second = MemoryManager([huge(pages=most)], wait_s=60)
    with first, second:
        first.map()
        waiting = threading.Thread(target=second.map)
        waiting.start()
        first.unmap()
        waiting.join()
        second.blocks[0].write(0, b"mine")


@uses_hugepages
def test_two_that_want_more_than_half_in_two_pieces_both_get_done():
    """All or none: neither sits on its first piece while it waits for the second."""
    piece = hugepages.pool(HUGE).total // 3
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            for _ in range(3):
                blocks = [huge(f"{name}{i}", pages=piece) for i in range(2)]
                with MemoryManager(blocks, wait_s=60) as memory:
                    memory.map()
                    memory.blocks[1].write(0, b"x")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FULL = """
import sys
from pathlib import Path
from support import scenario
from vmemu.migration import Migration

place = Path(sys.argv[1])
block = {"name": "ram", "backing": "shared", "size": "256KiB", "path": str(place / "ram")}
migration = Migration(scenario([block], migration={"postcopy": {"push": False}}))
run_guest = migration._run_guest

def fill_first():
    with (place / "full").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            run_guest()

migration._run_guest = fill_first
run = migration.run()
print(run.status, run.error)
"""


@pytest.mark.usefixtures("userfault")
def test_a_tmpfs_that_others_fill_fails_the_run_and_kills_nobody(small_tmpfs):
    """vCPUs that are let go take no page of it, which would be a SIGBUS."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(small_tmpfs)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("failed test: blocks[0].path: block ram: page ")
    assert "(UFFDIO_COPY: Cannot allocate memory)" in done.stdout
