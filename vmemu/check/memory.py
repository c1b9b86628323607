"""Rules on memory: what both ends need against what they have, and what may be locked."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, End, Finding, names
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.memoryneed import Need, memory_needed, memory_shortage
from vmemu.units import format_size

_LESS = "use smaller blocks, or free memory"


def rules(case: Case) -> Iterator[Finding]:
    """All of this file."""
    yield from _room(case)
    yield from _lockable(case)
    yield from _locked(case)


def _room(case: Case) -> Iterator[Finding]:
    need = memory_needed(case.scenario)
    if case.same_host:
        yield from _of_one(case, case.destination, need, need.together)
    else:
        for end, wanted in ((case.destination, need.destination), (case.source, need.source)):
            yield from _of_one(case, end, need, wanted)


def _of_one(case: Case, end: End, need: Need, wanted: int) -> Iterator[Finding]:
    memory = end.host.memory
    if wanted > memory.total + memory.swap_free:
        what = f"{_needs(case, end, wanted)}, and it has {_shown(memory.total)} in all"
        yield case.of_all("blocks", Code.MEMORY_NEVER, what, "use smaller blocks")
        return
    if end.here and case.same_host:
        # The run asks the same, and refuses for the same reason.
        shortage = memory_shortage(need)
        if shortage is not None:
            yield case.of_all("blocks", Code.MEMORY, shortage.what, shortage.remedy or _LESS)
            return
    elif wanted > memory.room:
        limit = f", limited by {memory.limited_by}" if memory.limited_by else ""
        what = f"{_needs(case, end, wanted)}, and {_shown(memory.room)} are free{limit}"
        yield case.of_all("blocks", Code.MEMORY, what, memory.remedy or _LESS)
        return
    if wanted + need.extra > memory.room:
        what = (
            f"{_needs(case, end, wanted)}, up to {_shown(need.extra)} more for zeros that are"
            f" written and marks of writes, and {_shown(memory.room)} are free"
        )
        yield case.of_all("blocks", Code.MEMORY_TIGHT, what, _LESS, verdict=Verdict.UNKNOWN)


def _needs(case: Case, end: End, wanted: int) -> str:
    ends = "source and destination" if case.same_host else f"the {end.role}"
    return f"{ends} need{'' if case.same_host else 's'} {_shown(wanted)} of memory on {end.called}"


def _shown(size: int) -> str:
    return format_size(size, digits=3)


# ---- locked memory ----


def _lockable(case: Case) -> Iterator[Finding]:
    """Hugepages are never swapped, and not locked."""
    limits = case.destination.host.limits
    blocks = [of for of in case.blocks if not of.hugetlb]
    if not case.scenario.memory.lock or limits.ipc_lock or limits.memlock_soft is None:
        return
    wanted = sum(of.block.size for of in blocks) + _locked_already(case.destination)
    if wanted > limits.memlock_soft:
        message = (
            f"{names(blocks)} can't be locked in memory, {format_size(wanted)}:"
            f" {format_size(limits.memlock_soft)} is what the process may lock on"
            f" {case.destination.called} (RLIMIT_MEMLOCK)"
        )
        remedy = _raise_memlock(limits.memlock_hard, wanted)
        yield case.of_all("memory.lock", Code.MEMLOCK, message, remedy)


def _raise_memlock(hard: int | None, wanted: int) -> str:
    if hard is None or wanted <= hard:
        return f"ulimit -S -l {-(-wanted // 1024)}"
    return f"sudo prlimit --pid $$ --memlock={wanted}"


def _locked_already(end: End) -> int:
    if not end.here:
        return 0
    from vmemu.memlock import locked_bytes

    return locked_bytes()


def _locked(case: Case) -> Iterator[Finding]:
    """A process that locks whatever it maps, which only that process knows."""
    if not case.destination.here:
        return
    from vmemu.memlock import BALLOON_LOCKED, UNLOCK, locks_new_memory

    if not locks_new_memory():
        return
    if case.scenario.guest.balloon and any(not of.hugetlb for of in case.blocks):
        yield case.of_all("guest.balloon", Code.LOCKED, BALLOON_LOCKED, UNLOCK)
    else:
        message = (
            "this process locks all its new memory (mlockall with MCL_FUTURE), which fills each"
            " page that should be missing: a run unlocks it until post-copy is over"
        )
        yield case.of_all("", Code.LOCKED, message, UNLOCK, verdict=Verdict.DEGRADED)
