"""The document of a stress run, for programs: what ``vmemu stress --json`` writes.

Sizes are bytes, times integer nanoseconds under names that end in ``_ns``; ``docs/stress.md``
explains it.
"""

from __future__ import annotations

from typing import Literal

from vmemu.model.base import Model
from vmemu.model.fields import Field

SCHEMA = "vmemu-stress/1"
"""Changes its number when a key goes away or changes its meaning; new keys keep it."""

Status = Literal[
    "completed", "skipped", "failed", "interrupted", "refused", "stuck", "timeout", "died", "ended"
]


class Ran(Model):
    """One run. ``status`` is that of ``vmemu.jobs.Outcome``, or ``ended``: it was under way when
    another one failed, or at an interrupt. The figures are None when it left no result."""

    variation: int
    seed: int
    overrides: tuple[str, ...]
    command: str
    status: Status
    reason: str = ""
    duration_ns: int
    bytes_checked: int | None = None
    faults: int | None = None
    p99_ns: int | None = None


class Failure(Model):
    """What stopped it: where the run's result and event log are, None if it left none, and of a
    stuck one which vCPUs waited for what, and where its threads stood."""

    variation: int
    status: Status
    reason: str
    command: str
    again: str
    result_file: str | None
    events_file: str | None
    stopped: tuple[str, ...] = ()
    stacks: str = ""


class Memory(Model):
    """A kind of memory that post-copy works with on the host."""

    backing: str
    page_size: int


class Host(Model):
    """What decides the variations beside scenario, seed and number. ``pools`` are hugepages in all
    by page size; ``lockable`` None is without limit."""

    memory: tuple[Memory, ...]
    pools: dict[str, int]
    lockable: int | None
    dirty_tracking: tuple[str, ...]


class Slowest(Model):
    """The completed run with the slowest 99th percentile of its faults."""

    variation: int
    p99_ns: int


class Seen(Model):
    """In how many completed runs each was: backings, page sizes in bytes, modes in words."""

    backings: dict[str, int]
    page_sizes: dict[str, int]
    modes: dict[str, int]


class Totals(Model):
    """Sums; bytes and faults are of completed runs."""

    runs: int
    completed: int
    skipped: int
    failed: int
    ended: int
    skip_reasons: dict[str, int]
    bytes_checked: int
    faults: int
    slowest: Slowest | None


class StressDocument(Model):
    """Everything about one stress run; ``runs`` are in the order of their numbers."""

    schema_: Literal["vmemu-stress/1"] = Field(default="vmemu-stress/1", alias="schema")
    vmemu: str
    scenario: str
    given: tuple[str, ...]
    seed: int
    first: int
    jobs: int
    status: Literal["completed", "failed", "interrupted"]
    duration_ns: int
    host: Host
    totals: Totals
    seen: Seen
    failure: Failure | None
    runs: tuple[Ran, ...]
