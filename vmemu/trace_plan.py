"""The traces of a scenario → what vCPUs do: opened, laid on blocks, dealt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmemu.config import (
    AutoMap,
    BlocksMap,
    CompactMap,
    FirstTouchMap,
    ModuloMap,
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
from vmemu.content import key_of
from vmemu.errors import TraceError
from vmemu.protocol import BlockEntry
from vmemu.recipe import Recipe, RecordedRecipe, SyntheticRecipe
from vmemu.synthetic_plan import synthetic_recipe
from vmemu.units import counted, format_duration
from vmemu.workload import ASAP, Pace, Workload, together

if TYPE_CHECKING:
    from vmemu.traces import mapping
    from vmemu.traces.native.trace import Trace

LONGEST_NS = 1 << 62
"""Of a guest's clock: what the C core can count with room to spare."""


@dataclass(frozen=True)
class Replayer:
    """Who replays traces: the guest, or a client. ``field`` is where a scenario has them,
    ``blocks`` are what they lie on."""

    field: str
    traces: Traces
    vcpus: int
    seed: int
    blocks: tuple[BlockEntry, ...]
    pace: Pace = ASAP

    def make(self, scenario: Scenario) -> tuple[Workload, Recipe]:
        """What all traces come to, and how another process makes it. Raises ConfigError."""
        made = [replay.make(scenario) for replay in self.replays()]
        workload = together([workload for workload, _ in made], self.pace)
        return workload, Recipe(tuple(recipe for _, recipe in made), self.pace)

    def replays(self) -> list[_Replay]:
        """One for each trace."""
        if not isinstance(self.traces, tuple):
            return [_Replay(self, self.field, self.traces, self.seed)]
        # Two traces of the same kind must not walk in step.
        return [
            _Replay(self, f"{self.field}[{n}]", trace, key_of(self.seed, f"trace {n}"))
            for n, trace in enumerate(self.traces)
        ]


def guest_replayer(scenario: Scenario, blocks: tuple[BlockEntry, ...]) -> Replayer:
    """The guest, on all blocks."""
    guest = scenario.guest
    pace = _pace(guest.pace)
    return Replayer("guest.trace", guest.trace, guest.vcpus, scenario.seed, blocks, pace)


def client_replayer(scenario: Scenario, number: int, block: BlockEntry) -> Replayer:
    """A client, on its block."""
    client = scenario.clients[number]
    # Two clients with the same trace must not walk in step, nor with the guest.
    seed = key_of(scenario.seed, f"client {client.name}")
    return Replayer(f"clients[{number}].trace", client.trace, client.vcpus, seed, (block,))


@dataclass(frozen=True)
class _Replay:
    """One of the traces, at ``field`` of the scenario."""

    owner: Replayer
    field: str
    trace: RecordedTrace | SyntheticTrace
    seed: int

    def make(self, scenario: Scenario) -> tuple[Workload, RecordedRecipe | SyntheticRecipe]:
        """The workload, and the recipe of it. Raises ConfigError."""
        blocks, vcpus = self.owner.blocks, self.owner.vcpus
        if isinstance(self.trace, SyntheticTrace):
            made = synthetic_recipe(self.trace.synthetic, vcpus, self.seed, blocks)
            return made.make(blocks), made
        trace, recipe = self.opened(scenario, self.trace)
        with self.mapping_errors(scenario):
            return recipe.lay_out(trace, blocks), recipe

    def opened(self, scenario: Scenario, config: RecordedTrace) -> tuple[Trace, RecordedRecipe]:
        """The trace, and how it is replayed. Raises ConfigError."""
        from vmemu.traces import native  # guests that are made up have no use for it

        try:
            trace = native.open(config.file)
        except TraceError as error:
            remedy = "name a native trace; `vmemu trace convert` makes one from a recording"
            field = f"{self.field}.file"
            raise scenario.error(field, error.what, error.remedy or remedy) from None
        if not trace.accesses:
            what = f"{config.file} holds no accesses"
            remedy = "name a trace that has some; `vmemu trace info` tells what a recording holds"
            raise scenario.error(f"{self.field}.file", what, remedy)
        low, high = _window(scenario, f"{self.field}.window", config.window, trace.accesses)
        if self.owner.pace.kind == "recorded":
            self._check_times(scenario, trace, config)
        recipe = RecordedRecipe(
            file=str(config.file),
            vcpus=self.owner.vcpus,
            low=low,
            high=high,
            layout=_layout(config),
            loops=config.loops,
            by_id=config.threads == "by_id",
        )
        return trace, recipe

    @contextmanager
    def mapping_errors(self, scenario: Scenario) -> Iterator[None]:
        """A TraceError of laying the trace out becomes a ConfigError of its map."""
        try:
            yield
        except TraceError as error:
            raise scenario.error(f"{self.field}.map", error.what, error.remedy) from None

    def _check_times(self, scenario: Scenario, trace: Trace, config: RecordedTrace) -> None:
        """Raise ConfigError for a trace that has no times, or too long a time."""
        if trace.meta.time_range_ns is None:
            what = f"{self.field}.file, {config.file}, has no recorded times"
            remedy = "use 'kind: rate' or 'kind: asap', or convert a recording that has times"
            raise scenario.error("guest.pace.kind", what, remedy)
        first, last = trace.meta.time_range_ns
        if config.loops * (last - first) >= LONGEST_NS:
            loops, span = counted(config.loops, "loop"), format_duration(last - first)
            what = f"{loops} of a trace of {span} take ages"
            remedy = f"use at most {counted((LONGEST_NS - 1) // (last - first), 'loop')}"
            raise scenario.error(f"{self.field}.loops", what, remedy)


@dataclass(frozen=True)
class LaidTrace:
    """A recorded trace of the scenario, at ``field`` of it, laid on ``blocks`` as a run lays it."""

    field: str
    trace: Trace
    recipe: RecordedRecipe
    blocks: tuple[BlockEntry, ...]
    page_map: mapping.PageMap

    @property
    def kind(self) -> str:
        """The kind of its map, as a scenario names it; of ``auto`` the one that it chose."""
        from vmemu.traces import mapping

        layout = self.recipe.layout
        return (layout.of(self.trace) if isinstance(layout, mapping.Auto) else layout).kind


def lay_traces(scenario: Scenario, blocks: Sequence[BlockEntry]) -> list[LaidTrace]:
    """All recorded traces of a scenario, those of its clients too, each on its blocks.

    Raises ConfigError as the run would.
    """
    replayers = [guest_replayer(scenario, tuple(blocks))]
    named = {block.name: block for block in blocks}
    for number, client in enumerate(scenario.clients):
        replayers.append(client_replayer(scenario, number, named[client.block]))
    laid = []
    for replay in (replay for replayer in replayers for replay in replayer.replays()):
        if isinstance(replay.trace, RecordedTrace):
            trace, recipe = replay.opened(scenario, replay.trace)
            with replay.mapping_errors(scenario):
                page_map = recipe.layout.lay(trace, replay.owner.blocks)
            laid.append(LaidTrace(replay.field, trace, recipe, replay.owner.blocks, page_map))
    return laid


def _pace(pace: PaceConfig) -> Pace:
    if isinstance(pace, RecordedPace):
        return Pace("recorded", factor=pace.factor)
    if isinstance(pace, RatePace):
        return Pace("rate", accesses_per_second=pace.accesses_per_second)
    return ASAP


def _layout(config: RecordedTrace) -> mapping.Layout:
    from vmemu.traces import mapping

    match config.map:
        case RegionMap() as by:
            regions = tuple((r.start, r.end, r.block, r.offset) for r in by.regions)
            return mapping.Regions(regions, by.outside)
        case BlocksMap() as by:
            return mapping.ByBlock(tuple((by.rename or {}).items()), by.outside)
        case CompactMap() as by:
            return mapping.Compact(by.block, by.align)
        case FirstTouchMap() as by:
            return mapping.FirstTouch(by.block)
        case ModuloMap() as by:
            return mapping.Modulo(by.block)
        case AutoMap():
            return mapping.Auto()


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
        what = f"the window from access {low:,} to {high:,} of {total:,} holds nothing"
        raise scenario.error(f"{field}.stop", what, "give a stop above the start")
    return low, high
