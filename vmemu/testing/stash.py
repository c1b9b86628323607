"""Where a test has its runs, once it has any; apart, so that nobody imports more to look there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vmemu.testing.runs import Runs

RUNS: pytest.StashKey[Runs] = pytest.StashKey()
