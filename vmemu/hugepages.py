"""The machine's pools of hugepages and where hugetlbfs is mounted, as the kernel tells them.

Source: Documentation/admin-guide/mm/hugetlbpage.rst; figures from ``/sys/kernel/mm/hugepages``.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmemu import mounts
from vmemu.errors import HostError, HugepageShortage
from vmemu.units import counted, format_size

SYSFS = Path("/sys/kernel/mm/hugepages")


@dataclass(frozen=True)
class Pool:
    """One pool, in pages of ``page_size`` bytes; ``reserved`` pages are free but promised to a
    mapping."""

    page_size: int
    total: int
    free: int
    reserved: int
    surplus: int

    @property
    def available(self) -> int:
        """Pages that a new mapping can still reserve."""
        return self.free - self.reserved


def page_sizes() -> list[int]:
    """The sizes that this kernel knows, in bytes, smallest first; empty without hugetlb."""
    try:
        names = os.listdir(SYSFS)
    except OSError:
        return []
    matches = (re.fullmatch(r"hugepages-(\d+)kB", name) for name in names)
    return sorted(int(match[1]) << 10 for match in matches if match)


def _directory(page_size: int) -> Path:
    return SYSFS / f"hugepages-{page_size >> 10}kB"


def pool(page_size: int) -> Pool:
    """The pool of one size. Raises HostError when this kernel has no such size."""
    directory = _directory(page_size)
    try:
        figures = [
            int((directory / name).read_text())
            for name in ("nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages")
        ]
    except OSError:
        known = ", ".join(format_size(size) for size in page_sizes()) or "none"
        raise HostError(
            f"this host has no hugepages of {format_size(page_size)} (it has: {known})"
        ) from None
    return Pool(page_size, *figures)


def default_page_size() -> int:
    """The size that ``vm.nr_hugepages`` counts, in bytes; 0 without hugetlb."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) << 10
    return 0


def resize_command(page_size: int, pages: int) -> str:
    """The command that gives the pool ``pages`` pages."""
    if page_size == default_page_size():
        return f"sysctl vm.nr_hugepages={pages}"
    return f"echo {pages} > {_directory(page_size) / 'nr_hugepages'}"


def mount_command(page_size: int) -> tuple[str, str]:
    """(command, directory): mounts a hugetlbfs of that page size on a directory made for it.

    Never on one that holds anything: a mount hides what lies below it.
    """
    directory = _new_directory(page_size)
    options = f"pagesize={page_size >> 10}K"
    return f"mkdir -p {directory} && mount -t hugetlbfs -o {options} none {directory}", directory


def _new_directory(page_size: int) -> str:
    base = f"/dev/hugepages-{format_size(page_size).removesuffix('iB')}"
    for number in itertools.count(1):
        directory = base if number == 1 else f"{base}-{number}"
        if _free_to_mount_on(directory):
            return directory
    raise AssertionError("the names do not end")


def _free_to_mount_on(directory: str) -> bool:
    """Whether nothing is there, or an empty directory that nothing is mounted on."""
    try:
        return not os.listdir(directory) and not os.path.ismount(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def mount_for(page_size: int, size: int) -> str:
    """Where a hugetlbfs of that page size is mounted that takes ``size`` more bytes from this
    user; empty without one."""
    for kind, mount in _mounts():
        if kind == "hugetlbfs" and os.access(mount, os.W_OK | os.X_OK):
            room = os.statvfs(mount)  # of what is seen there, should a later mount hide this one
            enough = not room.f_blocks or room.f_bavail * room.f_bsize >= size
            if room.f_bsize == page_size and enough:
                return mount
    return ""


def shortage(what: str, page_size: int, pages: int) -> HugepageShortage:
    """The error for ``pages`` pages that the pool could not reserve, with its figures and the
    remedy."""
    figures = pool(page_size)
    missing = max(pages - figures.available, 1)
    size = format_size(page_size)
    return HugepageShortage(
        f"{what} needs {counted(pages, 'hugepage')} of {size}, and the pool can't reserve them: "
        f"{figures.total} in all, {figures.free} free, {figures.reserved} of these reserved",
        resize_command(page_size, figures.total + missing),
    )


def filesystem_of(path: str) -> tuple[str, str]:
    """(type, mount point) of the file system that holds ``path``, from /proc/self/mountinfo.

    The file need not exist; its directory must.
    """
    real = os.path.realpath(path)
    best = ("", "")
    for kind, mount in _mounts():
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best[1]):
            best = (kind, mount)
    return best


def _mounts() -> Iterator[tuple[str, str]]:
    """(type, mount point) of every mount, in the order in which they were made."""
    return ((mount.type, mount.path) for mount in mounts.mounted())
