"""How much memory there is for new mappings: of the machine, the control groups, this process."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator
from typing import NamedTuple

from vmemu.host import cgroups
from vmemu.host.containers import with_limit
from vmemu.host.document import Memory
from vmemu.host.files import HostFiles
from vmemu.host.identity import Identity
from vmemu.privilege import as_root, beyond, raise_limit

_STRICT = 2
"""vm.overcommit_memory: what is promised may not exceed the commit limit."""


class Bound(NamedTuple):
    """``size`` bytes that something still lets be taken: what, in words, and the command that lets
    more be; both are empty for the machine's memory itself."""

    size: int
    what: str = ""
    remedy: str = ""


def memory(files: HostFiles, identity: Identity) -> Memory:
    """The machine's memory, and the smallest of what bounds new memory of this process."""
    figures = meminfo(files.text("/proc/meminfo", "the machine's memory") or "")
    overcommit = files.number("/proc/sys/vm/overcommit_memory", "vm.overcommit_memory")
    total = figures.get("MemTotal", os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE)
    available = figures.get("MemAvailable", os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE)
    swap_free = figures.get("SwapFree", 0)
    group = cgroups.tightest(files, swap_free)
    bounds = [Bound(available + swap_free), *_own_limits(files, identity)]
    if group is not None:
        bounds.append(Bound(group.rest, group.file, group.remedy))
    if overcommit == _STRICT:
        bounds += _commit(files, figures, identity)
    smallest = min(bounds)
    return Memory(
        total=total,
        available=available,
        room=max(smallest.size, 0),
        limited_by=smallest.what,
        remedy=smallest.remedy,
        swap_free=swap_free,
        overcommit=overcommit,
        cgroup_limit=group.limit if group else None,
        cgroup_used=group.used if group else None,
    )


def meminfo(text: str) -> dict[str, int]:
    """The figures of /proc/meminfo in bytes; those that count something else are left out."""
    found = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) == 3 and words[2] == "kB" and words[1].isdigit():
            found[words[0]] = int(words[1]) << 10
    return found


def _commit(files: HostFiles, figures: dict[str, int], identity: Identity) -> Iterator[Bound]:
    """What the kernel still promises; it keeps something back for root and for each process."""
    if "CommitLimit" not in figures or "Committed_AS" not in figures:
        return
    rest = figures["CommitLimit"] - figures["Committed_AS"]
    if not identity.may("CAP_SYS_ADMIN"):
        rest -= _reserve(files, "admin_reserve_kbytes")
    mapped = _statm(files).get("size", 0)
    rest -= min(mapped // 32, _reserve(files, "user_reserve_kbytes"))
    what = "the commit limit (vm.overcommit_memory is 2)"
    yield Bound(rest, what, as_root("sysctl vm.overcommit_memory=0"))


def _reserve(files: HostFiles, name: str) -> int:
    return (files.number(f"/proc/sys/vm/{name}", f"vm.{name}", must=False) or 0) << 10


def _own_limits(files: HostFiles, identity: Identity) -> Iterator[Bound]:
    used = _statm(files)
    for name, limit, key in (
        ("RLIMIT_AS", resource.RLIMIT_AS, "size"),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, "data"),
    ):
        soft, hard = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            most = None if hard == resource.RLIM_INFINITY else hard
            word = name.removeprefix("RLIMIT_").lower()
            remedy = raise_limit(word, None, most)
            if beyond(None, most) and not identity.raises_limits:
                remedy = with_limit(identity.container, word, None)
            yield Bound(soft - used.get(key, 0), f"{name} of this process", remedy)


def _statm(files: HostFiles) -> dict[str, int]:
    """Bytes of address space, and of it private and writable, of this process."""
    words = (files.text("/proc/self/statm", "the size of this process") or "").split()
    if len(words) < 6:
        return {}
    return {"size": int(words[0]) * mmap.PAGESIZE, "data": int(words[5]) * mmap.PAGESIZE}
