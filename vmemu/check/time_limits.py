"""Rules on limits in time: how fast a host is nobody knows before, so short ones are unknown."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import Setting
from vmemu.memoryneed import memory_needed
from vmemu.units import MIB, format_duration, format_size

SECOND = 10**9
SHORTEST_NS = 2 * SECOND
"""A source comes up in a tenth of that, and a page comes sooner: but not where others compute."""
IMAGE_BYTES_PER_SECOND = 256 * MIB
"""A source makes its image faster, but not by much where others compute."""


def rules(case: Case) -> Iterator[Finding]:
    """All of this file."""
    scenario = case.scenario
    startup, stall = scenario.source.startup_timeout, scenario.limits.stall
    if stall < SHORTEST_NS:
        what = f"a page that is late by {format_duration(stall)} ends the run"
        yield _short(case, "limits.stall", what, SHORTEST_NS)
    if startup < SHORTEST_NS:
        what = f"source and clients have {format_duration(startup)} to come up"
        yield _short(case, "source.startup_timeout", what, SHORTEST_NS)
        return
    image = memory_needed(scenario, in_place=case.in_place).source
    memory = case.source.host.memory
    if image > memory.total + memory.swap_free:
        return  # which is said already, and no time helps
    wanted = SHORTEST_NS // SECOND + -(-image // IMAGE_BYTES_PER_SECOND)
    # While it makes its image the source says nothing.
    if max(startup, stall) < wanted * SECOND:
        given = format_duration(max(startup, stall))
        what = (
            f"the source makes an image of {format_size(image, digits=3)}, and has {given} for it"
        )
        yield _short(case, "source.startup_timeout", what, wanted * SECOND)


def _short(case: Case, field: str, what: str, wanted_ns: int) -> Finding:
    section, key = field.split(".")
    wanted = format_duration(wanted_ns)
    message = f"{what}: whether that suffices depends on what else runs there"
    remedy = Setting(f"{section}: {{{key}: {wanted}}}")
    return case.of_all(field, Code.TIME_LIMIT, message, remedy, verdict=Verdict.UNKNOWN)
