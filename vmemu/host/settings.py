"""What the kernel and the shell have set: limits, transparent hugepages, CPUs."""

from __future__ import annotations

import os
import re
import resource

from vmemu.cpulist import parse_cpus
from vmemu.host.document import Cpus, Limits, Thp
from vmemu.host.files import HostFiles
from vmemu.host.identity import Identity
from vmemu.units import UnitError

_THP = "/sys/kernel/mm/transparent_hugepage"


def limits(files: HostFiles, identity: Identity) -> Limits:
    """The limits of who asks that a migration may meet."""
    soft, hard = bounds(resource.RLIMIT_MEMLOCK)
    files_soft, files_hard = bounds(resource.RLIMIT_NOFILE)
    size_soft, size_hard = bounds(resource.RLIMIT_FSIZE)
    pages = files.number("/proc/sys/fs/pipe-user-pages-soft", "fs.pipe-user-pages-soft", must=False)
    return Limits(
        memlock_soft=soft,
        memlock_hard=hard,
        ipc_lock=identity.may("CAP_IPC_LOCK"),
        pipe_max_size=files.number("/proc/sys/fs/pipe-max-size", "fs.pipe-max-size"),
        pipe_user_pages_soft=pages,
        open_files=files_soft,
        open_files_hard=files_hard,
        file_size=size_soft,
        file_size_hard=size_hard,
        raisable=identity.raises_limits,
    )


def bounds(which: int) -> tuple[int | None, int | None]:
    """The soft and the hard limit of this process, None where there is none; ``which`` is as
    ``resource.RLIMIT_NOFILE``."""
    soft, hard = (
        None if value == resource.RLIM_INFINITY else value for value in resource.getrlimit(which)
    )
    return soft, hard


def thp(files: HostFiles) -> Thp:
    """Which memory gets transparent hugepages, and how large they are."""
    what = "transparent hugepages"
    return Thp(
        enabled=_chosen(files, "enabled"),
        shmem_enabled=_chosen(files, "shmem_enabled"),
        defrag=_chosen(files, "defrag"),
        page_size=files.number(f"{_THP}/hpage_pmd_size", what, must=False),
    )


def _chosen(files: HostFiles, name: str) -> str | None:
    return chosen(files.optional(f"{_THP}/{name}", "transparent hugepages") or "")


def chosen(text: str) -> str | None:
    """The word in brackets of a choice in sysfs, such as ``always [madvise] never``."""
    found = re.search(r"\[(.+?)\]", text)
    return found[1] if found else None


def cpus(files: HostFiles) -> Cpus:
    """CPUs of the machine, and those that this process may use."""
    text = files.optional("/sys/devices/system/cpu/online", "the CPUs that are online") or ""
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    return Cpus(online=len(cpu_list(text)) or os.cpu_count() or len(allowed), allowed=allowed)


def cpu_list(text: str) -> list[int]:
    """The numbers in a list such as ``0-3,8``; empty for what is no such list."""
    try:
        return sorted(parse_cpus(text.strip()))
    except UnitError:
        return []
