"""Sets of 4 KiB pages, in the C core: fed with accesses, then sorted into a dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.core import ffi, lib
from vmemu.errors import TraceError

GROUPS = 5 << 19
"""Groups of 64 neighbouring pages that a set takes: 76 MiB, and 640 GiB of memory that is touched
everywhere."""

_LAST_PAGE = (1 << 52) - 1
_PAGES_AT_ONCE = 1 << 18


class PageCounts(NamedTuple):
    pages: int
    written: int
    huge: int
    """Pages of 2 MiB that hold one of them."""
    first: int
    last: int
    """Numbers of the pages; meaningless when there are none."""


class PageSet:
    """A growing set of page numbers (address >> 12). Memory: 24 to 32 bytes for each group of 64
    neighbours of which one is in the set, at most ``groups`` of them."""

    def __init__(self, groups: int = GROUPS) -> None:
        self._groups = groups
        self._set = core.owned(lib.vm_pageset_create(groups), lib.vm_pageset_destroy)

    def add(
        self,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint16],
        kinds: NDArray[np.uint8] | None = None,
        *,
        both: bool = False,
    ) -> None:
        """Adds the pages of accesses: those of the first bytes, with ``both`` of the last ones too.

        ``kinds`` tells which of them are written. Raises ``TraceError`` at the limit.
        """
        accesses, keep_alive = _accesses(addresses, sizes, kinds)
        self._check(addresses, lib.vm_pageset_add(self._set, accesses, both))
        del keep_alive

    def mark_firsts(
        self,
        stream: int,
        addresses: NDArray[np.uint64],
        sizes: NDArray[np.uint16],
        kinds: NDArray[np.uint8],
    ) -> NDArray[np.bool_]:
        """For each access whether it is the first in its stream (a number below 4096) to touch, or
        the first to write, one of its pages. Raises ``TraceError`` at the limit."""
        accesses, keep_alive = _accesses(addresses, sizes, kinds)
        keep = np.empty(len(addresses), np.bool_)
        with ffi.from_buffer("uint8_t[]", keep, require_writable=True) as out:
            done = lib.vm_pageset_mark_firsts(self._set, stream, accesses, out)
        del keep_alive
        self._check(addresses, done)
        return keep

    def sort(self) -> None:
        """To be called once, when nothing more will be added; the methods below need it."""
        lib.vm_pageset_sort(self._set)

    def count(self, first: int = 0, last: int = _LAST_PAGE) -> PageCounts:
        """The pages from number ``first`` to ``last``, both inclusive."""
        counts = ffi.new("struct vm_page_counts *")
        lib.vm_pageset_count(self._set, first, last, counts)
        return PageCounts(
            int(counts.pages),
            int(counts.written),
            int(counts.huge),
            int(counts.first),
            int(counts.last),
        )

    def pages(self) -> Iterator[NDArray[np.uint64]]:
        """The page numbers in order, in pieces."""
        group = ffi.new("uint64_t *")
        while True:
            piece = np.empty(_PAGES_AT_ONCE, np.uint64)
            with ffi.from_buffer("uint64_t[]", piece, require_writable=True) as out:
                filled = int(lib.vm_pageset_pages(self._set, group, out, len(piece)))
            if not filled:
                return
            yield piece[:filled]

    def rank(self) -> None:
        """Gives each page its place in the order, for ``where``; what was written is forgotten."""
        lib.vm_pageset_rank(self._set)

    def where(self, addresses: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Place of the page << 12 | offset in it, u4 or u8; all must be of pages in the set."""
        places = np.empty(len(addresses), dtype)
        with (
            ffi.from_buffer("uint64_t[]", addresses) as raw,
            ffi.from_buffer(places, require_writable=True) as out,
        ):
            known = lib.vm_pageset_where(
                self._set, raw, len(addresses), ffi.cast("void *", out), dtype.itemsize == 8
            )
        if not known:
            raise ValueError("an access to a page that is not in the set")
        return places

    def _check(self, addresses: NDArray[np.uint64], done: int) -> None:
        if done < 0:
            raise MemoryError
        if done < len(addresses):
            raise TraceError(
                f"the accesses touch more than {self._groups:,} different pieces of 256 KiB, the"
                f" last at {int(addresses[done]):#x}: more than is kept in memory at once",
                "record less of the address space, or a shorter time",
            )


def _accesses(
    addresses: NDArray[np.uint64],
    sizes: NDArray[np.uint16],
    kinds: NDArray[np.uint8] | None,
) -> tuple[Any, list[Any]]:
    """The columns as C wants to hear of them, and what must live as long."""
    columns = [
        ffi.from_buffer("uint64_t[]", np.ascontiguousarray(addresses, np.uint64)),
        ffi.from_buffer("uint16_t[]", np.ascontiguousarray(sizes, np.uint16)),
    ]
    if kinds is not None:
        columns.append(ffi.from_buffer("uint8_t[]", np.ascontiguousarray(kinds, np.uint8)))
    accesses = ffi.new("struct vm_accesses *")
    accesses.addresses, accesses.sizes = columns[:2]
    accesses.kinds = columns[2] if kinds is not None else ffi.NULL
    accesses.count = len(addresses)
    return accesses, columns
