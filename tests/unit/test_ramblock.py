"""RAM blocks: mapping, ranges, looking up an address. No userfaultfd, no hugepages."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import HUGE, MIB, anonymous, huge, mapped_at, shared

from vmemu import core, hugepages
from vmemu.errors import HostError, InputError
from vmemu.ramblock import BASE_PAGE, Backing, RAMBlock, RAMList

SIZE = 16 * BASE_PAGE
BOTH = pytest.mark.parametrize("make", [anonymous, shared])


def laid_out(gaps_and_pages: list[tuple[int, int]]) -> list[RAMBlock]:
    """Blocks one behind the other with gaps between, addresses made up."""
    blocks, address = [], BASE_PAGE
    for index, (gap, pages) in enumerate(gaps_and_pages):
        address += gap * BASE_PAGE
        block = anonymous(f"b{index}", pages)
        block.address = address
        address += block.size
        blocks.append(block)
    return blocks


layouts = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=8)


@given(layouts, st.randoms(use_true_random=False), st.lists(st.integers(0, 40 * BASE_PAGE)))
def test_find_agrees_with_looking_at_every_block(layout, random, addresses):
    blocks = laid_out(layout)
    ram = RAMList(random.sample(blocks, len(blocks)))
    ram.index_addresses()
    edges = [edge for b in blocks for edge in (b.address - 1, b.address, b.address + b.size)]
    for address in addresses + edges:
        holders = [b for b in blocks if b.address <= address < b.address + b.size]
        expected = (holders[0], address - holders[0].address) if holders else None
        assert ram.find(address) == expected


def test_find_knows_only_blocks_that_are_mapped():
    block = anonymous()
    ram = RAMList([block])
    ram.index_addresses()
    assert ram.find(0) is None
    assert ram.find(BASE_PAGE) is None


def test_a_block_is_found_by_name():
    first, second = anonymous("first"), anonymous("second")
    ram = RAMList([first, second])
    assert ram.named("second") is second
    assert list(ram) == [first, second]
    assert ram.size == 2 * SIZE
    with pytest.raises(KeyError):
        ram.named("third")


@BOTH
def test_a_fresh_block_is_zeros_and_keeps_what_is_written(make):
    block = make()
    block.map()
    try:
        assert block.read(0, SIZE) == bytes(SIZE)
        block.write(BASE_PAGE - 2, b"over the edge")
        assert block.read(BASE_PAGE - 2, 13) == b"over the edge"
        block.write(SIZE, b"")
        assert block.read(SIZE, 0) == b""
    finally:
        block.unmap()


@BOTH
def test_unmapping_gives_the_memory_back_and_may_be_done_twice(make):
    block = make()
    block.map()
    address = block.address
    assert mapped_at(address)
    block.unmap()
    assert not mapped_at(address)
    assert block.address == 0
    block.unmap()


@BOTH
def test_a_block_can_be_mapped_again_after_unmapping(make):
    block = make()
    for _ in range(3):
        block.map()
        block.write(0, b"x")
        block.unmap()


@BOTH
def test_mapping_a_mapped_block_is_refused_and_changes_nothing(make):
    block = make()
    block.map()
    address = block.address
    try:
        with pytest.raises(ValueError, match=r"block v?ram is mapped already"):
            block.map()
        assert block.address == address
        assert block.read(0, 1) == b"\0"
    finally:
        block.unmap()


@BOTH
def test_discarded_pages_are_zeros_and_the_others_stay(make):
    block = make()
    block.map()
    try:
        block.write(0, b"a" * SIZE)
        block.discard(BASE_PAGE, 2 * BASE_PAGE)
        expected = b"a" * BASE_PAGE + bytes(2 * BASE_PAGE) + b"a" * (SIZE - 3 * BASE_PAGE)
        assert block.read(0, SIZE) == expected
        block.discard(SIZE - BASE_PAGE)
        assert block.read(SIZE - BASE_PAGE, BASE_PAGE) == bytes(BASE_PAGE)
        block.discard(SIZE)
        block.discard()
        assert block.read(0, SIZE) == bytes(SIZE)
    finally:
        block.unmap()


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (1, BASE_PAGE),
        (0, BASE_PAGE - 1),
        (-BASE_PAGE, BASE_PAGE),
        (-BASE_PAGE, 2 * BASE_PAGE),
        (0, SIZE + BASE_PAGE),
        (SIZE, BASE_PAGE),
        (SIZE + BASE_PAGE, 0),
        (SIZE + BASE_PAGE, -BASE_PAGE),
        (BASE_PAGE, -BASE_PAGE),
        (SIZE + BASE_PAGE, None),
    ],
)
@BOTH
def test_discarding_what_is_not_whole_pages_of_the_block_is_refused(make, offset, length):
    block = make()
    block.map()
    try:
        with pytest.raises(ValueError, match="not whole pages"):
            block.discard(offset, length)
    finally:
        block.unmap()


@BOTH
def test_discarding_an_unmapped_block_is_refused(make):
    block = make()
    with pytest.raises(ValueError, match="not mapped"):
        block.discard()
    block.map()
    block.unmap()
    with pytest.raises(ValueError, match="not mapped"):
        block.discard()


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (-1, 2), (SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (SIZE + 1, 0)]
)
@BOTH
def test_reads_and_writes_outside_the_block_are_refused(make, offset, length):
    block = make()
    block.map()
    try:
        with pytest.raises(ValueError, match="outside"):
            block.read(offset, length)
        with pytest.raises(ValueError, match="outside"):
            block.write(offset, bytes(length))
    finally:
        block.unmap()


def test_a_negative_length_is_refused():
    block = anonymous()
    block.map()
    try:
        with pytest.raises(ValueError, match="outside"):
            block.read(2, -1)
    finally:
        block.unmap()


@BOTH
def test_reading_or_writing_an_unmapped_block_is_refused(make):
    block = make()
    with pytest.raises(ValueError, match="not mapped"):
        block.read(0, 1)
    with pytest.raises(ValueError, match="not mapped"):
        block.write(0, b"x")


def test_blocks_begin_where_a_transparent_hugepage_could():
    """Those that can hold one; small ones between them lie anywhere."""
    sizes = [HUGE // 4096 + 3, 3, HUGE // 4096]
    blocks = [make(f"b{i}", pages=sizes[i % 3]) for i, make in enumerate([anonymous, shared] * 3)]
    try:
        for block in blocks:
            block.map()
            assert block.size < HUGE or block.address % HUGE == 0
    finally:
        for block in blocks:
            block.unmap()


def test_a_file_of_shared_memory_loses_its_name_as_soon_as_it_is_mapped():
    path = f"/dev/shm/vmemu-test-{os.getpid()}"
    block = shared(path=path)
    block.map()
    try:
        assert not os.path.exists(path)
        block.write(5, b"abc")
        assert block.read(4, 5) == b"\0abc\0"
    finally:
        block.unmap()


def test_a_path_that_exists_is_left_alone():
    path = Path(f"/dev/shm/vmemu-test-taken-{os.getpid()}")
    path.write_text("somebody's")
    try:
        with pytest.raises(InputError, match="exists already"):
            shared(path=str(path)).map()
        assert path.read_text() == "somebody's"
    finally:
        path.unlink()


def test_a_missing_directory_is_named():
    with pytest.raises(HostError, match=r"/dir/x: there is no directory /dev/shm/no/such/dir "):
        shared(path="/dev/shm/no/such/dir/x").map()


def test_shared_memory_on_another_file_system_is_refused_with_a_place_that_would_do():
    with pytest.raises(HostError, match="not on tmpfs") as caught:
        shared(path="/proc/ram").map()
    assert caught.value.remedy == "path: /dev/shm/ram"


def test_hugepages_on_another_file_system_are_refused_with_the_mount_that_would_do():
    with pytest.raises(HostError, match=r"not on hugetlbfs|no hugepages") as caught:
        huge(path="/dev/shm/huge").map()
    there, made = hugepages.mount_for(HUGE, HUGE), "mount -t hugetlbfs" in caught.value.remedy
    assert there or made or "no hugepages" in caught.value.what


def test_a_page_size_that_no_pool_has_is_refused():
    block = huge()
    block.page_size = 4 << 10
    with pytest.raises(HostError, match=r"no hugepages of 4KiB \(it has: "):
        block.map()


@BOTH
def test_a_size_that_cannot_be_mapped_is_a_host_error(make):
    block = make(pages=1 << 40)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostError, match="can't be mapped"):
        block.map()
    assert os.listdir("/proc/self/fd") == before
    assert block.address == 0


def _of(backing: Backing, size: int) -> RAMBlock:
    return RAMBlock("b", backing, size, 2 * MIB if backing is Backing.HUGETLBFS else BASE_PAGE)


@pytest.mark.parametrize("size", [1 << 47, 1 << 62, 1 << 63, (1 << 64) - 2 * MIB, 1 << 70])
@pytest.mark.parametrize("backing", Backing)
def test_no_size_is_too_large_for_an_error_in_words(backing, size):
    before = os.listdir("/proc/self/fd")
    if backing is Backing.HUGETLBFS and HUGE not in hugepages.page_sizes():
        pytest.skip("this host has no hugepages of 2 MiB")
    with pytest.raises(HostError, match=r"can't be mapped: .*address"):
        _of(backing, size).map()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("size", [0, 4097])
@pytest.mark.parametrize("backing", Backing)
def test_a_size_that_is_no_number_of_pages_is_wrong_input(backing, size):
    with pytest.raises(InputError, match=r"block b: \w+ is no whole number of pages of"):
        _of(backing, size).map()


def test_no_descriptor_left_is_a_host_error():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(HostError, match="Too many open files"):
            shared().map()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident(block: RAMBlock) -> int:
    """Pages that are in the page table of this process."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        data = os.pread(pagemap.fileno(), block.pages * 8, block.address // BASE_PAGE * 8)
    return sum(entry >> 63 for entry in memoryview(data).cast("Q"))


@BOTH
@pytest.mark.parametrize("mebibytes", [0, 16, 64, 200])
def test_memory_is_emptied_to_its_end(make, mebibytes):
    """By one thread and by several, with a last piece that is no whole one."""
    block = make("ram", mebibytes * MIB // BASE_PAGE + 3)
    block.map()
    try:
        block.set_thp(False)
        touched = {0, block.size // 2, block.size - 1}
        for offset in touched:
            block.write(offset, b"x")
        assert resident(block) >= len({offset // BASE_PAGE for offset in touched})
        core.lib.vm_empty(block.address, block.size)
        assert resident(block) == 0
        kept = b"x" if block.backing is Backing.SHARED else bytes(1)
        assert {block.read(offset, 1) for offset in touched} == {kept}
    finally:
        block.unmap()


@given(st.lists(st.tuples(st.integers(0, 299), st.integers(0, 300)), max_size=6))
def test_runs_that_are_received_agree_with_marking_each_page(runs):
    block = anonymous("ram", 300)
    block.address = BASE_PAGE
    ram, expected = RAMList([block]).table(), set()
    for first, count in runs:
        pages = set(range(first, min(first + count, 300)))
        fresh = core.lib.vm_ram_mark_received(ram.block, first, len(pages))
        assert fresh == len(pages - expected)
        expected |= pages
    words = ram.block[0].received[0:5]
    assert {page for page in range(320) if words[page // 64] >> page % 64 & 1} == expected
