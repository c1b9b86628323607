"""Userfaultfd on real memory: the handshake, what can be done where, placing pages."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from support import anonymous, block_of, huge

from vmemu import core, userfault
from vmemu.errors import CoreError, HostError
from vmemu.manager import MemoryManager
from vmemu.ramblock import RAMBlock
from vmemu.userfault import Feature, How, Ioctl, Userfaultfd, feature_names

pytestmark = pytest.mark.usefixtures("userfault")
WANTED = Feature.THREAD_ID | Feature.MISSING_SHMEM | Feature.MISSING_HUGETLBFS
BACKINGS = ["anonymous", "shared", "hugetlbfs"]


@pytest.fixture
def uffd() -> Iterator[Userfaultfd]:
    with Userfaultfd(WANTED) as uffd:
        yield uffd


@pytest.fixture(params=BACKINGS)
def block(request) -> Iterator[RAMBlock]:
    """A mapped, empty block of each backing."""
    if request.param == "hugetlbfs":
        request.getfixturevalue("hugetlb")
        request.getfixturevalue("pool_lock")
    with MemoryManager([block_of(request.param)], wait_s=60) as memory:
        memory.map()
        memory.blocks[0].discard()
        yield memory.blocks[0]


@pytest.fixture
def ram() -> Iterator[RAMBlock]:
    """A mapped, empty block of anonymous memory."""
    with MemoryManager([anonymous()]) as memory:
        memory.map()
        memory.blocks[0].discard()
        yield memory.blocks[0]


def page_of(block: RAMBlock, fill: bytes = b"p") -> bytes:
    return fill * block.page_size


# ---- the handshake ----


def test_the_handshake_grants_what_is_there_and_nothing_else(uffd):
    assert uffd.features == WANTED & uffd.available
    assert uffd.how in How
    uffd.require([Feature.THREAD_ID])


def test_nothing_is_granted_that_was_not_asked_for():
    with Userfaultfd() as uffd:
        assert uffd.features == Feature(0)
        with pytest.raises(HostError, match="lacks UFFD_FEATURE_THREAD_ID, UFFD_FEATURE_SIGBUS"):
            uffd.require([Feature.THREAD_ID, Feature.SIGBUS])


def test_a_feature_that_no_kernel_has_is_not_granted():
    with Userfaultfd(Feature(1 << 60) | Feature.THREAD_ID) as uffd:
        assert uffd.features == Feature.THREAD_ID


def test_bits_are_named_known_or_not():
    assert feature_names(Feature.SIGBUS | Feature.MOVE | 1 << 40) == ["SIGBUS", "MOVE", "bit40"]
    assert feature_names(0) == []


def test_the_descriptor_is_not_inherited_never_blocks_and_is_closed_once():
    uffd = Userfaultfd(WANTED)
    assert not os.get_inheritable(uffd.fd)
    assert not os.get_blocking(uffd.fd)
    before = len(os.listdir("/proc/self/fd"))
    uffd.close()
    uffd.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_handshake_that_fails_leaves_no_descriptor(monkeypatch):
    def fail(*_: object) -> int:
        raise CoreError("UFFDIO_API", errno.EINVAL)

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(userfault, "handshake", fail)
    with pytest.raises(CoreError):
        Userfaultfd()
    assert os.listdir("/proc/self/fd") == before


# ---- registering ----


def test_each_backing_says_what_can_be_done_on_it(uffd, block):
    ioctls = uffd.register(block.address, block.size)
    assert ioctls & (Ioctl.COPY | Ioctl.WAKE) == Ioctl.COPY | Ioctl.WAKE
    assert bool(ioctls & Ioctl.ZEROPAGE) == (not block.hugetlb)
    uffd.unregister(block.address, block.size)


@pytest.mark.parametrize(("offset", "length"), [(1, 4096), (0, 4095), (0, 0)])
def test_a_crooked_range_is_refused(uffd, ram, offset, length):
    with pytest.raises(CoreError) as caught:
        uffd.register(ram.address + offset, length)
    assert (caught.value.operation, caught.value.errno) == ("UFFDIO_REGISTER", errno.EINVAL)
    assert caught.value.address == ram.address + offset


def test_memory_that_belongs_to_another_userfaultfd_is_refused(uffd, ram):
    uffd.register(ram.address, ram.size)
    with Userfaultfd() as other, pytest.raises(CoreError) as caught:
        other.register(ram.address, ram.size)
    assert caught.value.errno == errno.EBUSY


# ---- placing ----


def test_a_copied_page_is_read_as_it_was(uffd, block):
    uffd.register(block.address, block.size)
    for page in range(block.pages):
        address = block.address + page * block.page_size
        assert uffd.copy(
            address, page_of(block, b"%d" % (page % 10)), block.page_size, block.page_size
        )
    for page in range(block.pages):
        assert block.read(page * block.page_size, 2) == b"%d" % (page % 10) * 2


def test_a_run_of_pages_is_placed_at_once(uffd, ram):
    uffd.register(ram.address, ram.size)
    data = os.urandom(ram.size)
    assert uffd.copy(ram.address, data, ram.size, ram.page_size)
    assert ram.read(0, ram.size) == data


@pytest.mark.parametrize("backing", ["anonymous", "shared"])
def test_zeros_are_placed_without_a_copy(uffd, backing):
    with MemoryManager([block_of(backing)]) as memory:
        memory.map()
        block = memory.blocks[0]
        uffd.register(block.address, block.size)
        assert uffd.zeropage(block.address, block.size, block.page_size)
        assert block.read(0, block.size) == bytes(block.size)


@pytest.mark.usefixtures("hugetlb", "pool_lock")
def test_hugepages_have_no_zeropage(uffd):
    with MemoryManager([huge()], wait_s=60) as memory:
        memory.map()
        block = memory.blocks[0]
        uffd.register(block.address, block.size)
        with pytest.raises(CoreError, match="UFFDIO_ZEROPAGE"):
            uffd.zeropage(block.address, block.page_size, block.page_size)


def test_a_page_that_is_there_already_is_left_alone(uffd, block):
    uffd.register(block.address, block.size)
    size = block.page_size
    assert uffd.copy(block.address, page_of(block, b"1"), size, size)
    assert uffd.copy(block.address, page_of(block, b"2"), size, size)
    assert block.read(0, size) == page_of(block, b"1")


def test_pages_that_are_there_in_the_middle_of_a_run_are_passed_over(uffd, ram):
    uffd.register(ram.address, ram.size)
    size = ram.page_size
    for page in (0, 5, 6, 15):
        assert uffd.copy(ram.address + page * size, page_of(ram, b"o"), size, size)
    assert uffd.copy(ram.address, b"n" * ram.size, ram.size, size)
    found = b"".join(ram.read(page * size, 1) for page in range(16))
    assert found == b"onnnnoonnnnnnnno"


def test_a_page_that_is_there_already_still_wakes_who_waits_for_it(uffd, ram):
    """A waiter on an absent page, woken by a second copy onto one that was placed unseen."""
    uffd.register(ram.address, ram.size)
    size, reads = ram.page_size, []
    waiter = threading.Thread(target=lambda: reads.append(ram.read(0, 4)))
    waiter.start()
    _wait_for_fault(uffd)
    _copy_without_waking(uffd.fd, ram.address, page_of(ram, b"1"))
    assert uffd.copy(ram.address, page_of(ram, b"2"), size, size)
    waiter.join()
    assert reads == [b"1111"]


def test_unregistering_lets_go_of_who_waits_with_a_fresh_page(uffd, block):
    uffd.register(block.address, block.size)
    reads: list[bytes] = []
    waiter = threading.Thread(target=lambda: reads.append(block.read(5, 4)))
    waiter.start()
    _wait_for_fault(uffd)
    uffd.unregister(block.address, block.size)
    waiter.join()
    assert reads == [bytes(4)]


def test_closing_lets_go_of_who_waits(ram):
    uffd = Userfaultfd()
    uffd.register(ram.address, ram.size)
    waiter = threading.Thread(target=lambda: ram.read(0, 4))
    waiter.start()
    _wait_for_fault(uffd)
    uffd.close()
    waiter.join()


def test_placing_where_nothing_is_registered_any_more_says_that_it_is_over(uffd, ram):
    size = ram.page_size
    uffd.register(ram.address, ram.size)
    uffd.unregister(ram.address, ram.size)
    assert not uffd.copy(ram.address, page_of(ram), size, size)
    assert not uffd.zeropage(ram.address, size, size)


def test_placing_where_nothing_is_mapped_any_more_says_that_it_is_over(uffd):
    block = anonymous()
    block.map()
    address, size = block.address, block.page_size
    uffd.register(address, block.size)
    block.unmap()
    assert not uffd.copy(address, page_of(block), size, size)
    assert not uffd.zeropage(address, size, size)


def test_placing_from_memory_that_is_not_there_is_an_error(uffd, ram):
    uffd.register(ram.address, ram.size)
    nowhere = core.ffi.cast("void *", 4096)
    with pytest.raises(CoreError) as caught:
        uffd.copy(ram.address, nowhere, ram.page_size, ram.page_size)
    assert (caught.value.operation, caught.value.errno) == ("UFFDIO_COPY", errno.EFAULT)


def test_placing_at_a_crooked_address_is_an_error(uffd, ram):
    uffd.register(ram.address, ram.size)
    with pytest.raises(CoreError) as caught:
        uffd.copy(ram.address + 1, page_of(ram), ram.page_size, ram.page_size)
    assert caught.value.errno == errno.EINVAL


def _wait_for_fault(uffd: Userfaultfd) -> None:
    """Until the kernel has a fault to tell; it is taken off the queue."""
    import select

    poll = select.poll()
    poll.register(uffd.fd, select.POLLIN)
    assert poll.poll(60_000)
    assert len(os.read(uffd.fd, 32)) == 32


def _copy_without_waking(fd: int, address: int, data: bytes) -> None:
    """UFFDIO_COPY with UFFDIO_COPY_MODE_DONTWAKE, which the core never does."""
    import ctypes
    import fcntl
    import struct

    source = ctypes.create_string_buffer(data, len(data))
    request = struct.pack("<QQQQq", address, ctypes.addressof(source), len(data), 1, 0)
    fcntl.ioctl(fd, 0xC028AA03, request)


def test_whether_opening_kills_is_found_out_where_children_that_end_are_nobodys_concern():
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert core.call(core.lib.vm_uffd_open_kills, int(How.USER_MODE_ONLY)) == 0
    finally:
        signal.signal(signal.SIGCHLD, before)
