"""MemoryLock: in which order it locks, and what it says when it can't. Locks are made up here."""

from __future__ import annotations

import errno
import resource
from types import SimpleNamespace
from typing import Any

import pytest
from support import MIB, anonymous, huge, shared

from vmemu import core, memlock
from vmemu.errors import CoreError, HostError
from vmemu.memlock import MemoryLock
from vmemu.ramblock import RAMBlock

KIB = 1024


class FakeLocks:
    """The C core with locks of its own: ``calls`` is what was asked for, ``errors`` what fails."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.calls: list[tuple[str, int]] = []
        self.locked: dict[int, int] = {}
        self.all = False
        self.errors: dict[tuple[str, int], int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _do(self, name: str, address: int, error: Any) -> int:
        self.calls.append((name, address))
        number = self.errors.get((name, address), 0)
        error.operation, error.errnum = name.encode(), number
        return -1 if number else 0

    def vm_mlock(self, address: int, length: int, error: Any) -> int:
        self.locked[address] = length  # the kernel marks the range even when it fails then
        return self._do("mlock", address, error)

    def vm_munlock(self, address: int, length: int, error: Any) -> int:
        self.locked.pop(address, None)
        return self._do("munlock", address, error)

    def vm_mlockall(self, error: Any) -> int:
        self.all = True
        return self._do("mlockall", 0, error)

    def vm_munlockall(self, error: Any) -> int:
        self.all = False
        return self._do("munlockall", 0, error)


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> FakeLocks:
    fake = FakeLocks(core.lib)
    monkeypatch.setattr(core, "lib", fake)
    monkeypatch.setattr(memlock, "locks_new_memory", lambda: fake.all)
    monkeypatch.setattr(memlock, "locked_bytes", lambda: sum(fake.locked.values()))
    monkeypatch.setattr(
        memlock, "_locked_ranges", lambda: [(low, low + size) for low, size in fake.locked.items()]
    )
    return fake


def limit_to(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    somebody = SimpleNamespace(raises_limits=True, container="")
    monkeypatch.setattr("vmemu.host.raising.identify", lambda files: somebody)


def at(block: RAMBlock, address: int) -> RAMBlock:
    """The block as if it were mapped there."""
    block.address = address
    return block


@pytest.fixture
def blocks() -> list[RAMBlock]:
    return [
        at(anonymous("a"), 1 * MIB),
        at(huge("h"), 4 * MIB),
        at(shared("s"), 2 * MIB),
        anonymous("unmapped"),
    ]


def test_all_mapped_blocks_are_locked_but_hugepages(locks, blocks):
    MemoryLock(blocks).lock()
    assert locks.calls == [("mlock", MIB), ("mlock", 2 * MIB)]


def test_what_was_unlocked_is_locked_again_once(locks, blocks):
    lock = MemoryLock(blocks)
    lock.lock()
    lock.unlock()
    lock.unlock()
    assert locks.locked == {}
    assert lock.relock() == []
    assert set(locks.locked) == {MIB, 2 * MIB}
    locks.calls.clear()
    assert lock.relock() == []
    assert locks.calls == []


def test_memory_that_was_never_locked_is_left_alone(locks, blocks):
    lock = MemoryLock(blocks)
    lock.unlock()
    assert lock.relock() == []
    assert locks.calls == []


def test_what_others_have_locked_is_unlocked_and_locked_again(locks, blocks):
    locks.locked[2 * MIB + 4096] = 4096  # a part of it is enough to spoil post-copy
    locks.locked[16 * MIB] = 4096  # somebody else's memory
    lock = MemoryLock(blocks)
    lock.unlock()
    assert locks.calls == [("munlock", 2 * MIB)]
    locks.locked.pop(2 * MIB + 4096)
    assert lock.relock() == []
    assert locks.locked == {2 * MIB: 64 * KIB, 16 * MIB: 4096}


def test_a_process_that_locks_all_is_unlocked_and_locked_again(locks, blocks):
    locks.all = True
    lock = MemoryLock(blocks)
    lock.unlock()
    assert not locks.all
    assert lock.relock() == []
    assert locks.all


def test_blocks_that_are_gone_are_not_locked_again(locks, blocks):
    lock = MemoryLock(blocks)
    lock.lock()
    lock.unlock()
    blocks[0].address = 0
    assert lock.relock() == []
    assert set(locks.locked) == {2 * MIB}


def test_a_limit_that_lets_nothing_be_mapped_any_more_means_that_all_is_locked(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "the limit on locked memory is reached")

    monkeypatch.setattr(memlock.mmap, "mmap", refuse)
    assert memlock.locks_new_memory()


def test_memory_that_can_not_be_mapped_for_another_reason_is_an_error(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(memlock.mmap, "mmap", refuse)
    with pytest.raises(OSError, match="no memory"):
        memlock.locks_new_memory()


# ---- failures ----


def test_a_lock_that_fails_leaves_nothing_locked(locks, blocks, monkeypatch):
    limit_to(monkeypatch, soft=100 * KIB, hard=MIB)
    locks.errors["mlock", 2 * MIB] = errno.ENOMEM
    with pytest.raises(HostError) as caught:
        MemoryLock(blocks).lock()
    assert locks.locked == {}
    assert "blocks a, s can't be locked in memory (128KiB)" in caught.value.what
    assert "may lock 100KiB (RLIMIT_MEMLOCK)" in caught.value.what
    assert caught.value.remedy == "ulimit -S -l 128"


@pytest.mark.parametrize(
    ("limits", "remedy"),
    [
        ((0, 64 * KIB), "prlimit --pid $$ --memlock=131072"),
        ((0, 128 * KIB), "ulimit -S -l 128"),
        ((0, resource.RLIM_INFINITY), "ulimit -S -l 128"),
        ((MIB, MIB), ""),  # the limit is not what kept it from being locked
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), ""),
    ],
)
def test_the_remedy_is_what_the_limits_ask_for(locks, blocks, monkeypatch, limits, remedy):
    limit_to(monkeypatch, *limits)
    locks.errors["mlock", MIB] = errno.EAGAIN if limits[0] else errno.EPERM
    with pytest.raises(HostError) as caught:
        MemoryLock(blocks).lock()
    assert caught.value.remedy == remedy


def test_what_is_locked_already_counts(locks, blocks, monkeypatch):
    limit_to(monkeypatch, soft=0, hard=MIB)
    locks.locked[16 * MIB] = 4 * KIB
    locks.errors["mlock", MIB] = errno.ENOMEM
    with pytest.raises(HostError) as caught:
        MemoryLock(blocks).lock()
    assert caught.value.remedy == "ulimit -S -l 132"


def test_not_to_lock_again_is_one_warning_and_the_rest_is_locked(locks, monkeypatch):
    limit_to(monkeypatch, soft=0, hard=MIB)
    blocks = [at(anonymous(name), (i + 1) * MIB) for i, name in enumerate("abc")]
    lock = MemoryLock(blocks)
    lock.lock()
    lock.unlock()
    locks.errors = {("mlock", MIB): errno.ENOMEM, ("mlock", 3 * MIB): errno.ENOMEM}
    (warning,) = lock.relock()
    assert warning.startswith("memory was locked before post-copy and is not any more: blocks a, c")
    assert "128KiB" in warning and "ulimit -S -l" in warning
    assert ("mlock", 2 * MIB) in locks.calls


def test_not_to_lock_the_process_again_is_a_warning(locks, monkeypatch):
    limit_to(monkeypatch, soft=0, hard=0)
    lock = MemoryLock([])
    locks.all = True
    lock.unlock()
    locks.errors["mlockall", 0] = errno.EPERM
    (warning,) = lock.relock()
    assert "the process can't be locked" in warning and "prlimit --pid $$" in warning


def test_an_unlock_that_fails_is_an_error(locks, blocks):
    lock = MemoryLock(blocks)
    lock.lock()
    locks.errors["munlock", MIB] = errno.ENOMEM
    with pytest.raises(CoreError, match="munlock"):
        lock.unlock()
