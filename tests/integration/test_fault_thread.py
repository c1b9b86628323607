"""The fault thread against all that a userfaultfd may give: counted, answered, never stuck.

Where the kernel can't be made to do a thing at will, a pipe of messages takes the place of the
userfaultfd: the thread only reads it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import pytest
from support import anonymous, scenario, shared, synthetic

from vmemu import core
from vmemu.cthread import Bell, CThread
from vmemu.errors import CoreError
from vmemu.manager import MemoryManager
from vmemu.migration import Migration
from vmemu.protocol import FLAG_URGENT, HEADER, Header, Message
from vmemu.ramblock import BASE_PAGE, RAMBlock, RAMList
from vmemu.userfault import Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("nothing_left")

PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
MESSAGE = struct.Struct("<B7xQQI4x")
"""``struct uffd_msg``: event; of a page fault its flags, address and thread."""
RAM_AT, VRAM_AT = 0x10_0000_0000, 0x20_0000_0000
"""Where the blocks are said to lie: nothing there is touched."""
AT_ONCE = 64
"""Messages that the thread reads at a time, and requests that it keeps."""
UFFDIO_COPY, COPY_DONTWAKE = 0xC028_AA03, 1
LONG_S = 60.0
"""Nothing here takes as long."""

Request = tuple[str, int]
"""Block and page."""


def message(address: int, tid: int = 1, event: int = PAGEFAULT) -> bytes:
    return MESSAGE.pack(event, 0, address, tid)


def ram(page: int) -> int:
    return RAM_AT + page * BASE_PAGE


def vram(page: int) -> int:
    return VRAM_AT + page * BASE_PAGE


def eventually(wanted: Callable[[], bool]) -> None:
    """Wait for what the threads will do; it comes or they are stuck."""
    deadline = time.monotonic() + LONG_S
    while not wanted():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


class FaultThreads:
    """Fault threads that read ``uffd``, and the return path they write to.

    They run inside the context, and are told to quit at its end; ``error`` is what ended one
    before.
    """

    def __init__(
        self, table: Any, uffd: int, threads: int = 1, vcpus: tuple[int, ...] = ()
    ) -> None:
        self.bell, self.quit = Bell(), Bell()
        self.c = core.ffi.new("struct vm_incoming *")
        self.ram = self.c.ram = table
        self.c.uffd = uffd
        self.c.main_fd = self.c.urgent_fd = -1
        self.requests, self.c.return_fd = os.pipe()
        os.set_blocking(self.c.return_fd, False)
        os.set_blocking(self.requests, False)
        self.c.quit_fd, self.c.bell_fd = self.quit.fd, self.bell.fd
        self.c.fault_threads = threads
        self._tids = core.ffi.new("uint32_t[]", list(vcpus))
        self.vcpu_faults = core.ffi.new("uint64_t[]", len(vcpus))
        self.c.vcpu_tid, self.c.vcpu_faults = self._tids, self.vcpu_faults
        self.c.vcpus = len(vcpus)
        self.threads = [CThread(f"fault{i}", self._loop(i), self.bell) for i in range(threads)]
        self._rest = b""
        self._named = ""

    def _loop(self, index: int) -> Callable[[], object]:
        return lambda: core.call(core.lib.vm_fault_loop, self.c, index)

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.quit.ring()
        ended = [thread.join(LONG_S) for thread in self.threads]
        assert all(ended), "a fault thread does not quit"  # and what it uses stays open
        for fd in (self.requests, self.c.return_fd):
            os.close(fd)
        self.bell.close()
        self.quit.close()

    @property
    def error(self) -> BaseException | None:
        return next((one.error for one in self.threads if one.error), None)

    @property
    def stats(self) -> Any:
        return self.c.stats

    def count(self) -> dict[str, int]:
        """All that was counted, without what is 0."""
        names = ("messages", "requests", "shared", "late", "spurious", "foreign", "deferred")
        figures = {name: int(getattr(self.stats, name)) for name in names}
        return {name: figure for name, figure in figures.items() if figure}

    def asked(self, count: int) -> list[Request]:
        """The next requests on the return path."""
        found: list[Request] = []
        while len(found) < count:
            if one := self._next():
                found.append(one)
            else:
                eventually(lambda: bool(select.select([self.requests], [], [], 1)[0]))
                self._rest += os.read(self.requests, 1 << 16)
        return found

    def _next(self) -> Request | None:
        if len(self._rest) < HEADER.size:
            return None
        header = Header(*HEADER.unpack_from(self._rest))
        end = HEADER.size + header.length
        if len(self._rest) < end:
            return None
        if header.type == Message.REQ_PAGES_ID:
            self._named = self._rest[HEADER.size : end].decode()
        else:
            assert header.type == Message.REQ_PAGES
            assert self._named
        self._rest = self._rest[end:]
        return self._named, header.offset // BASE_PAGE

    def nothing_more_is_asked(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self._rest += os.read(self.requests, 1 << 16)
        return not self._rest


class Fed(FaultThreads):
    """Fault threads of two blocks, of 4096 and of 8 pages, whose faults are written to a pipe."""

    def __init__(self, threads: int = 1, vcpus: tuple[int, ...] = ()) -> None:
        blocks = [anonymous("ram", pages=4096), shared("vram", pages=8)]
        blocks[0].address, blocks[1].address = RAM_AT, VRAM_AT
        self._uffd, self.pipe = os.pipe()
        os.set_blocking(self._uffd, False)
        super().__init__(RAMList(blocks).table(), self._uffd, threads, vcpus)

    def feed(self, *messages: bytes) -> None:
        """Give faults; waits while the pipe is full. A page of them goes in as one."""
        data = b"".join(messages)
        for at in range(0, len(data), BASE_PAGE):
            os.write(self.pipe, data[at : at + BASE_PAGE])

    def unread(self) -> int:
        """Messages that no thread has taken yet."""
        bytes_left = array.array("i", [0])
        fcntl.ioctl(self._uffd, termios.FIONREAD, bytes_left)
        return bytes_left[0] // MESSAGE.size

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        os.close(self._uffd)
        if self.pipe >= 0:
            os.close(self.pipe)


# ---- what is no fault of the guest's ----


def test_poll_may_say_something_and_read_find_nothing() -> None:
    """A socket with a time stamp in its error queue is ready, and has nothing to read."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ready,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for one in (ready, other):
            one.setblocking(False)
            one.bind(("127.0.0.1", 0))
        tx_software, software = 1 << 1, 1 << 4
        ready.setsockopt(socket.SOL_SOCKET, 37, tx_software | software)  # SO_TIMESTAMPING
        ready.sendto(b"", other.getsockname())
        table = RAMList([block := anonymous("ram")])
        block.address = RAM_AT
        with FaultThreads(table.table(), ready.fileno()) as threads:
            eventually(lambda: threads.stats.spurious > 0)
            ready.recvmsg(1, 1000, socket.MSG_ERRQUEUE)
            other.sendto(message(ram(3)), ready.getsockname())
            assert threads.asked(1) == [("ram", 3)]
        assert threads.error is None
        assert threads.count().keys() == {"spurious", "messages", "requests"}


@pytest.mark.parametrize("sent", [message(ram(1))[:20], message(ram(1)) + message(ram(2))[:1]])
def test_a_message_that_is_cut_short_ends_the_thread_with_an_error(sent: bytes) -> None:
    with Fed() as threads:
        threads.feed(sent)
        eventually(lambda: threads.error is not None)
        assert threads.nothing_more_is_asked()
    assert isinstance(threads.error, CoreError)
    assert threads.error.errno == errno.EIO
    assert "a message was cut short" in str(threads.error)


def test_a_descriptor_that_ends_ends_the_thread_with_an_error() -> None:
    """A userfaultfd never does; the thread must not spin on it."""
    with Fed() as threads:
        threads.feed(message(ram(1)))
        assert threads.asked(1) == [("ram", 1)]
        os.close(threads.pipe)
        threads.pipe = -1
        eventually(lambda: threads.error is not None)
    assert "a message was cut short" in str(threads.error)


@pytest.mark.parametrize("event", [0, FORK, REMAP, REMOVE, UNMAP, 255])
def test_an_event_that_is_no_page_fault_is_counted_and_passed_over(event: int) -> None:
    with Fed() as threads:
        threads.feed(message(ram(1), event=event), message(ram(2)), message(ram(3), event=event))
        assert threads.asked(1) == [("ram", 2)]
        eventually(lambda: threads.stats.foreign == 2)
        assert threads.nothing_more_is_asked()
    assert threads.error is None
    assert threads.count() == {"messages": 1, "requests": 1, "foreign": 2}


OUTSIDE = [0, RAM_AT - 1, ram(4096), VRAM_AT - 1, vram(8), (1 << 64) - 1]


@pytest.mark.parametrize("address", OUTSIDE, ids=hex)
def test_a_fault_outside_every_block_is_counted_and_passed_over(address: int) -> None:
    with Fed(vcpus=(7,)) as threads:
        threads.feed(message(address, tid=7), message(vram(7), tid=7))
        assert threads.asked(1) == [("vram", 7)]
    assert threads.error is None
    assert threads.count() == {"messages": 1, "requests": 1, "foreign": 1}
    assert threads.vcpu_faults[0] == 1


# ---- requests ----


def test_faults_are_asked_for_in_their_order_wherever_in_the_page_they_are() -> None:
    with Fed() as threads:
        threads.feed(message(ram(5)), message(vram(0) + 4095), message(ram(4095) + 8))
        assert threads.asked(3) == [("ram", 5), ("vram", 0), ("ram", 4095)]


def test_a_page_that_several_threads_touch_is_asked_for_once() -> None:
    with Fed(vcpus=(11, 12, 13)) as threads:
        threads.feed(*(message(ram(9), tid) for tid in (11, 12, 13, 99, 11)), message(ram(10), 12))
        assert threads.asked(2) == [("ram", 9), ("ram", 10)]
        eventually(lambda: threads.stats.requests == 2)
        assert threads.nothing_more_is_asked()
    assert threads.count() == {"messages": 6, "requests": 2, "shared": 4}
    assert list(threads.vcpu_faults) == [2, 2, 1]


def fill(fd: int) -> int:
    """Make a pipe as small as it can be, and full; how many bytes that took."""
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, BASE_PAGE)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(fd, bytes(BASE_PAGE))
    return filled


@pytest.mark.parametrize("faults", [1, AT_ONCE, 1000])
def test_requests_wait_for_room_in_the_return_path_and_keep_their_order(faults: int) -> None:
    with Fed() as threads:
        filled = fill(threads.c.return_fd)
        wanted = [("vram" if page % 100 == 7 else "ram", page) for page in range(faults)]
        wanted = [(name, page % 8 if name == "vram" else page) for name, page in wanted]
        wanted = list(dict.fromkeys(wanted))
        threads.feed(*(message((ram if n == "ram" else vram)(page)) for n, page in wanted))
        kept = min(len(wanted), AT_ONCE)
        eventually(lambda: threads.stats.deferred == kept)
        # While any is kept no further fault is read: it could not be kept as well.
        assert threads.unread() == len(wanted) - kept
        assert threads.stats.requests == 0
        assert len(os.read(threads.requests, 1 << 16)) == filled
        assert threads.asked(len(wanted)) == wanted
        eventually(lambda: threads.stats.requests == len(wanted))
    assert threads.error is None
    assert threads.stats.messages == len(wanted)


def test_a_thread_that_keeps_requests_quits_all_the_same() -> None:
    with Fed() as threads:
        fill(threads.c.return_fd)
        threads.feed(*(message(ram(page)) for page in range(3 * AT_ONCE)))
        eventually(lambda: threads.stats.deferred == AT_ONCE)
    assert threads.error is None


@pytest.mark.parametrize("threads_of_it", [2, 4, 8])
def test_several_threads_share_the_faults_and_lose_none(threads_of_it: int) -> None:
    """20,000 faults of 8 vCPUs on 4,000 pages, more than the return path has room for at a time."""
    vcpus = tuple(range(100, 108))
    faults = [(i * 7919 % 4000, vcpus[i % 8]) for i in range(20_000)]
    with Fed(threads_of_it, vcpus) as threads:
        feeder = threading.Thread(
            target=threads.feed, args=[message(ram(page), tid) for page, tid in faults]
        )
        feeder.start()
        asked = threads.asked(4000)
        feeder.join()
        eventually(lambda: threads.stats.messages == len(faults))
        eventually(lambda: threads.stats.shared == len(faults) - 4000)
        assert threads.nothing_more_is_asked()
    assert threads.error is None
    assert Counter(asked) == Counter(("ram", page) for page in range(4000))
    assert threads.stats.requests == 4000
    assert threads.stats.foreign == threads.stats.late == 0
    assert list(threads.vcpu_faults) == [2500] * 8
    assert threads.c.fault_running == threads_of_it


def test_several_threads_name_the_block_in_every_request() -> None:
    """None of them knows which one was named last."""
    with Fed(threads=2) as threads:
        threads.feed(message(ram(1)), message(ram(2)), message(vram(3)), message(ram(4)))
        eventually(lambda: threads.stats.requests == 4)
        data = os.read(threads.requests, 1 << 16)
    types = []
    while data:
        header = Header(*HEADER.unpack_from(data))
        types.append(header.type)
        data = data[HEADER.size + header.length :]
    assert types == [Message.REQ_PAGES_ID] * 4


# ---- on real memory ----


class Real(FaultThreads):
    """Fault threads of a registered block of 16 pages."""

    def __init__(self, memory: MemoryManager, features: Feature, threads: int = 1) -> None:
        memory.map()
        self.block: RAMBlock = memory.blocks[0]
        self.block.discard()
        self.userfault = Userfaultfd(features)
        memory.register(self.userfault)
        self._memory = memory
        super().__init__(memory.blocks.table(), self.userfault.fd, threads)

    def place(self, page: int, byte: bytes = b"p") -> None:
        """As the listen thread does: the page, then its bit."""
        self.userfault.copy(self.address(page), byte * BASE_PAGE, BASE_PAGE, BASE_PAGE)
        core.lib.vm_ram_mark_received(self.ram.block, page, 1)

    def address(self, page: int) -> int:
        return self.block.address + page * BASE_PAGE

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        self._memory.unregister()
        self.userfault.close()


@pytest.fixture
def memory(userfault: None) -> Iterator[MemoryManager]:
    with MemoryManager([anonymous(pages=16)]) as memory:
        yield memory


class Toucher(threading.Thread):
    """Reads the first byte of a page; ``found`` is what it was."""

    def __init__(self, block: RAMBlock, page: int) -> None:
        super().__init__(daemon=True)
        self._block, self._page = block, page
        self.found = b""
        self.start()

    def run(self) -> None:
        self.found = self._block.read(self._page * BASE_PAGE, 1)

    def result(self) -> bytes:
        self.join(LONG_S)
        assert not self.is_alive(), "it still waits for its page"
        return self.found


def test_a_fault_on_a_page_that_has_come_meanwhile_is_woken(memory: MemoryManager) -> None:
    """The page is placed without waking anybody, so only the fault thread can."""
    threads = Real(memory, Feature.THREAD_ID)
    toucher = Toucher(threads.block, 3)
    assert select.select([threads.userfault.fd], [], [], LONG_S)[0]  # its fault is queued
    page = core.ffi.new("uint8_t[]", b"l" * BASE_PAGE)
    source = int(core.ffi.cast("uintptr_t", page))
    copy = struct.pack("<QQQQq", threads.address(3), source, BASE_PAGE, COPY_DONTWAKE, 0)
    fcntl.ioctl(threads.userfault.fd, UFFDIO_COPY, copy)
    core.lib.vm_ram_mark_received(threads.ram.block, 3, 1)
    with threads:
        assert toucher.result() == b"l"
        assert threads.nothing_more_is_asked()
    assert threads.error is None
    assert threads.count() == {"messages": 1, "late": 1}


@pytest.mark.parametrize("threads_of_it", [1, 3])
def test_all_that_wait_for_a_page_go_on_when_it_comes(
    memory: MemoryManager, threads_of_it: int
) -> None:
    with Real(memory, Feature.THREAD_ID, threads_of_it) as threads:
        touchers = [Toucher(threads.block, 5) for _ in range(8)]
        assert threads.asked(1) == [("ram", 5)]
        threads.place(5)
        assert [toucher.result() for toucher in touchers] == [b"p"] * 8
        assert threads.nothing_more_is_asked()
    count = threads.count()
    assert count["requests"] == 1
    known = count.get("shared", 0) + count.get("late", 0)
    assert count["messages"] == 1 + known


def test_memory_that_is_given_back_meanwhile_is_an_event_and_no_fault(
    memory: MemoryManager,
) -> None:
    """With EVENT_REMOVE the giver waits until the event has been read."""
    with Real(memory, Feature.THREAD_ID | Feature.EVENT_REMOVE) as threads:
        threads.userfault.require([Feature.EVENT_REMOVE])
        threads.block.discard(0, 4 * BASE_PAGE)
        threads.block.discard(8 * BASE_PAGE, BASE_PAGE)
        toucher = Toucher(threads.block, 2)
        assert threads.asked(1) == [("ram", 2)]
        threads.place(2)
        assert toucher.result() == b"p"
    assert threads.error is None
    assert threads.count() == {"messages": 1, "requests": 1, "foreign": 2}


def test_urgent_pages_are_placed_while_requests_wait_for_room(memory: MemoryManager) -> None:
    """The thread that asks also receives: it must not stop in a write that waits for the source,
    which may wait for it."""
    threads = Real(memory, Feature.THREAD_ID)
    threads.c.urgent_fd, urgent = os.pipe()
    filled = fill(threads.c.return_fd)
    with threads:
        toucher = Toucher(threads.block, 1)
        eventually(lambda: threads.stats.deferred == 1)
        header = Header(
            Message.PAGES, FLAG_URGENT, offset=BASE_PAGE, pages=1, length=BASE_PAGE, queued_ns=1
        )
        os.write(urgent, header.pack() + b"u" * BASE_PAGE)
        assert toucher.result() == b"u"
        assert threads.stats.requests == 0
        assert len(os.read(threads.requests, 1 << 16)) == filled
        assert threads.asked(1) == [("ram", 1)]
    os.close(urgent)
    os.close(threads.c.urgent_fd)
    core.lib.vm_stages_release(core.ffi.addressof(threads.c.stages_urgent))
    assert threads.error is None


def test_an_answer_that_is_there_at_once_is_placed_and_who_tells_to_quit_is_heard(
    memory: MemoryManager,
) -> None:
    """The thread looks for answers and for faults that nothing has announced; here there is always
    one of the two."""
    threads = Real(memory, Feature.THREAD_ID)
    threads.c.urgent_fd, urgent = os.pipe()
    fcntl.fcntl(urgent, fcntl.F_SETPIPE_SZ, 1 << 20)
    zero = Header(Message.ZERO, FLAG_URGENT, offset=BASE_PAGE, pages=1, queued_ns=1).pack()
    other = Header(Message.ZERO, 0, pages=1).pack()
    full = threading.Event()

    def flood() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                os.write(urgent, other * 1000)
                full.set()

    writer = threading.Thread(target=flood)
    with threads:
        toucher = Toucher(threads.block, 1)
        os.write(urgent, zero)
        assert toucher.result() == bytes(1)
        writer.start()
        assert full.wait(LONG_S)
    os.close(threads.c.urgent_fd)
    writer.join(LONG_S)
    os.close(urgent)
    core.lib.vm_stages_release(core.ffi.addressof(threads.c.stages_urgent))
    assert threads.error is None


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("threads", [2, 5])
def test_a_guest_is_served_by_several_threads_and_each_fault_counted(
    threads: int, preempt: bool
) -> None:
    """On demand, each page touched first by one of 8 vCPUs."""
    wanted = scenario(
        [{"name": "ram", "backing": "anonymous", "size": "8MiB"}],
        guest={"vcpus": 8, "trace": synthetic("permutation", write_share=0.5)},
        migration={"postcopy": {"preempt": preempt, "push": False, "fault_threads": threads}},
    )
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.incoming is not None
    figures = run.incoming.figures
    assert figures.fault_running == threads
    assert figures.stats.messages == figures.stats.requests == 2048
    assert (figures.stats.shared, figures.stats.late, figures.stats.foreign) == (0, 0, 0)
    assert sum(worker.figures.faults for worker in run.workers) == 2048
    assert len(run.incoming.requested_pages()) == 2048
