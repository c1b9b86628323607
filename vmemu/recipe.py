"""A workload in a form that travels: the source makes the same one again when the guest begins
there.

Columns of a trace are never sent; both ends open the same file, or make the same synthetic
accesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vmemu.protocol import BlockEntry
from vmemu.synthetic import Phase, access_sizes, identity_map, shares_of
from vmemu.workload import (
    Lane,
    Pace,
    StreamSlice,
    Workload,
    deal_by_id,
    deal_streams,
    side_by_side,
    size_table,
    together,
)

if TYPE_CHECKING:
    from vmemu.traces.mapping import Layout
    from vmemu.traces.native.trace import Stream, Trace


@dataclass(frozen=True)
class RecordedRecipe:
    """A recorded trace: ``low`` to ``high`` are the accesses that are replayed, ``layout`` says
    where its pages lie in the blocks. They are replayed ``loops`` times, dealt to vCPUs in turn or
    ``by_id``."""

    file: str
    vcpus: int
    low: int
    high: int
    layout: Layout
    loops: int = 1
    by_id: bool = False

    def make(self, blocks: Sequence[BlockEntry]) -> Workload:
        """The workload. Raises TraceError."""
        from vmemu.traces import native  # a guest that was made up has no use for it

        trace = native.open(self.file)
        return self.lay_out(trace, blocks)

    def lay_out(self, trace: Trace, blocks: Sequence[BlockEntry]) -> Workload:
        """The workload of a trace that is open already. Raises TraceError."""
        pages = self.layout.lay(trace, blocks)
        return Workload(pages.block, pages.offset, self._deal(trace), same=pages.same)

    def parts(self, trace: Trace) -> list[StreamSlice]:
        """Of each stream the accesses that are replayed: streams advance side by side."""
        lengths = [stream.accesses for stream in trace.streams]
        begins, ends = (side_by_side(lengths, bound) for bound in (self.low, self.high))
        return [_part(*each) for each in zip(trace.streams, begins, ends, strict=True)]

    def _deal(self, trace: Trace) -> list[list[Lane]]:
        streams = self.parts(trace)
        origin_ns, end_ns = _time_range(streams)
        if self.by_id:
            dealt = deal_by_id(streams, [stream.id for stream in trace.streams], self.vcpus)
        else:
            dealt = deal_streams(streams, self.vcpus)
        sizes = size_table(list(trace.sizes))
        return [
            [
                Lane(
                    part,
                    sizes,
                    loops=self.loops,
                    origin_ns=origin_ns,
                    duration_ns=end_ns - origin_ns,
                )
                for part in parts
            ]
            for parts in dealt
        ]


def _part(stream: Stream, begin: int, end: int) -> StreamSlice:
    part = StreamSlice(stream.where, stream.what, stream.times).part(begin, end)
    return part if part.times is None else replace(part, times=_ascending(part.times))


def _ascending(times: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The times of a stream; none is earlier than one before it, whatever the recorder's clock did:
    the order of the accesses is what counts."""
    if bool((times[1:] >= times[:-1]).all()):
        return times
    return np.maximum.accumulate(times)


def _time_range(streams: Sequence[StreamSlice]) -> tuple[int, int]:
    """The first and the last time of all streams; 0 without times."""
    timed = [stream.times for stream in streams if stream.times is not None and len(stream.times)]
    first = min((int(times[0]) for times in timed), default=0)
    return first, max((int(times[-1]) for times in timed), default=0)


@dataclass(frozen=True)
class SyntheticRecipe:
    """Synthetic accesses: ``phases``, gone through ``repeat`` times."""

    vcpus: int
    seed: int
    phases: tuple[Phase, ...]
    repeat: int = 1

    def make(self, blocks: Sequence[BlockEntry]) -> Workload:
        """The workload."""
        shares = shares_of(blocks, self.vcpus, self.seed, self.phases, self.repeat)
        block, offset = identity_map(blocks)
        sizes = size_table(access_sizes(self.phases))
        return Workload(block, offset, [[Lane(share, sizes)] for share in shares])


@dataclass(frozen=True)
class Recipe:
    """All that a guest does: its traces, each for as many vCPUs, and its pace."""

    traces: tuple[RecordedRecipe | SyntheticRecipe, ...]
    pace: Pace

    def make(self, blocks: Sequence[BlockEntry]) -> Workload:
        """The workload. Raises TraceError."""
        return together([trace.make(blocks) for trace in self.traces], self.pace)
