"""How much new memory this process may take now, and what sets the limit.

A process that takes more is not told: the OOM killer ends it, or somebody else. So the smallest of
all limits is asked before anything is mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmemu import addressspace
from vmemu.host import cgroups
from vmemu.host.files import HostFiles
from vmemu.meminfo import meminfo
from vmemu.privilege import as_root


@dataclass(frozen=True)
class Room:
    """``size`` bytes that may be taken now; ``limited_by`` says in words what sets that limit, and
    ``remedy`` is the command that raises it, empty where only smaller blocks or free memory do."""

    size: int
    limited_by: str
    remedy: str = ""


def memory_room() -> Room:
    """What new pages may be filled: memory that is available (and swap), or what is left below the
    limit of a cgroup, whichever is less."""
    swap_free = meminfo("SwapFree:")
    machine = Room(meminfo("MemAvailable:") + swap_free, "MemAvailable and free swap")
    group = cgroups.tightest(HostFiles(), swap_free)
    if group is None or group.rest >= machine.size:
        return machine
    return Room(group.rest, group.file, group.remedy)


def commit_room() -> Room | None:
    """What may still be promised where the kernel promises no more than it has
    (``vm.overcommit_memory`` = 2); None where it does not count."""
    if HostFiles().number("/proc/sys/vm/overcommit_memory", "vm.overcommit_memory") != 2:
        return None
    free = max(0, meminfo("CommitLimit:") - meminfo("Committed_AS:"))
    remedy = as_root("sysctl vm.overcommit_memory=0")
    return Room(free, "CommitLimit, as vm.overcommit_memory is 2", remedy)


def address_room() -> Room | None:
    """What this process, or one that it starts, may still map; None without a limit."""
    limit = addressspace.limit()
    return None if limit is None else Room(*limit)
