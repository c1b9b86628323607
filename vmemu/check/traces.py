"""Rules on traces: whether each can be laid on the blocks, as a run would lay it."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Reason, Verdict
from vmemu.config import RecordedTrace, Scenario
from vmemu.errors import Advice, ConfigError, Problem


def rules(case: Case) -> Iterator[Finding]:
    """Traces are opened, as nothing else tells what they hold; synthetic ones always fit."""
    scenario = case.scenario
    if not (_recorded(scenario) or _flips_at_an_access(scenario)):
        return
    from vmemu.plan import blocks_of, client_plans, make_workload
    from vmemu.source_plan import flip_positions

    blocks = blocks_of(scenario)
    try:
        workload, _ = make_workload(scenario, blocks)
        flip_positions(scenario, workload)
        client_plans(scenario, blocks)
    except MemoryError:
        # The hosts in question may have the memory for it, where this one only checks.
        yield case.of_all(
            "blocks",
            Code.TRACE,
            "there is too little memory here to lay the traces on the blocks",
            Advice("check it on a host with more memory, or use smaller blocks"),
            verdict=Verdict.UNKNOWN,
        )
    except ConfigError as error:
        for problem in error.problems:
            yield Finding(None, reason_of(problem, Code.TRACE))


def reason_of(problem: Problem, code: str) -> Reason:
    """What the configuration says, as a reason."""
    place = f"{problem.file}:{problem.line}:{problem.column}" if problem.line else problem.file
    where = f"{place}: {problem.field}" if problem.field else place
    return Reason(code, problem.what, Advice(problem.remedy), place=where)


def _recorded(scenario: Scenario) -> bool:
    every = [scenario.guest.trace, *(client.trace for client in scenario.clients)]
    return any(
        isinstance(trace, RecordedTrace)
        for traces in every
        for trace in (traces if isinstance(traces, tuple) else (traces,))
    )


def _flips_at_an_access(scenario: Scenario) -> bool:
    """A place that a trace may not reach."""
    at = scenario.migration.flip_at.position
    return bool(at and at.accesses)
