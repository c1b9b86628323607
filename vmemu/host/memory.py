"""How much memory there is for new mappings: of the machine, the control groups, this process."""

from __future__ import annotations

from vmemu.host import cgroups, room
from vmemu.host.document import Memory
from vmemu.host.files import HostFiles
from vmemu.host.identity import Identity


def memory(files: HostFiles, identity: Identity) -> Memory:
    """The machine's memory, and the smallest of what bounds new memory of this process."""
    machine = room.machine(files)
    group = cgroups.tightest(files, machine.swap_free)
    least = room.smallest(
        machine.room,
        room.address_room(files, identity),
        room.group_room(group),
        room.commit_room(files, identity),
    )
    return Memory(
        total=machine.total,
        available=machine.available,
        room=least.size,
        limited_by=least.limited_by,
        remedy=least.remedy,
        swap_free=machine.swap_free,
        overcommit=room.overcommit(files),
        cgroup_limit=group.limit if group else None,
        cgroup_used=group.used if group else None,
    )
