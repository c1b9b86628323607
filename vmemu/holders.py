"""Who has the hugepages of a pool: the processes that map them, as far as this user may see."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmemu import hugepages, mounts
from vmemu.errors import VmemuError
from vmemu.units import counted, printable

SHOWN_MOST = 3
"""Processes that a message names."""
_COMMAND_MOST = 60
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) (\w+):(\w+) (\d+)")


@dataclass(frozen=True)
class Holder:
    """A process that maps ``pages`` pages; those that several map are counted at the first."""

    pid: int
    command: str
    pages: int

    def __str__(self) -> str:
        return f"{self.pages:,} by process {self.pid} ({self.command})"


def holders(page_size: int) -> list[Holder]:
    """Processes that map pages of this size, those with most of them first.

    A mapping counts whole: it reserves all its pages when it is made, whoever touches them.
    """
    devices = set(_devices(page_size))
    seen: set[tuple[str, int]] = set()
    found = []
    for entry in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        if devices:
            pages = sum(size for size in _mapped(Path("/proc", entry), devices, seen)) // page_size
            if pages:
                found.append(Holder(int(entry), _command(Path("/proc", entry)), pages))
    return sorted(found, key=lambda one: -one.pages)


def held(page_size: int) -> str:
    """Who has pages of the pool, in words; empty when nobody has, or when that can't be found out:
    it explains what is wrong already."""
    try:
        return _held(page_size)
    except (VmemuError, OSError):  # such a pool is gone, or no more files can be opened
        return ""


def _held(page_size: int) -> str:
    pool = hugepages.pool(page_size)
    taken = pool.total - pool.available
    if taken <= 0:
        return ""
    known = holders(page_size)
    shown = [str(one) for one in known[:SHOWN_MOST]]
    if len(known) > SHOWN_MOST:
        rest = sum(one.pages for one in known[SHOWN_MOST:])
        shown.append(f"{rest:,} by {counted(len(known) - SHOWN_MOST, 'other process')}")
    unseen = taken - sum(one.pages for one in known)
    if unseen > 0:
        users = "" if os.geteuid() == 0 else "processes of other users, or "
        shown.append(f"{unseen:,} by {users}files that nobody maps")
    return f"{taken:,} of {pool.total:,} are held, {', '.join(shown)}"


def _devices(page_size: int) -> Iterator[str]:
    """Device numbers, as /proc/PID/maps has them, of what is made of such pages: the kernel's own
    mount, on which memfds and MAP_HUGETLB are, and those that were made."""
    shift = page_size.bit_length() - 1
    with suppress(OSError):
        fd = os.memfd_create("vmemu-size", os.MFD_HUGETLB | shift << os.MFD_HUGE_SHIFT)
        try:
            yield _device(os.fstat(fd).st_dev)
        finally:
            os.close(fd)
    for mount in mounts.mounted():
        if mount.type == "hugetlbfs":
            with suppress(OSError):
                if os.statvfs(mount.path).f_bsize == page_size:
                    yield _device(os.stat(mount.path).st_dev)


def _device(number: int) -> str:
    return f"{os.major(number):02x}:{os.minor(number):02x}"


def _mapped(process: Path, devices: set[str], seen: set[tuple[str, int]]) -> Iterator[int]:
    """Bytes of each file on these devices that the process maps, and none before it did."""
    files: dict[tuple[str, int], set[tuple[int, int]]] = {}
    try:
        lines = (process / "maps").read_text(errors="replace").splitlines()
    except OSError:  # somebody else's, or gone
        return
    for match in filter(None, map(_MAPPING.match, lines)):
        begin, end, offset = (int(match[group], 16) for group in (1, 2, 3))
        file = f"{match[4]}:{match[5]}", int(match[6])
        if file[0] in devices and file not in seen:
            files.setdefault(file, set()).add((offset, end - begin))
    seen |= files.keys()
    for ranges in files.values():
        yield sum(size for _, size in ranges)


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return "?"
    text = printable(" ".join(" ".join(_without_interpreter(words)).split()))
    return text if len(text) <= _COMMAND_MOST else f"{text[:_COMMAND_MOST]}..."


def _without_interpreter(words: list[str]) -> list[str]:
    """``python -P -m vmemu run boot.yaml`` as ``vmemu run boot.yaml``: what tells one run from
    another."""
    program = os.path.basename(words[0])
    if program.startswith("python"):
        for at, word in enumerate(words[1:], 1):
            if word == "-m":
                return words[at + 1 :]
            if word == "-c":
                break
            if not word.startswith("-"):
                return [os.path.basename(word), *words[at + 1 :]]
    return [program, *words[1:]]
