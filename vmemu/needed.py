"""What post-copy of blocks needs of userfaultfd."""

from __future__ import annotations

from collections.abc import Sequence

from vmemu.ramblock import Backing, RAMBlock
from vmemu.userfault import MODE_MINOR, MODE_MISSING, Feature, Ioctl

OF_EVERY_BLOCK = (Feature.THREAD_ID,)
"""Blocktime finds its vCPU by thread id."""

OF_BACKING: dict[Backing, tuple[Feature, ...]] = {
    Backing.ANONYMOUS: (),
    Backing.HUGETLBFS: (Feature.MISSING_HUGETLBFS,),
    Backing.SHARED: (Feature.MISSING_SHMEM,),
}

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
        of_image = (Feature.MINOR_SHMEM,) if block.in_image else ()
        for feature in (*OF_BACKING[block.backing], *of_image):
            needed[feature] = (*needed.get(feature, ()), block.name)
    return needed


def needed_ioctls(block: RAMBlock) -> Ioctl:
    """What must be possible on a registered range of the block; hugetlb has no ZEROPAGE."""
    needed = Ioctl.COPY | Ioctl.WAKE | (Ioctl(0) if block.hugetlb else Ioctl.ZEROPAGE)
    return needed | (Ioctl.CONTINUE if block.in_image else Ioctl(0))


def register_mode(block: RAMBlock) -> int:
    """Which faults of the block are to be told; of the source's image also those of pages that are
    there, and not announced yet."""
    return MODE_MISSING | (MODE_MINOR if block.in_image else 0)
