"""Whether a scenario can be run here at all: without that its variations say nothing of it."""

from __future__ import annotations

from vmemu import hugepages, plan
from vmemu.config import Scenario
from vmemu.errors import HostError
from vmemu.hostcheck import Code, PostcopyUnsupported, postcopy_supported
from vmemu.memoryneed import memory_needed, memory_shortage
from vmemu.stress.kinds import HostKinds


def require(scenario: Scenario, kinds: HostKinds) -> None:
    """Raise HostError, with the place in the file that is to blame, when this host can't run the
    scenario, now or ever. Hugepages that others have taken will be free again."""
    found = postcopy_supported(plan.blocks_of(scenario))
    problems = [problem for problem in found if problem.code is not Code.HUGEPAGES]
    if problems:
        error = PostcopyUnsupported(problems)
        scenario.locate(error)
        raise error
    for page_size, pages in memory_needed(scenario).hugepages.items():
        if pages > kinds.pools.get(page_size, 0):
            short = hugepages.shortage("the scenario", page_size, pages)
            raise short.at(scenario.place_of(_first_of(scenario, page_size)))
    shortage = memory_shortage(memory_needed(scenario))
    if shortage is not None:
        raise HostError(shortage.what, shortage.remedy).at(scenario.place_of("blocks"))


def _first_of(scenario: Scenario, page_size: int) -> str:
    """The size of the first block of such pages."""
    blocks = enumerate(scenario.blocks)
    first = next((i for i, block in blocks if block.page_size == page_size), None)
    return "blocks" if first is None else f"blocks[{first}].size"
