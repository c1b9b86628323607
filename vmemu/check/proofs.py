"""What was proven by doing: the proofs that a recorded host has, and on this host new ones, of one
page for each kind of memory that the figures let pass."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import BlockOf, Case, End, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import CoreError, HostError
from vmemu.units import format_size

_NOT_AGAIN = frozenset({"target_page", "locked", "hugepages"})
"""What the check on a page finds and rules on figures have said better."""


def recorded(case: Case) -> Iterator[Finding]:
    """What the destination's document says of missing faults on the memory of each block."""
    end = case.destination
    proofs = {
        (proof.backing, proof.page_size): proof
        for proof in end.host.proofs
        if proof.fault == "missing" and not proof.thp
    }
    for of in case.blocks:
        proof = proofs.get((of.block.backing, of.block.page_size))
        if proof is None or proof.works:
            continue
        memory = f"{of.block.backing} memory of {format_size(of.block.page_size)} pages"
        failed = proof.works is False
        tried = "do not work" if failed else "could not be tried"
        yield case.of_block(
            of.number,
            "backing",
            Code.PROOF if failed else Code.UNPROVEN,
            f"missing faults on {memory} {tried} on {end.called}: {proof.why}",
            proof.remedy,
            verdict=Verdict.INCOMPATIBLE if failed else Verdict.UNKNOWN,
        )


def made(case: Case, blocks: list[BlockOf]) -> Iterator[Finding]:
    """What a page of each kind of these blocks shows here and now."""
    from vmemu.hostcheck import postcopy_supported
    from vmemu.plan import blocks_of

    every = blocks_of(case.scenario)
    wanted = [every[of.number] for of in blocks]
    if not wanted:
        return
    index = {of.block.name: of.number for of in blocks}
    try:
        problems = postcopy_supported(wanted)
    except (CoreError, OSError) as error:
        yield case.of_all(
            "", Code.UNPROVEN, f"no page could be tried: {error}", "", verdict=Verdict.UNKNOWN
        )
        return
    for problem in problems:
        if problem.code in _NOT_AGAIN:
            continue
        for name in problem.blocks:
            yield case.of_block(
                index[name], problem.key or "backing", Code.PROOF, problem.what, problem.remedy
            )
        if not problem.blocks:
            yield case.of_all("", Code.PROOF, problem.what, problem.remedy)


# ---- write protection, which tells what the guest writes at the source ----


def no_tracking(end: End) -> str:
    """Why it does not work on a recorded host; empty when nothing says so."""
    for proof in end.host.proofs:
        at_source = (proof.backing, proof.thp, proof.fault) == ("anonymous", False, "write_protect")
        if at_source and proof.works is False:
            return f"write protection of anonymous memory does not work: {proof.why}"
    return ""


def no_tracking_here() -> str:
    """The same of this host, from a page of other memory, as the source tries it."""
    from vmemu.dirty import KernelTracker

    tracker = KernelTracker([])
    try:
        tracker.start()
    except (HostError, CoreError) as error:
        return str(error)
    tracker.close()
    return ""
