"""Rules on two hosts: what ADVISE compares of both ends must agree."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, Finding
from vmemu.check.codes import Code
from vmemu.units import format_size


def rules(case: Case) -> Iterator[Finding]:
    """Nothing for a migration within one host."""
    if case.same_host:
        return
    source, destination = case.source, case.destination
    theirs = source.host.kernel.base_page_size
    ours = destination.host.kernel.base_page_size
    if theirs != ours:
        message = (
            f"{source.called} has base pages of {format_size(theirs)} and {destination.called}"
            f" of {format_size(ours)}: ADVISE refuses that"
        )
        remedy = "use hosts with the same base page size"
        yield case.of_all("", Code.BASE_PAGE_DIFFERS, message, remedy)
    for of, there in zip(case.blocks, _at_source(case), strict=True):
        if of.hugetlb and there != of.block.page_size:
            message = (
                f"its pages have {format_size(there)} on {source.called} and"
                f" {format_size(of.block.page_size)} on {destination.called}, the smallest that"
                " each lists: ADVISE refuses that"
            )
            remedy = f"page_size: {format_size(_common(case, of.block.page_size))}"
            yield case.of_block(of.number, "page_size", Code.PAGE_SIZE_DIFFERS, message, remedy)


def _at_source(case: Case) -> list[int]:
    blocks = case.source.scenario.blocks
    return [blocks[of.number].page_size for of in case.blocks]


def _common(case: Case, usual: int) -> int:
    """The smallest hugepage that both have."""
    both = {pool.page_size for pool in case.source.host.pools}
    both &= {pool.page_size for pool in case.destination.host.pools}
    return min(both, default=usual)
