"""The destination's C loops against a source that lies: one clear error, never a crash."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import anonymous, shared

from vmemu import core
from vmemu.core import PeerGone
from vmemu.errors import CoreError, MigrationError, ProtocolError
from vmemu.manager import MemoryManager
from vmemu.protocol import FLAG_URGENT, HEADER, Header, Message
from vmemu.userfault import Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault")
PAGE = 4096
COMPLETE = Header(Message.COMPLETE).pack()
MAX32 = (1 << 32) - 1


class Destination:
    """Two registered blocks and the ``struct vm_incoming`` that fills them."""

    def __init__(self) -> None:
        self.memory = MemoryManager([anonymous("ram", pages=80), shared("vram", pages=8)])
        self.memory.map()
        for block in self.memory.blocks:
            block.discard()
        self.uffd = Userfaultfd(Feature.THREAD_ID | Feature.MISSING_SHMEM)
        self.memory.register(self.uffd)
        self.ram = self.memory.blocks.table()
        self._open()

    def _open(self) -> None:
        self.c = core.ffi.new("struct vm_incoming *")
        self.c.ram, self.c.uffd = self.ram, self.uffd.fd
        self.c.main_fd, self.main = os.pipe()
        self.c.urgent_fd, self.urgent = os.pipe()
        self.requests, self.c.return_fd = os.pipe()
        os.set_blocking(self.c.return_fd, False)
        self.c.fault_threads = 1
        self.c.quit_fd, self.c.bell_fd = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)

    def listen(self, data: bytes) -> None:
        """Run the listen thread's loop here on ``data`` and the end of the channel."""
        self._feed("main", data, core.lib.vm_listen_loop)

    def serve_faults(self, data: bytes) -> None:
        """Run the fault thread's loop here on ``data`` and the end of the urgent channel."""
        self._feed("urgent", data, core.lib.vm_fault_loop, 0)

    def _feed(self, channel: str, data: bytes, loop: object, *arguments: int) -> None:
        def write() -> None:
            with (
                contextlib.suppress(BrokenPipeError),
                os.fdopen(getattr(self, channel), "wb") as end,
            ):
                end.write(data)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            core.call(loop, self.c, *arguments)
        finally:
            setattr(self, channel, -1)
            os.close(getattr(self.c, f"{channel}_fd"))
            setattr(self.c, f"{channel}_fd", -1)
            writer.join()

    def close(self) -> None:
        self.memory.unregister()
        self.uffd.close()
        self.memory.unmap()
        ours = (self.main, self.urgent, self.requests)
        for fd in (*ours, self.c.main_fd, self.c.urgent_fd, self.c.return_fd):
            if fd >= 0:
                os.close(fd)
        os.close(self.c.quit_fd)
        os.close(self.c.bell_fd)


@pytest.fixture
def destination() -> Iterator[Destination]:
    destination = Destination()
    yield destination
    destination.close()


def pages(block: int, first: int, count: int = 1, fill: bytes = b"p", **lies: int) -> bytes:
    """A message of pages; ``lies`` replace fields of its header."""
    fields = {
        "type": Message.PAGES,
        "block": block,
        "offset": first * PAGE,
        "pages": count,
        "length": count * PAGE,
    }
    header = Header(**(fields | lies))
    return header.pack() + fill * min(header.length, 64 * PAGE)


def zeros(block: int, first: int, count: int, **lies: int) -> bytes:
    return pages(block, first, count, **({"type": Message.ZERO, "length": 0} | lies))


EVERYTHING = pages(0, 0, 64, b"a") + zeros(0, 64, 16) + pages(1, 0, 8, b"b")


def test_pages_are_placed_and_counted_by_how_they_came(destination):
    urgent = pages(0, 3, 1, b"u", flags=FLAG_URGENT)
    destination.listen(urgent + EVERYTHING + COMPLETE)
    ram, vram = destination.memory.blocks
    expected = b"a" * 3 * PAGE + b"u" * PAGE + b"a" * 60 * PAGE + bytes(16 * PAGE)
    assert ram.read(0, ram.size) == expected
    assert vram.read(0, vram.size) == b"b" * vram.size
    arrived = [destination.ram.block[i].arrived for i in range(2)]
    assert [(a.requested, a.pushed, a.zero) for a in arrived] == [(1, 63, 16), (0, 8, 0)]
    assert destination.ram.pages_received == destination.ram.pages_total == 88
    assert os.eventfd_read(destination.c.bell_fd) == 1


def test_a_second_copy_that_comes_when_all_is_given_back_is_nothing(destination):
    """What somebody waited for came by the urgent channel, before the push's run that has it."""
    destination.listen(EVERYTHING + COMPLETE)
    destination.memory.unregister()
    destination.c.main_fd, destination.main = os.pipe()
    destination.listen(pages(0, 0, 64, b"x") + zeros(0, 64, 16) + COMPLETE)
    assert destination.memory.blocks[0].read(0, 80 * PAGE) == b"a" * 64 * PAGE + bytes(16 * PAGE)
    assert destination.ram.pages_received == destination.ram.pages_total


def test_a_page_for_memory_that_is_given_back_before_all_is_there_is_an_error(destination):
    destination.memory.unregister()
    with pytest.raises(CoreError, match="mapping that is gone"):
        destination.listen(pages(0, 0, 64))


def test_the_urgent_channel_places_pages_too_and_ends_with_the_source(destination):
    with pytest.raises(PeerGone, match="urgent channel: the source closed the channel"):
        destination.serve_faults(
            pages(0, 0, flags=FLAG_URGENT)
            + zeros(0, 1, 1)
            + pages(1, 7, fill=b"q")
            + zeros(1, 0, 7)
        )
    assert destination.memory.blocks[0].read(PAGE - 1, 2) == b"p\0"
    assert destination.memory.blocks[1].read(7 * PAGE - 1, 2) == b"\0q"
    assert destination.ram.pages_received == 10


@pytest.mark.parametrize("piece", [7, HEADER.size, PAGE - 1, PAGE, 70_000])
def test_messages_come_in_any_pieces(destination, piece):
    data = EVERYTHING + COMPLETE

    def dribble() -> None:
        for at in range(0, len(data), piece):
            os.write(destination.main, data[at : at + piece])

    writer = threading.Thread(target=dribble)
    writer.start()
    assert core.call(core.lib.vm_listen_loop, destination.c) == 0
    writer.join()
    assert destination.ram.pages_received == 88


def test_a_page_that_comes_twice_is_placed_and_counted_once(destination):
    first, again = pages(0, 5, 2, b"1"), pages(0, 4, 4, b"2")
    with pytest.raises(PeerGone):
        destination.listen(first + again + zeros(0, 5, 1))
    assert [destination.memory.blocks[0].read(page * PAGE, 1) for page in range(4, 8)] == [
        b"2",
        b"1",
        b"1",
        b"2",
    ]
    arrived = destination.ram.block[0].arrived
    assert (arrived.pushed, arrived.zero, destination.ram.pages_received) == (4, 0, 4)


def test_a_page_that_overtakes_the_push_is_counted_once_and_splits_its_run(destination):
    with pytest.raises(PeerGone):
        destination.serve_faults(pages(0, 3, fill=b"u", flags=FLAG_URGENT))
    destination.listen(EVERYTHING + COMPLETE)
    ram = destination.memory.blocks[0]
    assert ram.read(2 * PAGE, 3 * PAGE) == b"a" * PAGE + b"u" * PAGE + b"a" * PAGE
    arrived = destination.ram.block[0].arrived
    assert (arrived.requested, arrived.pushed) == (1, 63)
    assert (destination.c.placed_main.exists, destination.c.placed_main.partial) == (1, 1)
    assert destination.c.bytes_received == 72 * PAGE


def test_a_page_that_the_push_was_faster_with_is_left_as_it_is(destination):
    again = pages(0, 3, fill=b"u", flags=FLAG_URGENT)
    destination.listen(EVERYTHING + again + COMPLETE)
    assert destination.memory.blocks[0].read(3 * PAGE, PAGE) == b"a" * PAGE
    assert destination.ram.pages_received == 88
    assert (destination.ram.block[0].arrived.requested, destination.c.stages_main.count) == (0, 0)
    assert destination.c.placed_main.exists == 0


HOSTILE = {
    "unknown-block": (pages(2, 0), "no such block"),
    "block-minus-one": (pages(MAX32, 0), "no such block"),
    "offset-at-the-end": (pages(0, 80), "pages outside the block"),
    "offset-far-past-the-end": (pages(0, 0, offset=(1 << 64) - PAGE), "pages outside the block"),
    "offset-inside-a-page": (pages(0, 0, offset=1), "no whole number of the block's pages"),
    "run-over-the-end": (pages(1, 7, 2), "pages outside the block"),
    "run-without-end": (pages(1, 0, 1, pages=MAX32), "pages outside the block"),
    "no-pages": (pages(0, 0, 0), "pages outside the block"),
    "length-too-short": (pages(0, 0, 2, length=PAGE), "the length is not that of the pages"),
    "length-too-long": (pages(0, 0, 1, length=2 * PAGE), "the length is not that of the pages"),
    "length-endless": (pages(0, 0, 1, length=MAX32), "the length is not that of the pages"),
    "length-zero": (pages(0, 0, 1, length=0), "the length is not that of the pages"),
    "run-longer-than-the-buffer": (pages(0, 0, 65), "the run is too long"),
    "zeros-with-bytes": (zeros(0, 0, 1, length=PAGE), "zero pages carry no bytes"),
    "zeros-outside": (zeros(1, 8, 1), "pages outside the block"),
    "no-zeros": (zeros(0, 0, 0), "pages outside the block"),
    "complete-with-bytes": (Header(Message.COMPLETE, length=8).pack() + bytes(8), "no bytes"),
    "reason-too-long": (Header(Message.FAILED, length=PAGE).pack(), "the reason is too long"),
    "hello-again": (Header(Message.HELLO).pack(), "not expected here"),
    "request": (Header(Message.REQ_PAGES).pack(), "not expected here"),
    "type-zero": (bytes(HEADER.size), "message type 0 .*not expected here"),
    "type-unknown": (b"\xff" * HEADER.size, "message type 65535 .*not expected here"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("loop", ["listen", "serve_faults"])
@pytest.mark.parametrize("before", [b"", pages(0, 40, 2)], ids=["first", "after-pages"])
def test_a_hostile_message_is_one_protocol_error(destination, loop, name, before):
    data, words = HOSTILE[name]
    with pytest.raises(ProtocolError, match=words) as caught:
        getattr(destination, loop)(before + data)
    channel = "main channel" if loop == "listen" else "urgent channel"
    assert str(caught.value).startswith(f"{channel}: message type ")
    assert destination.ram.pages_received == (2 if before else 0)


@pytest.mark.parametrize(
    "sent", [b"", b"\4", Header(Message.PAGES, pages=1, length=PAGE).pack(), pages(0, 0)[:-1]]
)
@pytest.mark.parametrize("loop", ["listen", "serve_faults"])
def test_half_a_message_and_then_the_end_is_a_source_that_is_gone(destination, loop, sent):
    with pytest.raises(PeerGone, match="closed the channel before all pages were sent"):
        getattr(destination, loop)(sent)
    assert destination.ram.pages_received == 0


def test_a_source_that_gives_up_is_quoted(destination):
    reason = b"no memory for the image"
    with pytest.raises(PeerGone, match="the source gave up: no memory for the image"):
        destination.listen(Header(Message.FAILED, length=len(reason)).pack() + reason)


def test_a_reason_of_any_length_is_cut_and_not_overrun(destination):
    with pytest.raises(PeerGone, match="the source gave up: xxx"):
        destination.listen(Header(Message.FAILED, length=PAGE - 1).pack() + b"x" * (PAGE - 1))


def test_the_end_of_the_channel_is_fine_once_all_pages_are_there(destination):
    destination.listen(EVERYTHING)
    assert destination.ram.pages_received == 88


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([Message.PAGES, Message.ZERO, Message.COMPLETE, Message.FAILED, 99]),
            st.integers(0, 2),
            st.integers(0, 90),
            st.integers(0, 70),
            st.sampled_from([None, 0, 1, PAGE, MAX32]),
        ),
        max_size=6,
    ),
    st.binary(max_size=50),
)
def test_whatever_a_source_says_it_ends_in_an_error_of_ours_or_well(said, garbage):
    destination = Destination()
    try:
        data = b""
        for kind, block, first, count, length in said:
            lies = {"type": kind} | ({} if length is None else {"length": length})
            data += (zeros if kind == Message.ZERO else pages)(block, first, count, **lies)
        with contextlib.suppress(MigrationError):
            destination.listen(data + garbage)
        assert destination.ram.pages_received <= destination.ram.pages_total
    finally:
        destination.close()
