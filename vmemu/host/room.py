"""How much new memory this process may take now, and what sets the limit.

A process that takes more is not told: the OOM killer ends it, or somebody else. So the smallest of
all limits is asked before anything is mapped. `vmemu doctor` records that one; a run lays each
against what it takes of it.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from vmemu import addressspace, meminfo
from vmemu.errors import Advice
from vmemu.host import cgroups
from vmemu.host.files import HostFiles
from vmemu.host.identity import Identity, identify
from vmemu.host.raising import raised
from vmemu.privilege import as_root
from vmemu.units import format_size

LESS = Advice("use smaller blocks, or free memory")
"""To who needs more than there is, where nothing else sets a limit."""
_STRICT = 2
"""vm.overcommit_memory: what is promised may not exceed the commit limit."""


class Room(NamedTuple):
    """``size`` bytes that may be taken now; ``limited_by`` says in words what sets that limit,
    empty for the machine's memory itself, and ``remedy`` is the command that raises it, empty where
    only smaller blocks or free memory do."""

    size: int
    limited_by: str = ""
    remedy: str = ""


class MachineMemory(NamedTuple):
    """What the machine has, bytes; what may be filled anew is ``available`` and free swap."""

    total: int
    available: int
    swap_free: int

    @property
    def room(self) -> Room:
        """For memory of no other limit."""
        return Room(self.available + self.swap_free)


def machine(files: HostFiles) -> MachineMemory:
    """From /proc/meminfo, or where that can't be read from the C library."""
    figures = meminfo.figures(files.text("/proc/meminfo", "the machine's memory") or "")
    return MachineMemory(
        figures.get("MemTotal", os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE),
        figures.get("MemAvailable", os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE),
        figures.get("SwapFree", 0),
    )


def group_room(group: cgroups.GroupLimit | None) -> Room | None:
    """What is left below a control group's limit; None without one."""
    return None if group is None else Room(group.rest, group.file, group.remedy)


def memory_room() -> Room:
    """What new pages may be filled: memory that is available (and swap), or what is left below the
    limit of a cgroup, whichever is less."""
    files = HostFiles()
    memory = machine(files)
    group = group_room(cgroups.tightest(files, memory.swap_free))
    return memory.room if group is None else min(memory.room, group, key=_size)


def commit_room(files: HostFiles | None = None, identity: Identity | None = None) -> Room | None:
    """What may still be promised where the kernel promises no more than it has
    (``vm.overcommit_memory`` = 2); None where it does not count.

    The kernel keeps something back for root and for each process.
    """
    files = files or HostFiles()
    if overcommit(files) != _STRICT:
        return None
    figures = meminfo.figures(files.text("/proc/meminfo", "the machine's memory") or "")
    if "CommitLimit" not in figures or "Committed_AS" not in figures:
        return None
    rest = figures["CommitLimit"] - figures["Committed_AS"]
    if not (identity or identify(files)).may("CAP_SYS_ADMIN"):
        rest -= _reserve(files, "admin_reserve_kbytes")
    mapped = sum(int(pages) * mmap.PAGESIZE for pages in _own_size(files).split()[:1])
    rest -= min(mapped // 32, _reserve(files, "user_reserve_kbytes"))
    what = "the commit limit (vm.overcommit_memory is 2)"
    return Room(max(rest, 0), what, as_root("sysctl vm.overcommit_memory=0"))


def memory_advice() -> Advice:
    """How much memory a mapping could have had, and what would do."""
    free = smallest(memory_room(), commit_room()).size
    # The source holds an image of the same size.
    had = f"{format_size(free, digits=3)} are free here, and a run takes about twice its RAM"
    return Advice(f"{had}; {LESS}")


def address_room(
    files: HostFiles | None = None, identity: Identity | None = None, *, of_run: bool = False
) -> Room | None:
    """What this process, or one that it starts, may still map (RLIMIT_AS, RLIMIT_DATA); None
    without a limit. ``identity`` tells who can raise it; ``of_run`` asks for the process of a run,
    of which this one has perhaps not loaded everything."""
    loaded = addressspace.RUN_LOADED if of_run else {}
    files = files or HostFiles()
    limit = addressspace.limit(_own_size(files), loaded)
    if limit is None:
        return None
    if not limit.is_hard:
        return Room(limit.left, limit.what, limit.remedy)
    identity = identity or identify(files)
    _, remedy = raised(
        limit.name, None, 0, raisable=identity.raises_limits, container=identity.container
    )
    return Room(limit.left, limit.what, remedy)


def is_of_process(limited_by: str) -> bool:
    """Whether it is the limit of each process alone, and on no memory that all share."""
    return limited_by.startswith("RLIMIT_")


def overcommit(files: HostFiles) -> int | None:
    """How the kernel counts what it promises (``vm.overcommit_memory``)."""
    return files.number("/proc/sys/vm/overcommit_memory", "vm.overcommit_memory")


def smallest(*rooms: Room | None) -> Room:
    """That of the tightest limit; the first of equal ones."""
    return min((room for room in rooms if room is not None), key=_size)


def _size(room: Room) -> int:
    return room.size


def _reserve(files: HostFiles, name: str) -> int:
    return (files.number(f"/proc/sys/vm/{name}", f"vm.{name}", must=False) or 0) << 10


def _own_size(files: HostFiles) -> str:
    return files.text("/proc/self/statm", "the size of this process") or ""
