"""Where a test has its runs, and a session its name; apart, so that nobody imports more for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vmemu.testing.runs import Runs

RUNS: pytest.StashKey[Runs] = pytest.StashKey()
"""Of an item: the runs of its latest try."""
WORKER: pytest.StashKey[str] = pytest.StashKey()
"""Of a session's config: which worker this is, where others run the same tests."""
