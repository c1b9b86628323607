"""Why the kernel gave no memory for a page in the middle of a run: what is full, and what mends it.

It has said only ENOMEM, or EFAULT where a system call was to fill the page. A tmpfs promises no
pages to whoever maps a file of it, control groups none to anybody; what had room when the run was
checked may have been filled by others since.
"""

from __future__ import annotations

import errno
import os
import shlex

from vmemu import hugepages
from vmemu.errors import CoreError, MigrationError, PageRefused, VmemuError
from vmemu.host import room
from vmemu.host.cgroups import hugetlb_tightest
from vmemu.host.files import HostFiles
from vmemu.privilege import as_root
from vmemu.ramblock import RAMBlock, RAMList
from vmemu.units import format_size

_NO_MEMORY = (errno.ENOMEM, errno.ENOSPC, errno.EFAULT)


def explained(error: MigrationError, blocks: RAMList) -> MigrationError:
    """The error, in words if it is that a page of one of the ``blocks``, which are still mapped,
    got no memory; as it is when why can't be found out."""
    if not isinstance(error, CoreError) or error.errno not in _NO_MEMORY:
        return error
    found = blocks.find(error.address)
    if found is None:
        return error
    block, offset = found
    try:
        why, remedy = _reason(block, blocks)
    except (VmemuError, OSError):  # the mount or the pool is gone, and the error is not
        return error
    page = f"page {offset // block.page_size} (at {offset:#x})"
    return PageRefused(error, f"block {block.name}: {page} got no memory: {why}", remedy).about(
        block.name, "backing" if block.path is None else "path"
    )


def _reason(block: RAMBlock, blocks: RAMList) -> tuple[str, str]:
    if block.path is not None:
        return _reason_on_mount(block, block.path, blocks)
    return _reason_in_pool(block) if block.hugetlb else _reason_in_memory("")


def _reason_on_mount(block: RAMBlock, path: str, blocks: RAMList) -> tuple[str, str]:
    kind, mount = hugepages.filesystem_of(path)
    space = block.space()
    if space is None:
        return _reason_in_pool(block) if block.hugetlb else _reason_in_memory("")
    free, total = space
    where = (
        f"{path} lies on {mount}, a {kind} with {format_size(free, digits=3)} free of"
        f" {format_size(total, digits=3)}"
    )
    if block.hugetlb:  # which has set its pages aside: the size of the mount is not to blame
        why, remedy = _reason_in_pool(block)
        return f"{why}; {where}", remedy
    if free >= block.page_size:  # somebody has given something back, or the memory itself is short
        return _reason_in_memory(f"{where} now, and ")
    there = os.stat(mount).st_dev
    ours = sum(one.size for one in blocks if one.device == there)
    return where, as_root(f"mount -o remount,size={total + ours} {shlex.quote(mount)}")


def _reason_in_pool(block: RAMBlock) -> tuple[str, str]:
    size = format_size(block.page_size)
    limit = hugetlb_tightest(HostFiles(), block.page_size)
    if limit is not None and limit.rest < block.page_size:
        used, granted = format_size(limit.used), format_size(limit.limit)
        return f"{limit.file} allows {granted} of {size} hugepages, {used} are used", limit.remedy
    pool = hugepages.pool(block.page_size)
    return (
        f"the pool of {size} hugepages has {pool.total} in all, {pool.free} free,"
        f" {pool.reserved} of these reserved, and a control group, a cpuset or a memory policy may"
        " keep them from this process"
    ), ""


def _reason_in_memory(before: str) -> tuple[str, str]:
    left = room.memory_room()
    free = format_size(left.size, digits=3)
    by = f", limited by {left.limited_by}" if left.limited_by else ""
    return f"{before}{free} of memory can be had here now{by}", left.remedy
