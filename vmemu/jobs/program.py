"""How ``vmemu`` is called in a shell: the one that runs here, which may not be on PATH."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

NAME = "vmemu"


def program(start: Path) -> tuple[str, ...]:
    """The words that stand for this installation's ``vmemu`` in a shell in ``start``."""
    ours = Path(sys.executable).parent / NAME
    found = shutil.which(NAME)
    if found is not None and _one_file(found, ours):
        return (NAME,)
    if os.access(ours, os.X_OK):
        here = ours.relative_to(start) if ours.is_relative_to(start) else ours
        return (str(here) if os.sep in str(here) else f".{os.sep}{here}",)
    return (sys.executable, "-P", "-m", NAME)


def _one_file(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
