"""Faults served by the vCPU's own thread, beside those served by a fault thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from context import Context, Rounds
from frame import Row
from workloads import KIB, block, demand, fault_us, floor_p50_us, p50_us

_SIGBUS = "migration.postcopy.delivery=sigbus"


def rows(context: Context) -> Iterable[Row]:
    pages = 2048 if context.quick else 8192

    def run(cpus: frozenset[int], vcpus: int, *settings: str) -> Mapping[str, Any]:
        scenario = demand(block(pages * 4 * KIB), vcpus=vcpus)
        context.needs(scenario, *settings)
        return context.vmemu(scenario, cpus, *settings)

    one = Rounds(
        sigbus=lambda: run(context.one_cpu, 1, _SIGBUS),
        thread=lambda: run(context.one_cpu, 1),
        floor=lambda: context.floor(context.one_cpu, "fault", "sigbus", "--pages", pages),
    )
    what = "p50 of faults on 4 KiB pages, delivered as SIGBUS"
    yield Row(
        "sigbus-p50",
        what,
        "us",
        "one CPU",
        one.figure("sigbus", p50_us),
        one.figure("thread", p50_us),
        "ours, a fault thread",
        target=0.85,
    )
    yield Row(
        "sigbus-p50-floor",
        what,
        "us",
        "one CPU",
        one.figure("sigbus", p50_us),
        one.figure("floor", floor_p50_us),
        "floor, SIGBUS",
        target=1.15,
    )
    many = Rounds(
        many=lambda: run(context.all_cpus, len(context.all_cpus), _SIGBUS),
        one=lambda: run(context.all_cpus, 1, _SIGBUS),
    )
    yield Row(
        "sigbus-vcpus",
        "time a fault of as many vCPUs as CPUs together, delivered as SIGBUS",
        "us",
        "all CPUs",
        many.figure("many", fault_us),
        many.figure("one", fault_us),
        "ours, 1 vCPU",
        target=0.9,
    )
