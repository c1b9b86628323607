"""Hugepages made of small ones when they are complete, beside small ones and those of hugetlbfs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from context import Context, Rounds
from frame import Row
from workloads import MIB, block, demand, huge_block, p50_us

_COLLAPSE = "blocks[ram].collapse=on_complete"


def rows(context: Context) -> Iterable[Row]:
    size = 16 * MIB

    def collapsed() -> Mapping[str, Any]:
        scenario = demand(block(size))
        context.needs(scenario, _COLLAPSE)
        return context.vmemu(scenario, context.all_cpus, _COLLAPSE)

    rounds = Rounds(
        collapsed=collapsed,
        small=lambda: context.vmemu(demand(block(size)), context.all_cpus),
        huge=lambda: context.vmemu(demand(huge_block(size // (2 * MIB))), context.all_cpus),
    )
    for name, side, words, target in (
        ("collapse", "small", "ours, 4 KiB pages", 2.0),
        ("collapse-hugetlb", "huge", "ours, 2 MiB pages of hugetlbfs", None),
    ):
        yield Row(
            name,
            "p50 of faults on a block whose complete regions become hugepages",
            "us",
            "all CPUs",
            rounds.figure("collapsed", p50_us),
            rounds.figure(side, p50_us),
            words,
            target=target,
        )
