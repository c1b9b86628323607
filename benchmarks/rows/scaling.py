"""What a fault costs with many vCPUs and with many blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from context import Context, Rounds
from frame import Row
from workloads import KIB, block, demand, fault_us, p50_us

_MORE_THAN_A_CACHE_HOLDS = (
    "bitmaps, names and page tables of more blocks than a cache holds; the kernel makes a page"
    " table, 1 us, at the first fault of each block that has one of its own"
)


def rows(context: Context) -> Iterable[Row]:
    pages = 2048 if context.quick else 8192
    yield from _vcpus(context, pages)
    yield from _blocks(context, pages)


def _vcpus(context: Context, pages: int) -> Iterable[Row]:
    def run(vcpus: int) -> Callable[[], Mapping[str, Any]]:
        scenario = demand(block(pages * 4 * KIB), vcpus=vcpus)
        return lambda: context.vmemu(scenario, context.all_cpus)

    rounds = Rounds(**{str(vcpus): run(vcpus) for vcpus in (1, 2, 4, 8)})
    for vcpus in (2, 4, 8):
        yield Row(
            f"vcpus-{vcpus}",
            f"time a fault of {vcpus} vCPUs together",
            "us",
            "all CPUs",
            rounds.figure(str(vcpus), fault_us),
            rounds.figure("1", fault_us),
            "ours, 1 vCPU",
            target=1.1,
        )


def _blocks(context: Context, pages: int) -> Iterable[Row]:
    def run(blocks: int) -> Callable[[], Mapping[str, Any]]:
        size = pages // blocks * 4 * KIB
        scenario = demand(*(block(size, name=f"ram{number}") for number in range(blocks)))
        return lambda: context.vmemu(scenario, context.one_cpu)

    rounds = Rounds(**{str(blocks): run(blocks) for blocks in (1, 16, 1024)})
    for blocks, held_by in ((16, ""), (1024, _MORE_THAN_A_CACHE_HOLDS)):
        yield Row(
            f"blocks-{blocks}",
            f"p50 of faults with the same memory in {blocks} blocks",
            "us",
            "one CPU",
            rounds.figure(str(blocks), p50_us),
            rounds.figure("1", p50_us),
            "ours, 1 block",
            target=1.1,
            held_by=held_by,
        )
