"""A growing set of 4 KiB page numbers, fed with the pages of accesses in recorded order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MERGE_AT_LEAST = 1 << 17


class PageSet:
    """Memory: a few times 8 bytes a distinct page, whatever the number of accesses."""

    def __init__(self) -> None:
        self._known = np.empty(0, np.uint64)
        self._fresh: list[NDArray[np.uint64]] = []
        self._fresh_count = 0

    def add(self, pages: NDArray[np.uint64]) -> None:
        """Adds page numbers, in any order, with repeats."""
        if not len(pages):
            return
        # Neighbours in time are mostly neighbours in space: what is left to sort is short.
        first = np.empty(len(pages), np.bool_)
        first[0] = True
        np.not_equal(pages[1:], pages[:-1], out=first[1:])
        some = np.unique(pages[first])
        new = some[~_contains(self._known, some)]
        if not len(new):
            return
        self._fresh.append(new)
        self._fresh_count += len(new)
        # Merging is a sort of everything: only when there is as much new as old, or it is cheap.
        if self._fresh_count >= max(len(self._known), _MERGE_AT_LEAST):
            self._merge()

    def pages(self) -> NDArray[np.uint64]:
        """Sorted, each once. Don't change it."""
        if self._fresh:
            self._merge()
        return self._known

    def _merge(self) -> None:
        self._known = np.unique(np.concatenate([self._known, *self._fresh]))
        self._fresh = []
        self._fresh_count = 0


def _contains(known: NDArray[np.uint64], pages: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(pages), np.bool_)
    at = np.searchsorted(known, pages)
    at[at == len(known)] = 0
    found: NDArray[np.bool_] = known[at] == pages
    return found
