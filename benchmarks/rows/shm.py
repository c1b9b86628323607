"""The channel in shared memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from context import Context, Rounds
from frame import Of, Row, Target
from workloads import (
    KIB,
    MIB,
    Scenario,
    block,
    demand,
    floor_gib_per_s,
    floor_p50_us,
    gib_per_s,
    huge_block,
    p50_us,
    pushed,
)

_SHM = "channel.kind=shm"


def rows(context: Context) -> Iterable[Row]:
    def run(scenario: Scenario, cpus: frozenset[int]) -> Mapping[str, Any]:
        context.needs(scenario, _SHM)
        return context.vmemu(scenario, cpus, _SHM)

    pages = 2048 if context.quick else 8192
    small = Rounds(
        ours=lambda: run(demand(block(pages * 4 * KIB)), context.one_cpu),
        floor=lambda: context.floor(context.one_cpu, "fault", "shm", "--pages", pages),
    )
    yield Row(
        "shm-fault-4k",
        "p50 of faults on 4 KiB anonymous pages through shared memory",
        "us",
        "one CPU",
        small.figure("ours", p50_us),
        small.figure("floor", floor_p50_us),
        "floor, shared memory",
        target=1.15,
    )
    huge = Rounds(
        shm=lambda: run(demand(huge_block(32)), context.one_cpu),
        pipe=lambda: context.vmemu(demand(huge_block(32)), context.one_cpu),
        floor=lambda: context.floor(context.one_cpu, "fault", "shm", "--pages", 32, "--huge"),
    )
    yield Row(
        "shm-fault-2m",
        "p50 of faults on 2 MiB pages of hugetlbfs through shared memory",
        "us",
        "one CPU",
        huge.figure("shm", p50_us),
        huge.figure("pipe", p50_us),
        "ours, pipe",
        target=0.6,
        held_by="the copy of 2 MiB from memory that is in no cache takes 190 to 230 us, by memcpy"
        " too; the pipe's UFFDIO_COPY, from an area that was just written, takes 110 us",
    )
    yield Row(
        "shm-fault-2m-floor",
        "p50 of faults on 2 MiB pages of hugetlbfs through shared memory",
        "us",
        "one CPU",
        huge.figure("shm", p50_us),
        huge.figure("floor", floor_p50_us),
        "floor, shared memory",
    )
    size = (512 if context.quick else 1024) * MIB
    scenario = pushed(block(size, backing="shared"), verify={"final": False})
    push = Rounds(
        ours=lambda: run(scenario, context.all_cpus),
        floor=lambda: context.floor(context.all_cpus, "bulk", "continue", "--bytes", size),
    )
    what = "rate of the push of a shared block with UFFDIO_CONTINUE"
    yield Row(
        "shm-push",
        what,
        "GiB/s",
        "all CPUs",
        push.figure("ours", gib_per_s),
        target=20,
        comparison=Target.AT_LEAST,
        of=Of.FIGURE,
        held_by="UFFDIO_CONTINUE costs the kernel 220 to 310 ns a page here, whatever the page: 12"
        " to 17 GiB/s for one thread, 15 to 24 for two",
    )
    yield Row(
        "shm-push-floor",
        what,
        "GiB/s",
        "all CPUs",
        push.figure("ours", gib_per_s),
        push.figure("floor", floor_gib_per_s),
        "floor, UFFDIO_CONTINUE",
        comparison=Target.AT_LEAST,
    )
