"""The balloon on real memory of every backing, before, during and after post-copy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import block_of

from vmemu.balloon import Balloon, BallooningInhibited, BalloonInhibitor, BalloonWorker
from vmemu.cthread import Bell
from vmemu.manager import MemoryManager
from vmemu.ramblock import RAMBlock
from vmemu.userfault import Feature, Userfaultfd

WANTED = Feature.MISSING_SHMEM | Feature.MISSING_HUGETLBFS


@pytest.fixture(params=["anonymous", "shared", "hugetlbfs"])
def memory(request) -> Iterator[MemoryManager]:
    """A mapped block of each backing, full of ones."""
    if request.param == "hugetlbfs":
        request.getfixturevalue("hugetlb")
        request.getfixturevalue("pool_lock")
    with MemoryManager([block_of(request.param)], wait_s=60) as memory:
        memory.map()
        block = memory.blocks[0]
        block.write(0, b"1" * block.size)
        yield memory


def empty(memory: MemoryManager) -> None:
    """Forget all pages, as before post-copy."""
    for block in memory.blocks:
        block.set_thp(False)
        block.discard()


def pages_of(block: RAMBlock) -> bytes:
    """The first byte of each page: ones where nothing happened, zeros where it was given back."""
    return b"".join(block.read(page * block.page_size, 1) for page in range(block.pages))


def test_a_page_given_back_reads_as_zeros_and_the_others_stay(memory):
    block = memory.blocks[0]
    balloon = Balloon(memory.blocks, BalloonInhibitor())
    balloon.inflate(0, block.page_size, block.page_size)
    assert pages_of(block) == b"1\0" + b"1" * (block.pages - 2)
    assert block.read(block.page_size, block.page_size) == bytes(block.page_size)
    assert balloon.given_back() == [(0, block.page_size, block.page_size)]


def test_a_page_given_back_can_be_written_again(memory):
    block = memory.blocks[0]
    balloon = Balloon(memory.blocks, BalloonInhibitor())
    balloon.inflate(0, 0, block.size)
    block.write(5, b"again")
    assert block.read(0, 12) == b"\0\0\0\0\0again\0\0"


@pytest.mark.usefixtures("userfault")
def test_post_copy_keeps_what_it_placed_and_the_balloon_works_before_and_after(memory):
    block = memory.blocks[0]
    size = block.page_size
    inhibitor = BalloonInhibitor()
    balloon = Balloon(memory.blocks, inhibitor)
    balloon.inflate(0, 0, size)
    assert pages_of(block) == b"\0" + b"1" * (block.pages - 1)
    with Userfaultfd(WANTED) as uffd, inhibitor:
        empty(memory)
        balloon.forget()
        memory.register(uffd)
        for page in range(block.pages):
            assert uffd.copy(block.address + page * size, b"2" * size, size, size)
        with pytest.raises(BallooningInhibited):
            balloon.inflate(0, 0, size)
        memory.unregister()
    assert pages_of(block) == b"2" * block.pages
    balloon.inflate(0, 0, size)
    assert pages_of(block) == b"\0" + b"2" * (block.pages - 1)
    assert balloon.figures.refused == 1


def test_a_worker_gives_back_all_pages_and_no_others(memory):
    block = memory.blocks[0]
    balloon = Balloon(memory.blocks, BalloonInhibitor())
    bell = Bell()
    worker = BalloonWorker(balloon, 7, 1e6, bell, eligible=lambda index, page: page != 1)
    worker.start()
    assert worker.join(60)
    bell.close()
    assert worker.error is None
    assert pages_of(block) == b"\0" + b"1" + bytes(block.pages - 2)
    given = bytes(b"1\0"[byte] for byte in balloon.page_maps[0])
    assert given == pages_of(block)
