"""Where tests and sessions keep what is known of them; apart, so that nobody imports more."""

from __future__ import annotations

from typing import Any

import pytest

RUNS: pytest.StashKey[Any] = pytest.StashKey()
"""Of an item: the ``Runs`` of its latest try, which stand above this file."""
SCENARIO_USED: pytest.StashKey[bool] = pytest.StashKey()
"""Of an item: whether it has loaded the scenario of its mark."""
USERFAULTFD_USED: pytest.StashKey[bool] = pytest.StashKey()
"""Of an item: whether its features of userfaultfd were asked for."""
BROKEN: pytest.StashKey[dict[str, str]] = pytest.StashKey()
"""Of a session's config: what is wrong with marks, by the ids of their tests without parameters."""
WORKER: pytest.StashKey[str] = pytest.StashKey()
"""Of a session's config: which worker this is, where others run the same tests."""
