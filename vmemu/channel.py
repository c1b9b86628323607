"""Channels between source and destination, and control messages over them.

A migration has a main channel (source to destination), a return path (destination to source) and,
with preempt, an urgent channel (source to destination) that never waits for the main one. Once
pages flow the C core reads and writes the descriptors; what is here sends and receives the few
messages before and after.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING

from vmemu.errors import HostError, MigrationError, PeerGone, ProtocolError
from vmemu.protocol import HEADER, MAX_CONTROL_PAYLOAD, Header, Message

if TYPE_CHECKING:
    from vmemu.config import Scenario

PIPE_SIZES = (1 << 20, 1 << 18)
"""Bytes asked for in a pipe that carries pages. Above /proc/sys/fs/pipe-max-size an ordinary user
gets EPERM."""
SHARED_PIPE_SIZES = (2 * os.sysconf("SC_PAGESIZE"),)
"""Two messages, as the source uses it (``vm_source_stay_close``): it must not be further ahead."""


@dataclass
class VcpuEnds:
    """One side's ends of what a vCPU that serves itself has for its own: it asks on
    ``return_path``, and ``pages`` brings the answer."""

    return_path: Connection
    pages: Connection


@dataclass
class ChannelEnds:
    """One side's ends. ``urgent`` is None without preempt; ``vcpus`` has an entry a vCPU where they
    serve themselves, else none."""

    main: Connection
    return_path: Connection
    urgent: Connection | None
    vcpus: list[VcpuEnds] = field(default_factory=list)

    def close(self) -> None:
        """Close what is still open."""
        own = [end for vcpu in self.vcpus for end in (vcpu.return_path, vcpu.pages)]
        for end in (self.main, self.return_path, self.urgent, *own):
            if end is not None and not end.closed:
                end.close()

    @property
    def urgent_fd(self) -> int:
        """The descriptor of the urgent channel, or -1."""
        return self.urgent.fileno() if self.urgent is not None else -1


SMALL_PAGE = 32 << 10
"""Bytes up to which a page with its header leaves room in a pipe of the usual 64 KiB."""


def create_pipes(
    preempt: bool, vcpus: int = 0, page_size: int = 4096, *, shared: bool = False
) -> tuple[ChannelEnds, ChannelEnds]:
    """(ends of the destination, ends of the source).

    ``vcpus`` of them serve themselves; ``page_size`` is the largest that they will ask for, bytes.
    ``shared``: pages lie in memory that both have mapped, and the main channel only says which.
    """
    main_read, main_write = _page_pipe(SHARED_PIPE_SIZES if shared else PIPE_SIZES)
    return_read, return_write = Pipe(duplex=False)
    urgent_read, urgent_write = _page_pipe() if preempt else (None, None)
    # The fault thread must never stop in a write: it is also the one who empties the urgent
    # channel.
    os.set_blocking(return_write.fileno(), False)
    destination = ChannelEnds(main_read, return_write, urgent_read)
    source = ChannelEnds(main_write, return_read, urgent_write)
    for _ in range(vcpus):
        asked, ask = Pipe(duplex=False)
        # What pipes of a user may have together is limited: no more than a page needs.
        read, write = _page_pipe() if page_size > SMALL_PAGE else Pipe(duplex=False)
        destination.vcpus.append(VcpuEnds(ask, read))
        source.vcpus.append(VcpuEnds(asked, write))
    return destination, source


def channels_of(scenario: Scenario) -> tuple[ChannelEnds, ChannelEnds]:
    """The channels of a run: (ends of the destination, ends of the source)."""
    postcopy = scenario.migration.postcopy
    own = scenario.guest.vcpus if postcopy.delivery == "sigbus" else 0
    largest = max(block.page_size for block in scenario.blocks)
    shared = scenario.channel.kind == "shm"
    return create_pipes(postcopy.preempt, own, largest, shared=shared)


def _page_pipe(sizes: tuple[int, ...] = PIPE_SIZES) -> tuple[Connection, Connection]:
    read, write = Pipe(duplex=False)
    for size in sizes:
        try:
            fcntl.fcntl(write.fileno(), fcntl.F_SETPIPE_SZ, size)
            break
        except PermissionError:
            continue  # a smaller pipe works too, only slower
    return read, write


def pack(message: Message, payload: bytes = b"", pages: int = 0) -> bytes:
    """A control message as it travels."""
    return Header(message, pages=pages, length=len(payload)).pack() + payload


def send(end: Connection, message: Message, payload: bytes = b"", pages: int = 0) -> None:
    """Send a control message. Raises PeerGone when nobody reads any more."""
    send_bytes(end, pack(message, payload, pages), message.name)


def send_bytes(end: Connection, packed: bytes, what: str) -> None:
    """Send messages that are packed already, as one batch. Raises PeerGone."""
    data = memoryview(packed)
    try:
        while data:
            try:
                data = data[os.write(end.fileno(), data) :]
            except BlockingIOError:
                _ready(end, select.POLLOUT, None)
    except BrokenPipeError:
        raise PeerGone(f"{what} could not be sent: the other end is closed") from None


def try_send(end: Connection, message: Message, pages: int = 0) -> None:
    """Send a control message if there is room for it at once and somebody reads; else leave it."""
    with contextlib.suppress(BrokenPipeError, BlockingIOError):
        os.write(end.fileno(), pack(message, pages=pages))


def receive(end: Connection, expected: Message, timeout_s: float | None = None) -> bytes:
    """The payload of the next message, which must be ``expected``; as ``receive_one_of``."""
    return receive_one_of(end, (expected,), timeout_s)[1]


class NothingCame(MigrationError):
    """The peer lives, and has said nothing for as long as it had."""


def receive_one_of(
    end: Connection, expected: tuple[Message, ...], timeout_s: float | None = None
) -> tuple[Message, bytes]:
    """The next message, which must be one of ``expected``, and its payload.

    Raises PeerGone when the channel ends, ProtocolError for any other message, MigrationError after
    the timeout (None: waits as long as the peer lives) and when the message is FAILED, HostError
    when that says that the host can't. Reads not a byte more than the message: the C core goes on
    from there.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    names = " or ".join(message.name for message in expected)
    header = Header(*HEADER.unpack(_read(end, HEADER.size, names, deadline)))
    return _finish(end, header, expected, deadline)


def receive_payload(
    end: Connection, header: Header, expected: Message, timeout_s: float | None = None
) -> bytes:
    """The payload of a message whose header was read already. Raises as ``receive_one_of``."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    return _finish(end, header, (expected,), deadline)[1]


def _finish(
    end: Connection, header: Header, expected: tuple[Message, ...], deadline: float | None
) -> tuple[Message, bytes]:
    names = " or ".join(message.name for message in expected)
    if header.length > MAX_CONTROL_PAYLOAD:
        raise ProtocolError(
            f"{header.name} of {header.length} bytes is longer than any control message"
        )
    if header.type not in (*expected, Message.FAILED):
        raise ProtocolError(f"{header.name} came where {names} was expected")
    payload = _read(end, header.length, names, deadline)
    if header.type == Message.FAILED:
        # A source that this host can't serve is no failure of the migration.
        kind = HostError if header.pages == HostError.exit_code else MigrationError
        raise kind(f"the source gave up: {payload.decode(errors='replace')}")
    return Message(header.type), payload


def _ready(end: Connection, event: int, timeout_s: float | None) -> bool:
    """Wait for the event, or for the other end to close; False when the time is over."""
    poll = select.poll()  # select() refuses descriptors from 1024 on
    poll.register(end, event)
    return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))


def _read(end: Connection, length: int, expected: str, deadline: float | None) -> bytes:
    data = b""
    while len(data) < length:
        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not _ready(end, select.POLLIN, left):
            raise NothingCame(f"no {expected} came in time")
        piece = os.read(end.fileno(), length - len(data))
        if not piece:
            raise PeerGone(f"the channel was closed while {expected} was expected")
        data += piece
    return data
