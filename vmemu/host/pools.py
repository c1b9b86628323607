"""The pools of hugepages, for the machine and for each NUMA node."""

from __future__ import annotations

import re

from vmemu.host import cgroups
from vmemu.host.document import NodePool, Pool
from vmemu.host.files import HostFiles

_POOLS = "/sys/kernel/mm/hugepages"
_NODES = "/sys/devices/system/node"


def pools(files: HostFiles) -> tuple[Pool, ...]:
    """Every size that this kernel knows, the smallest first; none without hugetlb."""
    return tuple(
        pool for size in sizes(files) if (pool := _pool(files, size, _directory(size))) is not None
    )


def default_page_size(files: HostFiles) -> int | None:
    """The size that ``vm.nr_hugepages`` counts, in bytes."""
    text = files.optional("/proc/meminfo", "the default size of hugepages") or ""
    found = re.search(r"^Hugepagesize:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else None


def sizes(files: HostFiles) -> list[int]:
    """The sizes in bytes."""
    matches = (
        re.fullmatch(r"hugepages-(\d+)kB", name)
        for name in files.names(_POOLS, "pools of hugepages")
    )
    return sorted(int(match[1]) << 10 for match in matches if match)


def _directory(page_size: int) -> str:
    return f"hugepages-{page_size >> 10}kB"


def _pool(files: HostFiles, page_size: int, name: str) -> Pool | None:
    what = f"the pool of {page_size >> 10} KiB pages"
    figures = [
        files.number(f"{_POOLS}/{name}/{figure}_hugepages", what)
        for figure in ("nr", "free", "resv", "surplus")
    ]
    total, free, reserved, surplus = figures
    if total is None or free is None or reserved is None or surplus is None:
        return None
    # Gigantic pages had no such file before overcommit was made for all sizes.
    overcommit = files.number(f"{_POOLS}/{name}/nr_overcommit_hugepages", what, must=False)
    group = cgroups.hugetlb_tightest(files, page_size)
    return Pool(
        page_size=page_size,
        total=total,
        free=free,
        reserved=reserved,
        surplus=surplus,
        overcommit=overcommit or 0,
        cgroup_room=group.rest if group else None,
        cgroup_remedy=group.remedy if group else "",
        nodes=_nodes(files, name, what),
    )


def _nodes(files: HostFiles, name: str, what: str) -> tuple[NodePool, ...]:
    found = []
    for entry in files.names(_NODES, what):
        match = re.fullmatch(r"node(\d+)", entry)
        base = f"{_NODES}/{entry}/hugepages/{name}"
        if match is None or not files.exists(base):
            continue
        total, free, surplus = (
            files.number(f"{base}/{figure}_hugepages", f"{what} on {entry}")
            for figure in ("nr", "free", "surplus")
        )
        if total is not None and free is not None and surplus is not None:
            node = NodePool(node=int(match[1]), total=total, free=free, surplus=surplus)
            found.append(node)
    return tuple(sorted(found, key=lambda node: node.node))
