"""Rules on CPUs: those that a scenario names must be there for who runs it."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, End, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import Setting
from vmemu.placement import beyond, crowded, refusal

_OF_SOURCE = ("urgent", "push")


def rules(case: Case) -> Iterator[Finding]:
    """Each role on the host where its threads are."""
    for end in case.ends:
        allowed = frozenset(end.host.cpus.allowed)
        for role, missing in beyond(case.scenario, allowed):
            if _runs_there(role, end, case):
                who = "this process" if end.here else f"vmemu on {end.called}"
                message, remedy = refusal(who, missing, allowed)
                yield case.of_all(f"placement.{role}", Code.CPUS, message, remedy)
    here = case.destination
    if why := crowded(case.scenario, len(here.host.cpus.allowed)):
        message = f"{why}, on {here.called}"
        remedy = Setting("placement: auto")
        yield case.of_all("placement", Code.CPUS, message, remedy, verdict=Verdict.DEGRADED)


def _runs_there(role: str, end: End, case: Case) -> bool:
    if case.same_host:
        return True
    if end is case.source:  # the guest's vCPUs too, while they are there
        before = role == "vcpus" and not case.scenario.migration.flip_at.at_once
        return before or role in _OF_SOURCE
    return role not in _OF_SOURCE
