"""The ini option ``vmemu_limits``: patterns for files, each with limits."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator

import pytest

from vmemu.errors import InputError
from vmemu.testing import SUFFIXES
from vmemu.testing.limits import limits, parse_line


def limits_of_ini(config: pytest.Config) -> list[tuple[str, dict[str, object]]]:
    """The lines: patterns, and what ``limits`` takes. Raises InputError."""
    lines = [parse_line(line) for line in config.getini("vmemu_limits")]
    for pattern, found in lines:
        limits(found, f"vmemu_limits: {pattern}")
    return lines


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern is for the file whose path from the rootdir is ``name``."""
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.rpartition("/")[2], pattern)


def unmatched(config: pytest.Config) -> list[str]:
    """The patterns that no file below the rootdir fits, whether this session has run it or not."""
    try:
        left = [pattern for pattern, _ in limits_of_ini(config)]
    except InputError:  # told when the session began
        return []
    for name in _files(config):
        if not left:
            break
        left = [pattern for pattern in left if not fits(name, pattern)]
    return left


def _files(config: pytest.Config) -> Iterator[str]:
    """Scenarios, and what may be tests, by their paths from the rootdir."""
    skipped = config.getini("norecursedirs")
    for directory, below, names in os.walk(config.rootpath):
        below[:] = [
            name for name in below if not any(fnmatch.fnmatch(name, pattern) for pattern in skipped)
        ]
        for name in names:
            if name.endswith((*SUFFIXES, ".py")):
                yield os.path.relpath(os.path.join(directory, name), config.rootpath)
