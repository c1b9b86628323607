"""The bandwidth limit: what it lets go, and that no page that was asked for ever comes near it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu import core
from vmemu.protocol import FLAG_URGENT, HEADER, Header, Message

PAGE = 4096
PAGES = 96
SECOND = 1_000_000_000
BURST = SECOND // 100
NEVER = 1 << 62
"""When the next token comes: long after everybody here is gone."""


def limiter(rate: int, free_at: int = 0):
    made = core.ffi.new("struct vm_limiter *")
    made.bytes_per_second, made.free_at_ns = rate, free_at
    return made


@given(
    rate=st.integers(1, 1 << 40),
    steps=st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, 1 << 20)), max_size=50),
)
def test_no_more_is_let_go_than_the_rate_allows(rate, steps):
    """Over any time: the rate, a burst of what 10 ms bring, and the one run that is under way."""
    made, now, sent, largest, start = limiter(rate), SECOND, 0, 0, SECOND
    for pause, size in steps:
        now += pause
        now += core.lib.vm_limiter_delay(made, now)
        assert core.lib.vm_limiter_delay(made, now) == 0
        core.lib.vm_limiter_charge(made, now, size)
        sent, largest = sent + size, max(largest, size)
        allowed = rate * (now - start + BURST) // SECOND + largest + len(steps)
        assert sent <= allowed


@given(st.integers(0, NEVER), st.integers(0, 1 << 40))
def test_without_a_limit_nothing_waits(now, size):
    made = limiter(0)
    core.lib.vm_limiter_charge(made, now, size)
    assert core.lib.vm_limiter_delay(made, now) == 0
    assert (made.free_at_ns, made.waits) == (0, 0)


class Source:
    """A source of one block that has no token left for ever."""

    def __init__(self, preempt: bool) -> None:
        self.c = core.owned(core.lib.vm_source_create(1), core.lib.vm_source_destroy)
        core.call(core.lib.vm_source_set, self.c, 0, b"ram", PAGES * PAGE, 12)
        core.ffi.memmove(self.c.image[0].data, b"x" * (PAGES * PAGE), PAGES * PAGE)
        self.c.limiter.bytes_per_second = 1 << 20
        self.c.limiter.free_at_ns = NEVER
        self.main, self.c.main_fd = os.pipe()
        self.urgent, self.c.urgent_fd = os.pipe() if preempt else (-1, -1)
        self.c.return_fd, self.requests = os.pipe()
        self.c.push_fd = os.eventfd(0)
        loops = ["vm_source_serve", "vm_source_push"] if preempt else ["vm_source_both"]
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in loops]
        for thread in self._threads:
            thread.start()

    def _run(self, loop: str) -> None:
        core.call(getattr(core.lib, loop), self.c)

    def say(self, message: Message, page: int = 0, name: bytes = b"") -> None:
        header = Header(message, 0, 0, page * PAGE, 1, len(name))
        os.write(self.requests, header.pack() + name)

    def answer(self) -> Header:
        """The next message where urgent pages come; its payload is read, too."""
        fd = self.urgent if self.urgent >= 0 else self.main
        header = Header(*HEADER.unpack(read(fd, HEADER.size)))
        read(fd, header.length)
        return header

    def close(self) -> None:
        os.close(self.requests)
        for thread in self._threads:
            thread.join()
        for fd in (self.main, self.c.main_fd, self.urgent, self.c.urgent_fd, self.c.push_fd):
            if fd >= 0:
                os.close(fd)
        os.close(self.c.return_fd)


def read(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.read(fd, length - len(data))
        assert piece
        data += piece
    return data


@pytest.fixture(params=[True, False], ids=["preempt", "one-channel"])
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    source = Source(request.param)
    yield source
    source.close()


def test_every_page_that_is_asked_for_comes_although_no_token_ever_does(source):
    """An urgent page that waited for a token, even once, would never come: this would not end."""
    source.say(Message.PUSH)
    for page in range(PAGES):
        source.say(
            Message.REQ_PAGES_ID if page == 0 else Message.REQ_PAGES,
            page,
            b"ram"[: 3 * (page == 0)],
        )
        answer = source.answer()
        assert (answer.type, answer.flags, answer.offset) == (
            Message.PAGES,
            FLAG_URGENT,
            page * PAGE,
        )
    assert (source.c.pages_urgent, source.c.pages_pushed, source.c.requests) == (PAGES, 0, PAGES)


def test_what_is_asked_for_takes_no_token_from_the_push(source):
    source.say(Message.PUSH)
    source.say(Message.REQ_PAGES_ID, 0, b"ram")
    for page in range(1, 10):
        source.say(Message.REQ_PAGES, page)
    for _ in range(10):
        source.answer()
    assert source.c.limiter.free_at_ns == NEVER


def test_many_at_once_are_all_answered_before_a_single_page_is_pushed(source):
    for page in range(PAGES):
        source.say(Message.REQ_PAGES_ID, page, b"ram")
    source.say(Message.PUSH)
    assert [source.answer().offset for _ in range(PAGES)] == [page * PAGE for page in range(PAGES)]
    assert source.c.pages_pushed == 0


def test_the_push_does_wait_for_a_token():
    """The other side of it: without one, nothing is pushed, and the end is not held up by that."""
    source = Source(preempt=True)
    source.say(Message.PUSH)
    source.say(Message.REQ_PAGES_ID, 5, b"ram")
    source.answer()
    source.close()
    assert source.c.pages_pushed == 0
    assert source.c.limiter.waits <= 1
