"""The background push: its rate, and what it does to those who wait for a page."""

from __future__ import annotations

from collections.abc import Iterable

from context import Context, Rounds
from frame import Row, Target
from workloads import (
    MIB,
    block,
    busy,
    floor_gib_per_s,
    gib_per_s,
    p99_us,
    pushed,
)


def rows(context: Context) -> Iterable[Row]:
    cpus, size = context.all_cpus, (256 if context.quick else 1024) * MIB
    rate = Rounds(
        ours=lambda: context.vmemu(pushed(block(size), verify={"final": False}), cpus),
        floor=lambda: context.floor(cpus, "bulk", "pipe", "--bytes", size),
    )
    yield Row(
        "push-pipe",
        "rate of the push through a pipe, of 4 KiB anonymous pages, while the guest does nothing",
        "GiB/s",
        "all CPUs",
        rate.figure("ours", gib_per_s),
        rate.figure("floor", floor_gib_per_s),
        "floor, runs of 256 KiB",
        target=0.9,
        comparison=Target.AT_LEAST,
    )
    faults = Rounds(
        pushing=lambda: context.vmemu(busy(256 * MIB, 16384, push=True), cpus),
        without=lambda: context.vmemu(busy(256 * MIB, 16384, push=False), cpus),
    )
    yield Row(
        "push-p99",
        "p99 of faults while the push goes at full speed",
        "us",
        "all CPUs",
        faults.figure("pushing", p99_us),
        faults.figure("without", p99_us),
        "ours without the push",
        target=3.0,
    )
