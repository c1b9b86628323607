"""What each vCPU will do: a recorded trace dealt to vCPUs, or its share of synthetic accesses.

Everything here is made before any memory is mapped, a stream or a page at a time, never an access
at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmemu.content import key_of, threshold
from vmemu.protocol import BlockEntry

GUEST_PAGE = 4096
"""Bytes in a page of a trace's dictionary, whatever the pages of the blocks are."""
WORD = 8
"""Bytes in a synthetic access."""
SIZES = 64
"""Entries of the table of access sizes."""


@dataclass(frozen=True)
class StreamSlice:
    """A part of a recorded stream: columns of the native trace format, of equal length."""

    where: NDArray[np.uint32] | NDArray[np.uint64]
    what: NDArray[np.uint8]


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


@dataclass(frozen=True)
class Workload:
    """The guest's memory as its trace sees it, and what each vCPU does.

    ``block`` (int32, -1: outside) and ``offset`` (uint64, bytes) say for each page of the
    dictionary where it lies; ``sizes`` (uint16, 64 entries) are the sizes of accesses in bytes.
    """

    block: NDArray[np.int32]
    offset: NDArray[np.uint64]
    sizes: NDArray[np.uint16]
    vcpus: list[list[StreamSlice]] | list[SyntheticShare]

    @property
    def accesses(self) -> int:
        """Accesses of all vCPUs."""
        return sum(self.accesses_by_vcpu())

    def accesses_by_vcpu(self) -> list[int]:
        """Accesses of each vCPU."""
        return [
            work.accesses
            if isinstance(work, SyntheticShare)
            else sum(len(part.what) for part in work)
            for work in self.vcpus
        ]


def deal_streams(streams: Sequence[StreamSlice], vcpus: int) -> list[list[StreamSlice]]:
    """Deal recorded streams to vCPUs, stream i to vCPU i modulo ``vcpus``.

    With more vCPUs than streams, those that would get the same stream each get a contiguous part of
    it.
    """
    dealt: list[list[StreamSlice]] = [[] for _ in range(vcpus)]
    for index, stream in enumerate(streams):
        takers = (
            range(index % vcpus, vcpus, max(len(streams), 1)) if index < vcpus else [index % vcpus]
        )
        bounds = [len(stream.what) * n // len(takers) for n in range(len(takers) + 1)]
        for taker, low, high in zip(takers, bounds, bounds[1:], strict=False):
            dealt[taker].append(StreamSlice(stream.where[low:high], stream.what[low:high]))
    return dealt


def size_table(sizes: Sequence[int]) -> NDArray[np.uint16]:
    """The table of access sizes, padded to its full length."""
    table = np.zeros(SIZES, np.uint16)
    table[: len(sizes)] = sizes
    return table


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


def synthetic(
    blocks: Sequence[BlockEntry],
    vcpus: int,
    seed: int,
    *,
    kind: str,
    accesses: int | None,
    write_share: float,
    stride: int = 64,
) -> Workload:
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
    block, offset = identity_map(blocks)
    return Workload(block, offset, size_table([WORD]), shares)
