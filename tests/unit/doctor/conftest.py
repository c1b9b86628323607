"""Made-up hosts: trees of /proc and /sys, and documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmemu.host.files import HostFiles

Tree = Callable[[dict[str, str]], HostFiles]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Files by their absolute paths; a text that begins with -> is a symbolic link."""

    def make(files: dict[str, str]) -> HostFiles:
        for path, text in files.items():
            place = tmp_path / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("->"):
                place.symlink_to(text.removeprefix("->"))
            else:
                place.write_text(text)
        for always in ("proc/self", "sys/kernel"):
            (tmp_path / always).mkdir(parents=True, exist_ok=True)
        return HostFiles(tmp_path)

    return make
