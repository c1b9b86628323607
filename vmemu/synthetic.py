"""Accesses that are made from the seed instead of being read from a file: each vCPU's share.

The C core (``_core/synthetic.c``) makes them while they are replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.content import key_of, threshold
from vmemu.protocol import BlockEntry

GUEST_PAGE = 4096
"""Bytes in a page of the dictionary that the accesses are made on."""
WORD = 8
"""Bytes in a synthetic access."""


@dataclass(frozen=True)
class SyntheticShare:
    """One vCPU's share of synthetic accesses; fields as ``struct vm_synthetic`` has them."""

    kind: str
    seed: int
    order_seed: int
    accesses: int
    first: int
    write_below: int
    begin: int
    end: int
    stride: int
    units: NDArray[np.uint64]

    def to_c(self) -> tuple[Any, Any]:
        """A ``struct vm_synthetic`` of it, and what must live as long as that."""
        made = core.ffi.new("struct vm_synthetic *")
        made.kind = getattr(core.lib, f"VM_{self.kind.upper()}")
        for name in (
            "seed",
            "order_seed",
            "accesses",
            "first",
            "write_below",
            "begin",
            "end",
            "stride",
        ):
            setattr(made, name, getattr(self, name))
        units = core.ffi.from_buffer("uint64_t[]", np.ascontiguousarray(self.units))
        made.unit = units
        made.units = len(self.units) - 1
        return made, units


def identity_map(blocks: Sequence[BlockEntry]) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """(block, offset) of a dictionary that holds every 4 KiB page of all blocks, in their order."""
    pages = [block.size // GUEST_PAGE for block in blocks]
    block = np.repeat(np.arange(len(blocks), dtype=np.int32), pages)
    offset = [np.arange(count, dtype=np.uint64) * np.uint64(GUEST_PAGE) for count in pages]
    return block, np.concatenate(offset)


def unit_starts(blocks: Sequence[BlockEntry]) -> NDArray[np.uint64]:
    """Where each host page begins when all blocks lie one behind the other, and the end; bytes."""
    starts = []
    base = 0
    for block in blocks:
        starts.append(np.arange(base, base + block.size, block.page_size, dtype=np.uint64))
        base += block.size
    return np.concatenate([*starts, np.array([base], np.uint64)])


def shares_of(
    blocks: Sequence[BlockEntry],
    vcpus: int,
    seed: int,
    *,
    kind: str,
    accesses: int | None,
    write_share: float,
    stride: int = 64,
) -> list[SyntheticShare]:
    """Accesses of 8 bytes made from the seed: ``sequential``, ``uniform`` or ``permutation``.

    ``accesses`` is for all vCPUs together; None: as many as there are host pages. Sequential vCPUs
    walk a part of RAM each, ``stride`` bytes (a multiple of 8) a step, from its begin again when it
    ends.
    """
    units = unit_starts(blocks)
    total = int(units[-1])
    accesses = len(units) - 1 if accesses is None else accesses
    shares = []
    for vcpu in range(vcpus):
        first, last = accesses * vcpu // vcpus, accesses * (vcpu + 1) // vcpus
        begin, end = 0, total
        if kind == "sequential":
            begin, end = (total * n // vcpus // GUEST_PAGE * GUEST_PAGE for n in (vcpu, vcpu + 1))
        shares.append(
            SyntheticShare(
                kind=kind,
                seed=key_of(seed, f"vcpu {vcpu}"),
                order_seed=key_of(seed, "order"),
                accesses=last - first,
                first=first,
                write_below=threshold(write_share),
                begin=begin,
                end=max(end, begin + WORD),
                stride=stride,
                units=units,
            )
        )
    return shares
