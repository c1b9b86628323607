"""The machine's pools of hugepages and where hugetlbfs is mounted, as the kernel tells them.

Source: Documentation/admin-guide/mm/hugetlbpage.rst; figures from ``/sys/kernel/mm/hugepages``.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmemu import meminfo, mounts, privilege
from vmemu.errors import HostError, HugepageShortage
from vmemu.pagefit import HERE, NOTHING_BESIDE, Beside, Growth, HostMemory, absent_page_size
from vmemu.privilege import as_root
from vmemu.units import counted, format_size

SYSFS = Path("/sys/kernel/mm/hugepages")


@dataclass(frozen=True)
class Pool:
    """One pool, in pages of ``page_size`` bytes; ``reserved`` pages are free but promised to a
    mapping, ``surplus`` ones were made beyond the pool's size, and as many as ``overcommit`` may
    be."""

    page_size: int
    total: int
    free: int
    reserved: int
    surplus: int
    overcommit: int = 0

    @property
    def available(self) -> int:
        """Pages that a new mapping can still reserve of those that are there."""
        return self.free - self.reserved

    @property
    def obtainable(self) -> int:
        """The same with those that the kernel may still make, if it finds the memory."""
        return self.available + max(self.overcommit - self.surplus, 0)

    @property
    def most(self) -> int:
        """Pages that a mapping could ever have while the pool is as large as it is."""
        return self.total - self.surplus + max(self.overcommit, self.surplus)


def page_sizes() -> list[int]:
    """The sizes that this kernel knows, in bytes, smallest first; empty without hugetlb."""
    try:
        names = os.listdir(SYSFS)
    except OSError:
        return []
    matches = (re.fullmatch(r"hugepages-(\d+)kB", name) for name in names)
    return sorted(int(match[1]) << 10 for match in matches if match)


def directory(page_size: int) -> Path:
    """Where the figures of one pool are, in sysfs."""
    return SYSFS / f"hugepages-{page_size >> 10}kB"


def pool(page_size: int) -> Pool:
    """The pool of one size. Raises HostError when this kernel has no such size."""
    names = ("nr", "free", "resv", "surplus", "nr_overcommit")
    try:
        figures = [int((directory(page_size) / f"{name}_hugepages").read_text()) for name in names]
    except OSError:
        raise HostError(absent_page_size(HERE, page_size, page_sizes())) from None
    return Pool(page_size, *figures)


def default_page_size() -> int:
    """The size that ``vm.nr_hugepages`` counts, in bytes; 0 without hugetlb."""
    return meminfo.here().get("Hugepagesize", 0)


def resize_command(page_size: int, pages: int) -> str:
    """The command that gives the pool ``pages`` pages."""
    return as_root(resize_words(page_size, pages, default_page_size()))


def resize_words(page_size: int, pages: int, default_size: int | None) -> str:
    """The same as root types it, on any host; ``default_size`` is what vm.nr_hugepages counts."""
    if page_size == default_size:
        return f"sysctl vm.nr_hugepages={pages}"
    return f"echo {pages} > {directory(page_size) / 'nr_hugepages'}"


def mount_command(page_size: int) -> tuple[str, str]:
    """(command, directory): mounts a hugetlbfs of that page size on a directory made for it.

    Never on one that holds anything: a mount hides what lies below it.
    """
    directory = _new_directory(page_size)
    return mount_on_command(directory, page_size), directory


def mount_on_command(directory: str, page_size: int) -> str:
    """The command that mounts a hugetlbfs of that page size on that directory."""
    where = shlex.quote(directory)
    options = mount_options(page_size)
    return as_root(f"mkdir -p {where} && mount -t hugetlbfs -o {options} none {where}")


def mount_options(page_size: int) -> str:
    """Of a hugetlbfs in which whoever is told the command may make files: by default only root
    may."""
    pages = f"pagesize={page_size >> 10}K"
    return pages if privilege.is_root() else f"{pages},mode=1777"


def _new_directory(page_size: int) -> str:
    base = f"/dev/hugepages-{format_size(page_size).removesuffix('iB')}"
    for number in itertools.count(1):
        directory = base if number == 1 else f"{base}-{number}"
        if free_to_mount_on(directory):
            return directory
    raise AssertionError("the names do not end")


def free_to_mount_on(directory: str) -> bool:
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


def shortage(
    what: str, page_size: int, pages: int, beside: Beside = NOTHING_BESIDE, *, blocks: int = 1
) -> HugepageShortage:
    """The error for ``pages`` pages of so many ``blocks`` that the pool could not reserve, with its
    figures and the remedy; ``beside`` is what the run takes of other memory here."""
    figures = pool(page_size)
    grows = _growth(figures, pages, beside)
    size = format_size(page_size)
    short = HugepageShortage(
        f"{what} needs {counted(pages, 'hugepage')} of {size}, and the pool can't reserve them: "
        f"{figures.total} in all, {figures.free} free, {figures.reserved} of these reserved"
        + _beyond(figures)
        + _who_could_give(figures, pages)
        + _without_memory(grows),
        grows.remedy(blocks),
    )
    short.waiting_helps = _waiting_helps(figures, pages)
    return short


def growth(page_size: int, pages: int, beside: Beside) -> Growth:
    """What it takes for the pool to give so many pages. Raises HostError as ``pool``."""
    return _growth(pool(page_size), pages, beside)


def _growth(figures: Pool, pages: int, beside: Beside) -> Growth:
    # Surplus pages are none that a remedy may count on: the kernel did not make them just now.
    memory = meminfo.here()
    return Growth(
        figures.page_size,
        pages,
        figures.available,
        figures.total,
        HostMemory(*(memory.get(name, 0) for name in ("MemTotal", "MemAvailable", "SwapFree"))),
        beside,
        lambda wanted: resize_command(figures.page_size, wanted),
    )


def _without_memory(grows: Growth) -> str:
    if grows.never:
        return f"; {HERE} will never have them: {grows.never}"
    return f"; {grows.not_now}" if grows.not_now else ""


def _beyond(figures: Pool) -> str:
    if not figures.overcommit:
        return ""
    return f", {figures.surplus} of {figures.overcommit} surplus ones made"


def _who_could_give(figures: Pool, pages: int) -> str:
    if not _waiting_helps(figures, pages):
        return ""
    return f"; others hold {figures.total - figures.available} and may give them back"


def _waiting_helps(figures: Pool, pages: int) -> bool:
    """Whether the pool is large enough and others have its pages."""
    return figures.total > figures.available and pages <= figures.most


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


class Huge(Protocol):
    """What has to be known of a block, as it is mapped or as a scenario has it."""

    @property
    def hugetlb(self) -> bool: ...

    @property
    def page_size(self) -> int: ...

    @property
    def pages(self) -> int: ...


def pages_of(blocks: Iterable[Huge]) -> dict[int, int]:
    """The hugepages that these blocks take: their number by page size."""
    pages: dict[int, int] = {}
    for block in blocks:
        if block.hugetlb:
            pages[block.page_size] = pages.get(block.page_size, 0) + block.pages
    return pages
