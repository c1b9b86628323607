"""Control messages over pipes: what is said, and every way in which a peer can fail to say it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu.channel import ChannelEnds, create_pipes, receive, send
from vmemu.core import PeerGone
from vmemu.cthread import Bell
from vmemu.errors import MigrationError, ProtocolError
from vmemu.protocol import HEADER, MAX_CONTROL_PAYLOAD, Header, Message

HIGH = 1500
"""A descriptor above the 1024 that select(2) can watch."""


@contextlib.contextmanager
def pipes(preempt: bool = True) -> Iterator[tuple[ChannelEnds, ChannelEnds]]:
    destination, source = create_pipes(preempt)
    try:
        yield destination, source
    finally:
        destination.close()
        source.close()


@pytest.fixture
def ends() -> Iterator[tuple[ChannelEnds, ChannelEnds]]:
    with pipes() as both:
        yield both


@pytest.fixture
def high_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= HIGH:
        pytest.skip(f"no more than {hard} descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 1), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def raw(source: ChannelEnds, data: bytes) -> None:
    os.write(source.main.fileno(), data)


# ---- what works ----


@given(st.binary(max_size=5000))
def test_a_payload_arrives_as_it_was_sent(payload):
    with pipes() as (destination, source):
        send(source.main, Message.HELLO, payload)
        assert receive(destination.main, Message.HELLO, 5) == payload


def test_both_directions_carry_messages(ends):
    destination, source = ends
    send(destination.return_path, Message.ADVISE)
    assert receive(source.return_path, Message.ADVISE) == b""
    send(source.urgent, Message.RUN, b"x")
    assert receive(destination.urgent, Message.RUN) == b"x"


def test_not_a_byte_more_than_the_message_is_read(ends):
    destination, source = ends
    send(source.main, Message.HELLO, b"abc")
    raw(source, b"what the C core reads")
    assert receive(destination.main, Message.HELLO, 5) == b"abc"
    assert os.read(destination.main.fileno(), 100) == b"what the C core reads"


def test_a_message_in_pieces_is_put_together(ends):
    destination, source = ends
    data = Header(Message.HELLO, length=3).pack() + b"abc"

    def dribble() -> None:
        for byte in data:
            raw(source, bytes([byte]))

    thread = threading.Thread(target=dribble)
    thread.start()
    assert receive(destination.main, Message.HELLO, 30) == b"abc"
    thread.join()


def test_a_message_larger_than_the_pipe_is_sent_whole(ends):
    destination, source = ends
    os.set_blocking(source.main.fileno(), False)
    payload = os.urandom(MAX_CONTROL_PAYLOAD)
    thread = threading.Thread(target=send, args=(source.main, Message.HELLO, payload))
    thread.start()
    assert receive(destination.main, Message.HELLO, 30) == payload
    thread.join()


def test_without_preempt_there_is_no_urgent_channel():
    with pipes(preempt=False) as (destination, source):
        assert destination.urgent is source.urgent is None
        assert destination.urgent_fd == source.urgent_fd == -1
        assert len({destination.main.fileno(), destination.return_path.fileno()}) == 2


@pytest.mark.parametrize(("page_size", "room"), [(4096, 65536), (2 << 20, 1 << 18)])
def test_vcpus_that_serve_themselves_have_pipes_of_their_own(page_size, room):
    destination, source = create_pipes(True, vcpus=3, page_size=page_size)
    try:
        assert len(destination.vcpus) == len(source.vcpus) == 3
        for ours, theirs in zip(destination.vcpus, source.vcpus, strict=True):
            # A vCPU has one request on its way, so a write never waits; a read must.
            for end in (ours.return_path, ours.pages, theirs.return_path, theirs.pages):
                assert os.get_blocking(end.fileno())
            os.write(ours.return_path.fileno(), b"ask")
            assert os.read(theirs.return_path.fileno(), 9) == b"ask"
            os.write(theirs.pages.fileno(), b"page")
            assert os.read(ours.pages.fileno(), 9) == b"page"
            assert fcntl.fcntl(ours.pages.fileno(), fcntl.F_GETPIPE_SZ) >= room
    finally:
        destination.close()
        source.close()
    for ends in (*destination.vcpus, *source.vcpus):
        assert ends.return_path.closed
        assert ends.pages.closed


def test_only_the_return_path_never_stops_its_writer(ends):
    destination, source = ends
    assert not os.get_blocking(destination.return_path.fileno())
    assert os.get_blocking(source.return_path.fileno())
    assert os.get_blocking(source.main.fileno())
    assert os.get_blocking(source.urgent.fileno())


def test_pipes_that_carry_pages_are_larger_than_the_default(ends):
    for end in (ends[1].main, ends[1].urgent):
        assert fcntl.fcntl(end.fileno(), fcntl.F_GETPIPE_SZ) > 65536


REFUSED_PIPES = """
import ctypes, fcntl
from vmemu import channel
version_3_of_this_process = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h
assert ctypes.CDLL(None).capset(version_3_of_this_process, (ctypes.c_uint32 * 6)()) == 0
for sizes in ({beyond}, {below}), ({beyond},):
    channel.PIPE_SIZES = sizes
    _, source = channel.create_pipes(False)
    print(fcntl.fcntl(source.main.fileno(), fcntl.F_GETPIPE_SZ))
"""


def test_a_pipe_that_may_not_be_that_large_is_smaller():
    """Without CAP_SYS_RESOURCE, F_SETPIPE_SZ above pipe-max-size is EPERM."""
    most = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    program = REFUSED_PIPES.format(beyond=2 * most, below=most // 2)
    told = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert told.split() == [str(most // 2), str(min(most, 65536))]


def test_closing_twice_is_safe_and_leaves_no_descriptor():
    before = os.listdir("/proc/self/fd")
    destination, source = create_pipes(True)
    for ends in (destination, source, destination, source):
        ends.close()
    assert os.listdir("/proc/self/fd") == before


# ---- what does not ----


def test_silence_ends_with_the_timeout(ends):
    with pytest.raises(MigrationError, match="no HELLO came in time"):
        receive(ends[0].main, Message.HELLO, 0)


def test_half_a_message_and_silence_ends_with_the_timeout(ends):
    destination, source = ends
    raw(source, Header(Message.HELLO, length=10).pack() + b"abc")
    with pytest.raises(MigrationError, match="no HELLO came in time"):
        receive(destination.main, Message.HELLO, 0.05)


@pytest.mark.parametrize("sent", [b"", b"\1", Header(Message.HELLO, length=3).pack() + b"ab"])
def test_a_closed_channel_is_a_peer_that_is_gone(ends, sent):
    destination, source = ends
    raw(source, sent)
    source.close()
    with pytest.raises(PeerGone, match="closed while HELLO was expected"):
        receive(destination.main, Message.HELLO)


def test_sending_to_nobody_is_a_peer_that_is_gone(ends):
    destination, source = ends
    source.close()
    with pytest.raises(PeerGone, match="ADVISE could not be sent"):
        send(destination.return_path, Message.ADVISE)


def test_another_message_than_the_expected_one_is_named(ends):
    destination, source = ends
    send(source.main, Message.RUN)
    with pytest.raises(ProtocolError, match="RUN came where LISTEN was expected"):
        receive(destination.main, Message.LISTEN, 5)


def test_a_type_that_does_not_exist_is_named_by_its_number(ends):
    destination, source = ends
    raw(source, Header(77).pack())
    with pytest.raises(ProtocolError, match="type 77 came"):
        receive(destination.main, Message.LISTEN, 5)


@pytest.mark.parametrize("message", [Message.HELLO, Message.FAILED, Message.RUN])
def test_a_message_that_claims_to_be_endless_is_refused_at_once(ends, message):
    destination, source = ends
    raw(source, Header(message, length=MAX_CONTROL_PAYLOAD + 1).pack())
    with pytest.raises(ProtocolError, match="longer than any control message"):
        receive(destination.main, Message.HELLO)


@pytest.mark.parametrize("reason", ["no memory for the image", "ünlesbar", ""])
def test_a_source_that_gives_up_is_quoted(ends, reason):
    destination, source = ends
    send(source.main, Message.FAILED, reason.encode())
    with pytest.raises(MigrationError, match=f"the source gave up: {reason}"):
        receive(destination.main, Message.HELLO, 5)


def test_a_reason_that_is_no_text_is_quoted_all_the_same(ends):
    destination, source = ends
    send(source.main, Message.FAILED, b"\xff\xfe")
    with pytest.raises(MigrationError, match="the source gave up"):
        receive(destination.main, Message.HELLO, 5)


@given(st.binary(min_size=HEADER.size, max_size=100))
def test_garbage_is_an_error_of_ours_and_nothing_else(data):
    with pipes() as (destination, source):
        raw(source, data)
        source.close()
        with contextlib.suppress(MigrationError):
            receive(destination.main, Message.HELLO, 5)


# ---- many descriptors ----


@pytest.mark.usefixtures("high_descriptors")
def test_messages_pass_through_descriptors_that_select_cannot_watch():
    with pipes(preempt=False) as (destination, source):
        os.dup2(destination.main.fileno(), HIGH)
        low, destination.main._handle = destination.main._handle, HIGH
        try:
            send(source.main, Message.HELLO, b"abc")
            assert receive(destination.main, Message.HELLO, 5) == b"abc"
        finally:
            destination.main._handle = low
            os.close(HIGH)


@pytest.mark.usefixtures("high_descriptors")
def test_a_bell_is_heard_on_a_descriptor_that_select_cannot_watch():
    bell = Bell()
    os.dup2(bell.fd, HIGH, inheritable=False)
    os.close(bell.fd)
    bell.fd = HIGH
    try:
        assert not bell.wait(0)
        bell.ring()
        assert bell.wait(5)
        assert not bell.wait(0)
    finally:
        bell.close()
        bell.close()
