"""What limits the mappings of this process, whatever they are of: for each the kernel says ENOMEM,
as if memory or hugepages were short."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from vmemu.privilege import raise_limit


class Limit(NamedTuple):
    """``left`` bytes may still be mapped; ``name`` is that of prlimit(1), and ``is_hard`` says that
    only root may raise it."""

    left: int
    name: str
    is_hard: bool

    @property
    def what(self) -> str:
        """What sets the limit."""
        return f"RLIMIT_{self.name.upper()} of this process"

    @property
    def remedy(self) -> str:
        """The command that raises it."""
        return raise_limit(self.name, None, 0 if self.is_hard else None)


RUN_LOADED = {"as": 160 << 20, "data": 100 << 20}
"""Bytes that the process of a run has mapped before it maps a block: interpreter and libraries."""


def limit(
    statm: str | None = None, loaded: Mapping[str, int] = MappingProxyType({})
) -> Limit | None:
    """What this process, or one that it starts, may still map (RLIMIT_AS, RLIMIT_DATA); None
    without a limit. ``statm`` is in the place of /proc/self/statm; ``loaded`` is what is taken at
    least, for a process that has not loaded all of it yet, such as RUN_LOADED."""
    words = (Path("/proc/self/statm").read_text() if statm is None else statm).split()
    used = [int(word) * resource.getpagesize() for word in words] or [0] * 6
    limits = []
    for name, which, taken in (
        ("as", resource.RLIMIT_AS, used[0]),
        ("data", resource.RLIMIT_DATA, used[5]),
    ):
        soft, hard = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY:
            left = max(0, soft - max(taken, loaded.get(name, 0)))
            limits.append(Limit(left, name, hard != resource.RLIM_INFINITY))
    return min(limits, default=None)


def maps_and_most() -> tuple[int, int]:
    """Mappings that this process has, and how many it may have."""
    with open("/proc/self/maps", "rb") as file:
        maps = sum(1 for _ in file)  # by the line: what is read at once may take a mapping
    return maps, int(Path("/proc/sys/vm/max_map_count").read_text())


def is_addressable(size: int) -> bool:
    """Whether the address space has room for so many bytes."""
    try:  # without any right to it, as that is promised no memory
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0).close()
    except OSError:
        return False
    return True
