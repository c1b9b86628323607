"""What a scenario asks for, as the objects that do it: blocks, their contents, the workload.

Nothing is taken from the machine here; a trace that does not fit the blocks is an error at its
place in the scenario.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmemu.config import (
    FileContent,
    RecordedTrace,
    RegionMap,
    Scenario,
    Sequential,
    Window,
)
from vmemu.content import ContentSpec
from vmemu.errors import TraceError
from vmemu.ramblock import Backing, RAMBlock
from vmemu.traces import mapping, native
from vmemu.traces.trace import Stream, Trace
from vmemu.workload import StreamSlice, Workload, deal_streams, size_table, synthetic


def blocks_of(scenario: Scenario) -> list[RAMBlock]:
    """The scenario's blocks, not mapped yet."""
    return [
        RAMBlock(
            name=block.name,
            backing=Backing(block.backing),
            size=block.size,
            page_size=block.page_size,
            path=str(block.path) if block.path else None,
        )
        for block in scenario.blocks
    ]


def contents_of(scenario: Scenario) -> tuple[ContentSpec, ...]:
    """What each block holds before the guest runs."""
    return tuple(
        ContentSpec(path=str(block.content.path))
        if isinstance(block.content, FileContent)
        else ContentSpec(zero_share=float(block.content.zero_share))
        for block in scenario.blocks
    )


def make_workload(scenario: Scenario, blocks: Sequence[RAMBlock]) -> Workload:
    """What the vCPUs will do. Raises ConfigError when the trace can't be read or laid on the
    blocks."""
    trace = scenario.guest.trace
    if isinstance(trace, RecordedTrace):
        return _recorded(scenario, trace, blocks)
    made = trace.synthetic
    return synthetic(
        blocks,
        scenario.guest.vcpus,
        scenario.seed,
        kind=made.kind,
        accesses=made.accesses,
        write_share=float(made.write_share),
        stride=made.stride if isinstance(made, Sequential) else 64,
    )


def _recorded(scenario: Scenario, config: RecordedTrace, blocks: Sequence[RAMBlock]) -> Workload:
    try:
        trace = native.open(config.file)
    except TraceError as error:
        remedy = "name a native trace; `vmemu trace convert` makes one from a recording"
        raise scenario.error("guest.trace.file", str(error), remedy) from None
    try:
        pages = _lay_out(trace, config, blocks)
    except TraceError as error:
        raise scenario.error("guest.trace.map", str(error), "") from None
    low, high = _window(scenario, config.window, trace.accesses)
    streams = [_cut(stream, low, high, trace.accesses) for stream in trace.streams]
    dealt = deal_streams(streams, scenario.guest.vcpus)
    return Workload(pages.block, pages.offset, size_table(list(trace.sizes)), dealt)


def _lay_out(trace: Trace, config: RecordedTrace, blocks: Sequence[RAMBlock]) -> mapping.PageMap:
    if isinstance(config.map, RegionMap):
        regions = [mapping.Region(r.start, r.end, r.block, r.offset) for r in config.map.regions]
        return mapping.map_regions(trace.pages, regions, blocks, config.map.outside, trace=trace)
    return mapping.map_compact(trace.pages, blocks, config.map.block)


def _window(scenario: Scenario, window: Window, total: int) -> tuple[int, int]:
    """The first access to replay and the one behind the last, of ``total``."""
    resolved = []
    for name, position in (("start", window.start), ("stop", window.stop)):
        try:
            resolved.append(position.resolve(total))
        except ValueError as error:
            what, _, remedy = str(error).partition("; ")
            raise scenario.error(f"guest.trace.window.{name}", what, remedy) from None
    return resolved[0], resolved[1]


def _cut(stream: Stream, low: int, high: int, total: int) -> StreamSlice:
    """The stream's part of a window on all streams: they are taken to advance side by side."""
    begin, end = (stream.accesses * bound // max(total, 1) for bound in (low, high))
    return StreamSlice(stream.where[begin:end], stream.what[begin:end])
