"""What is mounted: where files of hugepages and shared memory can be made, and which can't."""

from __future__ import annotations

import os

from vmemu.host.document import Mount
from vmemu.host.files import HostFiles, owner
from vmemu.mounts import KERNELS_OWN, MOUNTINFO, Mounted, parse

MEMORY = ("hugetlbfs", "tmpfs")
"""File systems whose pages userfaultfd serves."""


def mounts(files: HostFiles) -> tuple[Mount, ...]:
    """Every mount that could hold a file of a block, in the order in which they were made; one that
    a later mount hides is left out."""
    seen = list(parse(files.text(MOUNTINFO, "what is mounted") or ""))
    last = {mount.path: mount for mount in seen}
    kept = [m for m in seen if last[m.path] is m and m.type not in KERNELS_OWN]
    return tuple(found for mount in kept if (found := _mount(files, mount)) is not None)


def _mount(files: HostFiles, mount: Mounted) -> Mount | None:
    # Only memory is asked: the server of a network file system may never answer.
    if mount.type not in MEMORY:
        return Mount(path=mount.path, type=mount.type, writable="ro" not in mount.options)
    try:
        status, room = os.stat(mount.path), os.statvfs(mount.path)
    except FileNotFoundError:
        return None  # a mount above hides it
    except OSError as error:
        files.note_error(f"the {mount.type} on {mount.path}", error.strerror or "", error)
        return None
    if (os.major(status.st_dev), os.minor(status.st_dev)) != mount.device:
        return None  # a mount above hides it
    limited = room.f_blocks > 0
    return Mount(
        path=mount.path,
        type=mount.type,
        page_size=room.f_bsize,
        size=room.f_blocks * room.f_bsize if limited else None,
        free=room.f_bavail * room.f_bsize if limited else None,
        writable=os.access(mount.path, os.W_OK | os.X_OK),
        mode=f"{status.st_mode & 0o7777:04o}",
        owner=owner(status),
    )
