"""Rules on pools of hugepages: whether the destination's can give what the blocks take."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import BlockOf, Case, End, Finding, by_page_size, names
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.config import Wait
from vmemu.host.document import Pool
from vmemu.units import counted, format_duration, format_size


def rules(case: Case) -> Iterator[Finding]:
    """One reason for each block of a pool that falls short: they share it."""
    for page_size, blocks in by_page_size(case.blocks):
        pool = case.destination.pool(page_size)
        if pool is not None:
            yield from _short(case, pool, blocks)
            yield from _limited(case, pool, blocks)


def available(pool: Pool) -> int:
    """Pages that a new mapping can reserve now, surplus ones that the kernel would make too."""
    return pool.free - pool.reserved + max(pool.overcommit - pool.surplus, 0)


def capacity(pool: Pool) -> int:
    """Pages that it could give if nobody else had any."""
    return max(pool.total, pool.total - pool.surplus + pool.overcommit)


def resize_command(end: End, pool: Pool, pages: int) -> str:
    """The command that gives the pool of that host ``pages`` pages."""
    if pool.page_size == end.host.default_hugepage_size:
        return f"sysctl vm.nr_hugepages={pages}"
    size = f"hugepages-{pool.page_size >> 10}kB"
    return f"echo {pages} > /sys/kernel/mm/hugepages/{size}/nr_hugepages"


def _short(case: Case, pool: Pool, blocks: list[BlockOf]) -> Iterator[Finding]:
    wanted = sum(block.pages for block in blocks)
    if available(pool) >= wanted:
        return
    if capacity(pool) >= wanted:
        code, why, remedy, verdict = _taken(case, pool, wanted)
    else:
        code, why, remedy = _too_small(case, pool, blocks, wanted)
        verdict = Verdict.INCOMPATIBLE
    verb = "needs" if len(blocks) == 1 else "need"
    message = (
        f"{names(blocks)} {verb} {counted(wanted, 'hugepage')} of {format_size(pool.page_size)},"
        f" and the pool of {case.destination.called} {why}"
    )
    for block in blocks:
        yield case.of_block(block.number, "size", code, message, remedy, verdict=verdict)


def _limited(case: Case, pool: Pool, blocks: list[BlockOf]) -> Iterator[Finding]:
    """The kernel counts pages against the limit when they are touched: too late for an error."""
    wanted = sum(block.pages for block in blocks) * pool.page_size
    if pool.cgroup_room is None or pool.cgroup_room >= wanted:
        return
    message = (
        f"{names(blocks)} take {_shown(wanted)} of {format_size(pool.page_size)} hugepages, and"
        f" control groups of {case.destination.called} grant {_shown(pool.cgroup_room)} more"
    )
    remedy = "raise hugetlb.*.max of the control group, or use smaller blocks"
    for block in blocks:
        yield case.of_block(block.number, "size", Code.POOL_LIMITED, message, remedy)


def _figures(pool: Pool) -> str:
    overcommit = f", {pool.overcommit} by overcommit" if pool.overcommit else ""
    return f"{pool.total} in all, {pool.free} free, {pool.reserved} of these reserved{overcommit}"


def _taken(case: Case, pool: Pool, wanted: int) -> tuple[Code, str, str, Verdict]:
    """It is large enough, and others have some of it."""
    remedy = resize_command(case.destination, pool, _pages_for(pool, wanted))
    why = f"can't reserve them now, as others hold some: {_figures(pool)}"
    on_unavailable = case.scenario.on_unavailable
    if isinstance(on_unavailable, Wait):
        why += f"; the run waits up to {format_duration(on_unavailable.wait)} for it"
        return Code.POOL_TAKEN, why, remedy, Verdict.UNKNOWN
    return Code.POOL_TAKEN, why, remedy, Verdict.INCOMPATIBLE


def _pages_for(pool: Pool, wanted: int) -> int:
    """What the pool must have in all to give that many more, none of them by overcommit."""
    return pool.total + wanted - (pool.free - pool.reserved)


def _too_small(case: Case, pool: Pool, blocks: list[BlockOf], wanted: int) -> tuple[Code, str, str]:
    memory = case.destination.host.memory
    pages = _pages_for(pool, wanted)
    command = resize_command(case.destination, pool, pages)
    missing = (pages - pool.total) * pool.page_size
    smaller = _smaller(pool, blocks, memory.available // pool.page_size)
    if wanted * pool.page_size > memory.total:
        why = f"will never have them: there are {_shown(memory.total)} of memory in all"
        return Code.POOL_NEVER, why, smaller
    why = f"is too small: {_figures(pool)}"
    if missing > memory.available:
        why += f"; it lacks {_shown(missing)}, and {_shown(memory.available)} of memory are free"
        return Code.POOL_SMALL, why, f"{smaller}, or free memory: {command}"
    return Code.POOL_SMALL, why, command


def _smaller(pool: Pool, blocks: list[BlockOf], grows_by: int) -> str:
    """The size that would do for a pool that may grow by so many pages."""
    pages = pool.free - pool.reserved + grows_by
    if pages <= 0:
        return "use 'backing: anonymous' or a smaller page_size"
    one = "a size of" if len(blocks) == 1 else "blocks that have together"
    return f"use {one} at most {format_size(pages * pool.page_size)}"


def _shown(size: int) -> str:
    return format_size(size, digits=3)
