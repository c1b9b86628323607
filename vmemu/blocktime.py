"""How long vCPUs were stopped by faults: distributions, and the time when all of them were at once.

All figures come from the recorded faults themselves, after the run: nothing is estimated, and no
counter is shared by threads that race. Times are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STAGE_DTYPE = np.dtype(
    [
        *((name, np.uint64) for name in ("asked_ns", "queued_ns", "sent_ns", "arrived_ns")),
        *((name, np.uint64) for name in ("placed_ns", "page")),
        ("block", np.uint32),
        ("tid", np.uint32),
    ]
)
"""The way of a requested page as ``struct vm_stage_record`` has it; times of CLOCK_MONOTONIC."""
STAGES = {
    "request": ("asked_ns", "queued_ns"),
    "queue": ("queued_ns", "sent_ns"),
    "transfer": ("sent_ns", "arrived_ns"),
    "place": ("arrived_ns", "placed_ns"),
}
"""From the fault thread to the source, waiting there, on the way, and being placed."""
QEMU_BUCKETS = 24
WORST = 10
"""How many of the longest faults are told one by one."""
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99, "p999": 0.999}


def latencies(faults: NDArray[np.void]) -> NDArray[np.uint64]:
    """How long each fault stopped its vCPU."""
    result: NDArray[np.uint64] = faults["end_ns"] - faults["start_ns"]
    return result


def summary(latency: NDArray[np.uint64]) -> dict[str, int]:
    """p50, p90, p99, p999, max and mean; zeros when there was no fault.

    A quantile is a latency that was measured: the smallest one that at least this share of faults
    did not exceed.
    """
    if len(latency) == 0:
        return {**dict.fromkeys(QUANTILES, 0), "max": 0, "mean": 0}
    ordered = np.sort(latency)
    ranks = {name: max(int(np.ceil(q * len(ordered))) - 1, 0) for name, q in QUANTILES.items()}
    result = {name: int(ordered[rank]) for name, rank in ranks.items()}
    return {**result, "max": int(ordered[-1]), "mean": int(ordered.mean())}


def histogram(latency: NDArray[np.uint64]) -> list[dict[str, int]]:
    """Counts of latencies up to ``le_ns`` and above the bound before, eight buckets an octave from
    1 us on.

    Only from the first to the last bucket that holds any; empty without faults.
    """
    if len(latency) == 0:
        return []
    bounds = [round(1000 * 2 ** (step / 8)) for step in range(8 * 26 + 1)]
    bounds.append(max(int(latency.max()), bounds[-1] + 1))
    index = np.searchsorted(np.array(bounds, np.uint64), latency, side="left")
    counts = np.bincount(index, minlength=len(bounds))
    used = np.flatnonzero(counts)
    return [{"le_ns": bounds[i], "count": int(counts[i])} for i in range(used[0], used[-1] + 1)]


def overlapped(faults: Sequence[NDArray[np.void]]) -> int:
    """Time in which every vCPU was stopped at once. ``faults``: those of each vCPU, in their order.

    A vCPU's own faults never overlap, so the vCPUs stopped at a time are the starts before it less
    the ends.
    """
    if not faults or any(len(one) == 0 for one in faults):
        return 0
    starts = np.concatenate([one["start_ns"] for one in faults]).astype(np.int64)
    ends = np.concatenate([one["end_ns"] for one in faults]).astype(np.int64)
    times = np.concatenate([ends, starts])
    change = np.concatenate([np.full(len(ends), -1), np.full(len(starts), 1)])
    # Stable, ends first: one vCPU that goes on while another stops at the same instant is no
    # overlap.
    order = np.argsort(times, kind="stable")
    times, stopped = times[order], np.cumsum(change[order])
    return int(np.diff(times)[stopped[:-1] == len(faults)].sum())


def worst(faults: Sequence[NDArray[np.void]]) -> list[tuple[int, np.void]]:
    """(vCPU, fault) of the ``WORST`` longest, the longest first. ``faults``: those of each vCPU, in
    their order."""
    if not faults:
        return []
    everything = np.concatenate(faults)
    vcpus = np.repeat(np.arange(len(faults)), [len(one) for one in faults])
    # Of equal ones the first to begin: what a run tells must not hang on the order of its vCPUs.
    longest = np.lexsort((everything["start_ns"], ~latencies(everything)))[:WORST]
    return [(int(vcpus[index]), everything[index]) for index in longest]


def qemu_buckets(latency: NDArray[np.uint64]) -> list[int]:
    """Counts in QEMU's 24 buckets: number N holds [2^N, 2^(N+1)) us.

    What took less than 1 us is in the first, what took longer than the last one's in the last.
    """
    if len(latency) == 0:
        return [0] * QEMU_BUCKETS
    us = np.maximum(latency // 1000, 1)
    index = np.minimum(np.log2(us.astype(np.float64)).astype(np.int64), QEMU_BUCKETS - 1)
    return [int(count) for count in np.bincount(index, minlength=QEMU_BUCKETS)]


def stages(records: NDArray[np.void]) -> dict[str, dict[str, int]]:
    """How long each stage of a requested page took: a summary a stage."""
    return {name: summary(records[end] - records[begin]) for name, (begin, end) in STAGES.items()}


def of_others(records: NDArray[np.void], vcpu_threads: Sequence[int]) -> NDArray[np.uint64]:
    """Latencies, from fault to placed, of pages that no vCPU had asked for first."""
    others = records[~np.isin(records["tid"], np.array(vcpu_threads, np.uint32))]
    result: NDArray[np.uint64] = others["placed_ns"] - others["asked_ns"]
    return result
