"""The names that outputs have while they are written: beside their place, and found again by
whoever knows that place.

Not by the number of the process that writes: it means nothing to containers that share a directory,
of which each may have a run of that number.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from hashlib import blake2s
from pathlib import Path


def temporary(path: str) -> str:
    """A new name beside ``path``, for what will be renamed to it."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f"{_prefix(name)}{secrets.token_hex(4)}.tmp")


def left_of(path: Path) -> Iterator[Path]:
    """What writers of ``path`` have left that were killed, or are at it now."""
    return path.parent.glob(f"{_prefix(path.name)}*.tmp")


def _prefix(name: str) -> str:
    # A name may be as long as names can be, and have characters that a pattern has a meaning for.
    return f".vmemu-{blake2s(os.fsencode(name), digest_size=8).hexdigest()}-"
