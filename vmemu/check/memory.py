"""Rules on memory: what both ends need against what they have, and what may be locked."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, End, Finding, names
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.host.raising import raised
from vmemu.host.room import LESS, Room, is_of_process
from vmemu.memoryneed import (
    MemoryShortage,
    Need,
    maps_of,
    memory_needed,
    memory_shortage,
    too_little,
    too_much,
)
from vmemu.units import format_size


def rules(case: Case) -> Iterator[Finding]:
    """All of this file."""
    yield from _room(case)
    yield from _lockable(case)
    yield from _locked(case)


def _room(case: Case) -> Iterator[Finding]:
    need = memory_needed(case.scenario, in_place=case.in_place)
    if case.same_host:
        yield from _of_one(case, case.destination, need, need.together)
    else:
        for end, wanted in ((case.destination, need.destination), (case.source, need.source)):
            yield from _of_one(case, end, need, wanted)


def _of_one(case: Case, end: End, need: Need, wanted: int) -> Iterator[Finding]:
    memory = end.host.memory
    wants = f"{_who(case, end)} {_shown(wanted)} of memory on {end.called}"
    if end.here and case.same_host:
        short = memory_shortage(need)  # a run asks the same
    else:
        short = too_much(wants, wanted, memory.total, memory.swap_free)
        short = (
            short or too_little(wants, wanted, _shared_room(end)) or _too_little_space(end, need)
        )
    if short is not None:
        code = Code.MEMORY_NEVER if short.never else Code.MEMORY
        yield case.of_all("blocks", code, short.what, short.remedy)
    elif wanted + need.extra > (free := _shared_room(end).size):
        what = (
            f"{wants}, up to {_shown(need.extra)} more for zeros that are written and marks of"
            f" writes, and {_shown(free)} are free"
        )
        yield case.of_all("blocks", Code.MEMORY_TIGHT, what, LESS, verdict=Verdict.UNKNOWN)


def _shared_room(end: End) -> Room:
    """What all processes there may take together."""
    memory = end.host.memory
    if not is_of_process(memory.limited_by):
        return Room(memory.room, memory.limited_by, memory.remedy)
    room = memory.available + memory.swap_free
    if memory.cgroup_limit is not None and memory.cgroup_used is not None:
        room = min(room, max(0, memory.cgroup_limit - memory.cgroup_used))
    return Room(room)


def _too_little_space(end: End, need: Need) -> MemoryShortage | None:
    """Of one process, where its limit is the smallest there."""
    memory = end.host.memory
    if not is_of_process(memory.limited_by):
        return None
    given = Room(memory.room, memory.limited_by, memory.remedy)
    return too_little(f"{maps_of(need)} on {end.called}", need.mapped, given)


def _who(case: Case, end: End) -> str:
    return "the run needs" if case.same_host else f"the {end.role} needs"


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
        words, remedy = raised(
            "memlock",
            wanted,
            limits.memlock_hard,
            raisable=limits.raisable,
            container=case.destination.host.userfault.container,
            wrapped=case.destination.as_root,
        )
        yield case.of_all("memory.lock", Code.MEMLOCK, message + words, remedy)


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
