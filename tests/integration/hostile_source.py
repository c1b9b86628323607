"""A source process that says what it is told to: it provokes what the destination refuses."""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from vmemu.channel import ChannelEnds, receive, send, send_bytes
from vmemu.errors import PeerGone
from vmemu.protocol import Message, Summary
from vmemu.source_loader import BASE_PAGE, SourceProcess, hear


@dataclass(frozen=True)
class Lies:
    """What it says: ``instead_of_hello``, or HELLO and, once the destination agrees, ``then``."""

    then: bytes = b""
    instead_of_hello: bytes = b""


def serve(told: Connection, ends: ChannelEnds, lies: Lies) -> None:
    """Say it, then wait until the destination has had enough; ends with 0."""
    spec = hear(told)
    with contextlib.suppress(PeerGone):
        if lies.instead_of_hello:
            send_bytes(ends.main, lies.instead_of_hello, "lies")
        else:
            send(ends.main, Message.HELLO, Summary(list(spec.blocks), BASE_PAGE).pack())
            receive(ends.return_path, Message.ADVISE)
            send_bytes(ends.main, lies.then, "lies")
        _wait_for_the_end(ends.return_path.fileno())


def _wait_for_the_end(return_path: int) -> None:
    poll = select.poll()
    poll.register(return_path, select.POLLIN)
    while poll.poll() and os.read(return_path, 4096):
        pass


def process(channels: tuple[ChannelEnds, ChannelEnds], lies: Lies) -> SourceProcess:
    """It in the place of the real one."""
    return SourceProcess(channels, partial(serve, lies=lies))
