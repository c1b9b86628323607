"""Whether a scenario can be run here at all: without that its variations say nothing of it."""

from __future__ import annotations

from vmemu import hugepages, plan
from vmemu.config import Scenario
from vmemu.hostcheck import Code, PostcopyUnsupported, postcopy_supported
from vmemu.memoryneed import memory_needed
from vmemu.stress.kinds import HostKinds


def require(scenario: Scenario, kinds: HostKinds) -> None:
    """Raise HostError when this host can't run the scenario, now or ever. Hugepages that others
    have taken will be free again."""
    found = postcopy_supported(plan.blocks_of(scenario))
    problems = [problem for problem in found if problem.code is not Code.HUGEPAGES]
    if problems:
        error = PostcopyUnsupported(problems)
        scenario.locate(error)
        raise error
    for page_size, pages in memory_needed(scenario).hugepages.items():
        if pages > kinds.pools.get(page_size, 0):
            raise hugepages.shortage("the scenario", page_size, pages)
