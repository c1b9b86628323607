"""Rules on two hosts: what ADVISE compares of both ends must agree, and what a guest runs on."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, Finding
from vmemu.check.codes import Code
from vmemu.errors import Advice
from vmemu.pagefit import another_page_size
from vmemu.units import format_size


def rules(case: Case) -> Iterator[Finding]:
    """Nothing for a migration within one host."""
    if case.same_host:
        return
    source, destination = case.source, case.destination
    yield from _machine(case)
    theirs = source.host.kernel.base_page_size
    ours = destination.host.kernel.base_page_size
    if theirs != ours:
        message = (
            f"{source.called} has base pages of {format_size(theirs)} and {destination.called}"
            f" of {format_size(ours)}: ADVISE refuses that"
        )
        advice = Advice("use hosts with the same base page size")
        yield case.of_all("", Code.BASE_PAGE_DIFFERS, message, advice)
    for of, there in zip(case.blocks, _at_source(case), strict=True):
        if of.hugetlb and there != of.block.page_size:
            message = (
                f"its pages have {format_size(there)} on {source.called} and"
                f" {format_size(of.block.page_size)} on {destination.called}, the smallest that"
                " each lists: ADVISE refuses that"
            )
            remedy = another_page_size(of.block.size, of.block.page_size, case.common_page_sizes)
            yield case.of_block(of.number, "page_size", Code.PAGE_SIZE_DIFFERS, message, remedy)


def _machine(case: Case) -> Iterator[Finding]:
    """Memory alone could move; a guest under KVM has the CPU of its host."""
    leaving, arriving = (end.host.kernel.machine for end in (case.source, case.destination))
    if leaving != arriving:
        message = (
            f"{case.source.called} is {leaving} and {case.destination.called} is {arriving}:"
            " a guest that runs on one CPU can't go on on the other"
        )
        yield case.of_all("", Code.MACHINE, message, Advice("use two hosts of one machine"))


def _at_source(case: Case) -> list[int]:
    blocks = case.source.scenario.blocks
    return [blocks[of.number].page_size for of in case.blocks]
