"""What each vCPU will do: a recorded trace dealt to vCPUs, or its share of synthetic accesses.

Everything here is made before any memory is mapped, a stream or a page at a time, never an access
at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmemu.synthetic import SyntheticShare

SIZES = 64
"""Entries of the table of access sizes."""


@dataclass(frozen=True)
class StreamSlice:
    """A part of a recorded stream: columns of the native trace format, of equal length."""

    where: NDArray[np.uint32] | NDArray[np.uint64]
    what: NDArray[np.uint8]


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
