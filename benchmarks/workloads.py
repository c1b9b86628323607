"""The scenarios of the rows, and the figures that are taken from their results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HUGE = 2 * MIB

Scenario = dict[str, Any]


def block(size: int, **others: Any) -> Scenario:
    return {"name": "ram", "backing": "anonymous", "size": size, **others}


def huge_block(pages: int) -> Scenario:
    return block(pages * HUGE, backing="hugetlbfs", page_size="2MiB")


def demand(*blocks: Scenario, vcpus: int = 1, **postcopy: Any) -> Scenario:
    """Each page is read once, in shuffled order, and comes because it is: there is no push."""
    return {
        "name": "demand",
        "blocks": list(blocks),
        "guest": {"vcpus": vcpus, "trace": _reads()},
        "migration": {"postcopy": {"push": False, **postcopy}},
        "on_unavailable": {"wait": "30s"},
    }


def pushed(*blocks: Scenario, **others: Any) -> Scenario:
    """All pages but one come with the push: the guest makes one access."""
    return {
        "name": "pushed",
        "blocks": list(blocks),
        "guest": {"trace": _reads(accesses=1)},
        "on_unavailable": {"wait": "30s"},
        **others,
    }


def busy(size: int, accesses: int, *, push: bool) -> Scenario:
    """A guest that faults on pages everywhere, beside the push or without it."""
    return {
        "name": "busy",
        "blocks": [block(size)],
        "guest": {"trace": _reads(accesses=accesses)},
        "migration": {"postcopy": {"push": push}},
        # Pages that nobody touched have to come all the same, and would be compared.
        "verify": {"reads": True, "final": False},
    }


def resident(trace: str, pages: int, *, reads: bool) -> Scenario:
    """A trace on memory that was complete before the guest moved: no access faults."""
    return {
        "name": "resident",
        "blocks": [block(pages * 4 * KIB)],
        "guest": {"trace": {"file": trace, "map": {"kind": "compact"}}},
        "migration": {"precopy": {"rounds": 1}, "flip_at": "0%"},
        "verify": {"reads": reads, "final": False},
    }


def _reads(**others: int) -> Scenario:
    return {"synthetic": {"kind": "permutation", "write_share": 0, **others}}


# ---- figures of results; those of the floor have the names that it prints ----

Result = Mapping[str, Any]


def p50_us(result: Result) -> float:
    return float(result["faults"]["latency_ns"]["p50"]) / 1e3


def p99_us(result: Result) -> float:
    return float(result["faults"]["latency_ns"]["p99"]) / 1e3


def phase_ns(result: Result, *names: str) -> float:
    """How long these phases took together."""
    return float(sum(one["duration_ns"] for one in result["phases"] if one["name"] in names))


def fault_us(result: Result) -> float:
    """What a fault costs the guest as a whole: with several vCPUs less than what it costs one."""
    return phase_ns(result, "guest") / result["faults"]["count"] / 1e3


def access_ns(result: Result) -> float:
    return phase_ns(result, "guest") / sum(vcpu["accesses"] for vcpu in result["vcpus"])


def gib_per_s(result: Result) -> float:
    return float(result["throughput"]["bytes_per_second"]) / GIB


def floor_p50_us(result: Result) -> float:
    return float(result["p50_ns"]) / 1e3


def floor_p99_us(result: Result) -> float:
    return float(result["p99_ns"]) / 1e3


def floor_gib_per_s(result: Result) -> float:
    return float(result["bytes_per_second"]) / GIB


def floor_access_ns(result: Result) -> float:
    return float(result["ns_per_access"])
