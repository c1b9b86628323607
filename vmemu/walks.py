"""The kinds of patterns of synthetic accesses, and what one vCPU does of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.content import ALL, key_of, threshold
from vmemu.protocol import BlockEntry
from vmemu.zipf import alias_table

GUEST_PAGE = 4096
"""Bytes in a page of the dictionary that the accesses are made on."""

MOST_LOOKED_UP = 1 << 20
"""Entries of the table of a shuffled order, 4 bytes each: all pages of 4 GiB."""


@dataclass(frozen=True)
class Pattern:
    """A walk over bytes [``begin``, ``end``) of RAM, in which all blocks lie one behind the other.

    ``kind``: ``sequential``, ``strided``, ``uniform``, ``permutation``, ``zipf``, ``hot_cold`` or
    ``pointer_chase``; what only some have is ignored by the others. ``begin`` and ``end`` are
    multiples of 4096 with something between them. All sizes are bytes; ``access_size`` is a power
    of two up to 4096, and ``unit`` one that is no less, nor less than 64 for zipf.
    """

    kind: str
    begin: int
    end: int
    write_share: float = 0.5
    access_size: int = 8
    weight: int = 1
    stride: int = 64
    """From one access to the next; for strided a multiple of ``access_size``."""
    unit: int = GUEST_PAGE
    """What is hot as one (zipf), a node (pointer chase)."""
    theta: float = 0.99
    """Zipf: above 0."""
    scatter: bool = True
    """Zipf, hot and cold: hot units lie anywhere, not one behind the other."""
    hot_share: float = 0.1
    hot_accesses: float = 0.9
    period: int | None = None
    """Accesses of all vCPUs after which other units are hot; None: they stay hot."""


class Shuffle:
    """A ``struct vm_shuffle`` of [0, ``units``); ``look_up``: of its first positions from a table.

    Most accesses of a zipf are to few ranks, and to look one up costs a third of working it out.
    """

    def __init__(self, units: int, seed: int, look_up: bool) -> None:
        self.c = core.ffi.new("struct vm_shuffle *")
        core.lib.vm_shuffle_init(self.c, units, seed)
        if look_up and units <= 1 << 32:
            count = min(units, MOST_LOOKED_UP)
            self._table = core.ffi.new("uint32_t[]", count)
            core.lib.vm_shuffle_remember(self.c, self._table, count)


@dataclass(frozen=True)
class Walk:
    """A pattern as one vCPU has it; names as in ``struct vm_pattern``."""

    numbers: dict[str, int]
    tables: dict[str, NDArray[np.uint64]] = field(default_factory=dict)
    """``alias`` (a row an entry), ``rank``, ``place``."""
    shuffle: Shuffle | None = None


@dataclass(frozen=True)
class User:
    """Whose walk it is: vCPU ``vcpu`` of ``vcpus``, in phase number ``phase``.

    ``first`` is the number of the vCPU's first access among those of all, where a pattern is all
    that there is.
    """

    vcpu: int
    vcpus: int
    seed: int
    phase: int = 0
    first: int | None = None


class Tables:
    """What the walks of all vCPUs look at, made once. All blocks lie one behind the other."""

    def __init__(self, blocks: Sequence[BlockEntry], seed: int) -> None:
        self._blocks = blocks
        self._seed = seed
        self._host_pages: dict[tuple[int, int], NDArray[np.uint64]] = {}
        self._shuffles: dict[tuple[int, bool], Shuffle] = {}

    def host_pages(self, begin: int, end: int) -> NDArray[np.uint64]:
        """Where each host page of [``begin``, ``end``) begins, and the end; bytes.

        A page that lies there in part is one from where the range begins.
        """
        if (begin, end) not in self._host_pages:
            self._host_pages[begin, end] = host_pages(self._blocks, begin, end)
        return self._host_pages[begin, end]

    def shuffle(self, units: int, look_up: bool) -> Shuffle:
        """The order in which hot units lie: the same for every pattern with as many units."""
        key = units, look_up
        if key not in self._shuffles:
            self._shuffles[key] = Shuffle(units, key_of(self._seed, "scatter"), look_up)
        return self._shuffles[key]


def host_pages(blocks: Sequence[BlockEntry], begin: int, end: int) -> NDArray[np.uint64]:
    """As :meth:`Tables.host_pages`."""
    starts = []
    base = 0
    for block in blocks:
        low, high = max(begin - base, 0), min(end - base, block.size)
        first = low // block.page_size * block.page_size
        if low < high:
            starts.append(np.arange(base + first, base + high, block.page_size, dtype=np.uint64))
        base += block.size
    made = np.concatenate([*starts, np.array([end], np.uint64)])
    made[0] = begin
    return made


def part(total: int, vcpu: int, vcpus: int) -> tuple[int, int]:
    """What is one vCPU's of ``total`` things: the first one, and the one behind the last."""
    return total * vcpu // vcpus, total * (vcpu + 1) // vcpus


def walk_of(pattern: Pattern, user: User, index: int, tables: Tables, sizes: Sequence[int]) -> Walk:
    """One vCPU's walk of the pattern number ``index`` of its phase; ``sizes`` are those of all
    accesses, which name theirs by its place there."""
    numbers = {
        "size": pattern.access_size,
        "size_index": sizes.index(pattern.access_size),
        "write_below": threshold(pattern.write_share),
        "begin": pattern.begin,
        "end": pattern.end,
    }
    if pattern.kind in ("sequential", "strided"):
        return Walk(numbers | _sequential(pattern, user))
    if pattern.kind == "uniform":
        return Walk(numbers | {"kind": core.lib.VM_UNIFORM})
    if pattern.kind == "permutation":
        places = tables.host_pages(pattern.begin, pattern.end)
        return Walk(numbers | _permutation(len(places) - 1, user, index), {"place": places})
    unit = GUEST_PAGE if pattern.kind == "hot_cold" else pattern.unit
    units = -(-(pattern.end - pattern.begin) // unit)
    numbers |= {"unit_shift": unit.bit_length() - 1, "units": units}
    if pattern.kind == "pointer_chase":
        return Walk(numbers | _pointer_chase(units, user), shuffle=tables.shuffle(units, False))
    shuffle = tables.shuffle(units, True) if pattern.scatter else None
    if pattern.kind == "hot_cold":
        return Walk(numbers | _hot_cold(pattern, units, user), shuffle=shuffle)
    table = alias_table(units, pattern.theta)
    numbers |= {"kind": core.lib.VM_ZIPF, "column_bits": table.column_bits}
    return Walk(numbers, {"alias": table.alias, "rank": table.rank}, shuffle)


def _sequential(pattern: Pattern, user: User) -> dict[str, int]:
    """Each vCPU walks its part of the range, an access at the least."""
    pages = part(pattern.end - pattern.begin, user.vcpu, user.vcpus)
    begin, end = (pattern.begin + bound // GUEST_PAGE * GUEST_PAGE for bound in pages)
    return {
        "kind": core.lib.VM_SEQUENTIAL,
        "begin": begin,
        "end": max(end, begin + pattern.access_size),
        "stride": pattern.stride,
        "shift": pattern.access_size if pattern.kind == "strided" else 0,
    }


def _permutation(places: int, user: User, index: int) -> dict[str, int]:
    """A vCPU has a part of each round. With nothing beside it, the accesses of all vCPUs are one
    sequence of rounds instead, so that each round is over before the next one."""
    if user.first is None:
        low, high = part(places, user.vcpu, user.vcpus)
        turns = {"low": low, "high": max(high, low + 1), "at": low}
    else:
        turns = {"low": 0, "high": places, "at": user.first % places}
        turns["round"] = user.first // places
    order = f"order {user.phase} {index}" if user.phase or index else "order"
    return turns | {
        "kind": core.lib.VM_PERMUTATION,
        "places": places,
        "order_seed": key_of(user.seed, order),
    }


def _hot_cold(pattern: Pattern, units: int, user: User) -> dict[str, int]:
    """There is a hot page and, where there is room for it, a cold one."""
    hot = max(min(round(pattern.hot_share * units), units - 1), 1)
    return {
        "kind": core.lib.VM_HOT_COLD,
        "hot": hot,
        "hot_below": threshold(pattern.hot_accesses) if hot < units else ALL,
        "period": pattern.period or ALL,
        # The vCPUs advance side by side: one access of each is as many as there are vCPUs.
        "pace": user.vcpus if pattern.period else 0,
    }


def _pointer_chase(nodes: int, user: User) -> dict[str, int]:
    """All vCPUs go round the same cycle, each from a place of its own."""
    at, _ = part(nodes, user.vcpu, user.vcpus)
    return {"kind": core.lib.VM_POINTER_CHASE, "low": 0, "high": nodes, "at": at}
