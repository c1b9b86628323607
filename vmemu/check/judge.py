"""A scenario and one host, or two → what will come of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from vmemu import units
from vmemu._config import yamlfile
from vmemu._config.types import parse_region
from vmemu.check import (
    block_files,
    both_ends,
    collapse,
    cpus,
    features,
    idle_settings,
    memory,
    pages,
    pools,
    process_limits,
    proofs,
    time_limits,
    traces,
)
from vmemu.check.case import Case, End, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import BlockReport, Reason, ScenarioReport, Verdict
from vmemu.config import PageSizes, Scenario, for_host, load_to_judge
from vmemu.errors import Problem
from vmemu.host.document import HostDocument

_RULES = (
    pages.rules,
    pools.rules,
    block_files.rules,
    memory.rules,
    process_limits.rules,
    time_limits.rules,
    cpus.rules,
    idle_settings.rules,
    features.rules,
    collapse.rules,
    both_ends.rules,
)


def judge(
    path: str | os.PathLike[str],
    *,
    source: HostDocument | None = None,
    destination: HostDocument | None = None,
    overrides: Iterable[tuple[str, str | None]] = (),
    seed: int | None = None,
    here: HostDocument | None = None,
) -> ScenarioReport:
    """What the scenario in ``path`` will come to between two hosts, from their documents.

    A host that is not given is this one: its figures are taken now (or are ``here``, taken before
    for several scenarios), and what they let pass is tried on a page of each kind of memory.
    ``overrides`` and ``seed`` are as for ``config.load``. Raises ConfigError for a file that is no
    scenario, and nothing else; one that can be read and does not fit together has its reasons in
    the report. Nothing is left behind.
    """
    both = source is None and destination is None
    if here is None and (source is None or destination is None):
        from vmemu.doctor.survey import survey

        here = survey(version=False)  # to find it out takes longer than all the rest
    arriving = destination or here
    leaving = arriving if both else source or here
    assert arriving is not None and leaving is not None

    scenario, misfits = load_to_judge(path, overrides, seed, page_sizes(arriving))
    there = scenario
    if page_sizes(leaving) != page_sizes(arriving):
        there = for_host(scenario, page_sizes(leaving))
    case = Case(
        End("source", leaving, source is None, there),
        End("destination", arriving, destination is None, scenario),
        frozenset(_impossible(scenario, misfits)),
    )
    return _report(os.fspath(path), scenario, list(_found(case, misfits)))


def page_sizes(host: HostDocument) -> PageSizes:
    """What blocks that name no page size get there."""
    huge = min((pool.page_size for pool in host.pools), default=2 * units.MIB)
    return PageSizes(host.kernel.base_page_size, huge)


def _found(case: Case, misfits: list[Problem]) -> Iterator[Finding]:
    found = [_misfit(case.scenario, problem) for problem in misfits]
    found += [finding for rules in _RULES for finding in rules(case)]
    found = _of_one_mind(found)
    yield from found
    yield from _proven(case, found)
    if _can_be_laid_out(found, misfits):
        yield from traces.rules(case)


def _of_one_mind(found: list[Finding]) -> list[Finding]:
    """A block whose pages have to be of another size gets no other block size for the one it has:
    that of the remedy divides its size."""
    another = {
        finding.block: finding.reason.remedy
        for finding in found
        if finding.reason.code in (Code.PAGE_SIZE_ABSENT, Code.PAGE_SIZE_DIFFERS)
    }
    return [
        Finding(block, replace(reason, remedy=another[block]))
        if reason.code == Code.MISALIGNED and block in another
        else Finding(block, reason)
        for block, reason in found
    ]


def _can_be_laid_out(found: list[Finding], misfits: list[Problem]) -> bool:
    """Blocks of no possible size have no place for a trace; those that no memory holds would need
    a dictionary of pages that it holds no more, and a run lays out none."""
    without_memory = {Code.MEMORY, Code.MEMORY_NEVER}
    return all(problem.code == Code.CONTENT for problem in misfits) and not any(
        finding.reason.code in without_memory for finding in found
    )


def _proven(case: Case, found: list[Finding]) -> Iterator[Finding]:
    """Only what nothing speaks against is tried: else the same is said twice."""
    codes = {finding.reason.code for finding in found}
    if Code.USERFAULTFD in codes or Code.LOCKED in codes:
        return
    blocks = {f.block for f in found if f.reason.verdict.rank >= Verdict.UNKNOWN.rank}
    if not case.destination.here:
        yield from (f for f in proofs.recorded(case) if f.block not in blocks)
    else:
        yield from proofs.made(case, [of for of in case.blocks if of.number not in blocks])


# ---- what the configuration says ----


def _misfit(scenario: Scenario, problem: Problem) -> Finding:
    return Finding(_block_of(scenario, problem), traces.reason_of(problem, problem.code))


def _impossible(scenario: Scenario, misfits: list[Problem]) -> Iterator[int]:
    """The blocks that no rule can say more of."""
    for problem in misfits:
        block = _block_of(scenario, problem)
        if block is not None and problem.code == Code.PAGE_SIZE_IMPOSSIBLE:
            yield block


def _block_of(scenario: Scenario, problem: Problem) -> int | None:
    """The number of the block that does not fit, or that a map or a pattern goes beyond."""
    steps = [step.text for step in yamlfile.split_path(problem.field)]
    if steps[0] == "blocks":
        return int(steps[1])
    data = scenario.model_dump(by_alias=True)
    name = _block_named(data, steps)
    names = [block.name for block in scenario.blocks]
    return names.index(name) if name in names else None


def _block_named(data: object, steps: list[str]) -> str:
    """The block that a value on the way to a field names; empty if none does."""
    name = ""
    for step in steps:
        data = (
            data[int(step)]
            if isinstance(data, list)
            else data.get(step, "")
            if isinstance(data, dict)
            else ""
        )
        if isinstance(data, dict) and isinstance(data.get("block"), str):
            name = data["block"]
    if isinstance(data, str):
        try:
            return parse_region(data).block
        except units.UnitError:
            return name
    return name


# ---- the report ----


def _report(path: str, scenario: Scenario, found: list[Finding]) -> ScenarioReport:
    blocks = tuple(
        BlockReport(block.name, block.backing, block.page_size, block.size, _of(found, index))
        for index, block in enumerate(scenario.blocks)
    )
    return ScenarioReport(path, blocks, _of(found, None))


def _of(found: list[Finding], block: int | None) -> tuple[Reason, ...]:
    """The worst first."""
    reasons = dict.fromkeys(finding.reason for finding in found if finding.block == block)
    return tuple(sorted(reasons, key=lambda reason: -reason.verdict.rank))
