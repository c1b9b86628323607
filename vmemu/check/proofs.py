"""What was proven by doing: the proofs that a recorded host has, and on this host new ones, of one
page for each kind of memory that the figures let pass."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import BlockOf, Case, End, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import CoreError, HostError
from vmemu.host.document import Proof
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
        proof = proofs.get((of.block.backing, of.block.page_size), _never_tried(of))
        if proof.works:
            continue
        memory = f"{of.block.backing} memory of {format_size(of.block.page_size)} pages"
        failed = proof.works is False
        tried = "do not work" if failed else "could not be tried"
        why = proof.why and f": {proof.why}"
        yield case.of_block(
            of.number,
            "backing",
            Code.PROOF if failed else Code.UNPROVEN,
            f"missing faults on {memory} {tried} on {end.called}{why}",
            proof.remedy,
            verdict=Verdict.INCOMPATIBLE if failed else Verdict.UNKNOWN,
        )


def _never_tried(of: BlockOf) -> Proof:
    """In the place of a proof that a document has not."""
    block = of.block
    return Proof(
        backing=block.backing,
        page_size=block.page_size,
        fault="missing",
        works=None,
        why="its document has no proof of it",
        remedy="vmemu doctor --json FILE",
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


def tracking(end: End) -> tuple[bool | None, str]:
    """Whether it works on a recorded host, and why not; None where nobody has tried it."""
    why = "its document has no proof of it"
    for proof in end.host.proofs:
        if (proof.backing, proof.thp, proof.fault) == ("anonymous", False, "write_protect"):
            if proof.works is not None:
                return proof.works, proof.why
            why = proof.why
    return None, why


def tracking_here() -> tuple[bool, str]:
    """The same of this host, from a page of other memory, as the source tries it."""
    from vmemu.dirty import KernelTracker

    tracker = KernelTracker([])
    try:
        tracker.start()
    except (HostError, CoreError) as error:
        return False, str(error)
    tracker.close()
    return True, ""
