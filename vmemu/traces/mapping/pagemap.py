"""The map itself, and what all layouts need: blocks, the places in them, sizes that would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.samememory import count_merged
from vmemu.units import format_size

PAGE_SHIFT = 12
PAGE = 1 << PAGE_SHIFT
OUTSIDE = ("refuse", "drop")


class Block(Protocol):
    """What a mapping needs to know of a RAM block; a ``page_size`` counts too if it has one."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes."""


@dataclass(frozen=True)
class PageMap:
    """One entry for each page of a trace's dictionary, in its order; the arrays are read-only."""

    block: NDArray[np.int32]
    """Index of the block in the sequence that was mapped on; -1 outside."""
    offset: NDArray[np.uint64]
    """Of the page in its block: bytes, a multiple of 4096; 0 outside."""
    same: NDArray[np.uint64] | None = None
    """The first page that lies on the same memory, often itself; None when no two share any."""

    def __post_init__(self) -> None:
        for column in (self.block, self.offset, self.same):
            if column is not None:
                column.flags.writeable = False

    @property
    def outside(self) -> NDArray[np.bool_]:
        """For each page whether it is in no block."""
        return self.block < 0

    @property
    def merged(self) -> int:
        """Pages that lie on memory where another one lies already."""
        return count_merged(self.same)


def fill(
    blocks: Sequence[Block], chosen: Sequence[int], slots: NDArray[np.uint64], slot_size: int = PAGE
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Block and offset of each slot, when the chosen blocks are cut into slots one behind the
    other. There must be so many."""
    ends = np.cumsum([blocks[index].size // slot_size for index in chosen], dtype=np.uint64)
    nth = np.searchsorted(ends, slots, side="right")
    starts = np.append(np.zeros(1, np.uint64), ends[:-1])
    offset = (slots - starts[nth]) * np.uint64(slot_size)
    return np.array(chosen, np.int32)[nth], offset


def chosen_blocks(blocks: Sequence[Block], target: str | None) -> list[int]:
    """Index of the block of that name, or of all. Raises ``TraceError`` if there is none."""
    if target is None:
        return list(range(len(blocks)))
    names = [block.name for block in blocks]
    check_name(target, names)
    return [names.index(target)]


def check_name(name: str, known: Sequence[str]) -> None:
    """Raises ``TraceError`` unless there is such a block."""
    if name not in known:
        raise TraceError(f"there is no block {name!r}; there are {', '.join(known) or 'none'}")


def check_outside(outside: str) -> None:
    """Raises ``ValueError`` unless it is a word for what to do with pages outside."""
    if outside not in OUTSIDE:
        raise ValueError(f"outside must be refuse or drop, not {outside!r}")


def check_room(
    wanted: str, blocks: Sequence[Block], chosen: Sequence[int], slots: int, slot_size: int = PAGE
) -> None:
    """Raises ``TraceError`` when the chosen blocks have fewer slots; ``wanted`` says what wants
    them."""
    have = sum(blocks[index].size // slot_size for index in chosen)
    if have >= slots:
        return
    if not chosen:
        raise TraceError(f"{wanted}, and there is no block for them")
    last = blocks[chosen[-1]]
    enough = (last.size // slot_size + slots - have) * slot_size
    names = ", ".join(blocks[index].name for index in chosen)
    room = format_size(sum(blocks[index].size for index in chosen))
    fit = "" if slot_size == PAGE else f", where {have:,} fit"
    raise TraceError(
        f"{wanted}, {names} only {room}{fit}",
        f"a size of {rounded(enough, last)} for {last.name} would do",
    )


def rounded(size: int, block: Block) -> str:
    """A size up to whole pages of the block, as a scenario writes it."""
    page_size = int(getattr(block, "page_size", PAGE))
    return format_size(-(-size // page_size) * page_size)
