"""What of a scenario may be varied on this host: its kinds of memory, asked once and proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmemu import hugepages
from vmemu.errors import HostError
from vmemu.host import settings
from vmemu.host.files import HostFiles
from vmemu.host.identity import identify
from vmemu.hostcheck import Code, PostcopyUnsupported, postcopy_supported
from vmemu.ramblock import BASE_PAGE, Backing, RAMBlock


@dataclass(frozen=True)
class HostKinds:
    """``memory`` are pairs of backing and page size in bytes that post-copy works with here.

    ``pools`` has the hugepages of each size that there are in all, or may be made (overcommit),
    free or not: which ones are free changes from moment to moment, and a variation must not.
    ``lockable`` is how many bytes may be locked, None without a limit. ``tracking`` are the ways to
    find dirty pages.
    """

    memory: tuple[tuple[str, int], ...] = (("anonymous", 4096), ("shared", 4096))
    pools: Mapping[int, int] = field(default_factory=dict)
    lockable: int | None = 0
    tracking: tuple[str, ...] = ("auto", "replay")

    @classmethod
    def of_this_host(cls) -> HostKinds:
        """What is proven here. Raises PostcopyUnsupported when post-copy works with no memory."""
        pools = {size: hugepages.pool(size).most for size in hugepages.page_sizes()}
        pools = {size: pages for size, pages in pools.items() if pages}
        blocks = [
            RAMBlock("anonymous", Backing.ANONYMOUS, BASE_PAGE, BASE_PAGE),
            RAMBlock("shared", Backing.SHARED, BASE_PAGE, BASE_PAGE),
            *(RAMBlock("hugetlbfs", Backing.HUGETLBFS, size, size) for size in pools),
        ]
        wrong = [postcopy_supported([block]) for block in blocks]
        working = tuple(
            (block.backing.value, block.page_size)
            for block, problems in zip(blocks, wrong, strict=True)
            # A pool that is taken now will be free again.
            if all(problem.code is Code.HUGEPAGES for problem in problems)
        )
        if not working:
            raise PostcopyUnsupported(wrong[0])
        kept = {size: pages for size, pages in pools.items() if ("hugetlbfs", size) in working}
        return cls(working, kept, _lockable(), _tracking())


def _lockable() -> int | None:
    files = HostFiles()
    limits = settings.limits(files, identify(files))
    return None if limits.ipc_lock else limits.memlock_soft


def _tracking() -> tuple[str, ...]:
    from vmemu.dirty import start_kernel

    try:
        tracker, _ = start_kernel((), "kernel")
    except HostError:
        return ("auto", "replay")
    assert tracker is not None
    tracker.close()
    return ("auto", "kernel", "replay")
