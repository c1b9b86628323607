"""Guest workers: one thread a vCPU that replays its share of the workload on the mapped blocks.

The touches are made by the C core (``_core/replay.c``), each at the recorded size and place; those
on a page that has not arrived are real faults, and what each cost the vCPU is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.affinity import CpuSet
from vmemu.content import ExpectedContent
from vmemu.cthread import Bell, CThread
from vmemu.delivery import Slots
from vmemu.ramblock import RAMList
from vmemu.status import of_one_wait
from vmemu.synthetic import SyntheticShare
from vmemu.units import format_seconds
from vmemu.workload import Lane, Pace, StreamSlice, Workload

PAGE_SIZE = 4096
WORDS_PER_PAGE = 512
NO_END = (1 << 64) - 1
FOREVER_NS = 1e30
"""More than any clock will count; not so much that 0 times it is no number."""
FAULT_DTYPE = np.dtype(
    [
        ("start_ns", np.uint64),
        ("end_ns", np.uint64),
        ("offset", np.uint64),
        ("block", np.uint32),
        ("write", np.uint32),
    ]
)
"""A fault as ``struct vm_fault_record`` has it: times of CLOCK_MONOTONIC, place of the access."""


@dataclass(frozen=True)
class Waiting:
    """A vCPU that is stopped in a touch: where, and for how long; of a client, if it is one's."""

    vcpu: int
    block: str
    offset: int
    seconds: float
    client: str = ""

    def __str__(self) -> str:
        who = f"vCPU {self.vcpu}" + (f" of client {self.client}" if self.client else "")
        return f"{who} waits for {self.block}+{self.offset:#x} for {format_seconds(self.seconds)}"


@dataclass(frozen=True)
class Mismatch:
    """A byte that is not what it must be."""

    block: str
    offset: int
    expected: int
    found: int


def mismatches(blocks: RAMList, entries: Any, count: int) -> list[Mismatch]:
    """The first ``count`` of an array of ``struct vm_mismatch``."""
    noted = (entries[i] for i in range(count))
    return [Mismatch(blocks[m.block].name, m.offset, m.expected, m.found) for m in noted]


def gather_marks(
    workload: Workload, marks: NDArray[np.uint8], index: int, into: NDArray[np.uint8]
) -> None:
    """Add the marks on a workload's dictionary to those of its block ``index``, a byte a word."""
    place = (_array("int32_t[]", workload.block), _array("uint64_t[]", workload.offset))
    target, source = _array("uint8_t[]", into), _array("uint8_t[]", marks)
    core.lib.vm_marks_gather(target, index, len(workload.block), *place, source)


class Guest:
    """What all vCPUs of one process share: the dictionary laid on memory, marks of writes.

    ``ram`` is the C core's table of the blocks where this process has them. ``marks`` (uint8, a
    byte for each 8-byte word of each dictionary page) has a bit for each byte written, or is None
    when nothing is verified; it may be given, to lie in memory of the caller's choice. ``written``
    (uint64, a bit a dictionary page) is kept for dirty tracking when ``track_writes`` is set.
    At recorded times all vCPUs have one clock, which the first access of any of them starts.
    """

    def __init__(
        self,
        workload: Workload,
        blocks: RAMList,
        ram: Any,
        expected: ExpectedContent,
        *,
        check_reads: bool,
        keep_marks: bool,
        track_writes: bool = False,
        marks: NDArray[np.uint8] | None = None,
    ) -> None:
        self.workload = workload
        self.blocks = blocks
        pages = len(workload.block)
        # numpy's zeros are calloc's: what is never written costs no memory.
        self.marks = marks
        if marks is None and (check_reads or keep_marks):
            self.marks = np.zeros(pages * WORDS_PER_PAGE, np.uint8)
        self.written = np.zeros(pages // 64 + 1, np.uint64) if track_writes else None
        self.place = (_array("int32_t[]", workload.block), _array("uint64_t[]", workload.offset))
        host = _array("uint64_t[]", np.empty(pages, np.uint64))
        keys = _array("uint64_t[]", np.empty(pages * 2, np.uint64))
        key = core.ffi.cast("struct vm_page_key *", keys)
        same = core.ffi.NULL if workload.same is None else _array("uint64_t[]", workload.same)
        core.lib.vm_places_fill(host, key, pages, *self.place, same, ram, expected.table)
        self._marks = core.ffi.NULL if self.marks is None else _array("uint8_t[]", self.marks)
        self._written = (
            core.ffi.NULL if self.written is None else _array("uint64_t[]", self.written)
        )
        self._pace = pace_to_c(workload.pace)
        self._first_due_ns: int | None = None
        self._keep = [ram, expected, host, keys]
        self.shared = core.ffi.new("struct vm_guest *")
        self.shared.ram = ram
        self.shared.content = expected.table
        self.shared.host, self.shared.key = host, key
        self.shared.pages = pages
        self.shared.marks = self._marks
        self.shared.written = self._written
        self.shared.pace = self._pace
        self.shared.check_reads = check_reads
        if check_reads and pages <= core.lib.VM_EXPECTED_PAGES:
            # numpy would advise the kernel to take hugepages, which are the blocks' alone.
            image = core.ffi.new("uint8_t[]", pages * PAGE_SIZE)
            core.lib.vm_expected_fill(self.shared, image)
            self.shared.expected = image
            self._keep.append(image)

    def begin_with(self, due_ns: int) -> None:
        """Have the clock start where something is due: at the earliest of all that are told."""
        if self._first_due_ns is None or due_ns < self._first_due_ns:
            self._first_due_ns = self._pace.zero = due_ns

    def block_marks(self, index: int) -> NDArray[np.uint8] | None:
        """The marks of one block: a byte for each of its words; None when no marks are kept."""
        if self.marks is None:
            return None
        gathered = np.zeros(self.blocks[index].size // 8, np.uint8)
        gather_marks(self.workload, self.marks, index, gathered)
        return gathered


class GuestWorker:
    """One vCPU: its thread, its progress, its faults.

    It replays the accesses [``begin``, ``end``) of its share; ``slots`` are its ``Slots``;
    ``waiting`` is where it writes the touch that it is in, a ``struct vm_waiting *`` that lives as
    long as its thread. It runs on ``cpus``; what only marks runs anywhere.
    """

    def __init__(
        self,
        guest: Guest,
        index: int,
        bell: Bell,
        *,
        slots: tuple[Any, ...],
        begin: int = 0,
        end: int = NO_END,
        log: Any = None,
        waiting: Any = None,
        cpus: CpuSet | None = None,
    ) -> None:
        self.index = index
        self._guest = guest
        self._lanes, self._keep = lanes_to_c(guest.workload.vcpus[index])
        self._vcpu = self._create(begin, end)
        self._vcpu.log = core.ffi.NULL if log is None else log
        self._slots = Slots(*slots)
        self._vcpu.tid, self._vcpu.seen, own = self._slots
        self._vcpu.delivery = core.ffi.NULL if own is None else own
        self._waiting = core.ffi.new("struct vm_waiting *") if waiting is None else waiting
        self._vcpu.waiting = self._waiting
        run = partial(core.call, core.lib.vm_vcpu_run, self._vcpu)
        self.thread = CThread(f"vcpu{index}", run, bell, cpus)
        # What was replayed at the source is marked beside the run, by a state of its own.
        self._marks_prefix = begin > 0 and guest.marks is not None
        self._marker = self._create(begin, begin)
        mark = partial(core.call, core.lib.vm_vcpu_mark, self._marker)
        self.marking = CThread(f"mark{index}", mark, bell)
        if guest.workload.pace.kind == "recorded":
            self._set_clock()

    def _create(self, begin: int, end: int) -> Any:
        vcpu = core.ffi.gc(core.ffi.new("struct vm_vcpu *"), core.lib.vm_vcpu_release)
        vcpu.guest = self._guest.shared
        vcpu.lane, vcpu.lanes = self._lanes, len(self._lanes)
        vcpu.id = self.index
        vcpu.begin, vcpu.end = begin, end
        return vcpu

    def _set_clock(self) -> None:
        """The guest's clock starts with the earliest access of all vCPUs that is not yet done."""
        due_ns = core.ffi.new("uint64_t *")
        null = core.ffi.NULL
        if core.call(core.lib.vm_vcpu_list, self._marker, null, null, due_ns, 1):
            self._guest.begin_with(due_ns[0])

    def start(self) -> None:
        """Let the vCPU run, and mark what it did elsewhere before."""
        self.thread.start()
        if self._marks_prefix:
            self.marking.start()

    @property
    def figures(self) -> Any:
        """The C core's ``struct vm_vcpu``: counters that move while it runs."""
        return self._vcpu

    def stop(self) -> None:
        """End the replay after the touch that it is in; whoever waits for a page has to be released
        too."""
        self._vcpu.stop = 1
        self._marker.stop = 1

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of its threads; False when the time is over."""
        return self.thread.join(timeout_s) and self.marking.join(timeout_s)

    @property
    def done(self) -> bool:
        """Whether its threads have ended."""
        return self.thread.done and (self.marking.done or not self._marks_prefix)

    @property
    def error(self) -> BaseException | None:
        """What ended one of its threads before its time."""
        return self.thread.error or self.marking.error

    def waiting(self) -> Waiting | None:
        """Where it is stopped now, if it is."""
        if self.thread.done or not self._waiting.since_ns:
            return None
        place = of_one_wait(lambda: core.ffi.new("struct vm_waiting *", self._waiting[0]))
        if not place.since_ns:
            return None
        seconds = max(time.monotonic_ns() - place.since_ns, 0) / 1e9
        return Waiting(self.index, self._guest.blocks[place.block].name, place.offset, seconds)

    def faults(self) -> NDArray[np.void]:
        """The faults in the order in which they happened: a copy, of ``FAULT_DTYPE``."""
        count = self._vcpu.records
        if count == 0:
            return np.empty(0, FAULT_DTYPE)
        buffer = core.ffi.buffer(self._vcpu.record, count * FAULT_DTYPE.itemsize)
        return np.frombuffer(buffer, FAULT_DTYPE).copy()

    def mismatches(self) -> list[Mismatch]:
        """The first reads that found what they must not."""
        return mismatches(self._guest.blocks, self._vcpu.mismatch, self._vcpu.noted)


def _array(ctype: str, array: NDArray[Any]) -> Any:
    """A C pointer to an array's memory that keeps it alive."""
    return core.ffi.from_buffer(ctype, np.ascontiguousarray(array))


def pace_to_c(pace: Pace) -> Any:
    """A ``struct vm_pace`` whose clock stands; NULL for as fast as possible."""
    if pace.kind == "asap":
        return core.ffi.NULL
    made = core.ffi.new("struct vm_pace *")
    if pace.kind == "recorded":
        made.kind, made.unit_ns = core.lib.VM_PACE_RECORDED, min(1 / pace.factor, FOREVER_NS)
    else:
        made.kind, made.unit_ns = core.lib.VM_PACE_RATE, 1e9 / pace.accesses_per_second
    return made


def lanes_to_c(lanes: Sequence[Lane]) -> tuple[Any, list[Any]]:
    """An array of ``struct vm_lane``, and what must live as long as that."""
    table = core.ffi.new("struct vm_lane[]", len(lanes))
    keep: list[Any] = []
    for entry, lane in zip(table, lanes, strict=True):
        entry.sizes = sizes = _array("uint16_t[]", lane.sizes)
        keep.append(sizes)
        entry.first_page, entry.loops = lane.first_page, lane.loops
        entry.origin_ns, entry.duration_ns = lane.origin_ns, lane.duration_ns
        if isinstance(lane.work, SyntheticShare):
            generator, beside = lane.work.to_c()
            entry.synthetic = generator
            keep += [generator, beside]
        else:
            keep += _columns(entry, lane.work)
    return table, keep


def _columns(entry: Any, stream: StreamSlice) -> list[Any]:
    """Give a lane the columns of a stream; what must live as long as it."""
    entry.where = where = _array("uint8_t[]", stream.where)
    entry.what = what = _array("uint8_t[]", stream.what)
    entry.count = len(stream.what)
    entry.wide = stream.where.dtype == np.uint64
    keep = [where, what]
    if stream.times is not None:
        entry.times = times = _array("uint64_t[]", stream.times)
        keep.append(times)
    columns = (stream.where, stream.what, stream.times)
    entry.mapped = all(column is None or _is_mapped(column) for column in columns)
    return keep


def _is_mapped(column: NDArray[Any]) -> bool:
    """Whether C walks the file itself, and no copy that would be lost."""
    from vmemu.traces.native import npy  # who has columns has imported it

    return column.flags.c_contiguous and npy.is_mapped(column)
