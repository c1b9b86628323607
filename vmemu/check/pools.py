"""Rules on pools of hugepages: whether the destination's can give what the blocks take."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu import hugepages
from vmemu.check.case import BlockOf, Case, End, Finding, by_page_size, names
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.config import Wait
from vmemu.errors import Advice
from vmemu.host.document import Pool
from vmemu.memoryneed import memory_needed
from vmemu.pagefit import Beside, Growth, HostMemory
from vmemu.units import counted, format_duration, format_size


def rules(case: Case) -> Iterator[Finding]:
    """One reason for each block of a pool that falls short: they share it."""
    for page_size, blocks in by_page_size(case.blocks):
        pool = case.destination.pool(page_size)
        if pool is not None:
            yield from _short(case, pool, blocks)
            yield from _limited(case, pool, blocks)


def _figured(pool: Pool) -> hugepages.Pool:
    """As a run sees it."""
    size, total, free, reserved = pool.page_size, pool.total, pool.free, pool.reserved
    return hugepages.Pool(size, total, free, reserved, pool.surplus, pool.overcommit)


def resize_command(end: End, pool: Pool, pages: int) -> str:
    """The command that gives the pool of that host ``pages`` pages."""
    default = end.host.default_hugepage_size
    return end.as_root(hugepages.resize_words(pool.page_size, pages, default))


def _short(case: Case, pool: Pool, blocks: list[BlockOf]) -> Iterator[Finding]:
    wanted = sum(block.pages for block in blocks)
    figured = _figured(pool)
    if figured.obtainable >= wanted:
        return
    growth = _growth(case, pool, wanted)
    if figured.most >= wanted:
        code, why, remedy, verdict = _taken(case, pool, growth)
    else:
        code, why, remedy, verdict = _too_small(pool, growth, len(blocks))
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
    verb = "takes" if len(blocks) == 1 else "take"
    message = (
        f"{names(blocks)} {verb} {_shown(wanted)} of {format_size(pool.page_size)} hugepages, and"
        f" control groups of {case.destination.called} grant {_shown(pool.cgroup_room)} more"
    )
    remedy = pool.cgroup_remedy or Advice("use smaller blocks")
    for block in blocks:
        yield case.of_block(block.number, "size", Code.POOL_LIMITED, message, remedy)


def _figures(pool: Pool) -> str:
    overcommit = f", {pool.overcommit} by overcommit" if pool.overcommit else ""
    return f"{pool.total} in all, {pool.free} free, {pool.reserved} of these reserved{overcommit}"


def _taken(case: Case, pool: Pool, growth: Growth) -> tuple[Code, str, str, Verdict]:
    """It is large enough, and others have some of it."""
    remedy = growth.remedy()
    if growth.never or growth.not_now:
        remedy = Advice("wait until others give them back")
    why = f"can't reserve them now, as others hold some: {_figures(pool)}"
    on_unavailable = case.scenario.on_unavailable
    if isinstance(on_unavailable, Wait):
        why += f"; the run waits up to {format_duration(on_unavailable.wait)} for it"
        return Code.POOL_TAKEN, why, remedy, Verdict.UNKNOWN
    return Code.POOL_TAKEN, why, remedy, Verdict.INCOMPATIBLE


def _too_small(pool: Pool, growth: Growth, blocks: int) -> tuple[Code, str, str, Verdict]:
    remedy, verdict = growth.remedy(blocks), Verdict.INCOMPATIBLE
    if growth.never:
        return Code.POOL_NEVER, f"will never have them: {growth.never}", remedy, verdict
    why = f"is too small: {_figures(pool)}"
    if growth.not_now:
        why += f"; {growth.not_now}"
    return Code.POOL_SMALL, why, remedy, verdict


def _growth(case: Case, pool: Pool, wanted: int) -> Growth:
    """Surplus pages are none that a remedy counts on."""
    end = case.destination
    memory = end.host.memory
    return Growth(
        pool.page_size,
        wanted,
        _figured(pool).available,
        pool.total,
        HostMemory(memory.total, memory.available, memory.swap_free),
        _beside(case, pool),
        lambda pages: resize_command(end, pool, pages),
    )


def _beside(case: Case, pool: Pool) -> Beside:
    """What else the run takes of the destination's memory, and that other pools have to grow by."""
    need = memory_needed(case.scenario, in_place=case.in_place)
    beside = need.beside_hugepages() if case.same_host else Beside(need.destination)
    others = sum(
        max(pages - other.free + other.reserved, 0) * size
        for size, pages in need.hugepages.items()
        if size != pool.page_size and (other := case.destination.pool(size)) is not None
    )
    return beside._replace(fixed=beside.fixed + others)


def _shown(size: int) -> str:
    return format_size(size, digits=3)
