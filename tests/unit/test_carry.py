"""What goes along with the answer to a request: which pages, in which order, each once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_peer import BIG, NAMES, SMALL, Source, request

from vmemu import core
from vmemu.errors import ProtocolError
from vmemu.protocol import FLAG_AHEAD, FLAG_AROUND, FLAG_URGENT, HEADER, Header, Message

PAGES = 100
ONE = {"ram": (PAGES * SMALL, SMALL)}
LONGEST = 32
"""Pages of 4 KiB in one message that nobody waits for."""
LOOPS = pytest.mark.parametrize("loop", ["vm_source_serve", "vm_source_both"])


def ahead(page: int, pages: int, stride: int, name: bytes = b"ram", size: int = SMALL) -> bytes:
    """A request for a page, with ``pages - 1`` more at a stride."""
    as_unsigned = stride % (1 << 64)
    return request(name, page * size, pages, flags=FLAG_AHEAD, queued_ns=as_unsigned)


def whole(names: dict[str, tuple[int, int]]) -> Source:
    """A source without any page of zeros."""
    source = Source(names)
    for index, (size, page_size) in enumerate(names.values()):
        for offset in range(0, size, page_size):
            source.c.image[index].data[offset] = 1
    return source


@pytest.fixture
def source() -> Iterator[Source]:
    source = whole(ONE)
    yield source
    source.close()


def answers(source: Source, loop: str, requests: bytes, pages: int) -> list[Header]:
    """The messages of the channel that answers, whose end is closed when so many pages came."""
    if loop == "vm_source_both":
        source._close("urgent", "urgent_fd")
    fd = source.main if loop == "vm_source_both" else source.urgent
    found: list[Header] = []

    def read() -> None:
        with os.fdopen(os.dup(fd), "rb") as file:
            while head := file.read(HEADER.size):
                found.append(Header(*HEADER.unpack(head)))
                file.read(found[-1].length)
                if sum(header.pages for header in found) >= pages:
                    source._close("requests")

    reader = threading.Thread(target=read)
    reader.start()
    os.write(source.requests, requests)
    try:
        core.call(getattr(core.lib, loop), source.c)
    finally:
        source._close("main_fd", "urgent_fd")
        reader.join()
    return found


def places(found: Sequence[Header]) -> list[tuple[int, int, int]]:
    """(flags, first page, pages) of each message, all of pages of 4 KiB."""
    return [(header.flags, header.offset // SMALL, header.pages) for header in found]


# ---- around a page ----


@LOOPS
def test_the_page_comes_first_then_what_is_behind_it_then_what_is_before(source, loop):
    source.c.fault_around = 16
    found = answers(source, loop, request(b"ram", 20 * SMALL), 16)
    assert places(found) == [(FLAG_URGENT, 20, 1), (FLAG_AROUND, 21, 11), (FLAG_AROUND, 16, 4)]
    assert source.c.pages_carried == 15
    assert [bool(header.queued_ns) for header in found] == [True, False, False]


@LOOPS
@pytest.mark.parametrize("around", [0, 1])
def test_a_window_of_one_page_brings_nothing(source, loop, around):
    source.c.fault_around = around
    assert places(answers(source, loop, request(b"ram", 20 * SMALL), 1)) == [(FLAG_URGENT, 20, 1)]


def test_the_last_window_ends_with_the_block(source):
    source.c.fault_around = 64
    found = answers(source, "vm_source_serve", request(b"ram", 99 * SMALL), 36)
    assert places(found)[0] == (FLAG_URGENT, 99, 1)
    assert sorted(page for _, first, n in places(found) for page in range(first, first + n)) == [
        *range(64, PAGES)
    ]


def test_no_message_is_longer_than_128_kib(source):
    source.c.fault_around = 100
    found = answers(source, "vm_source_serve", request(b"ram", 0), PAGES)
    assert max(header.length for header in found) == LONGEST * SMALL


def test_what_was_sent_is_left_out(source):
    source.c.fault_around = 8
    wanted = request(b"ram", 8 * SMALL) + request(None, 11 * SMALL) + request(None, 8 * SMALL)
    found = places(answers(source, "vm_source_serve", wanted, 8))
    assert found[:2] == [(FLAG_URGENT, 8, 1), (FLAG_URGENT, 11, 1)]
    assert sorted(found[2:]) == [(FLAG_AROUND, 9, 2), (FLAG_AROUND, 12, 4)]


def test_many_zeros_and_others_travel_apart():
    source = Source(ONE)
    source.c.image[0].data[5 * SMALL] = 1
    source.c.fault_around = 8
    found = answers(source, "vm_source_serve", request(b"ram", 0), 8)
    source.close()
    told = [(h.type, h.offset // SMALL, h.pages) for h in found]
    assert told == [
        (Message.PAGES, 0, 1),
        (Message.ZERO, 1, 4),
        (Message.PAGES, 5, 1),
        (Message.ZERO, 6, 2),
    ]


@pytest.mark.parametrize(
    ("shared", "told"),
    [
        (False, [(Message.PAGES, 0, 1), (Message.PAGES, 1, 5), (Message.ZERO, 6, 2)]),
        (
            True,
            [
                (Message.PAGES, 0, 1),
                (Message.PAGES, 1, 1),
                (Message.ZERO, 2, 3),
                (Message.PAGES, 5, 1),
                (Message.ZERO, 6, 2),
            ],
        ),
    ],
)
def test_few_zeros_between_others_travel_with_them_where_bytes_travel(shared, told):
    source = Source(ONE)
    if shared:
        fd = os.memfd_create("image")
        os.truncate(fd, PAGES * SMALL)
        core.call(core.lib.vm_source_share, source.c, 0, fd, False)
        os.close(fd)
    for page in (0, 1, 5):
        source.c.image[0].data[page * SMALL] = 1
    source.c.fault_around = 8
    found = answers(source, "vm_source_serve", request(b"ram", 0), 8)
    source.close()
    assert [(h.type, h.offset // SMALL, h.pages) for h in found] == told


def test_a_window_holds_a_mebibyte_at_most_so_large_pages_come_alone():
    source = whole(NAMES)
    source.c.fault_around = 256
    found = answers(source, "vm_source_serve", request(b"huge", BIG), 1)
    source.close()
    assert [(h.flags, h.offset, h.pages) for h in found] == [(FLAG_URGENT, BIG, 1)]


# ---- ahead of a vCPU ----


@LOOPS
@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        (ahead(10, 5, 1), [(FLAG_URGENT, 10, 1), (FLAG_AHEAD, 11, 4)]),
        (ahead(10, 5, -1), [(FLAG_URGENT, 10, 1), (FLAG_AHEAD, 6, 4)]),
        (ahead(10, 3, 7), [(FLAG_URGENT, 10, 1), (FLAG_AHEAD, 17, 1), (FLAG_AHEAD, 24, 1)]),
        (ahead(10, 2, -10), [(FLAG_URGENT, 10, 1), (FLAG_AHEAD, 0, 1)]),
        (ahead(99, 1, 1), [(FLAG_URGENT, 99, 1)]),
    ],
)
def test_pages_ahead_follow_the_first_at_their_stride(source, loop, wanted, sent):
    assert places(answers(source, loop, wanted, sum(n for _, _, n in sent))) == sent


def test_a_page_that_is_on_its_way_still_has_what_is_ahead_of_it_sent(source):
    wanted = request(b"ram", 10 * SMALL) + ahead(10, 3, 1)
    found = places(answers(source, "vm_source_serve", wanted, 3))
    assert found == [(FLAG_URGENT, 10, 1), (FLAG_AHEAD, 11, 2)]


@LOOPS
@pytest.mark.parametrize(
    "hostile",
    [
        ahead(10, 91, 1),
        ahead(10, 12, -1),
        ahead(10, 2, 90),
        ahead(10, 2, -11),
        ahead(10, 2, 0),
        ahead(10, 0, 1),
        ahead(100, 1, 1),
        ahead(10, (1 << 32) - 1, (1 << 63) - 1),
        ahead(10, 2, -(1 << 63)),
        ahead(10, 3, 1 << 62),
    ],
)
def test_what_is_ahead_has_to_be_in_the_block(source, loop, hostile):
    with pytest.raises(ProtocolError, match="no whole pages of the block"):
        source.run(loop, hostile)


# ---- whatever is asked for ----

REQUESTS = st.lists(
    st.tuples(st.integers(0, PAGES - 1), st.integers(1, 40), st.sampled_from([1, -1, 3, -7, 50])),
    min_size=1,
    max_size=20,
)


@LOOPS
@given(asked=REQUESTS, around=st.sampled_from([0, 4, 10, 256]), zeros=st.sets(st.integers(0, 99)))
@settings(max_examples=60, deadline=None)
def test_each_page_of_all_windows_comes_once_and_no_other(loop, asked, around, zeros):
    source = whole(ONE)
    source.c.fault_around = around
    for page in zeros:
        core.ffi.memmove(source.c.image[0].data + page * SMALL, bytes(SMALL), SMALL)
    wanted, due = b"", set()
    for page, most, stride in asked:
        last = max(0, min(PAGES - 1, page + (most - 1) * stride))
        pages = 1 + (last - page) // stride
        wanted += ahead(page, pages, stride)
        due |= {page + n * stride for n in range(pages)}
        if around:
            first = page - page % around
            due |= set(range(first, min(first + around, PAGES)))
    try:
        found = answers(source, loop, wanted, len(due))
    finally:
        source.close()
    came = [page for _, first, n in places(found) for page in range(first, first + n)]
    assert sorted(came) == sorted(due)
    assert all(header.pages <= LONGEST for header in found)
    for header in found:
        pages = range(header.offset // SMALL, header.offset // SMALL + header.pages)
        kinds = "".join("0" if page in zeros else "1" for page in pages)
        if header.type == Message.ZERO:
            assert "1" not in kinds
        else:  # zeros only in between, and few
            assert kinds == kinds.strip("0")
            assert "0000" not in kinds
        assert header.pages == 1 or not header.flags & FLAG_URGENT
