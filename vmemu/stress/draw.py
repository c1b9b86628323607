"""Random choices that are the same on every machine and with every version of Python."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Choices made from ``key``, and from nothing else.

    Of Python's generator only ``random()`` is promised to stay as it is, so all is made from it.
    """

    def __init__(self, *key: int | str) -> None:
        self._random = random.Random(":".join(map(str, key)))

    def chance(self, share: float) -> bool:
        """True in ``share`` of all cases."""
        return self._random.random() < share

    def between(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both inclusive, each as likely."""
        return low + min(int(self._random.random() * (high - low + 1)), high - low)

    def magnitude(self, low: int, high: int) -> int:
        """A whole number from ``low``, 1 or more, to ``high``: each power of two as likely as the
        next, so that the small ones are seen as well."""
        bits = self.between(low.bit_length() - 1, high.bit_length() - 1)
        return max(low, min((1 << bits) + self.between(0, (1 << bits) - 1), high))

    def pick(self, choices: Sequence[T]) -> T:
        """One of them, each as likely."""
        return choices[self.between(0, len(choices) - 1)]

    def word(self) -> int:
        """Any 32-bit number."""
        return self.between(0, (1 << 32) - 1)
