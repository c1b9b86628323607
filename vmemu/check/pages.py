"""Rules on page sizes: whether a host has them, and what they mean for a fault."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import BlockOf, Case, End, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import Setting
from vmemu.host.document import Unknown
from vmemu.host.files import ALL_OF_SYS
from vmemu.pagefit import absent_page_size, another_page_size, target_page
from vmemu.units import GIB, format_duration, format_size

COPY_BYTES_PER_SECOND = 5 * GIB // 2
"""About what a pipe and UFFDIO_COPY move together, to say how long a large page takes."""


def rules(case: Case) -> Iterator[Finding]:
    """All of this file."""
    for block in case.blocks:
        for end in case.ends:
            yield from _absent(case, end, block)
        yield from _gigantic(case, block)
        yield from _behind_the_push(case, block)
    for end in case.ends:
        yield from _target_page(case, end)
    yield from _mixed(case)


def _absent(case: Case, end: End, of: BlockOf) -> Iterator[Finding]:
    """Also at the source: a guest with such a block runs there before."""
    size = of.block.page_size
    if not of.hugetlb or end.pool(size) is not None:
        return
    if not end.host.pools and (unread := _unread(end)) is not None:
        message = f"nobody could tell which hugepages {end.called} has: {unread.why}"
        yield case.of_block(
            of.number,
            "page_size",
            Code.UNPROVEN,
            message,
            unread.remedy,
            verdict=Verdict.UNKNOWN,
        )
        return
    message = absent_page_size(end.called, size, [pool.page_size for pool in end.host.pools])
    # One that both ends have: what each of them alone would have is no remedy.
    remedy = another_page_size(of.block.size, size, case.common_page_sizes)
    yield case.of_block(of.number, "page_size", Code.PAGE_SIZE_ABSENT, message, remedy)


def _unread(end: End) -> Unknown | None:
    """Why nothing of /sys is known, where all pools are."""
    return next((one for one in end.host.unknown if one.what == ALL_OF_SYS), None)


def _gigantic(case: Case, of: BlockOf) -> Iterator[Finding]:
    size = of.block.page_size
    if size < GIB:
        return
    takes = format_duration(size * 10**9 // COPY_BYTES_PER_SECOND, digits=2)
    message = (
        f"a fault brings a whole page of {format_size(size)}: for about {takes} the vCPU waits, and"
        " so do all that need another page"
    )
    yield case.of_block(
        of.number,
        "page_size",
        Code.GIGANTIC_PAGES,
        message,
        _smaller(case, of),
        verdict=Verdict.DEGRADED,
    )


def _smaller(case: Case, of: BlockOf) -> str:
    """The largest page that is not gigantic, if both ends have one; else there is no remedy."""
    usable = [size for size in case.common_page_sizes if size < GIB]
    return another_page_size(of.block.size, of.block.page_size, usable) if usable else ""


def _behind_the_push(case: Case, of: BlockOf) -> Iterator[Finding]:
    postcopy = case.scenario.migration.postcopy
    if not of.hugetlb or postcopy.preempt or not postcopy.push:
        return
    message = (
        "without preempt a page that a vCPU waits for comes behind the one that is being pushed,"
        f" {format_size(of.block.page_size)}"
    )
    remedy = Setting("migration: {postcopy: {preempt: true}}")
    yield case.of_block(
        of.number, "page_size", Code.PREEMPT_OFF, message, remedy, verdict=Verdict.DEGRADED
    )


def _target_page(case: Case, end: End) -> Iterator[Finding]:
    target, base = case.scenario.guest.target_page_size, end.host.kernel.base_page_size
    refusal = target_page(end.called, target, base)
    if refusal is not None:
        yield case.of_all("guest.target_page_size", Code.TARGET_PAGE, *refusal)


def _mixed(case: Case) -> Iterator[Finding]:
    sizes = sorted({block.block.page_size for block in case.blocks})
    if len(sizes) < 2:
        return
    smallest, largest = sizes[0], sizes[-1]
    message = (
        f"blocks have pages of {', '.join(map(format_size, sizes))}: a fault on the largest brings"
        f" {largest // smallest:,} times as much as one on the smallest"
    )
    if case.scenario.migration.postcopy.delivery == "thread":
        message += ", and both wait in one queue"
    yield case.of_all("blocks", Code.MIXED_PAGE_SIZES, message, "", verdict=Verdict.DEGRADED)
