"""DISCARD: what its payload may say, and what the destination refuses by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import anonymous, shared

from vmemu.channel import create_pipes
from vmemu.cthread import Bell
from vmemu.errors import ProtocolError, StateError
from vmemu.manager import MemoryManager
from vmemu.postcopy import IncomingPostcopy, PostcopyState
from vmemu.protocol import (
    MAX_DISCARDS_PER_COMMAND,
    BlockEntry,
    Summary,
    pack_discard,
    unpack_discard,
)

PAGE = 4096
u64 = st.integers(0, (1 << 64) - 1)
names = st.text(min_size=1, max_size=60).filter(lambda name: 1 <= len(name.encode()) <= 255)

# ---- the payload ----


@given(names, st.lists(st.tuples(u64, u64), min_size=1, max_size=MAX_DISCARDS_PER_COMMAND))
def test_what_is_packed_is_what_is_unpacked(name, ranges):
    assert unpack_discard(pack_discard(name, ranges)) == (name, ranges)


def test_a_name_may_have_255_bytes():
    assert unpack_discard(pack_discard("x" * 255, [(0, PAGE)]))[0] == "x" * 255


@given(st.binary(max_size=300))
def test_garbage_is_a_protocol_error_or_well_formed(payload):
    try:
        name, ranges = unpack_discard(payload)
    except ProtocolError:
        return
    assert 1 <= len(ranges) <= MAX_DISCARDS_PER_COMMAND
    assert len(payload) == 1 + payload[0] + 16 * len(ranges)
    assert name


@pytest.mark.parametrize("count", [0, MAX_DISCARDS_PER_COMMAND + 1, 100])
def test_a_command_has_one_to_twelve_ranges(count):
    with pytest.raises(ProtocolError, match=f"a discard has {count} ranges; 1 to 12 are allowed"):
        unpack_discard(pack_discard("ram", [(0, PAGE)] * count))


@given(names, st.integers(1, 12), st.integers(1, 1000))
def test_a_payload_that_is_cut_is_not_well_formed(name, count, cut):
    whole = pack_discard(name, [(0, PAGE)] * count)
    if cut % 16 and cut <= len(whole):
        with pytest.raises(ProtocolError, match="not well formed"):
            unpack_discard(whole[:-cut])


def test_a_name_that_is_no_text_is_shown_all_the_same():
    assert unpack_discard(b"\x02\xff\xfe" + bytes(16)) == ("\ufffd\ufffd", [(0, 0)])


# ---- the destination ----


class Side:
    """A destination after advise, its memory filled as pre-copy would."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.destination, self.source = create_pipes(preempt=True)
        self.memory = MemoryManager([anonymous("ram", 8), shared("vram", 4)])
        self.memory.map()
        self.incoming = IncomingPostcopy(self.memory, self.destination, 1, self.bell)
        entries = [BlockEntry("ram", 8 * PAGE, PAGE), BlockEntry("vram", 4 * PAGE, PAGE)]
        self.incoming.advise(Summary(entries, PAGE))
        for block in self.memory.blocks:
            block.write(0, b"x" * block.size)

    def held(self) -> list[list[int]]:
        """Pages of each block that still have what was written there."""
        return [
            [p for p in range(block.pages) if block.read(p * PAGE, 1) == b"x"]
            for block in self.memory.blocks
        ]

    def close(self) -> None:
        self.incoming.end()
        self.source.close()
        self.memory.unmap()
        self.bell.close()


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.close()


ALL = [list(range(8)), list(range(4))]


def test_pages_are_forgotten_and_counted(side):
    side.incoming.discard("ram", [(0, PAGE), (2 * PAGE, 3 * PAGE)])
    side.incoming.discard("vram", [(3 * PAGE, PAGE)])
    assert side.held() == [[1, 5, 6, 7], [0, 1, 2]]
    assert side.incoming.state is PostcopyState.DISCARD
    discards = side.incoming.discards
    assert (discards.commands, discards.ranges, discards.bytes) == (2, 3, 5 * PAGE)


REFUSED = [
    ("rom", [(0, PAGE)], "ranges of block 'rom', which does not exist"),
    ("", [(0, PAGE)], "ranges of block '', which does not exist"),
    ("RAM", [(0, PAGE)], "ranges of block 'RAM', which does not exist"),
    ("ram", [(8 * PAGE, PAGE)], "block ram: a discard of 0x8000+0x1000 lies outside its 0x8000"),
    ("ram", [(0, 9 * PAGE)], "block ram: a discard of 0x0+0x9000 lies outside its 0x8000"),
    ("ram", [(7 * PAGE, 2 * PAGE)], "block ram: a discard of 0x7000+0x2000 lies outside"),
    ("ram", [((1 << 64) - PAGE, PAGE)], "block ram: a discard of ... lies outside"),
    ("ram", [((1 << 64) - PAGE, 2 * PAGE)], "block ram: a discard of ... lies outside"),
    ("vram", [(0, 8 * PAGE)], "block vram: a discard of 0x0+0x8000 lies outside"),
    ("ram", [(1, PAGE)], "block ram: a discard of 0x1+0x1000 is no whole number of pages of 4KiB"),
    ("ram", [(0, 4095)], "block ram: a discard of 0x0+0xfff is no whole number of pages of 4KiB"),
    ("ram", [(PAGE, 0)], "block ram: a discard of 0x1000+0x0 is no whole number of pages of 4KiB"),
]


@pytest.mark.parametrize(("name", "ranges", "words"), REFUSED)
@pytest.mark.parametrize("position", ["alone", "last"])
def test_a_refused_command_changes_nothing_not_even_in_part(side, name, ranges, words, position):
    before = [(0, PAGE)] if position == "last" else []
    with pytest.raises(ProtocolError) as caught:
        side.incoming.discard(name, before + ranges)
    assert all(part in str(caught.value) for part in words.split("..."))
    assert side.held() == ALL
    assert side.incoming.state is PostcopyState.ADVISE
    assert side.incoming.discards.commands == 0


def test_a_refusal_in_the_middle_keeps_what_was_done_before(side):
    side.incoming.discard("ram", [(0, PAGE)])
    with pytest.raises(ProtocolError):
        side.incoming.discard("ram", [(PAGE, PAGE), (8 * PAGE, PAGE)])
    assert side.held() == [[1, 2, 3, 4, 5, 6, 7], ALL[1]]
    assert side.incoming.state is PostcopyState.DISCARD
    assert side.incoming.discards.commands == 1


@pytest.mark.parametrize(
    "state", sorted({*PostcopyState} - {PostcopyState.ADVISE, PostcopyState.DISCARD}, key=str)
)
def test_a_discard_in_the_wrong_state_is_refused(side, state):
    now, side.incoming.state = side.incoming.state, state
    try:
        with pytest.raises(StateError, match="discard needs state advise or discard") as caught:
            side.incoming.discard("ram", [(0, PAGE)])
        assert f"is in state {state.value}" in str(caught.value)
    finally:
        side.incoming.state = now
    assert side.held() == ALL
    assert side.incoming.discards.commands == 0
