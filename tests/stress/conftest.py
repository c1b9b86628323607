"""Scenarios that stress this machine, an item a seed: ``pytest -n 8 tests/stress --vmemu-seeds 20``
for more of them.

Those that need hugepages are skipped where the pool has none to give, as other tests are.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from support import HUGE, missing

from vmemu import hugepages, reservation
from vmemu.config import load
from vmemu.errors import HostError
from vmemu.userfault import Userfaultfd


@pytest.hookimpl(trylast=True)  # when the item is set up, so that its finalizers are called
def pytest_runtest_setup(item: pytest.Item) -> None:
    try:
        Userfaultfd().close()
    except HostError as error:
        missing("userfault", str(error))
    if wanted := _hugepages(item.path):
        with ExitStack() as stack:
            stack.enter_context(reservation.using([HUGE]))
            item.addfinalizer(stack.pop_all().close)
        if _total() < wanted:
            remedy = hugepages.resize_command(HUGE, wanted)
            missing("hugetlb", f"the pool of 2 MiB hugepages has too few pages: {remedy}")


def _hugepages(scenario: Path) -> int:
    blocks = load(scenario).blocks
    return sum(one.size // HUGE for one in blocks if one.backing == "hugetlbfs")


def _total() -> int:
    try:
        return hugepages.pool(HUGE).total
    except HostError as error:
        missing("hugetlb", str(error))
