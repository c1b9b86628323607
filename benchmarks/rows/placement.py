"""What `placement: auto` makes of a host with several CPUs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from context import Context, Rounds
from frame import Row
from workloads import KIB, block, demand, floor_p50_us, p50_us


def rows(context: Context) -> Iterable[Row]:
    pages = 2048 if context.quick else 8192
    scenario = demand(block(pages * 4 * KIB))

    def placed(kind: str) -> Mapping[str, Any]:
        context.needs(scenario, f"placement={kind}")
        return context.vmemu(scenario, context.all_cpus, f"placement={kind}")

    rounds = Rounds(
        auto=lambda: placed("auto"),
        none=lambda: placed("none"),
        floor=lambda: context.floor(context.one_cpu, "fault", "one", "--pages", pages),
    )
    yield Row(
        "placement-auto",
        "p50 of faults on 4 KiB pages, with all CPUs to choose from",
        "us",
        "auto, none",
        rounds.figure("auto", p50_us),
        rounds.figure("none", p50_us),
        "ours, the scheduler's choice",
        target=1.0,
    )
    yield Row(
        "placement-auto-floor",
        "p50 of faults on 4 KiB pages, with all CPUs to choose from, beside the floor on one",
        "us",
        "auto, one CPU",
        rounds.figure("auto", p50_us),
        rounds.figure("floor", floor_p50_us),
        "floor, one thread",
        target=1.15,
    )
    spread = Rounds(
        ours=lambda: placed(_guest_alone(context)),
        floor=lambda: context.floor(context.all_cpus, "fault", "one", "--spread", "--pages", pages),
    )
    yield Row(
        "fault-4k-spread-p50",
        "p50 of faults on 4 KiB pages, the vCPU on one CPU and all that serves it on another",
        "us",
        "first and last CPU",
        spread.figure("ours", p50_us),
        spread.figure("floor", floor_p50_us),
        "floor, one thread, spread",
        target=1.15,
    )


def _guest_alone(context: Context) -> str:
    """The placement of the floor's --spread, as a scenario writes it."""
    first, last = min(context.all_cpus), max(context.all_cpus)
    return f"{{vcpus: {first}, fault: {last}, urgent: {last}, listen: {last}, push: {last}}}"
