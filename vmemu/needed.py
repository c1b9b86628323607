"""What post-copy of blocks needs of userfaultfd."""

from __future__ import annotations

from collections.abc import Sequence

from vmemu.ramblock import Backing, RAMBlock
from vmemu.userfault import Feature, Ioctl


def needed_features(blocks: Sequence[RAMBlock]) -> dict[Feature, tuple[str, ...]]:
    """The features of userfaultfd that post-copy of these blocks can't do without, and the names of
    the blocks that need each; none means every block, as blocktime finds its vCPU by thread id."""
    wanting = {
        Feature.MISSING_HUGETLBFS: tuple(block.name for block in blocks if block.hugetlb),
        Feature.MISSING_SHMEM: tuple(b.name for b in blocks if b.backing is Backing.SHARED),
    }
    return {Feature.THREAD_ID: ()} | {feature: who for feature, who in wanting.items() if who}


def needed_ioctls(block: RAMBlock) -> Ioctl:
    """What must be possible on a registered range of the block; hugetlb has no ZEROPAGE."""
    return Ioctl.COPY | Ioctl.WAKE | (Ioctl(0) if block.hugetlb else Ioctl.ZEROPAGE)
