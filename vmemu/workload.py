"""What each vCPU will do: recorded traces dealt to vCPUs, and their shares of synthetic accesses.

Everything here is made before any memory is mapped, a stream or a page at a time, never an access
at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmemu.synthetic import SyntheticShare
from vmemu.traces.samememory import count_merged, same_memory

SIZES = 64
"""Entries of the table of access sizes."""


@dataclass(frozen=True)
class StreamSlice:
    """A part of a recorded stream: columns of the native trace format, of equal length.

    ``times`` ascend (nanoseconds as recorded), or there are none.
    """

    where: NDArray[np.uint32] | NDArray[np.uint64]
    what: NDArray[np.uint8]
    times: NDArray[np.uint64] | None = None

    def part(self, low: int, high: int) -> StreamSlice:
        """Its accesses from number ``low`` up to ``high``, exclusive."""
        times = None if self.times is None else self.times[low:high]
        return StreamSlice(self.where[low:high], self.what[low:high], times)


@dataclass(frozen=True)
class Lane:
    """What a vCPU does of one trace: a part of a stream, ``loops`` times, or synthetic accesses.

    ``sizes`` (uint16, 64 entries) are the sizes of accesses in bytes, ``first_page`` says where the
    pages of its trace begin in the dictionary. Its trace begins at the recorded time ``origin_ns``,
    and with each loop again ``duration_ns`` later.
    """

    work: StreamSlice | SyntheticShare
    sizes: NDArray[np.uint16]
    first_page: int = 0
    loops: int = 1
    origin_ns: int = 0
    duration_ns: int = 0

    @property
    def accesses(self) -> int:
        """Accesses of all loops."""
        if isinstance(self.work, SyntheticShare):
            return self.work.accesses
        return len(self.work.what) * self.loops

    def due_until(self, time_ns: int) -> int:
        """Accesses of a recorded lane that are due until a time, counted from its trace's begin."""
        assert isinstance(self.work, StreamSlice)
        times, span_ns = self.work.times, self.duration_ns
        if times is None or time_ns < 0:
            return 0
        loop = min(time_ns // span_ns, self.loops) if span_ns else self.loops
        if loop == self.loops:
            return self.accesses
        within = np.uint64(self.origin_ns + time_ns - loop * span_ns)
        return loop * len(times) + int(np.searchsorted(times, within, side="right"))


@dataclass(frozen=True)
class Pace:
    """When accesses are made: ``asap``, at the times of the recording (``factor`` 2.0: twice as
    fast), or at a ``rate``, so many accesses of each vCPU a second."""

    kind: Literal["asap", "recorded", "rate"] = "asap"
    factor: float = 1.0
    accesses_per_second: int = 0


ASAP = Pace()


@dataclass(frozen=True)
class Workload:
    """The guest's memory as its traces see it, and what each vCPU does.

    ``block`` (int32, -1: outside) and ``offset`` (uint64, bytes) say for each page of the
    dictionary where it lies; several traces have their pages in it one behind the other.
    ``same`` (uint64) is for each page the first one that lies on the same memory, often itself;
    None when no two pages share any.
    """

    block: NDArray[np.int32]
    offset: NDArray[np.uint64]
    vcpus: list[list[Lane]]
    pace: Pace = ASAP
    same: NDArray[np.uint64] | None = None

    @property
    def outside(self) -> int:
        """Pages of the dictionary that lie in no block."""
        return int(np.count_nonzero(self.block < 0))

    @property
    def merged(self) -> int:
        """Pages of the dictionary that lie on memory where another one lies already."""
        return count_merged(self.same)

    @property
    def accesses(self) -> int:
        """Accesses of all vCPUs."""
        return sum(self.accesses_by_vcpu())

    def accesses_by_vcpu(self) -> list[int]:
        """Accesses of each vCPU."""
        return [sum(lane.accesses for lane in lanes) for lanes in self.vcpus]

    def positions_at(self, accesses: int) -> tuple[int, ...]:
        """Where each vCPU is when all of them have made so many accesses.

        At recorded times that is at one moment of the recording; otherwise they are taken to
        advance side by side, to the same share of what each has to do (rounded down).
        """
        if self.pace.kind == "recorded":
            return self._positions_by_time(accesses)
        shares, total = self.accesses_by_vcpu(), max(self.accesses, 1)
        return tuple(share * accesses // total for share in shares)

    def _positions_by_time(self, accesses: int) -> tuple[int, ...]:
        def done(time_ns: int) -> list[int]:
            return [sum(lane.due_until(time_ns) for lane in lanes) for lanes in self.vcpus]

        lanes = [lane for lanes in self.vcpus for lane in lanes]
        low, high = -1, max((lane.loops * lane.duration_ns for lane in lanes), default=0)
        while low + 1 < high:  # sum(done(low)) <= accesses
            middle = (low + high) // 2
            low, high = (low, middle) if sum(done(middle)) > accesses else (middle, high)
        before, at_once = done(low), done(high)
        positions = []
        rest = accesses - sum(before)
        for first, last in zip(before, at_once, strict=True):
            taken = min(rest, last - first)
            positions.append(first + taken)
            rest -= taken
        return tuple(positions)


def together(workloads: Sequence[Workload], pace: Pace) -> Workload:
    """Several traces on one guest: one or more workloads of as many vCPUs each.

    Traces with the same pages in the same places share them in the dictionary, and so what is known
    of them: what one has written, the other expects to read.
    """
    first_pages: list[int] = []
    kept: list[tuple[Workload, int]] = []
    pages = 0
    for one in workloads:
        twin = next((first for other, first in kept if _same_pages(one, other)), None)
        if twin is None:
            kept.append((one, pages))
            twin, pages = pages, pages + len(one.block)
        first_pages.append(twin)
    block = np.concatenate([one.block for one, _ in kept])
    offset = np.concatenate([one.offset for one, _ in kept])
    return Workload(
        block,
        offset,
        [
            [
                replace(lane, first_page=first_page)
                for one, first_page in zip(workloads, first_pages, strict=True)
                for lane in one.vcpus[vcpu]
            ]
            for vcpu in range(len(workloads[0].vcpus))
        ],
        pace,
        kept[0][0].same if len(kept) == 1 else same_memory(block, offset),
    )


def _same_pages(one: Workload, other: Workload) -> bool:
    return np.array_equal(one.block, other.block) and np.array_equal(one.offset, other.offset)


def side_by_side(lengths: Sequence[int], bound: int) -> list[int]:
    """Where streams of these lengths are when they have made ``bound`` accesses together, each as
    far on its way as the others: access k of n, from 1, is made at k/n of it."""
    total = max(sum(lengths), 1)
    made = [length * bound // total for length in lengths]
    following = [(Fraction(made[i] + 1, n), i) for i, n in enumerate(lengths) if n]
    heapq.heapify(following)
    for _ in range(bound - sum(made)):  # what was rounded down: less than one access of each
        _, i = following[0]
        made[i] += 1
        heapq.heapreplace(following, (Fraction(made[i] + 1, lengths[i]), i))
    return made


def deal_streams(streams: Sequence[StreamSlice], vcpus: int) -> list[list[StreamSlice]]:
    """Deal recorded streams to vCPUs in turn, stream i to vCPU i modulo ``vcpus``.

    With more vCPUs than streams, those that would get the same stream each get a contiguous part of
    it.
    """
    dealt: list[list[StreamSlice]] = [[] for _ in range(vcpus)]
    for index, stream in enumerate(streams):
        takers = (
            range(index % vcpus, vcpus, max(len(streams), 1)) if index < vcpus else [index % vcpus]
        )
        bounds = [len(stream.what) * n // len(takers) for n in range(len(takers) + 1)]
        for taker, low, high in zip(takers, bounds, bounds[1:], strict=False):
            dealt[taker].append(stream.part(low, high))
    return dealt


def deal_by_id(
    streams: Sequence[StreamSlice], ids: Sequence[int], vcpus: int
) -> list[list[StreamSlice]]:
    """Deal recorded streams to vCPUs by their ids, id N to vCPU N modulo ``vcpus``."""
    dealt: list[list[StreamSlice]] = [[] for _ in range(vcpus)]
    for stream, number in zip(streams, ids, strict=True):
        dealt[number % vcpus].append(stream)
    return dealt


def size_table(sizes: Sequence[int]) -> NDArray[np.uint16]:
    """The table of access sizes, padded to its full length."""
    table = np.zeros(SIZES, np.uint16)
    table[: len(sizes)] = sizes
    return table
