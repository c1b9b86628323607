"""The source's C loops against a destination that lies: one clear error, never a crash."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_peer import BIG, NAMES, SMALL, Source, messages, request

from vmemu import core
from vmemu.errors import ProtocolError
from vmemu.protocol import FLAG_URGENT, HEADER, Header, Message

LOOPS = pytest.mark.parametrize("loop", ["vm_source_serve", "vm_source_both"])
OF_VCPU = "vm_source_serve_vcpu"


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    yield source
    source.close()


def test_requests_are_answered_once_a_page_and_flagged_as_urgent(source):
    wanted = request(b"ram", 0) + request(None, 0) + request(None, SMALL, 3) + request(b"huge", BIG)
    sent = messages(source.run("vm_source_serve", wanted))
    assert all(header.flags == FLAG_URGENT and header.pages == 1 for header in sent)
    places = [(header.type, header.block, header.offset, header.length) for header in sent]
    assert places == [
        (Message.PAGES, 0, 0, SMALL),
        (Message.ZERO, 0, SMALL, 0),
        (Message.ZERO, 0, 2 * SMALL, 0),
        (Message.ZERO, 0, 3 * SMALL, 0),
        (Message.ZERO, 1, BIG, 0),
    ]
    assert (source.c.requests, source.c.pages_zero, source.c.pages_urgent) == (4, 4, 1)


def sent_by_the_push(source: Source, block: int, page: int) -> None:
    source.c.image[block].sent[page // 64] |= 1 << page % 64


def test_a_page_that_the_push_has_sent_comes_again_to_whoever_waits_for_it_and_once(source):
    sent_by_the_push(source, 0, 0)
    sent_by_the_push(source, 0, 1)
    sent = messages(source.run("vm_source_serve", request(b"ram", 0, 2) + request(None, SMALL)))
    assert [(header.offset, header.flags) for header in sent] == [
        (0, FLAG_URGENT),
        (SMALL, FLAG_URGENT),
    ]


@pytest.mark.parametrize("hindrance", ["released", "one channel", "withheld", "a page fills it"])
def test_a_page_is_not_sent_again(source, hindrance):
    block = 1 if hindrance == "a page fills it" else 0
    sent_by_the_push(source, block, 0)
    source.c.release_ram = hindrance == "released"
    source.c.withholds = hindrance == "withheld"
    if hindrance == "one channel":
        os.close(source.c.urgent_fd)
        source.c.urgent_fd = -1
    loop = "vm_source_both" if hindrance == "one channel" else "vm_source_serve"
    wanted = request(list(NAMES)[block].encode())
    assert messages(source.run(loop, wanted)) == []


@pytest.mark.parametrize("hint", [0, 1, 7, (1 << 32) - 1])
def test_a_block_is_found_by_its_name_wherever_it_is_said_to_stand(source, hint):
    named = Header(Message.REQ_PAGES_ID, 0, hint, BIG, 1, 4).pack() + b"huge"
    sent = messages(source.run("vm_source_serve", named))
    assert [(header.block, header.offset) for header in sent] == [(1, BIG)]


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_pushed_is_lent_to_a_pipe_and_written_to_anything_else(source, kind):
    if kind == "socket":
        source._close("main", "main_fd")
        ours, theirs = socket.socketpair()
        source.main, source.c.main_fd = ours.detach(), theirs.detach()
    random = os.urandom(BIG)
    for image, size in zip(source.c.image[0:2], (8 * SMALL, 2 * BIG), strict=True):
        core.ffi.memmove(image.data, random, min(size, BIG))
    os.eventfd_write(source.c.push_fd, 1)
    sent = source.run("vm_source_push")
    assert [(header.type, header.block, header.pages) for header in messages(sent)] == [
        (Message.PAGES, 0, 8),
        (Message.PAGES, 1, 1),
        (Message.ZERO, 1, 1),
        (Message.COMPLETE, 0, 0),
    ]
    assert sent[HEADER.size :][: 8 * SMALL] == random[: 8 * SMALL]
    assert sent[2 * HEADER.size + 8 * SMALL :][:BIG] == random


@LOOPS
def test_requests_in_single_bytes_are_put_together(source, loop):
    sent = messages(source.run(loop, request(b"huge", BIG) + request(None, 0), piece=1))
    assert [(header.block, header.offset) for header in sent] == [(1, BIG), (1, 0)]


@LOOPS
def test_many_requests_at_once_are_all_answered(source, loop):
    wanted = b"".join(request(b"ram", page * SMALL) for page in range(8)) * 200
    assert len(messages(source.run(loop, wanted, piece=1 << 16))) == 8
    assert source.c.requests == 1600


@pytest.mark.parametrize(
    ("hostile", "words"),
    [
        (request(b"rom"), "a block that does not exist"),
        (request(b"", type=Message.REQ_PAGES_ID), "a block that does not exist"),
        (request(b"ram\0"), "a block that does not exist"),
        (request(b"ra"), "a block that does not exist"),
        (request(None), "no block was named before"),
        (request(b"ram", 8 * SMALL), "no whole pages of the block"),
        (request(b"ram", 1), "no whole pages of the block"),
        (request(b"huge", SMALL), "no whole pages of the block"),
        (request(b"ram", 0, 0), "no whole pages of the block"),
        (request(b"ram", 0, 9), "no whole pages of the block"),
        (request(b"ram", SMALL, 8), "no whole pages of the block"),
        (request(b"ram", 0, (1 << 32) - 1), "no whole pages of the block"),
        (request(b"ram", (1 << 64) - SMALL, 2), "no whole pages of the block"),
        (request(b"x" * 256), "the length can't be right"),
        (request(b"ram", length=(1 << 32) - 1), "the length can't be right"),
        (request(None, length=3) + b"ram", "the length can't be right"),
        (request(None, type=Message.PUSH, length=1) + b"x", "the length can't be right"),
        (request(None, type=Message.PAGES), "not expected here"),
        (request(None, type=Message.ADVISE), "not expected here"),
        (request(None, type=0), "not expected here"),
        (request(None, type=65535), "not expected here"),
    ],
)
@LOOPS
def test_a_hostile_request_is_one_protocol_error(source, loop, hostile, words):
    with pytest.raises(ProtocolError, match=f"return path: message type .*{words}"):
        source.run(loop, hostile)


@LOOPS
@pytest.mark.parametrize("sent", [b"", b"\x11", request(b"ram")[:25], request(b"ram")[:10]])
def test_half_a_request_and_then_the_end_is_a_destination_that_is_gone(source, loop, sent):
    assert source.run(loop, sent) == b""


@LOOPS
def test_shut_ends_the_source_and_what_follows_is_not_read(source, loop):
    assert source.run(loop, request(None, type=Message.SHUT) + request(b"rom")) == b""


@LOOPS
@given(st.binary(max_size=300))
def test_garbage_is_a_protocol_error_or_the_end(loop, garbage):
    source = Source()
    try:
        with contextlib.suppress(ProtocolError):
            source.run(loop, garbage)
    finally:
        source.close()


def test_a_destination_that_closes_its_ends_stops_the_loops_without_an_error(source):
    source._close("urgent", "main")
    os.write(source.requests, request(b"ram") * 3)
    assert core.call(core.lib.vm_source_serve, source.c) == 0
    assert core.call(core.lib.vm_source_push, source.c) == 0


PUSH = request(None, type=Message.PUSH)
COMPLETE = Header(Message.COMPLETE).pack()


def pushed(sent: bytes) -> list[tuple[int, int]]:
    """(block, page) of every page in a stream of messages that COMPLETE ends."""
    *headers, last = messages(sent)
    assert last.type == Message.COMPLETE
    sizes = [page_size for _, page_size in NAMES.values()]
    return [
        (header.block, header.offset // sizes[header.block] + page)
        for header in headers
        for page in range(header.pages)
    ]


ALL_PAGES = [(0, page) for page in range(8)] + [(1, 0), (1, 1)]


def test_the_push_waits_to_be_asked_then_sends_each_page_once(source):
    os.eventfd_write(source.c.push_fd, 1)
    assert sorted(pushed(source.run("vm_source_push"))) == ALL_PAGES


def test_with_one_channel_the_push_begins_behind_what_was_asked_for(source):
    source._close("urgent", "urgent_fd")
    sent = source.run("vm_source_both", request(b"ram", 3 * SMALL) + PUSH, until=COMPLETE)
    pages = pushed(sent)
    assert pages[:2] == [(0, 3), (0, 4)]
    assert sorted(pages) == ALL_PAGES


def test_a_push_that_is_stopped_before_all_is_sent_does_not_say_that_it_was(source):
    assert source.run("vm_source_serve") == b""
    assert source_after_stop(source) == b""


def source_after_stop(source: Source) -> bytes:
    """What the push still says once the requests have ended."""
    read, source.c.main_fd = os.pipe()
    core.call(core.lib.vm_source_push, source.c)
    source._close("main_fd")
    with os.fdopen(read, "rb") as file:
        return file.read()


# ---- a vCPU that serves itself ----


def test_a_vcpu_is_told_what_goes_another_way(source):
    """It waits for an answer to each of its requests."""
    source.c.image[0].sent[0] = source.c.image[0].asked[0] = 0b110
    wanted = request(b"ram", 0) + request(None, SMALL) + request(None, 0) + request(None, 3 * SMALL)
    sent = messages(source.run(OF_VCPU, wanted))
    assert [(header.type, header.offset, header.pages, header.length) for header in sent] == [
        (Message.PAGES, 0, 1, SMALL),
        (Message.ELSEWHERE, SMALL, 1, 0),
        (Message.ELSEWHERE, 0, 1, 0),
        (Message.ZERO, 3 * SMALL, 1, 0),
    ]


def test_the_end_of_a_vcpu_is_not_that_of_the_source(source):
    source.run(OF_VCPU, request(b"ram", 0))
    assert not source.c.stop


@pytest.mark.parametrize("kind", [Message.PUSH, Message.SHUT, Message.HELLO])
def test_a_vcpu_may_only_ask(source, kind):
    with pytest.raises(ProtocolError, match="not expected from a vCPU"):
        source.run(OF_VCPU, Header(kind).pack())
    assert not source.c.stop
