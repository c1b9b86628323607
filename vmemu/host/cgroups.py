"""The control groups that this process is in, and which of them leaves the least memory.

A limit holds for all below it, so each group from one's own to the top of what is mounted counts.
What is used contains file pages, which the kernel drops before it refuses memory; they are taken
off, as in MemAvailable. Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from vmemu.host.files import HostFiles
from vmemu.mounts import MOUNTINFO, Mounted, parse
from vmemu.privilege import as_root

_UNLIMITED = 1 << 62
"""Version 1 has no word for it: its limit is then the largest whole number of pages in a long."""


@dataclass(frozen=True)
class Setting:
    """A limit on memory and the file that says what of it is used; with ``and_swap`` both count
    swap as well."""

    limit: str
    used: str
    and_swap: bool = False


@dataclass(frozen=True)
class Layout:
    """How a version of the control groups names things. Memory over memory.high is slow, not
    refused, so that it is no limit here."""

    type: str
    controller: str
    settings: tuple[Setting, ...]
    file_pages: tuple[str, str]
    no_limit: str


V2 = Layout(
    "cgroup2",
    "",
    (Setting("memory.max", "memory.current"),),
    ("inactive_file", "active_file"),
    "max",
)
V1 = Layout(
    "cgroup",
    "memory",
    (
        Setting("memory.limit_in_bytes", "memory.usage_in_bytes"),
        Setting("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes", and_swap=True),
    ),
    ("total_inactive_file", "total_active_file"),
    "-1",
)


@dataclass(frozen=True)
class GroupLimit:
    """A limit of one group, in bytes, and what of it is ``used`` for good; ``swap`` is what may be
    swapped out beyond it, ``file`` where the limit stands and ``no_limit`` what lifts it."""

    file: str
    limit: int
    used: int
    swap: int
    no_limit: str

    @property
    def rest(self) -> int:
        """Bytes that the group may still take."""
        return max(self.limit - self.used, 0) + self.swap

    @property
    def remedy(self) -> str:
        """The command that lifts the limit."""
        return as_root(f"echo {self.no_limit} > {shlex.quote(self.file)}")


def tightest(files: HostFiles, swap_free: int = 0) -> GroupLimit | None:
    """The limit that leaves the least memory; None without any."""
    return min(memory_limits(files, swap_free), key=lambda limit: limit.rest, default=None)


def memory_limits(files: HostFiles, swap_free: int = 0) -> Iterator[GroupLimit]:
    """Every limit on memory, from the group of this process upwards, of both versions;
    ``swap_free`` bytes of swap are free on the machine."""
    for layout in (V2, V1):
        for directory, name in own_groups(files, layout.type, layout.controller):
            yield from _limits(files, layout, directory, name, swap_free)


def own_groups(files: HostFiles, kind: str, controller: str) -> Iterator[tuple[str, str]]:
    """(directory, name) of each group of this process in one hierarchy, the innermost first."""
    group = member_of(files.optional("/proc/self/cgroup", "the control group") or "", controller)
    mountinfo = files.optional(MOUNTINFO, "what is mounted") or ""
    mount = next((m for m in parse(mountinfo) if _carries(m, kind, controller)), None)
    if group is None or mount is None:
        return
    below = posixpath.relpath(group, mount.root)
    # A container may see its own group alone, mounted as if it were the top.
    name = "" if below == "." or below.startswith("..") else below
    while True:
        yield posixpath.join(mount.path, name).rstrip("/"), "/" + name
        if not name:
            return
        name = posixpath.dirname(name)


def member_of(text: str, controller: str) -> str | None:
    """The path in /proc/self/cgroup of the hierarchy with that controller, "" being version 2."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(",") and (controller or number == "0"):
            return path
    return None


def _carries(mount: Mounted, kind: str, controller: str) -> bool:
    return mount.type == kind and (not controller or controller in mount.options)


def _limits(
    files: HostFiles, layout: Layout, directory: str, name: str, swap_free: int
) -> Iterator[GroupLimit]:
    what = f"memory of the control group {name}"
    for setting in layout.settings:
        file = f"{directory}/{setting.limit}"
        limit = _bytes(files.optional(file, what))
        used = None if limit is None else files.number(f"{directory}/{setting.used}", what)
        if limit is not None and used is not None:
            kept = max(used - _file_pages(files, layout, directory, what), 0)
            swap = 0 if setting.and_swap else _swap(files, directory, what, swap_free)
            yield GroupLimit(file, limit, kept, swap, layout.no_limit)


def _bytes(text: str | None) -> int | None:
    """A limit; None where there is no file of it, or no limit in it."""
    word = (text or "max").strip()
    return int(word) if word.isdigit() and int(word) < _UNLIMITED else None


def _file_pages(files: HostFiles, layout: Layout, directory: str, what: str) -> int:
    text = files.optional(f"{directory}/memory.stat", what) or ""
    pairs = (line.partition(" ") for line in text.splitlines())
    return sum(
        int(value) for key, _, value in pairs if key in layout.file_pages and value.isdigit()
    )


def _swap(files: HostFiles, directory: str, what: str, swap_free: int) -> int:
    """What the group may still swap out: version 2 has a limit of its own for it."""
    limit = _bytes(files.optional(f"{directory}/memory.swap.max", what))
    if limit is None or not swap_free:
        return swap_free
    used = files.number(f"{directory}/memory.swap.current", what) or 0
    return min(swap_free, max(limit - used, 0))


def hugetlb_tightest(files: HostFiles, page_size: int) -> GroupLimit | None:
    """The limit that leaves the fewest hugepages of that size; None without any."""
    limits = _hugetlb_limits(files, page_size)
    return min(limits, key=lambda limit: limit.rest, default=None)


_HUGETLB = (
    ("cgroup2", "", (("max", "current"), ("rsvd.max", "rsvd.current")), "max"),
    (
        "cgroup",
        "hugetlb",
        (("limit_in_bytes", "usage_in_bytes"), ("rsvd.limit_in_bytes", "rsvd.usage_in_bytes")),
        "-1",
    ),
)
"""(type, controller, (limit, used) of pages in use and of pages promised, no limit) of both
versions."""


def _hugetlb_limits(files: HostFiles, page_size: int) -> Iterator[GroupLimit]:
    what = f"hugepages of {page_size >> 10} KiB of the control group"
    for kind, controller, pairs, no_limit in _HUGETLB:
        for directory, _ in own_groups(files, kind, controller):
            base = f"{directory}/{_hugetlb(page_size)}"
            for limit, used in pairs:
                granted = _bytes(files.optional(f"{base}.{limit}", what))
                taken = None if granted is None else files.number(f"{base}.{used}", what)
                if granted is not None and taken is not None:
                    yield GroupLimit(f"{base}.{limit}", granted, taken, 0, no_limit)


def _hugetlb(page_size: int) -> str:
    """As the kernel begins the names of a size: hugetlb.64KB, hugetlb.2MB, hugetlb.1GB."""
    for shift, unit in ((30, "GB"), (20, "MB")):
        if page_size >= 1 << shift:
            return f"hugetlb.{page_size >> shift}{unit}"
    return f"hugetlb.{page_size >> 10}KB"
