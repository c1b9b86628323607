"""What faults on memory need of userfaultfd, and what post-copy of blocks does."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence

from vmemu.ramblock import Backing, RAMBlock
from vmemu.userfault import MODE_MINOR, MODE_MISSING, NO_FEATURES, Feature, Ioctl

OF_EVERY_BLOCK = (Feature.THREAD_ID,)
"""Blocktime finds its vCPU by thread id."""

OF_FAULT: dict[str, dict[Backing, tuple[Feature, ...]]] = {
    "missing": {
        Backing.ANONYMOUS: (),
        Backing.HUGETLBFS: (Feature.MISSING_HUGETLBFS,),
        Backing.SHARED: (Feature.MISSING_SHMEM,),
    },
    "minor": {
        Backing.ANONYMOUS: (),
        Backing.HUGETLBFS: (Feature.MINOR_HUGETLBFS,),
        Backing.SHARED: (Feature.MINOR_SHMEM,),
    },
    "write_protect": {
        Backing.ANONYMOUS: (Feature.PAGEFAULT_FLAG_WP,),
        Backing.HUGETLBFS: (Feature.PAGEFAULT_FLAG_WP, Feature.WP_HUGETLBFS_SHMEM),
        Backing.SHARED: (Feature.PAGEFAULT_FLAG_WP, Feature.WP_HUGETLBFS_SHMEM),
    },
}
"""Without which there are no such faults on such memory."""

OF_BACKING = OF_FAULT["missing"]

OF_DELIVERY: dict[str, tuple[Feature, ...]] = {"thread": (), "sigbus": (Feature.SIGBUS,)}
"""How a vCPU comes to a page that it misses."""


def needed_features(
    blocks: Sequence[RAMBlock], delivery: str = "thread"
) -> dict[Feature, tuple[str, ...]]:
    """The features of userfaultfd that post-copy of these blocks can't do without, and the names of
    the blocks that need each; none means every block."""
    every = (*OF_EVERY_BLOCK, *OF_DELIVERY[delivery])
    needed: dict[Feature, tuple[str, ...]] = dict.fromkeys(every, ())
    for block in blocks:
        of_image = OF_FAULT["minor"][block.backing] if block.in_image else ()
        for feature in (*OF_BACKING[block.backing], *of_image):
            needed[feature] = (*needed.get(feature, ()), block.name)
    return needed


def wanted_features() -> Feature:
    """What is asked for whatever the blocks are, if the kernel has it."""
    return features_of([OF_EVERY_BLOCK, *OF_BACKING.values()])


def features_of(groups: Iterable[Iterable[Feature]]) -> Feature:
    """All of several groups together."""
    return functools.reduce(operator.or_, (one for group in groups for one in group), NO_FEATURES)


def needed_ioctls(block: RAMBlock) -> Ioctl:
    """What must be possible on a registered range of the block; hugetlb has no ZEROPAGE."""
    needed = Ioctl.COPY | Ioctl.WAKE | (Ioctl(0) if block.hugetlb else Ioctl.ZEROPAGE)
    return needed | (Ioctl.CONTINUE if block.in_image else Ioctl(0))


def register_mode(block: RAMBlock) -> int:
    """Which faults of the block are to be told; of the source's image also those of pages that are
    there, and not announced yet."""
    return MODE_MISSING | (MODE_MINOR if block.in_image else 0)
