"""A workload in a form that travels: the source makes the same one again when the guest begins
there.

Columns of a trace are never sent; both ends open the same file, or make the same synthetic
accesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmemu.protocol import BlockEntry
from vmemu.synthetic import Phase, access_sizes, identity_map, shares_of
from vmemu.traces import mapping, native
from vmemu.traces.trace import Stream, Trace
from vmemu.workload import StreamSlice, Workload, deal_streams, size_table


@dataclass(frozen=True)
class RecordedRecipe:
    """A recorded trace: ``low`` to ``high`` are the accesses that are replayed.

    ``regions`` are (start, end, block, offset) in bytes; None: compaction, into ``block`` or all.
    """

    file: str
    vcpus: int
    low: int
    high: int
    regions: tuple[tuple[int, int, str, int], ...] | None = None
    outside: str = "refuse"
    block: str | None = None

    def make(self, blocks: Sequence[BlockEntry]) -> Workload:
        """The workload. Raises TraceError."""
        trace = native.open(self.file)
        return self.lay_out(trace, blocks)

    def lay_out(self, trace: Trace, blocks: Sequence[BlockEntry]) -> Workload:
        """The workload of a trace that is open already. Raises TraceError."""
        if self.regions is None:
            pages = mapping.map_compact(trace.pages, blocks, self.block)
        else:
            pages = mapping.map_regions(
                trace.pages, self.regions, blocks, self.outside, trace=trace
            )
        streams = [self._cut(stream, trace.accesses) for stream in trace.streams]
        dealt = deal_streams(streams, self.vcpus)
        return Workload(pages.block, pages.offset, size_table(list(trace.sizes)), dealt)

    def _cut(self, stream: Stream, total: int) -> StreamSlice:
        """The stream's part of a window on all streams: they are taken to advance side by side."""
        begin, end = (stream.accesses * bound // max(total, 1) for bound in (self.low, self.high))
        return StreamSlice(stream.where[begin:end], stream.what[begin:end])


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
        return Workload(block, offset, size_table(access_sizes(self.phases)), shares)


Recipe = RecordedRecipe | SyntheticRecipe
