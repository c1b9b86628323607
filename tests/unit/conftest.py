"""What holds for all unit tests: nothing they see depends on who runs them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _as_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remedies as root is told them; a test that is about others says so."""
    monkeypatch.setattr("vmemu.privilege.is_root", lambda: True)
    monkeypatch.setattr("vmemu.privilege.of_the_machine", lambda: True)
