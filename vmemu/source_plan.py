"""What a scenario has the source process do: its images, pre-copy, the guest until the flip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vmemu.config import Scenario
from vmemu.plan import contents_of
from vmemu.protocol import BlockEntry
from vmemu.recipe import Recipe
from vmemu.recorded_order import recorded_order
from vmemu.source_loader import PushSpec, SourceSpec
from vmemu.source_precopy import PrecopySpec, SourceGuestSpec
from vmemu.units import format_duration
from vmemu.workload import Workload


def source_spec(
    scenario: Scenario, workload: Workload, recipe: Recipe, blocks: tuple[BlockEntry, ...]
) -> SourceSpec:
    """All that the source has to know. Raises ConfigError for a flip beyond the trace."""
    postcopy = scenario.migration.postcopy
    return SourceSpec(
        seed=scenario.seed,
        blocks=blocks,
        contents=contents_of(scenario),
        precopy=_precopy(scenario),
        guest=_guest(scenario, workload, recipe),
        postcopy_bandwidth=postcopy.bandwidth,
        push=_push(scenario, workload, blocks),
        release_ram=postcopy.release_ram,
    )


def spoiled(
    spec: SourceSpec,
    *,
    flips: Sequence[tuple[str, int]],
    stalls: Sequence[tuple[str, int]],
) -> SourceSpec:
    """The same with bytes to spoil and pages never to send, each as (block name, offset)."""
    names = [block.name for block in spec.blocks]
    return replace(
        spec,
        flips=tuple((names.index(name), offset) for name, offset in flips),
        stalls=tuple((names.index(name), offset) for name, offset in stalls),
    )


def longer_startup(scenario: Scenario) -> str:
    """What gives a source or a client that did not come up in time more of it, behind the error."""
    given = scenario.source.startup_timeout
    wanted = format_duration(max(2 * given, 30 * 10**9))
    return (
        f": source.startup_timeout is {format_duration(given)};"
        f" use 'source: {{startup_timeout: {wanted}}}'"
    )


def _precopy(scenario: Scenario) -> PrecopySpec:
    precopy = scenario.migration.precopy
    return PrecopySpec(
        rounds=precopy.rounds,
        bandwidth=precopy.bandwidth,
        max_downtime_ns=precopy.max_downtime,
        converged=precopy.switch == "converged",
        max_time_ns=precopy.max_time or 0,
    )


def _push(scenario: Scenario, workload: Workload, blocks: tuple[BlockEntry, ...]) -> PushSpec:
    """Which pages come before others. A flip at a time may come anywhere: then the order is that of
    the whole trace."""
    postcopy = scenario.migration.postcopy
    recorded = b""
    if postcopy.push_order == "recorded":
        at_a_place = scenario.migration.flip_at.position is not None
        begins = flip_positions(scenario, workload) if at_a_place else (0,) * len(workload.vcpus)
        recorded = recorded_order(workload, blocks, begins).tobytes()
    return PushSpec(postcopy.fault_around, postcopy.push_order, recorded)


def _guest(scenario: Scenario, workload: Workload, recipe: Recipe) -> SourceGuestSpec | None:
    """The part of the guest's life before the flip; None when it has none."""
    if not runs_at_source(scenario, workload):
        return None
    return SourceGuestSpec(
        recipe=recipe,
        ends=flip_positions(scenario, workload),
        after_ns=scenario.migration.flip_at.after_ns,
        check_reads=scenario.verify.reads,
        dirty_tracking=scenario.migration.precopy.dirty_tracking,
    )


def runs_at_source(scenario: Scenario, workload: Workload) -> bool:
    """Whether the guest makes any of its accesses before the flip. Raises as flip_positions."""
    after_ns = scenario.migration.flip_at.after_ns
    return after_ns is not None or any(flip_positions(scenario, workload))


def flip_positions(scenario: Scenario, workload: Workload) -> tuple[int, ...]:
    """How many accesses of its share each vCPU makes at the source.

    All of them when the flip is at a time. Raises ConfigError for a place beyond the trace.
    """
    flip = scenario.migration.flip_at
    if flip.position is None:
        return tuple(workload.accesses_by_vcpu())
    try:
        at = flip.position.resolve(workload.accesses)
    except ValueError as error:
        what, _, remedy = str(error).partition("; ")
        raise scenario.error("migration.flip_at", what, remedy) from None
    return workload.positions_at(at)
