"""Settings that a scenario has and that do nothing in it."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import Setting
from vmemu.idle import idle_settings


def rules(case: Case) -> Iterator[Finding]:
    """Nothing of a host: what it asks for and what it is of."""
    for idle in idle_settings(case.scenario):
        verdict = Verdict.DEGRADED
        remedy = Setting(idle.remedy)
        yield case.of_all(idle.path, Code.NO_EFFECT, idle.message, remedy, verdict=verdict)
