"""Judging scenarios between hosts that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checking import Judging, scenario
from recorded_hosts import host

from vmemu._config import judging
from vmemu.check.judge import judge
from vmemu.check.verdict import ScenarioReport
from vmemu.host.document import HostDocument


@pytest.fixture
def somewhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that checks is asked for nothing."""

    def asked() -> int:
        raise AssertionError("the page size of the host that checks was asked for")

    monkeypatch.setattr(judging, "base_page_size", asked)
    monkeypatch.setattr(judging, "smallest_hugepage_size", asked)


@pytest.fixture
def judged(tmp_path: Path) -> Judging:
    """Judges blocks between two hosts, or within one."""

    def judging(
        *blocks: Any,
        on: HostDocument | None = None,
        source: HostDocument | None = None,
        **sections: Any,
    ) -> ScenarioReport:
        destination = on or host()
        path = scenario(tmp_path, *blocks, **sections)
        return judge(path, source=source or destination, destination=destination)

    return judging
