"""What a fault costs one vCPU on demand alone, beside the floor at the same placement."""

from __future__ import annotations

from collections.abc import Iterable

from context import Context, Rounds
from frame import Row
from workloads import (
    KIB,
    block,
    demand,
    floor_p50_us,
    floor_p99_us,
    huge_block,
    p50_us,
    p99_us,
)


def rows(context: Context) -> Iterable[Row]:
    for place, cpus in (("one", context.one_cpu), ("all", context.all_cpus)):
        words = "one CPU" if place == "one" else "all CPUs"
        yield from _small(context, place, words, cpus)
        yield from _huge(context, place, words, cpus)


def _small(context: Context, place: str, words: str, cpus: frozenset[int]) -> Iterable[Row]:
    pages = 2048 if context.quick else 8192
    rounds = Rounds(
        ours=lambda: context.vmemu(demand(block(pages * 4 * KIB)), cpus),
        one=lambda: context.floor(cpus, "fault", "one", "--pages", pages),
        qemu=lambda: context.floor(cpus, "fault", "qemu", "--pages", pages),
        inline=lambda: context.floor(cpus, "fault", "inline", "--pages", pages),
    )
    what = "of faults on 4 KiB anonymous pages through a pipe"
    yield Row(
        f"fault-4k-{place}-p50",
        f"p50 {what}",
        "us",
        words,
        rounds.figure("ours", p50_us),
        rounds.figure("one", floor_p50_us),
        "floor, one thread",
        target=1.15,
    )
    yield Row(
        f"fault-4k-{place}-p50-qemu",
        f"p50 {what}",
        "us",
        words,
        rounds.figure("ours", p50_us),
        rounds.figure("qemu", floor_p50_us),
        "floor, QEMU's layout",
        target=1.0,
    )
    yield Row(
        f"fault-4k-{place}-p50-inline",
        f"p50 {what}, beside a thread that has all pages itself",
        "us",
        words,
        rounds.figure("ours", p50_us),
        rounds.figure("inline", floor_p50_us),
        "floor, no source",
    )
    yield Row(
        f"fault-4k-{place}-p99",
        f"p99 {what}",
        "us",
        words,
        rounds.figure("ours", p99_us),
        rounds.figure("one", floor_p99_us),
        "floor, one thread",
        target=1.5,
    )


def _huge(context: Context, place: str, words: str, cpus: frozenset[int]) -> Iterable[Row]:
    pages = 32
    rounds = Rounds(
        ours=lambda: context.vmemu(demand(huge_block(pages)), cpus),
        floor=lambda: context.floor(cpus, "fault", "one", "--pages", pages, "--huge"),
    )
    yield Row(
        f"fault-2m-{place}-p50",
        "p50 of faults on 2 MiB pages of hugetlbfs through a pipe",
        "us",
        words,
        rounds.figure("ours", p50_us),
        rounds.figure("floor", floor_p50_us),
        "floor, one thread",
        target=1.15,
    )
