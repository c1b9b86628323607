"""Pages of a dictionary that lie on the same memory, and so share their marks.

Away from the layouts: who lays out no recording needs none of what they import.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def count_merged(same: NDArray[np.uint64] | None) -> int:
    """Pages that are not the first one on their memory; ``same`` as in ``PageMap``."""
    if same is None:
        return 0
    return int(np.count_nonzero(same != np.arange(len(same), dtype=np.uint64)))


def same_memory(block: NDArray[np.int32], offset: NDArray[np.uint64]) -> NDArray[np.uint64] | None:
    """``PageMap.same`` of pages that lie there (``block`` -1: outside, which share nothing)."""
    inside = np.flatnonzero(block >= 0)
    # Stable: of pages on the same memory the first of the dictionary comes first.
    order = inside[np.lexsort((offset[inside], block[inside]))]
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(offset[order]) != 0) | (np.diff(block[order]) != 0)
    if new.all():
        return None
    same = np.arange(len(block), dtype=np.uint64)
    same[order] = order[new][np.cumsum(new) - 1]
    return same
