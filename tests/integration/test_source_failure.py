"""A source that can't go on says so on the main channel, whatever else its threads wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from vmemu.affinity import Places
from vmemu.channel import ChannelEnds, create_pipes, receive, send, send_bytes
from vmemu.content import ContentSpec
from vmemu.errors import HostError, MigrationError
from vmemu.protocol import BlockEntry, Header, Message, Summary
from vmemu.source_loader import BASE_PAGE, SourceProcess, SourceSpec

pytestmark = pytest.mark.usefixtures("nothing_left")
PAGE = 4096
RAM = BlockEntry("ram", 16 * PAGE, PAGE)
SUMMARY = Summary([RAM], BASE_PAGE)
DELIVERIES = pytest.mark.parametrize("vcpus", [0, 2], ids=["thread", "sigbus"])


NOWHERE = frozenset({1023})
"""A CPU that no machine of a test has."""


@contextlib.contextmanager
def flipped(vcpus: int, places: Places | None = None) -> Iterator[ChannelEnds]:
    """The destination's ends of a source whose guest has moved; of ``vcpus`` that serve themselves
    none asks for anything."""
    source = SourceProcess(create_pipes(True, vcpus))
    source.start()
    try:
        contents = (ContentSpec(zero_share=0.0),)
        source.tell(SourceSpec(seed=1, blocks=(RAM,), contents=contents, places=places or Places()))
        assert receive(source.ends.main, Message.HELLO, 60) == SUMMARY.pack()
        send(source.ends.return_path, Message.ADVISE, SUMMARY.pack())
        for expected in (Message.FLIP, Message.DISCARD, Message.LISTEN, Message.RUN):
            receive(source.ends.main, expected, 60)
        yield source.ends
    finally:
        source.ends.close()
        source.stop(30)


@DELIVERIES
def test_a_request_that_it_refuses(vcpus: int) -> None:
    beyond = Header(Message.REQ_PAGES_ID, 0, 0, 16 * PAGE, 1, length=len("ram"))
    gave_up = r"the source gave up: return path: .*offset 0x10000"
    with flipped(vcpus) as ends:
        send_bytes(ends.return_path, beyond.pack() + b"ram", "a request")
        with pytest.raises(MigrationError, match=gave_up):
            receive(ends.main, Message.COMPLETE, 60)


@DELIVERIES
def test_a_cpu_that_is_gone_when_it_begins_to_serve(vcpus: int) -> None:
    """Nobody has asked for the push, which waits for that."""
    with (
        flipped(vcpus, Places({"urgent": (NOWHERE,)})) as ends,
        pytest.raises(HostError, match="can't be moved to CPU 1023"),
    ):
        receive(ends.main, Message.COMPLETE, 60)
