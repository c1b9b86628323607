"""What the named columns of a table mean: CSV, Parquet and Arrow alike.

A place is an address, the number of a 4 KiB page, or an offset in a named RAM block. Names are
compared without case, spaces and punctuation, so that ``Virtual Address`` is ``virtual_address``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vmemu.errors import TraceError
from vmemu.units import printable

_ALIASES = {
    "address": "address addr mem_addr memory_address",
    "virtual": "virtual_address vaddr va gva guest_virtual_address",
    "physical": "guest_physical_address physical_address paddr pa gpa",
    "page": "page page_number pfn gfn vpn",
    "offset": "offset block_offset",
    "block": "block ramblock ram_block rb idstr",
    "kind": "kind type op operation access access_type rw",
    "write": "write is_write iswrite store is_store",
    "size": "size length len bytes access_size",
    "stream": "thread tid thread_id vcpu cpu stream",
    "time_ns": "time_ns timestamp_ns ns",
    "time_us": "time_us timestamp_us us",
    "time_ms": "time_ms timestamp_ms ms",
    "time_s": "time_s timestamp_s time_seconds seconds",
    "time": "time timestamp",
}
_MEANING = {_key: meaning for meaning, names in _ALIASES.items() for _key in names.split()}
_PLACES = ("address", "virtual", "physical", "page", "offset")
_TIMES = ("time_ns", "time_us", "time_ms", "time_s", "time")

ADDRESS_NAMES = {
    "virtual": "virtual_address",
    "guest-physical": "guest_physical_address",
    "unknown": "address",
}
"""What a column of addresses is called, by the kind of address, when a table is written."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table; ``meanings`` has one for each, "" where nothing is made of it."""

    meanings: tuple[str, ...]

    def index(self, *meanings: str) -> int | None:
        """Which column has one of these meanings."""
        found = (i for i, meaning in enumerate(self.meanings) if meaning in meanings)
        return next(found, None)

    @property
    def place(self) -> int:
        """The column that says where."""
        index = self.index(*_PLACES)
        assert index is not None
        return index

    @property
    def time(self) -> int | None:
        """The column that says when."""
        return self.index(*_TIMES)

    @property
    def address_kind(self) -> str:
        """As readers and traces tell it."""
        kinds = {"virtual": "virtual", "physical": "guest-physical", "offset": "ram-block"}
        return kinds.get(self.meanings[self.place], "unknown")

    @property
    def missing(self) -> tuple[str, ...]:
        """What the table can't say."""
        lacks = {
            "times": self.time is None,
            "threads": self.index("stream") is None,
            "sizes": self.index("size") is None,
            "writes": self.index("kind", "write") is None,
            "modifies": self.index("kind") is None,
            "instruction_fetches": self.index("kind") is None,
        }
        return tuple(key for key, lacking in lacks.items() if lacking)


def meaning_of(name: str) -> str:
    """What a column of that name means; "" if nothing."""
    return _MEANING.get(re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_"), "")


def understand(table: str, names: Sequence[str]) -> Columns:
    """The columns of the table called ``table``. Raises ``TraceError`` if it has no place, or two
    columns of one meaning."""
    meanings = [meaning_of(name) for name in names]
    places = {meaning for meaning in meanings if meaning in _PLACES}
    # Without a block an offset is nothing; beside an address it is somebody's extra.
    if "offset" in places and ("block" not in meanings or len(places) > 1):
        meanings = ["" if meaning in ("offset", "block") else meaning for meaning in meanings]
        places.discard("offset")
    if "offset" not in places:
        meanings = ["" if meaning == "block" else meaning for meaning in meanings]
    given = ", ".join(printable(name, 40) for name in names[:16])
    if not places:
        raise TraceError(
            f"{table}: a table without a column of places: it has {given}",
            "name a column address, virtual_address, guest_physical_address or page,"
            " or two of them block and offset",
        )
    groups = (_PLACES, _TIMES, ("kind",), ("write",), ("size",), ("stream",), ("block",))
    for group in groups:
        same = [name for name, meaning in zip(names, meanings, strict=True) if meaning in group]
        if len(same) > 1:
            raise TraceError(
                f"{table}: the columns {' and '.join(printable(n, 40) for n in same)} both say"
                " the same thing",
                "leave one of them out, or rename it",
            )
    if "kind" in meanings and "write" in meanings:
        meanings[meanings.index("write")] = ""
    return Columns(tuple(meanings))
