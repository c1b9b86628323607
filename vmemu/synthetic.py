"""Accesses that are made from the seed instead of being read from a file: each vCPU's share.

A trace is phases one after the other, in each of which patterns walk ranges of RAM. The C core
(``_core/synthetic.c``) makes the accesses while they are replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.content import ALL, key_of
from vmemu.protocol import BlockEntry
from vmemu.walks import GUEST_PAGE, Pattern, Tables, User, Walk, part, walk_of


@dataclass(frozen=True)
class Phase:
    """Some accesses of all vCPUs together, each of a pattern that is chosen by its weight."""

    patterns: tuple[Pattern, ...]
    accesses: int


@dataclass(frozen=True)
class SyntheticShare:
    """One vCPU's share: ``phases`` of (accesses, walks), in turn until ``accesses`` are made."""

    seed: int
    accesses: int
    phases: tuple[tuple[int, tuple[Walk, ...]], ...]

    def to_c(self) -> tuple[Any, Any]:
        """A ``struct vm_synthetic`` that begins at its first access, and what must live as long."""
        walks = [walk for _, phase in self.phases for walk in phase]
        pattern = core.ffi.new("struct vm_pattern[]", len(walks))
        keep = [pattern, *(_fill(entry, walk) for entry, walk in zip(pattern, walks, strict=True))]
        phase = core.ffi.new("struct vm_phase[]", len(self.phases))
        first = 0
        for entry, (accesses, its) in zip(phase, self.phases, strict=True):
            entry.accesses, entry.first, entry.patterns = accesses, first, len(its)
            first += len(its)
        made = core.ffi.new("struct vm_synthetic *")
        made.accesses, made.random = self.accesses, self.seed
        made.phase, made.phases, made.pattern = phase, len(self.phases), pattern
        return made, [*keep, phase]


def _fill(entry: Any, walk: Walk) -> list[Any]:
    """Fill one ``struct vm_pattern``; what it points to is returned."""
    for name, number in walk.numbers.items():
        setattr(entry, name, number)
    keep: list[Any] = [walk.shuffle]
    if walk.shuffle is not None:
        entry.shuffle = walk.shuffle.c
    for name, table in walk.tables.items():
        keep.append(core.ffi.from_buffer("uint64_t[]", np.ascontiguousarray(table)))
        ctype = "struct vm_alias *" if name == "alias" else "uint64_t *"
        setattr(entry, name, core.ffi.cast(ctype, keep[-1]))
    return keep


def identity_map(blocks: Sequence[BlockEntry]) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """(block, offset) of a dictionary that holds every 4 KiB page of all blocks, in their order."""
    pages = [block.size // GUEST_PAGE for block in blocks]
    block = np.repeat(np.arange(len(blocks), dtype=np.int32), pages)
    offset = [np.arange(count, dtype=np.uint64) * np.uint64(GUEST_PAGE) for count in pages]
    return block, np.concatenate(offset)


def access_sizes(phases: Sequence[Phase]) -> list[int]:
    """The sizes of accesses that there are, ascending; bytes."""
    return sorted({pattern.access_size for phase in phases for pattern in phase.patterns})


def shares_of(
    blocks: Sequence[BlockEntry], vcpus: int, seed: int, phases: Sequence[Phase], repeat: int = 1
) -> list[SyntheticShare]:
    """What each vCPU does of ``phases``, which are gone through ``repeat`` times.

    The accesses of a phase are split evenly. Sequential and strided vCPUs walk a part of the range
    each, a permutation is divided; in other patterns each vCPU uses the whole range.
    """
    sizes = access_sizes(phases)
    tables = Tables(blocks, seed)
    alone = repeat == len(phases) == len(phases[0].patterns) == 1
    shares = []
    for vcpu in range(vcpus):
        made = []
        for number, phase in enumerate(phases):
            low, high = part(phase.accesses, vcpu, vcpus)
            user = User(vcpu, vcpus, seed, number, first=low if alone else None)
            walks = [
                walk_of(pattern, user, index, tables, sizes)
                for index, pattern in enumerate(phase.patterns)
                if pattern.weight > 0
            ]
            made.append((high - low, _chosen(walks, phase)))
        accesses = repeat * sum(accesses for accesses, _ in made)
        shares.append(SyntheticShare(key_of(seed, f"vcpu {vcpu}"), accesses, tuple(made)))
    return shares


def _chosen(walks: Sequence[Walk], phase: Phase) -> tuple[Walk, ...]:
    """The walks of a phase, each with the number below which a random one means it."""
    weights = [pattern.weight for pattern in phase.patterns if pattern.weight > 0]
    bounds = [(upto << 64) // sum(weights) for upto in accumulate(weights)]
    return tuple(
        replace(walk, numbers=walk.numbers | {"chosen_below": min(bound, ALL)})
        for walk, bound in zip(walks, bounds, strict=True)
    )
