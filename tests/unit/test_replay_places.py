"""The replay on a dictionary that is laid in any way: pages outside, pages on the same memory,
accesses that straddle them. On ordinary memory, against a model of every byte."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vmemu import core
from vmemu.content import ContentSpec, ExpectedContent, fill_entry
from vmemu.cthread import Bell
from vmemu.guest_worker import NO_END, Guest, GuestWorker
from vmemu.protocol import BlockEntry
from vmemu.source_precopy import image_blocks
from vmemu.traces.mapping import same_memory
from vmemu.workload import Lane, StreamSlice, Workload, size_table

PAGE = 4096
SEED = 5
LOAD, STORE, MODIFY, FETCH = range(4)
SIZES = [1, 2, 4, 8, 48, 4096]
BLOCKS = (BlockEntry("a", 3 * PAGE, PAGE), BlockEntry("b", 2 * PAGE, PAGE))

Access = tuple[int, int, int]
"""Place in the dictionary (index * 4096 + offset), kind, size."""


@dataclass(frozen=True)
class Case:
    """Where each dictionary page lies (block, page; block -1: outside), and the accesses."""

    places: list[tuple[int, int]]
    accesses: list[Access]
    wide: bool = False

    def workload(self) -> Workload:
        block = np.array([block for block, _ in self.places], np.int32)
        offset = np.array([page * PAGE for _, page in self.places], np.uint64)
        width = np.uint64 if self.wide else np.uint32
        where = np.array([where for where, _, _ in self.accesses], width)
        codes = [kind | SIZES.index(size) << 2 for _, kind, size in self.accesses]
        lane = Lane(StreamSlice(where, np.array(codes, np.uint8)), size_table(SIZES))
        return Workload(block, offset, [[lane]], same=same_memory(block, offset))

    def inside(self, access: Access) -> bool:
        where, _, size = access
        touched = {where // PAGE, (where + size - 1) // PAGE}
        return all(self.places[page][0] >= 0 for page in touched)

    def written(self) -> list[NDArray[np.uint8]]:
        """For each block a mark for each of its bytes, as bits of its words."""
        marks = [np.zeros(block.size, np.bool_) for block in BLOCKS]
        for where, kind, size in self.accesses:
            for byte in range(where, where + size) if kind in (STORE, MODIFY) else ():
                block, page = self.places[byte // PAGE]
                if block >= 0:
                    marks[block][page * PAGE + byte % PAGE] = True
        return [np.packbits(mark, bitorder="little") for mark in marks]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    anywhere = [(-1, 0), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    places = draw(st.lists(st.sampled_from(anywhere), min_size=1, max_size=8))
    accesses = []
    for _ in range(draw(st.integers(0, 40))):
        size = draw(st.sampled_from(SIZES))
        near = st.integers(1, len(places)).map(lambda page: page * PAGE)
        where = draw(near) - draw(st.integers(1, size + 8))
        where = min(max(where, 0), len(places) * PAGE - size)
        accesses.append((where, draw(st.sampled_from([LOAD, STORE, MODIFY, FETCH])), size))
    return Case(places, accesses)


class Rig:
    """Blocks of ordinary memory that a guest runs on."""

    def __init__(self, workload: Workload) -> None:
        self.source = core.owned(core.lib.vm_source_create(len(BLOCKS)), core.lib.vm_source_destroy)
        for index, block in enumerate(BLOCKS):
            core.call(
                core.lib.vm_source_set, self.source, index, block.name.encode(), block.size, 12
            )
        self.restore()
        table = image_blocks(self.source, BLOCKS)
        ram = table.table()
        for index, block in enumerate(table):
            core.lib.vm_ram_mark_received(core.ffi.addressof(ram.block, index), 0, block.pages)
        self.expected = ExpectedContent(SEED, list(table), [ContentSpec() for _ in BLOCKS])
        self.guest = Guest(workload, table, ram, self.expected, check_reads=True, keep_marks=True)

    def restore(self) -> None:
        """The content before the guest wrote."""
        for index, block in enumerate(BLOCKS):
            content = core.ffi.new("struct vm_content *")
            fill_entry(content, SEED, block.name, 12, 0.0)
            core.lib.vm_content_fill(content, self.source.image[index].data, block.size)

    def run(self, begin: int = 0, end: int = NO_END, waiting: Any = None) -> Any:
        """The figures of the only vCPU that replays [begin, end) and marks what is before it."""
        bell = Bell()
        slots = (core.ffi.new("uint32_t *"), core.ffi.new("uint64_t *"))
        worker = GuestWorker(
            self.guest, 0, bell, slots=slots, begin=begin, end=end, waiting=waiting
        )
        worker.start()
        assert worker.join(30)
        assert worker.error is None
        bell.close()
        return worker

    def wrong_bytes(self, marks: list[NDArray[np.uint8]]) -> int:
        """Bytes that are not what these marks say."""
        verify = core.ffi.new("struct vm_verify *")
        for index, block in enumerate(BLOCKS):
            content = core.ffi.addressof(self.expected.table, index)
            pointer = core.ffi.from_buffer("uint8_t[]", marks[index])
            data = self.source.image[index].data
            core.lib.vm_verify_block(
                verify, index, data, block.size, content, pointer, core.ffi.NULL
            )
        return int(verify.bytes_wrong)


@settings(deadline=None, max_examples=150)
@given(cases())
def test_every_byte_is_touched_where_its_page_lies(case: Case) -> None:
    rig = Rig(case.workload())
    worker = rig.run()
    figures = worker.figures
    written = case.written()
    inside = [access for access in case.accesses if case.inside(access)]
    assert figures.accesses == len(inside)
    assert figures.dropped == len(case.accesses) - len(inside)
    assert figures.writes == sum(kind in (STORE, MODIFY) for _, kind, _ in inside)
    assert figures.reads == sum(kind != STORE for _, kind, _ in inside)
    assert figures.reads_wrong == 0
    assert rig.wrong_bytes(written) == 0
    for index in range(len(BLOCKS)):
        assert (rig.guest.block_marks(index) == written[index]).all()


def _alike(random: np.random.Generator, size: int, count: int, pages: list[int]) -> list[Access]:
    """Aligned accesses of one size to a few words of these pages, so that many meet."""
    index = random.choice(pages, count)
    place = random.integers(6 * 8 // size, size=count) * size
    kind = random.choice([LOAD, STORE, MODIFY, FETCH], count, p=[0.6, 0.25, 0.05, 0.1])
    return [
        (int(i) * PAGE + int(p), int(k), size) for i, p, k in zip(index, place, kind, strict=True)
    ]


ALIKE = given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 4, 8]),
    wide=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@ALIKE
def test_many_accesses_that_are_alike_touch_what_they_say(seed: int, size: int, wide: bool) -> None:
    """Some on a page outside, some on two pages with the same memory, some not alike."""
    random = np.random.default_rng(seed)
    accesses = _alike(random, size, 700, [0, 1])
    accesses += _alike(random, size, 300, [0, 1, 2, 3, 4])
    accesses += [*_alike(random, 8 if size == 4 else 4, 1, [0]), (PAGE - 4, MODIFY, 48)]
    accesses += _alike(random, size, 300, [0, 1])
    case = Case([(0, 0), (0, 1), (-1, 0), (1, 0), (0, 0)], accesses, wide)
    rig = Rig(case.workload())
    figures = rig.run().figures
    inside = [access for access in accesses if case.inside(access)]
    assert figures.accesses == len(inside)
    assert figures.writes == sum(kind in (STORE, MODIFY) for _, kind, _ in inside)
    assert figures.reads_checked == figures.reads == sum(kind != STORE for _, kind, _ in inside)
    assert figures.reads_wrong == 0
    written = case.written()
    assert rig.wrong_bytes(written) == 0
    for index in range(len(BLOCKS)):
        assert (rig.guest.block_marks(index) == written[index]).all()


@settings(deadline=None, max_examples=60)
@ALIKE
def test_each_read_of_a_lost_write_is_counted(seed: int, size: int, wide: bool) -> None:
    """All writes are lost at once; a read is wrong until its place is written again."""
    random = np.random.default_rng(seed)
    before, after = (_alike(random, size, count, [0, 1]) for count in (40, 600))
    rig = Rig(Case([(0, 0), (1, 1)], before + after, wide).workload())
    assert rig.run(end=len(before)).figures.reads_wrong == 0
    rig.restore()
    lost = {where for where, kind, _ in before if kind in (STORE, MODIFY)}
    wrong = 0
    for where, kind, _ in after:
        wrong += kind != STORE and where in lost
        if kind in (STORE, MODIFY):
            lost.discard(where)
    worker = rig.run(begin=len(before))
    assert worker.figures.reads_wrong == wrong
    assert len(worker.mismatches()) == min(wrong, 8)


def test_a_vcpu_that_has_ended_keeps_no_thread_id() -> None:
    """The kernel may give it to another thread, which would then be called a vCPU."""
    rig = Rig(Case([(0, 0)], [(0, STORE, 8)]).workload())
    place = core.ffi.new("struct vm_waiting *", {"tid": 1})
    assert rig.run(waiting=place).figures.accesses == 1
    assert place.tid == 0


class Moving:
    """A ``struct vm_waiting`` that goes from one wait to the next while it is copied first."""

    since_ns = 7

    def __init__(self) -> None:
        self.copies = 0

    def __getitem__(self, index: int) -> dict[str, int]:
        self.copies += 1
        torn = self.copies == 1
        return {"since_ns": 6 if torn else 7, "block": 1, "offset": 2 * PAGE if torn else PAGE}


def test_where_a_vcpu_waits_is_a_place_of_one_wait() -> None:
    worker = Rig(Case([(0, 0)], [(0, STORE, 8)]).workload()).run()
    assert worker.waiting() is None
    worker.thread, worker._waiting = SimpleNamespace(done=False), Moving()
    found = worker.waiting()
    assert (found.block, found.offset) == ("b", PAGE)


@settings(deadline=None, max_examples=75)
@given(cases())
def test_what_was_replayed_elsewhere_is_marked_alike(case: Case) -> None:
    rig = Rig(case.workload())
    rig.run(begin=len(case.accesses))
    for index, marks in enumerate(case.written()):
        assert (rig.guest.block_marks(index) == marks).all()


@given(st.permutations([0, 1, 2]))
def test_a_write_that_is_lost_is_found_through_any_page_on_the_same_memory(
    order: list[int],
) -> None:
    """Written through one page, thrown away, read through another: a read checks what it must."""
    places = [(0, 1), (0, 1), (0, 1), (1, 0)]
    write, read, _ = order
    case = Case(places, [(write * PAGE + 64, STORE, 8), (read * PAGE + 64, LOAD, 8)])
    rig = Rig(case.workload())
    assert rig.run(end=1).figures.reads_wrong == 0
    assert rig.run(begin=1).figures.reads_wrong == 0
    rig.restore()
    worker = rig.run(begin=1)
    assert worker.figures.reads_wrong == 1
    (mismatch,) = worker.mismatches()
    assert (mismatch.block, mismatch.offset) == ("a", PAGE + 64)
