"""Settings that a scenario has and that can't do anything in it: a run warns of them, a check tells
them beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vmemu.config import Scenario
from vmemu.units import format_size

_MOST_AROUND = 1 << 20
"""Bytes of a window of ``fault_around`` at most (``_core/carry.h``); one of two pages is the least
that brings any."""
_LARGEST_AHEAD = 4 << 20
"""Bytes of the largest page that ``prefetch`` brings (``_core/prefetch.c``)."""


class Idle(NamedTuple):
    """A setting, why it does nothing, and what to write in its place or beside it."""

    path: str
    why: str
    remedy: str

    @property
    def message(self) -> str:
        """The same as a sentence of its own."""
        return f"{self.path} does nothing: {self.why}"


def idle_settings(scenario: Scenario) -> Iterator[Idle]:
    """All of them."""
    postcopy = scenario.migration.postcopy
    if not postcopy.push and postcopy.push_order == "recorded":
        why = "nothing is pushed while the guest runs, as 'push' is false"
        yield Idle("migration.postcopy.push_order", why, "push: true")
    smallest = min(block.page_size for block in scenario.blocks)
    if postcopy.fault_around == 1:
        why = "a window of one page has no others"
        yield Idle("migration.postcopy.fault_around", why, "fault_around: 16")
    elif postcopy.fault_around and 2 * smallest > _MOST_AROUND:
        yield Idle("migration.postcopy.fault_around", _too_large(smallest), "fault_around: 0")
    if postcopy.prefetch == "adaptive" and smallest > _LARGEST_AHEAD:
        yield Idle("migration.postcopy.prefetch", _too_large(smallest), "prefetch: none")


def _too_large(page_size: int) -> str:
    return f"pages of {format_size(page_size)} bring no others along"
