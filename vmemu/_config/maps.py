"""How recorded addresses become bytes of blocks: the kinds of ``map``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from vmemu._config.section import Section
from vmemu._config.types import Name, RegionText, by_kind


class CompactMap(Section):
    """Touched pages lie in the blocks one behind the other, in the order of their addresses."""

    kind: Literal["compact"] = Field(default="compact", description="By the order of addresses.")
    block: Name | None = Field(
        default=None,
        description="The one block to fill; left out: all blocks, each full before the next.",
    )


class RegionMap(Section):
    """Ranges of recorded addresses are given to blocks one by one."""

    kind: Literal["regions"] = Field(description="Range by range.", examples=["regions"])
    regions: tuple[RegionText, ...] = Field(
        min_length=1,
        description="START-END=block[+OFFSET]: END exclusive, numbers in decimal, 0x hexadecimal"
        " or with a unit, all multiples of 4 KiB.",
        examples=['["0x0-128MiB=pc.ram"]'],
    )
    outside: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="What to do with accesses outside: refuse the run, or drop and count.",
    )


Map = Annotated[
    Annotated[CompactMap, Tag("compact")] | Annotated[RegionMap, Tag("regions")], by_kind("compact")
]
