"""What a scenario asks for, as the objects that do it: blocks, their contents, the workload.

Nothing is taken from the machine here; a trace that does not fit the blocks is an error at its
place in the scenario.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmemu.client_worker import ClientSpec
from vmemu.config import (
    FileContent,
    PaceConfig,
    RatePace,
    RecordedPace,
    RecordedTrace,
    RegionMap,
    Scenario,
    SyntheticTrace,
    Traces,
    Window,
)
from vmemu.content import ContentSpec, key_of
from vmemu.errors import TraceError
from vmemu.protocol import BlockEntry
from vmemu.ramblock import Backing, RAMBlock
from vmemu.recipe import Recipe, RecordedRecipe, SyntheticRecipe
from vmemu.synthetic_plan import synthetic_recipe
from vmemu.traces import native
from vmemu.traces.trace import Trace
from vmemu.units import format_duration
from vmemu.workload import ASAP, Pace, Workload, together

LONGEST_NS = 1 << 62
"""Of a guest's clock: what the C core can count with room to spare."""


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


def entries_of(blocks: Sequence[RAMBlock]) -> tuple[BlockEntry, ...]:
    """The blocks as both ends announce them."""
    return tuple(BlockEntry(block.name, block.size, block.page_size) for block in blocks)


def make_workload(scenario: Scenario, blocks: Sequence[RAMBlock]) -> tuple[Workload, Recipe]:
    """What the vCPUs will do, and how the source can make the same.

    Raises ConfigError when the trace can't be read or laid on the blocks.
    """
    guest = scenario.guest
    return _guest(
        scenario,
        "guest.trace",
        guest.trace,
        vcpus=guest.vcpus,
        seed=scenario.seed,
        blocks=entries_of(blocks),
        pace=_pace(guest.pace),
    )


def _pace(pace: PaceConfig) -> Pace:
    if isinstance(pace, RecordedPace):
        return Pace("recorded", factor=pace.factor)
    if isinstance(pace, RatePace):
        return Pace("rate", accesses_per_second=pace.accesses_per_second)
    return ASAP


def client_plans(
    scenario: Scenario, blocks: Sequence[RAMBlock]
) -> list[tuple[ClientSpec, Workload]]:
    """What each client is told, and what it will do.

    Raises ConfigError when a trace can't be read or laid on the client's block.
    """
    entries, contents = entries_of(blocks), contents_of(scenario)
    names = [block.name for block in blocks]
    plans = []
    for number, client in enumerate(scenario.clients):
        index = names.index(client.block)
        # Two clients with the same trace must not walk in step, nor with the guest.
        seed = key_of(scenario.seed, f"client {client.name}")
        workload, recipe = _guest(
            scenario,
            f"clients[{number}].trace",
            client.trace,
            vcpus=client.vcpus,
            seed=seed,
            blocks=(entries[index],),
        )
        spec = ClientSpec(
            name=client.name,
            index=index,
            block=entries[index],
            backing=blocks[index].backing,
            content=contents[index],
            seed=scenario.seed,
            vcpus=client.vcpus,
            recipe=recipe,
            check_reads=scenario.verify.reads,
            keep_marks=scenario.verify.final,
        )
        plans.append((spec, workload))
    return plans


def _guest(
    scenario: Scenario,
    field: str,
    traces: Traces,
    *,
    vcpus: int,
    seed: int,
    blocks: tuple[BlockEntry, ...],
    pace: Pace = ASAP,
) -> tuple[Workload, Recipe]:
    """What the traces at ``field`` of the scenario come to on one guest. Raises ConfigError."""
    if not isinstance(traces, tuple):
        replays = [(_Replay(field, vcpus, seed, blocks, pace), traces)]
    else:
        # Two traces of the same kind must not walk in step.
        replays = [
            (_Replay(f"{field}[{n}]", vcpus, key_of(seed, f"trace {n}"), blocks, pace), trace)
            for n, trace in enumerate(traces)
        ]
    made = [replay.make(scenario, trace) for replay, trace in replays]
    workload = together([workload for workload, _ in made], pace)
    return workload, Recipe(tuple(recipe for _, recipe in made), pace)


@dataclass(frozen=True)
class _Replay:
    """Who replays a trace: the one at ``field`` of the scenario, on ``blocks``."""

    field: str
    vcpus: int
    seed: int
    blocks: tuple[BlockEntry, ...]
    pace: Pace

    def make(
        self, scenario: Scenario, trace: RecordedTrace | SyntheticTrace
    ) -> tuple[Workload, RecordedRecipe | SyntheticRecipe]:
        """The workload, and the recipe of it. Raises ConfigError."""
        if isinstance(trace, RecordedTrace):
            return self._recorded(scenario, trace)
        recipe = synthetic_recipe(trace.synthetic, self.vcpus, self.seed, self.blocks)
        return recipe.make(self.blocks), recipe

    def _recorded(
        self, scenario: Scenario, config: RecordedTrace
    ) -> tuple[Workload, RecordedRecipe]:
        try:
            trace = native.open(config.file)
        except TraceError as error:
            remedy = "name a native trace; `vmemu trace convert` makes one from a recording"
            raise scenario.error(f"{self.field}.file", str(error), remedy) from None
        low, high = _window(scenario, f"{self.field}.window", config.window, trace.accesses)
        recipe = RecordedRecipe(
            file=str(config.file),
            vcpus=self.vcpus,
            low=low,
            high=high,
            loops=config.loops,
            by_id=config.threads == "by_id",
            **_layout(config),
        )
        if self.pace.kind == "recorded":
            self._check_times(scenario, trace, config)
        try:
            return recipe.lay_out(trace, self.blocks), recipe
        except TraceError as error:
            raise scenario.error(f"{self.field}.map", str(error), "") from None

    def _check_times(self, scenario: Scenario, trace: Trace, config: RecordedTrace) -> None:
        """Raise ConfigError for a trace that has no times, or too long a time."""
        if trace.meta.time_range_ns is None:
            what = f"{self.field}.file, {config.file}, has no recorded times"
            remedy = "use 'kind: rate' or 'kind: asap', or convert a recording that has times"
            raise scenario.error("guest.pace.kind", what, remedy)
        first, last = trace.meta.time_range_ns
        if config.loops * (last - first) >= LONGEST_NS:
            what = f"{config.loops} loops of a trace of {format_duration(last - first)} take ages"
            remedy = f"use at most {(LONGEST_NS - 1) // (last - first)} loops"
            raise scenario.error(f"{self.field}.loops", what, remedy)


def _layout(config: RecordedTrace) -> dict[str, Any]:
    if isinstance(config.map, RegionMap):
        regions = tuple((r.start, r.end, r.block, r.offset) for r in config.map.regions)
        return {"regions": regions, "outside": config.map.outside}
    return {"block": config.map.block}


def _window(scenario: Scenario, field: str, window: Window, total: int) -> tuple[int, int]:
    """The first access to replay and the one behind the last, of ``total``."""
    resolved = []
    for name, position in (("start", window.start), ("stop", window.stop)):
        try:
            resolved.append(position.resolve(total))
        except ValueError as error:
            what, _, remedy = str(error).partition("; ")
            raise scenario.error(f"{field}.{name}", what, remedy) from None
    low, high = resolved
    if low >= high:
        what = f"the window from access {low} to {high} of {total} holds nothing"
        raise scenario.error(f"{field}.stop", what, "give a stop above the start")
    return low, high
