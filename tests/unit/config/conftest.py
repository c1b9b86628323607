"""What every test of scenarios has: a host of known page sizes, a directory with files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmemu._config import judging


@pytest.fixture(autouse=True)
def _pages_of_4_and_2048_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests say what page sizes the host has."""
    monkeypatch.setattr(judging, "base_page_size", lambda: 4096)
    monkeypatch.setattr(judging, "smallest_hugepage_size", lambda: 2 << 20)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "boot.vmtrace").mkdir()
    (tmp_path / "dump.raw").write_bytes(bytes(8192))
    return tmp_path
