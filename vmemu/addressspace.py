"""What limits the mappings of this process, whatever they are of: for each the kernel says ENOMEM,
as if memory or hugepages were short."""

from __future__ import annotations

import mmap
import resource
from pathlib import Path
from typing import NamedTuple

from vmemu.privilege import raise_limit


class Limit(NamedTuple):
    """``left`` bytes may still be mapped; ``what`` sets the limit, and ``remedy`` is the command
    that raises it."""

    left: int
    what: str
    remedy: str


def limit() -> Limit | None:
    """What this process, or one that it starts, may still map (RLIMIT_AS, RLIMIT_DATA); None
    without a limit."""
    words = Path("/proc/self/statm").read_text().split()
    statm = [int(word) * resource.getpagesize() for word in words]
    limits = []
    for name, which, used in (
        ("as", resource.RLIMIT_AS, statm[0]),
        ("data", resource.RLIMIT_DATA, statm[5]),
    ):
        soft, hard = resource.getrlimit(which)
        if soft != resource.RLIM_INFINITY:
            remedy = raise_limit(name, None, None if hard == resource.RLIM_INFINITY else hard)
            what = f"RLIMIT_{name.upper()} of this process"
            limits.append(Limit(max(0, soft - used), what, remedy))
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
