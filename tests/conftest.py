"""Makes ``support`` importable everywhere, and shares out the machine's one pool of hugepages."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support import HUGE

from vmemu import hugepages, reservation
from vmemu.reservation import Resizer

# A machine that runs tests in parallel is slow at any moment; nothing here is about time.
settings.register_profile("vmemu", deadline=None)
settings.load_profile("vmemu")


@pytest.fixture
def pool_lock() -> Iterator[None]:
    """Held by a test that uses hugepages: nobody changes the size of the pool meanwhile."""
    with reservation.using(hugepages.page_sizes()):
        yield


@pytest.fixture
def pool_alone() -> Iterator[Resizer]:
    """Held by a test that changes the size of the pool; the size it had comes back afterwards.

    Not together with ``hugetlb`` or ``pool_lock``, which hold the pool as it is.
    """
    if os.geteuid() != 0 or HUGE not in hugepages.page_sizes():
        pytest.skip("only root changes the size of the pool of 2 MiB hugepages")
    with reservation.resizing(HUGE) as pool:
        yield pool
