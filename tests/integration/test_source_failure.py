"""A source that can't go on says so on the main channel, whatever else its threads wait for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmemu.channel import ChannelEnds, create_pipes, receive, send, send_bytes
from vmemu.content import ContentSpec
from vmemu.errors import MigrationError
from vmemu.protocol import BlockEntry, Header, Message, Summary
from vmemu.source_loader import BASE_PAGE, SourceProcess, SourceSpec

pytestmark = pytest.mark.usefixtures("nothing_left")
PAGE = 4096
RAM = BlockEntry("ram", 16 * PAGE, PAGE)
SUMMARY = Summary([RAM], BASE_PAGE)


@pytest.fixture(params=[0, 2], ids=["thread", "sigbus"])
def flipped(request: pytest.FixtureRequest) -> Iterator[ChannelEnds]:
    """The destination's ends of a source whose guest has moved; of vCPUs that serve themselves none
    asks for anything."""
    source = SourceProcess(create_pipes(True, request.param))
    source.start()
    try:
        source.tell(SourceSpec(seed=1, blocks=(RAM,), contents=(ContentSpec(zero_share=0.0),)))
        assert receive(source.ends.main, Message.HELLO, 60) == SUMMARY.pack()
        send(source.ends.return_path, Message.ADVISE, SUMMARY.pack())
        for expected in (Message.FLIP, Message.DISCARD, Message.LISTEN, Message.RUN):
            receive(source.ends.main, expected, 60)
        yield source.ends
    finally:
        source.ends.close()
        source.stop(30)


def test_a_request_that_it_refuses(flipped: ChannelEnds) -> None:
    beyond = Header(Message.REQ_PAGES_ID, 0, 0, 16 * PAGE, 1, length=len("ram"))
    send_bytes(flipped.return_path, beyond.pack() + b"ram", "a request")
    with pytest.raises(MigrationError, match=r"the source gave up: return path: .*offset 0x10000"):
        receive(flipped.main, Message.COMPLETE, 60)
