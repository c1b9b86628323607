"""Pre-copy in the C core against naive Python: what is dirty, what is forgotten, what is there."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import anonymous

from vmemu import core
from vmemu.errors import PeerGone, ProtocolError
from vmemu.manager import MemoryManager
from vmemu.protocol import HEADER, BlockEntry, Header, Message, unpack_discard
from vmemu.source_precopy import MAX_DISCARDS_PER_COMMAND, Precopy, PrecopySpec

PAGE = 4096
SHIFTS = (12, 14, 16)
"""Host pages of 1, 4 and 16 target pages: the loops know no other difference to 2 MiB."""


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int, set[int]]]:
    """(page shift, target pages, dirty ones of them) of some blocks."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        shift = draw(st.sampled_from(SHIFTS))
        targets = draw(st.integers(1, 40)) << (shift - 12)
        dirty = draw(
            st.sets(st.integers(0, targets - 1)) | st.just(set()) | st.just(set(range(targets)))
        )
        made.append((shift, targets, dirty))
    return made


def per_page(shift: int) -> int:
    return 1 << (shift - 12)


def runs(pages: set[int]) -> list[tuple[int, int]]:
    """(first, count) of stretches of numbers that follow each other."""
    groups = groupby(enumerate(sorted(pages)), key=lambda pair: pair[1] - pair[0])
    found = [[page for _, page in group] for _, group in groups]
    return [(group[0], len(group)) for group in found]


def bits(words: Any, count: int) -> set[int]:
    """The numbers of the bits that are set in a C bitmap."""
    return {bit for bit in range(count) if words[bit >> 6] >> (bit & 63) & 1}


def put_bits(words: Any, wanted: set[int], count: int) -> None:
    for word in range((count + 63) // 64):
        words[word] = sum(1 << (bit & 63) for bit in wanted if bit >> 6 == word)


# ---- the source ----


class Images:
    """A ``struct vm_source`` whose dirty bits are the layout's."""

    def __init__(self, layout: list[tuple[int, int, set[int]]]) -> None:
        self.layout = layout
        self.c = core.owned(core.lib.vm_source_create(len(layout)), core.lib.vm_source_destroy)
        for index, (shift, targets, dirty) in enumerate(layout):
            name = f"b{index}".encode()
            core.call(core.lib.vm_source_set, self.c, index, name, targets * PAGE, shift)
            put_bits(self.c.image[index].dirty, dirty, targets)

    def entries(self) -> tuple[BlockEntry, ...]:
        return tuple(
            BlockEntry(f"b{index}", targets * PAGE, 1 << shift)
            for index, (shift, targets, _) in enumerate(self.layout)
        )


def test_at_first_all_is_dirty_and_nothing_is_sent():
    source = core.owned(core.lib.vm_source_create(1), core.lib.vm_source_destroy)
    core.call(core.lib.vm_source_set, source, 0, b"ram", 70 * PAGE, 12)
    assert bits(source.image[0].dirty, 128) == set(range(70))
    assert bits(source.image[0].sent, 128) == set()
    assert core.lib.vm_source_dirty(source, 0) == 70


@given(layouts())
def test_canonicalise_rounds_to_host_pages_and_the_rest_counts_as_sent(layout):
    source = Images(layout)
    for index, (shift, targets, dirty) in enumerate(layout):
        assert core.lib.vm_source_dirty(source.c, index) == len(dirty)
        host = {page // per_page(shift) for page in dirty}
        assert core.lib.vm_source_canonicalise(source.c, index) == len(host)
        image = source.c.image[index]
        assert bits(image.dirty, targets) == {
            page for page in range(targets) if page // per_page(shift) in host
        }
        assert bits(image.sent, image.pages) == set(range(image.pages)) - host


@given(layouts(), st.booleans())
def test_dirty_runs_are_the_stretches_of_dirty_host_pages(layout, canonical):
    source = Images(layout)
    for index, (shift, _, dirty) in enumerate(layout):
        if canonical:
            core.lib.vm_source_canonicalise(source.c, index)
        first, found = core.ffi.new("uint64_t *"), []
        while count := core.lib.vm_source_dirty_run(source.c, index, first):
            found.append((first[0], count))
            first[0] += count
        assert first[0] == source.c.image[index].pages
        assert found == runs({page // per_page(shift) for page in dirty})


def test_a_run_that_is_looked_for_behind_the_end_is_none():
    source = Images([(14, 8, {0, 7})])
    first = core.ffi.new("uint64_t *", 2)
    assert core.lib.vm_source_dirty_run(source.c, 0, first) == 0


@given(layouts())
def test_the_flip_discards_all_dirty_host_pages_in_commands_of_twelve_ranges(layout):
    source = Images(layout)
    precopy = Precopy(
        source.c,
        source.entries(),
        PrecopySpec(),
        guest=None,
        after_ns=None,
        main=None,
        note=lambda *_, **__: None,
    )
    precopy.stopped_ns = 1
    batch = messages(precopy.package())
    assert [header.type for header, _ in batch[-2:]] == [Message.LISTEN, Message.RUN]
    assert batch[0][0].type == Message.FLIP
    found: dict[str, list[tuple[int, int]]] = {}
    commands: dict[str, int] = {}
    for header, payload in batch[1:-2]:
        assert header.type == Message.DISCARD
        name, ranges = unpack_discard(payload)
        assert 1 <= len(ranges) <= MAX_DISCARDS_PER_COMMAND
        found.setdefault(name, []).extend(ranges)
        commands[name] = commands.get(name, 0) + 1
    for index, (shift, _, dirty) in enumerate(layout):
        host = runs({page // per_page(shift) for page in dirty})
        assert found.get(f"b{index}", []) == [(f << shift, n << shift) for f, n in host]
        # As few commands as can be: only the last of a block is not full.
        assert commands.get(f"b{index}", 0) == -(-len(host) // MAX_DISCARDS_PER_COMMAND)


def messages(data: bytes) -> list[tuple[Header, bytes]]:
    """Headers and payloads of a stream of messages."""
    found = []
    while data:
        header = Header(*HEADER.unpack(data[: HEADER.size]))
        end = HEADER.size + header.length
        found.append((header, data[HEADER.size : end]))
        data = data[end:]
    return found


@given(
    st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 9)), min_size=1, max_size=150),
    st.randoms(use_true_random=False),
)
def test_a_harvest_moves_marks_of_the_dictionary_to_where_its_pages_lie(pages, random):
    """Pages of the dictionary may lie anywhere, outside and twice on the same page of a block."""
    source = Images([(12, 10, set()), (14, 12, set())])
    block = np.array([b for b, _ in pages], np.int32)
    offset = np.array([p * PAGE for _, p in pages], np.uint64)
    wanted: list[set[int]] = [set(), set()]
    for _ in range(2):
        written = {page for page in range(len(pages)) if random.random() < 0.3}
        marks = core.ffi.new("uint64_t[]", len(pages) // 64 + 1)
        put_bits(marks, written, len(pages))
        core.lib.vm_source_harvest(
            source.c,
            len(pages),
            core.ffi.from_buffer("int32_t[]", block),
            core.ffi.from_buffer("uint64_t[]", offset),
            marks,
        )
        assert bits(marks, len(pages)) == set()
        for page in written:
            if pages[page][0] >= 0:
                wanted[pages[page][0]].add(pages[page][1])
        assert [bits(source.c.image[i].dirty, 12) for i in range(2)] == wanted


# ---- rounds ----


@contextlib.contextmanager
def reading(fd: int) -> Iterator[bytearray]:
    """What is written to the other end of ``fd`` meanwhile; complete behind the block."""
    sent = bytearray()

    def read() -> None:
        while got := os.read(fd, 1 << 20):
            sent.extend(got)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield sent
    finally:
        thread.join()
        os.close(fd)


def round_of(source: Images) -> list[tuple[Header, bytes]]:
    """What one round sends."""
    fd, source.c.main_fd = os.pipe()
    with reading(fd) as sent:
        core.call(core.lib.vm_source_round, source.c)
        os.close(source.c.main_fd)
    return messages(bytes(sent))


@given(layouts(), st.randoms(use_true_random=False))
def test_a_round_sends_each_dirty_page_once_with_its_bytes_and_cleans_it(layout, random):
    source = Images(layout)
    for index, (_, targets, _) in enumerate(layout):
        data = b"".join(
            bytes(PAGE) if random.random() < 0.4 else bytes([random.randrange(256)]) * PAGE
            for _ in range(targets)
        )
        core.ffi.memmove(source.c.image[index].data, data, len(data))
    begin, *sent = round_of(source)
    assert (begin[0].type, begin[0].pages) == (Message.ROUND, 1)
    found: list[dict[int, bytes]] = [{} for _ in layout]
    for header, payload in sent:
        zero = header.type == Message.PRECOPY_ZERO
        assert zero or header.type == Message.PRECOPY_PAGES
        assert header.length == (0 if zero else header.pages * PAGE) <= 256 << 10
        data = payload or bytes(header.pages * PAGE)
        for page in range(header.pages):
            at = header.offset // PAGE + page
            assert at not in found[header.block]
            found[header.block][at] = data[page * PAGE : (page + 1) * PAGE]
    for index, (_, targets, dirty) in enumerate(layout):
        image = bytes(core.ffi.buffer(source.c.image[index].data, targets * PAGE))
        assert found[index] == {p: image[p * PAGE : (p + 1) * PAGE] for p in dirty}
        assert core.lib.vm_source_dirty(source.c, index) == 0
    # A zero page never costs more than its share of a header, whatever its neighbours are.
    assert source.c.bytes_precopied == sum(len(payload) for _, payload in sent)
    assert source.c.pages_precopied == sum(len(dirty) for _, _, dirty in layout)


def test_a_long_dirty_stretch_travels_in_messages_of_a_bounded_size():
    source = Images([(12, 200, set(range(200)))])
    core.ffi.memmove(source.c.image[0].data, b"x" * (200 * PAGE), 200 * PAGE)
    sizes = [header.pages for header, _ in round_of(source)[1:]]
    assert sizes == [64, 64, 64, 8]


@pytest.mark.parametrize("flag", ["flip", "stop"])
def test_a_round_that_is_over_sends_no_page_and_leaves_all_dirty(flag):
    source = Images([(12, 10, set(range(10)))])
    setattr(source.c, flag, 1)
    assert [header.type for header, _ in round_of(source)] == [Message.ROUND]
    assert core.lib.vm_source_dirty(source.c, 0) == 10


def test_a_round_without_tokens_ends_with_the_flip_and_says_meanwhile_that_it_is_alive():
    source = Images([(12, 10, set(range(10)))])
    source.c.limiter.bytes_per_second = 1
    source.c.limiter.free_at_ns = 1 << 62  # not in this life
    fd, source.c.main_fd = os.pipe()
    heard: list[Header] = []

    def listen() -> None:
        with os.fdopen(fd, "rb") as main:
            while data := main.read(HEADER.size):
                heard.append(Header(*HEADER.unpack(data)))
                if len(heard) == 4:
                    source.c.flip = 1

    thread = threading.Thread(target=listen)
    thread.start()
    core.call(core.lib.vm_source_round, source.c)
    os.close(source.c.main_fd)
    thread.join()
    assert {(header.type, header.pages) for header in heard} == {(Message.ROUND, 1)}
    assert core.lib.vm_source_dirty(source.c, 0) == 10


# ---- the destination ----


class Table:
    """A ``struct vm_ram`` of blocks that no function here touches."""

    def __init__(self, layout: list[tuple[int, int, set[int]]]) -> None:
        self.layout = layout
        self.c = core.owned(core.lib.vm_ram_create(len(layout)), core.lib.vm_ram_destroy)
        for index, (shift, targets, dirty) in enumerate(layout):
            host = (index + 1) << 30
            size = targets * PAGE
            name = f"b{index}".encode()
            assert core.lib.vm_ram_set(self.c, index, name, host, size, shift, shift > 12) == 0
            put_bits(self.c.block[index].precopied, dirty, targets)
        core.lib.vm_ram_seal(self.c)


@given(layouts(), st.data())
def test_forget_clears_whole_host_pages_and_counts_those_that_had_something(layout, data):
    ram = Table(layout)
    for index, (shift, targets, came) in enumerate(layout):
        block = ram.c.block[index]
        zeros = data.draw(st.sets(st.sampled_from(sorted(came)))) if came else set()
        put_bits(block.precopied_zero, zeros, targets)
        pages, left, discarded = targets // per_page(shift), set(came), 0
        for _ in range(data.draw(st.integers(0, 4))):
            first = data.draw(st.integers(0, pages - 1))
            count = data.draw(st.integers(1, pages - first))
            core.lib.vm_precopy_forget(ram.c, index, first << shift, count << shift)
            gone = {t for t in left if first <= t // per_page(shift) < first + count}
            discarded += len({t // per_page(shift) for t in gone})
            left -= gone
        assert bits(block.precopied, targets) == left
        assert bits(block.precopied_zero, targets) == zeros & left
        assert block.discarded == discarded


@given(layouts(), st.data())
def test_settle_counts_whole_pages_once_and_tells_of_parts(layout, data):
    ram = Table(layout)
    received = 0
    for index, (shift, targets, came) in enumerate(layout):
        block, width = ram.c.block[index], per_page(shift)
        zeros = data.draw(st.sets(st.sampled_from(sorted(came)))) if came else set()
        put_bits(block.precopied_zero, zeros, targets)
        inside = {page: {t for t in came if t // width == page} for page in range(targets // width)}
        whole = {page for page, parts in inside.items() if len(parts) == width}
        zero = {page for page in whole if inside[page] <= zeros}
        partial = sum(0 < len(parts) < width for parts in inside.values())
        assert core.lib.vm_precopy_settle(ram.c, index) == partial
        assert bits(block.received, targets // width) == whole
        assert block.arrived.zero == len(zero)
        assert block.arrived.precopied == len(whole) - len(zero)
        assert (block.arrived.requested, block.arrived.pushed) == (0, 0)
        received += len(whole)
    assert ram.c.pages_received == received


@given(layouts())
def test_what_the_source_discards_is_what_keeps_the_destination_from_parts(layout):
    """Both ends together: what is not dirty came, what canonicalise makes dirty is forgotten."""
    source = Images(layout)
    ram = Table([(shift, targets, set(range(targets)) - dirty) for shift, targets, dirty in layout])
    missing = 0
    for index, (shift, _, _) in enumerate(layout):
        missing += core.lib.vm_source_canonicalise(source.c, index)
        first = core.ffi.new("uint64_t *")
        while count := core.lib.vm_source_dirty_run(source.c, index, first):
            core.lib.vm_precopy_forget(ram.c, index, first[0] << shift, count << shift)
            first[0] += count
        assert core.lib.vm_precopy_settle(ram.c, index) == 0
        image, block = source.c.image[index], ram.c.block[index]
        assert bits(image.sent, image.pages) == bits(block.received, image.pages)
    assert ram.c.pages_total - ram.c.pages_received == missing


# ---- the destination reads ----


class Receiver:
    """A block of ordinary memory and the ``struct vm_incoming`` that fills it in pre-copy."""

    def __init__(self) -> None:
        self.memory = MemoryManager([anonymous("ram", pages=80)])
        self.memory.map()
        self.ram = self.memory.blocks.table()
        self.c = core.ffi.new("struct vm_incoming *")
        self.c.ram = self.ram
        self.c.main_fd, self.main = os.pipe()
        self.c.quit_fd = os.eventfd(0)

    def receive(self, data: bytes, piece: int = 1 << 16) -> None:
        def write() -> None:
            with contextlib.suppress(BrokenPipeError), os.fdopen(self.main, "wb", 0) as end:
                for at in range(0, len(data), piece):
                    end.write(data[at : at + piece])

        thread = threading.Thread(target=write)
        thread.start()
        try:
            core.call(core.lib.vm_precopy_receive, self.c)
        finally:
            os.close(self.c.main_fd)
            self.c.main_fd = -1
            thread.join()

    def close(self) -> None:
        if self.c.main_fd >= 0:
            os.close(self.c.main_fd)
            os.close(self.main)
        os.close(self.c.quit_fd)
        self.memory.unmap()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


FLIP = Header(Message.FLIP, length=77).pack()


def pages(first: int, count: int, fill: bytes) -> bytes:
    header = Header(Message.PRECOPY_PAGES, 0, 0, first * PAGE, count, count * PAGE)
    return header.pack() + fill * (count * PAGE)


def zeros(first: int, count: int) -> bytes:
    return Header(Message.PRECOPY_ZERO, 0, 0, first * PAGE, count, 0).pack()


@pytest.mark.parametrize("piece", [1 << 16, 1000, 39])
def test_pages_are_placed_and_the_last_word_counts(receiver, piece):
    sent = (
        Header(Message.ROUND, pages=1).pack() + pages(0, 3, b"a") + zeros(2, 2) + pages(9, 1, b"b")
    )
    sent += Header(Message.ROUND, pages=2).pack() + pages(2, 1, b"c") + zeros(0, 1) + FLIP
    receiver.receive(sent, piece)
    assert (receiver.c.control.type, receiver.c.control.length) == (Message.FLIP, 77)
    assert (receiver.c.rounds, receiver.c.messages) == (2, 8)
    block = receiver.ram.block[0]
    assert bits(block.precopied, 80) == {0, 1, 2, 3, 9}
    assert bits(block.precopied_zero, 80) == {0, 3}
    ram = receiver.memory.blocks[0]
    whole = b"".join(fill * PAGE for fill in (b"\0", b"a", b"c", b"\0"))
    assert ram.read(0, 4 * PAGE) == whole
    assert ram.read(9 * PAGE, PAGE) == b"b" * PAGE


MAX32, MAX64 = (1 << 32) - 1, (1 << 64) - 1


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (Header(Message.PRECOPY_PAGES, 0, 1, 0, 1, PAGE), "no such block"),
        (Header(Message.PRECOPY_ZERO, 0, MAX32, 0, 1, 0), "no such block"),
        (Header(Message.PRECOPY_PAGES, 0, 0, 80 * PAGE, 1, PAGE), "not whole target pages"),
        (Header(Message.PRECOPY_PAGES, 0, 0, 79 * PAGE, 2, 2 * PAGE), "not whole target pages"),
        (Header(Message.PRECOPY_ZERO, 0, 0, 0, MAX32, 0), "not whole target pages"),
        (Header(Message.PRECOPY_ZERO, 0, 0, MAX64 - PAGE + 1, 2, 0), "not whole target pages"),
        (Header(Message.PRECOPY_PAGES, 0, 0, 1, 1, PAGE), "not whole target pages"),
        (Header(Message.PRECOPY_ZERO, 0, 0, 0, 0, 0), "not whole target pages"),
        (Header(Message.PRECOPY_PAGES, 0, 0, 0, 1, PAGE - 1), "the length is not that"),
        (Header(Message.PRECOPY_PAGES, 0, 0, 0, 2, PAGE), "the length is not that"),
        (Header(Message.PRECOPY_ZERO, 0, 0, 0, 1, PAGE), "the length is not that"),
        (Header(Message.PRECOPY_PAGES, 0, 0, 0, 1, MAX32), "the length is not that"),
    ],
)
def test_a_lie_about_pages_is_one_protocol_error_and_touches_nothing(receiver, header, words):
    with pytest.raises(ProtocolError, match=words):
        receiver.receive(header.pack() + b"x" * PAGE + FLIP)
    assert bits(receiver.ram.block[0].precopied, 80) == set()
    assert receiver.memory.blocks[0].read(0, 80 * PAGE) == bytes(80 * PAGE)


@pytest.mark.parametrize("kept", [0, 1, 39, 40, 41, 40 + PAGE - 1])
def test_a_source_that_ends_half_way_is_gone(receiver, kept):
    with pytest.raises(PeerGone, match="closed it during pre-copy"):
        receiver.receive(pages(0, 1, b"x")[:kept])


@pytest.mark.parametrize("said", [b"", pages(0, 1, b"x")[:50]])
def test_it_ends_when_it_is_told_to(receiver, said):
    os.write(receiver.main, said)
    os.eventfd_write(receiver.c.quit_fd, 1)
    assert core.call(core.lib.vm_precopy_receive, receiver.c) == 0


# ---- releasing ----


def resident(image: Any) -> list[bool]:
    """Which 4 KiB pages of an image are present, by /proc/self/pagemap."""
    address = int(core.ffi.cast("uintptr_t", image.data))
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = np.frombuffer(
            os.pread(pagemap.fileno(), image.size // PAGE * 8, address // PAGE * 8), np.uint64
        )
    return [bool(entry >> np.uint64(63)) for entry in entries]


@given(layouts(), st.booleans())
def test_what_is_at_the_destination_at_the_flip_is_released(layout, release):
    source = Images(layout)
    for index in range(len(layout)):
        image = source.c.image[index]
        core.call(
            core.lib.vm_advise,
            int(core.ffi.cast("uintptr_t", image.data)),
            image.size,
            mmap.MADV_NOHUGEPAGE,
        )
        core.ffi.memmove(image.data, b"x" * image.size, image.size)
        core.lib.vm_source_canonicalise(source.c, index)
    source.c.release_ram = release
    core.lib.vm_source_release_sent(source.c)
    released = 0
    for index, (shift, targets, dirty) in enumerate(layout):
        host = {page // per_page(shift) for page in dirty}
        kept = [not release or page // per_page(shift) in host for page in range(targets)]
        assert resident(source.c.image[index]) == kept
        released += kept.count(False) * PAGE
    assert source.c.bytes_released == released
