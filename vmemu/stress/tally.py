"""What a stress run has come to so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vmemu.config import CpuLists, RatePace, RecordedPace, Scenario
from vmemu.jobs.supervised import Outcome
from vmemu.stress import document
from vmemu.stress.variations import Variation


class Tally:
    """Counts the runs that have ended."""

    def __init__(self) -> None:
        self.runs: list[document.Ran] = []
        self.failure: document.Failure | None = None
        self.statuses: Counter[str] = Counter()
        self._skips: Counter[str] = Counter()
        self._backings: Counter[str] = Counter()
        self._page_sizes: Counter[int] = Counter()
        self._modes: Counter[str] = Counter()

    def add(
        self, variation: Variation, outcome: Outcome, status: document.Status, reason: str
    ) -> None:
        """A run that has ended; ``status`` and ``reason`` are what stress makes of its outcome."""
        self.runs.append(_ran(variation, outcome, status, reason))
        self.statuses[status] += 1
        if status == "skipped":
            self._skips[reason] += 1
        if status == "completed":
            blocks = variation.scenario.blocks
            self._backings.update({block.backing for block in blocks})
            self._page_sizes.update({block.page_size for block in blocks})
            self._modes.update(modes(variation.scenario))

    @property
    def totals(self) -> document.Totals:
        """Sums over all runs."""
        of = self.statuses
        completed = [ran for ran in self.runs if ran.status == "completed"]
        quiet = of["completed"] + of["skipped"] + of["ended"]
        return document.Totals(
            runs=len(self.runs),
            completed=of["completed"],
            skipped=of["skipped"],
            failed=len(self.runs) - quiet,
            ended=of["ended"],
            skip_reasons=dict(self._skips.most_common()),
            bytes_checked=sum(ran.bytes_checked or 0 for ran in completed),
            faults=sum(ran.faults or 0 for ran in completed),
            slowest=_slowest(completed),
        )

    @property
    def seen(self) -> document.Seen:
        """What the completed runs were like."""
        sizes = {str(size): self._page_sizes[size] for size in sorted(self._page_sizes)}
        return document.Seen(
            backings=dict(sorted(self._backings.items())),
            page_sizes=sizes,
            modes=dict(sorted(self._modes.items(), key=lambda pair: (-pair[1], pair[0]))),
        )


def modes(scenario: Scenario) -> Iterator[str]:
    """What a scenario does, in words: of those in ``PARTS``."""
    postcopy, precopy = scenario.migration.postcopy, scenario.migration.precopy
    guest, flip = scenario.guest, scenario.migration.flip_at
    found = {
        "preempt": postcopy.preempt,
        "one channel": not postcopy.preempt,
        "shared memory": scenario.channel.kind == "shm",
        "several fault threads": postcopy.fault_threads > 1,
        "sigbus delivery": postcopy.delivery == "sigbus",
        "push": postcopy.push,
        "limited push": postcopy.push and postcopy.bandwidth > 0,
        "demand faults alone": not postcopy.push,
        "release_ram": postcopy.release_ram,
        "fault-around": postcopy.fault_around > 1,
        "prefetch": postcopy.prefetch != "none",
        "push in sequence": postcopy.push_order == "sequential",
        "push in recorded order": postcopy.push_order == "recorded",
        "colocated": scenario.placement == "colocate",
        "spread apart": scenario.placement == "spread",
        "left to the scheduler": scenario.placement == "none",
        "named CPUs": isinstance(scenario.placement, CpuLists),
        "pre-copy": precopy.rounds > 0,
        "converging pre-copy": precopy.rounds > 0 and precopy.switch == "converged",
        "dirty tracking by the replay": precopy.rounds > 0 and precopy.dirty_tracking == "replay",
        "guest at the source first": not flip.at_once,
        "several vCPUs": guest.vcpus > 1,
        "recorded pace": isinstance(guest.pace, RecordedPace),
        "fixed rate": isinstance(guest.pace, RatePace),
        "clients": bool(scenario.clients),
        "balloon": guest.balloon is not None,
        "locked memory": scenario.memory.lock,
        "collapsed to hugepages": any(block.collapse == "on_complete" for block in scenario.blocks),
        "mixed page sizes": len({block.page_size for block in scenario.blocks}) > 1,
    }
    return (name for name, holds in found.items() if holds)


PARTS = {
    "channels": (
        "preempt",
        "one channel",
        "shared memory",
        "several fault threads",
        "sigbus delivery",
    ),
    "push": ("push", "limited push", "demand faults alone", "release_ram"),
    "fewer faults": (
        "fault-around",
        "prefetch",
        "push in sequence",
        "push in recorded order",
    ),
    "placement": ("colocated", "spread apart", "left to the scheduler", "named CPUs"),
    "pre-copy": ("pre-copy", "converging pre-copy", "dirty tracking by the replay"),
    "guest": (
        "several vCPUs",
        "guest at the source first",
        "recorded pace",
        "fixed rate",
        "clients",
        "balloon",
    ),
    "memory": ("locked memory", "collapsed to hugepages", "mixed page sizes"),
}
"""The words of ``modes``, each under the part of a scenario that it is about."""


def _slowest(completed: list[document.Ran]) -> document.Slowest | None:
    known = [(ran.p99_ns, ran.variation) for ran in completed if ran.p99_ns is not None]
    if not known:
        return None
    p99_ns, variation = max(known)
    return document.Slowest(variation=variation, p99_ns=p99_ns)


def _ran(
    variation: Variation, outcome: Outcome, status: document.Status, reason: str
) -> document.Ran:
    result = outcome.result or {}
    return document.Ran(
        variation=variation.number,
        seed=variation.scenario.seed,
        overrides=variation.overrides,
        command=outcome.job.command(),
        status=status,
        reason=reason,
        duration_ns=round(outcome.seconds * 1e9),
        bytes_checked=result.get("verify", {}).get("bytes_checked"),
        faults=result.get("faults", {}).get("count"),
        p99_ns=result.get("faults", {}).get("latency_ns", {}).get("p99"),
    )
