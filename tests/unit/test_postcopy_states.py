"""The incoming side's states: a step in the wrong one is refused, and changes nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from support import anonymous

from vmemu.channel import create_pipes, receive
from vmemu.cthread import Bell
from vmemu.errors import MigrationError, StateError
from vmemu.manager import MemoryManager
from vmemu.postcopy import IncomingPostcopy, PostcopyState
from vmemu.protocol import BlockEntry, Message, Summary, unpack_summary

SUMMARY = Summary([BlockEntry("ram", 65536, 4096)], 4096)
STEPS = {
    "advise": lambda incoming: incoming.advise(SUMMARY),
    "receive_precopy": lambda incoming: incoming.receive_precopy(),
    "discard": lambda incoming: incoming.discard("ram", [(0, 4096)]),
    "listen": lambda incoming: incoming.listen(),
    "run": lambda incoming: incoming.run(),
    "pause": lambda incoming: incoming.pause(),
    "resume": lambda incoming: incoming.resume(),
    "request_push": lambda incoming: incoming.request_push(),
}
ALLOWED = {
    "advise": {PostcopyState.NONE},
    "receive_precopy": {PostcopyState.ADVISE},
    "discard": {PostcopyState.ADVISE, PostcopyState.DISCARD},
    "listen": {PostcopyState.ADVISE, PostcopyState.DISCARD},
    "run": {PostcopyState.LISTENING},
    "pause": {PostcopyState.RUNNING},
    "resume": {PostcopyState.PAUSED},
    "request_push": {PostcopyState.LISTENING, PostcopyState.RUNNING},
}
WRONG = [(step, state) for step in STEPS for state in PostcopyState if state not in ALLOWED[step]]


class Side:
    """An incoming side with the source's ends at hand."""

    def __init__(self, preempt: bool = True) -> None:
        self.bell = Bell()
        self.destination, self.source = create_pipes(preempt)
        self.memory = MemoryManager([anonymous()])
        self.memory.map()
        self.incoming = IncomingPostcopy(self.memory, self.destination, 1, self.bell)

    def close(self) -> None:
        self.incoming.end()
        self.destination.close()
        self.source.close()
        self.memory.unmap()
        self.bell.close()


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.close()


@pytest.mark.parametrize(("step", "state"), WRONG, ids=[f"{s}-{t.value}" for s, t in WRONG])
def test_a_step_in_the_wrong_state_is_refused_and_changes_nothing(side, step, state):
    side.incoming.state = state
    try:
        with pytest.raises(StateError) as caught:
            STEPS[step](side.incoming)
        assert f"is in state {state.value}" in str(caught.value)
        assert all(allowed.value in str(caught.value) for allowed in ALLOWED[step])
        assert side.incoming.state is state
        assert side.incoming.uffd is None
        assert side.incoming.ram is None
        assert side.incoming.states == []
        assert not side.incoming.complete
    finally:
        side.incoming.state = PostcopyState.NONE


def test_advise_accepts_what_both_ends_agree_on(side):
    STEPS["advise"](side.incoming)
    assert side.incoming.state is PostcopyState.ADVISE
    assert unpack_summary(receive(side.source.return_path, Message.ADVISE, 5)) == SUMMARY


@pytest.mark.parametrize(
    ("announced", "target", "words"),
    [
        ([BlockEntry("rom", 65536, 4096)], 4096, "blocks rom at the source, ram here"),
        ([], 4096, "blocks .*ram here"),
        ([BlockEntry("ram", 65536, 4096)] * 2, 4096, "blocks ram, ram at the source, ram here"),
        ([BlockEntry("ram", 4096, 4096)], 4096, "block ram: 4,096 bytes at the source, 65536 here"),
        ([BlockEntry("ram", 65536, 2 << 20)], 4096, "pages of 2MiB at the source, 4KiB here"),
        (
            [BlockEntry("ram", 65536, 4096)],
            16384,
            "target page size 16384 at the source, 4096 here",
        ),
        (
            [BlockEntry("ram", 1, 2)],
            3,
            "target page size 3 .*; block ram: 1 byte .*; block ram: pages of 2B",
        ),
    ],
)
def test_advise_names_all_that_differs_and_stays(side, announced, target, words):
    with pytest.raises(MigrationError, match=words):
        side.incoming.advise(Summary(announced, target))
    assert side.incoming.state is PostcopyState.NONE
    STEPS["advise"](side.incoming)


@pytest.mark.parametrize("advised", [False, True])
def test_the_end_tells_the_source_and_closes_every_descriptor(advised):
    before = set(os.listdir("/proc/self/fd"))
    side = Side()
    if advised:
        STEPS["advise"](side.incoming)
    side.incoming.end()
    assert side.incoming.state is PostcopyState.END
    if advised:
        receive(side.source.return_path, Message.ADVISE, 5)
    receive(side.source.return_path, Message.SHUT, 5)
    assert side.source.return_path.poll(5)  # its end
    side.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_end_may_come_twice(side):
    side.incoming.end()
    side.incoming.end()
    receive(side.source.return_path, Message.SHUT, 5)
    with pytest.raises(MigrationError, match="closed"):
        receive(side.source.return_path, Message.SHUT, 5)


@pytest.mark.parametrize("preempt", [True, False])
def test_the_end_waits_for_no_source_that_stands_still(preempt):
    """Its return path is full and nobody reads it: what the end has to say is left unsaid."""
    side = Side(preempt)
    STEPS["advise"](side.incoming)
    fd = side.destination.return_path.fileno()
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"\0")
    side.incoming.end()
    assert side.incoming.state is PostcopyState.END
    assert side.destination.return_path.closed
    side.close()


def test_the_end_does_not_mind_a_source_that_is_gone(side):
    side.source.close()
    side.incoming.end()
    assert side.incoming.state is PostcopyState.END


def test_the_end_goes_through_with_every_step_whatever_one_of_them_says(side):
    def fail() -> None:
        raise MigrationError("this one fails")

    side.memory.unregister = fail
    with pytest.raises(MigrationError, match="this one fails"):
        side.incoming.end()
    receive(side.source.return_path, Message.SHUT, 5)
    assert side.destination.main.closed
    del side.memory.unregister
