"""Rules on blocks that are to end on transparent hugepages: without them a run completes all the
same, on small pages."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu._config.models import COLLAPSE_REGION
from vmemu.check.case import BlockOf, Case, End, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import Setting
from vmemu.units import format_size


def rules(case: Case) -> Iterator[Finding]:
    """All of this file."""
    end = case.destination
    if end.host.userfault.how is None:  # which is told, and nothing can be tried
        return
    for of in case.blocks:
        if of.block.collapse == "never" or of.hugetlb:
            continue
        why = _why_not_here(of) if end.here else _why_not_there(end, of)
        if why:
            message = f"'{of.block.name}' stays in small pages on {end.called}: {why}"
            yield case.of_block(
                of.number,
                "collapse",
                Code.COLLAPSE,
                message,
                Setting("collapse: never"),
                verdict=Verdict.DEGRADED,
            )


def _why_not_here(of: BlockOf) -> str:
    from vmemu.collapse import why_not
    from vmemu.ramblock import Backing

    path = str(of.block.path) if of.block.path else None
    return why_not(Backing(of.block.backing), path)


def _why_not_there(end: End, of: BlockOf) -> str:
    """What a recorded host says of transparent hugepages in such memory."""
    for tried in end.host.collapse:
        if tried.backing == of.block.backing:
            return tried.why
    thp = end.host.thp
    if thp.enabled is None:
        return "its kernel has no transparent hugepages"
    if thp.page_size is not None and thp.page_size != COLLAPSE_REGION:
        sizes = f"{format_size(thp.page_size)}, not {format_size(COLLAPSE_REGION)}"
        return f"its transparent hugepages have {sizes}"
    for proof in end.host.proofs:
        # Of the proofs this one makes hugepages of memory that is there.
        if (proof.backing, proof.thp, proof.fault) == (of.block.backing, True, "write_protect"):
            return proof.why if proof.works is False else ""
    return ""
