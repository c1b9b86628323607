"""Whether a host has the pages that blocks ask for: what is said where not, and what mends it.

The words are the same before a run, of this host or a recorded one, and when a run comes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from vmemu.errors import Advice, Setting
from vmemu.units import format_size, printable

HERE = "this host"
_NEEDS_QUOTES = frozenset(" '\"`$&|;<>()[]{}*?!#~\\")
"""What makes two words of a name, or means something to a shell."""


class Refusal(NamedTuple):
    """What is wrong, and what mends it: a command, Advice, or empty."""

    what: str
    remedy: str = ""


def called(names: Sequence[str]) -> str:
    """The blocks of these names in words of a message."""
    return f"block{'s' if len(names) > 1 else ''} {', '.join(map(_quoted, names))}"


def _quoted(name: str) -> str:
    shown = printable(name)
    return f"'{shown}'" if _NEEDS_QUOTES.intersection(shown) else shown


# ---- page sizes ----


def absent_page_size(where: str, page_size: int, known: Iterable[int]) -> str:
    """What is said of hugepages of a size that a host has not; ``known`` are those that it has."""
    listed = ", ".join(map(format_size, known)) or "none"
    return f"{where} has no hugepages of {format_size(page_size)} (it has: {listed})"


def another_page_size(size: int, page_size: int, usable: Iterable[int]) -> str:
    """The nearest of the ``usable`` page sizes that a block of ``size`` bytes is a multiple of."""
    fitting = [one for one in usable if size % one == 0]
    if not fitting:
        return Advice("use 'backing: anonymous' or 'backing: shared', without page_size")
    nearest = min(fitting, key=lambda one: abs(one - page_size))
    return Setting(f"page_size: {format_size(nearest)}")


def target_page(where: str, target: int, base: int) -> Refusal | None:
    """Of a page of the guest that is bigger than the host's; None where it is not."""
    if target <= base:
        return None
    return Refusal(
        f"the target page ({format_size(target)}) is bigger than the page of {where}"
        f" ({format_size(base)}): one fault would need several pages of the host",
        Setting(f"guest: {{target_page_size: {format_size(base)}}}"),
    )


# ---- pools ----


class Beside(NamedTuple):
    """Bytes of other memory that a run takes on the host of a pool: ``fixed``, and ``share`` more
    for each byte of hugepages, as the source's image lies in ordinary memory."""

    fixed: int = 0
    share: float = 0.0

    def of(self, size: int) -> int:
        """Beside so many bytes of hugepages."""
        return self.fixed + int(self.share * size)


NOTHING_BESIDE = Beside()


class HostMemory(NamedTuple):
    """A host's memory, bytes; ``available`` counts no page that a pool has."""

    total: int
    available: int
    swap_free: int = 0


class Growth(NamedTuple):
    """What it takes for a pool to give ``wanted`` pages, of which it can give ``usable`` now and
    has ``total`` in all. ``command`` is that which gives it so many pages."""

    page_size: int
    wanted: int
    usable: int
    total: int
    memory: HostMemory
    beside: Beside
    command: Callable[[int], str]

    @property
    def missing(self) -> int:
        """Bytes that the pool lacks."""
        return max(self.wanted - self.usable, 1) * self.page_size

    @property
    def never(self) -> str:
        """Why the host can't give them even if nobody else has any memory; empty if it can."""
        size, total = self.wanted * self.page_size, self.memory.total
        beside = self.beside.of(size)
        if size <= total and size + beside <= total + self.memory.swap_free:
            return ""
        there = f"there are {_shown(total)} of memory in all"
        if size > total or not beside:
            return there
        return f"the run takes {_shown(beside)} of other memory with them, and {there}"

    @property
    def not_now(self) -> str:
        """Why memory does not suffice now to make the pool so large; empty where it does."""
        beside = self.beside.of(self.wanted * self.page_size)
        free = self.memory.available
        if self.missing <= free and self.missing + beside <= free + self.memory.swap_free:
            return ""
        takes = f", the run takes {_shown(beside)} of other memory" if beside else ""
        return f"it lacks {_shown(self.missing)}{takes}, and {_shown(free)} of memory are free"

    def remedy(self, blocks: int = 1) -> str:
        """What mends it for that many blocks: the command, if the memory for it is there."""
        pages = self.total + max(self.wanted - self.usable, 1)
        if self.never:
            return Advice(self._smaller(blocks))
        if self.not_now:
            return Advice(f"{self._smaller(blocks)}, or free memory, then: {self.command(pages)}")
        return self.command(pages)

    def _smaller(self, blocks: int) -> str:
        pages = self._most()
        if pages <= 0:
            return "use 'backing: anonymous' or a smaller page_size"
        one = "a size of" if blocks == 1 else "blocks that have together"
        return f"use {one} at most {format_size(pages * self.page_size)}"

    def _most(self) -> int:
        """Pages for which the pool could grow now and leave the run what it takes beside them."""
        room = self.memory.available + self.memory.swap_free - self.beside.fixed
        share = self.beside.share * self.page_size
        without_growing = int(room / share) if share else self.wanted
        grown = int((room + self.usable * self.page_size) / (self.page_size + share))
        most = without_growing if without_growing <= self.usable else grown
        there = self.usable + self.memory.available // self.page_size
        return min(most, there, self.wanted) if room > 0 else 0


def _shown(size: int) -> str:
    return format_size(size, digits=3)
