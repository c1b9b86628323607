"""Seeds of the further runs of a scenario: always the same ones, and none twice."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator


def seeds(own: int, count: int) -> list[int]:
    """``count`` seeds: the scenario's ``own``, then others made from it."""
    return list(itertools.islice(_all(own), count))


def _all(own: int) -> Iterator[int]:
    given = {own}
    yield own
    for number in itertools.count(1):
        # 31 bits are enough, and short in the name of a test.
        digest = hashlib.sha256(f"{own}:{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") >> 1
        if seed not in given:
            given.add(seed)
            yield seed
