"""MemoryLock on real memory: why locks and post-copy don't mix, and that the locks come back."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator

import pytest
from support import anonymous, huge, shared, vm_flags

from vmemu import core
from vmemu.errors import CoreError
from vmemu.manager import MemoryManager
from vmemu.memlock import MemoryLock, locked_bytes, locks_new_memory
from vmemu.ramblock import RAMBlock
from vmemu.userfault import Feature, Userfaultfd

KIB = 1024
NEEDED = 128 * KIB


@pytest.fixture
def memory() -> Iterator[MemoryManager]:
    """One block of anonymous and one of shared memory, mapped."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft not in (resource.RLIM_INFINITY,) and soft < locked_bytes() + NEEDED:
        pytest.skip(f"only {soft} bytes may be locked here")
    with MemoryManager([anonymous(), shared()]) as memory:
        memory.map()
        yield memory


def empty(memory: MemoryManager) -> None:
    """Forget all pages, as before post-copy."""
    for block in memory.blocks:
        block.set_thp(False)
        block.discard()


def locked(block: RAMBlock) -> bool:
    return "lo" in vm_flags(block.address)


def test_locked_bytes_are_those_of_the_kernel(memory):
    before = locked_bytes()
    lock = MemoryLock(memory.blocks)
    lock.lock()
    assert all(locked(block) for block in memory.blocks)
    assert locked_bytes() - before == sum(block.size for block in memory.blocks)
    lock.unlock()
    assert not any(locked(block) for block in memory.blocks)
    assert locked_bytes() == before
    assert not locks_new_memory()


def test_locked_memory_can_not_be_discarded_and_unlocked_memory_can(memory):
    lock = MemoryLock(memory.blocks)
    lock.lock()
    with pytest.raises(CoreError) as caught:
        empty(memory)
    assert caught.value.errno == errno.EINVAL
    lock.unlock()
    empty(memory)
    assert lock.relock() == []
    assert all(locked(block) for block in memory.blocks)


def test_a_lock_that_somebody_else_took_comes_back_too(memory):
    ram, vram = memory.blocks
    core.call(core.lib.vm_mlock, ram.address + 4096, 4096)
    lock = MemoryLock(memory.blocks)
    lock.unlock()
    assert not locked(ram)
    empty(memory)
    assert lock.relock() == []
    assert locked(ram)
    assert not locked(vram)


@pytest.mark.usefixtures("userfault")
def test_locks_survive_a_post_copy_and_so_does_memory(memory):
    lock = MemoryLock(memory.blocks)
    lock.lock()
    lock.unlock()
    empty(memory)
    with Userfaultfd(Feature.MISSING_SHMEM) as uffd:
        memory.register(uffd)
        for block in memory.blocks:
            data = block.name.encode()[:1] * block.size
            assert uffd.copy(block.address, data, block.size, block.page_size)
        memory.unregister()
    assert lock.relock() == []
    for block in memory.blocks:
        assert locked(block)
        assert block.read(0, block.size) == block.name.encode()[:1] * block.size


@pytest.mark.usefixtures("hugetlb", "pool_lock")
def test_hugepages_need_no_lock():
    with MemoryManager([huge()], wait_s=60) as memory:
        memory.map()
        lock = MemoryLock(memory.blocks)
        before = locked_bytes()
        lock.lock()
        assert locked_bytes() == before
        assert not locked(memory.blocks[0])
        lock.unlock()
        empty(memory)
        assert lock.relock() == []
