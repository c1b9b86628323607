"""How recorded addresses become bytes of blocks: the kinds of ``map``."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from vmemu._config import wording
from vmemu._config.section import Section
from vmemu._config.types import Means, Name, RegionText, Size
from vmemu._config.wording import refuse
from vmemu.model.fields import (
    AfterValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    WithJsonSchema,
)
from vmemu.units import format_size, printable

SMALLEST_PAGE = 4096


def _power_of_two(size: int) -> int:
    if size < SMALLEST_PAGE or size & (size - 1):
        near = max(1 << size.bit_length(), SMALLEST_PAGE)
        raise refuse(
            f"{format_size(size)} is no power of two from 4KiB on", f"use {format_size(near)}"
        )
    return size


def _renames(value: Any) -> dict[str, str]:
    """Pairs of names. A recorded name may be anything that a recording has."""
    if not isinstance(value, Mapping):
        raise refuse(f"{wording.show(value)} is not a mapping", "write {RECORDED: BLOCK}")
    for recorded, block in value.items():
        if not isinstance(recorded, str) or not recorded:
            raise refuse(f"{wording.show(recorded)} is no name", "name a recorded RAM block")
        if not isinstance(block, str) or not block:
            what = f"'{printable(recorded)}' is renamed to {wording.show(block)}"
            raise refuse(what, "give the name of one of the blocks")
    return dict(value)


Renames = Annotated[
    dict[str, str],
    PlainValidator(_renames),
    PlainSerializer(dict),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
    Means("mapping of names to names", dict),
]
Alignment = Annotated[Size, AfterValidator(_power_of_two)]
Outside = Literal["refuse", "drop"]


class AutoMap(Section):
    """`blocks` for a trace that names RAM blocks, as QEMU's log does, else `compact`.

    That is also what a map that is left out means, and an empty one. A map with keys and no `kind`
    is `compact`.
    """

    kind: Literal["auto"] = Field(default="auto", description="As the trace's addresses are.")


class CompactMap(Section):
    """Touched pages lie in the blocks one behind the other, in the order of their addresses.

    Runs of consecutive pages stay runs. For traces of processes.
    """

    kind: Literal["compact"] = Field(default="compact", description="By the order of addresses.")
    block: Name | None = Field(
        default=None,
        description="The one block to fill; left out: all blocks, each full before the next.",
    )
    align: Alignment = Field(
        default=SMALLEST_PAGE,
        description="Regions of this size, a power of two, are packed as they were recorded, with"
        " their holes: with `2MiB`, pages that could share a hugepage still do.",
    )


class RegionMap(Section):
    """Ranges of recorded addresses are given to blocks one by one: for guest-physical traces.

    A PC has its RAM below a hole that ends at 4 GiB, and the rest above it:
    `["0-3GiB=pc.ram", "4GiB-6GiB=pc.ram+3GiB"]`.
    """

    kind: Literal["regions"] = Field(description="Range by range.", examples=["regions"])
    regions: tuple[RegionText, ...] = Field(
        min_length=1,
        description="START-END=block[+OFFSET]: END exclusive, numbers in decimal, 0x hexadecimal"
        " or with a unit, all multiples of 4 KiB.",
        examples=['["0x0-128MiB=pc.ram"]'],
    )
    outside: Outside = Field(
        default="refuse",
        description="What to do with accesses outside: refuse the run, or drop and count.",
    )


class BlocksMap(Section):
    """By name and offset, for traces that name RAM blocks, as QEMU's log does."""

    kind: Literal["blocks"] = Field(description="By recorded block.", examples=["blocks"])
    rename: Renames | None = Field(
        default=None,
        description="Recorded RAM blocks and the names of the blocks that they are laid on; left"
        " out: each on the one of its name.",
        examples=["{pc.ram: ram0}"],
    )
    outside: Outside = Field(
        default="refuse",
        description="What to do with accesses to recorded blocks that there are not: refuse the"
        " run, or drop and count.",
    )


class FirstTouchMap(Section):
    """Touched pages lie in the blocks one behind the other, in the order of their first touch."""

    kind: Literal["first_touch"] = Field(
        description="By the order of first touches: in time if the trace has times, else as if all"
        " streams began and ended together.",
        examples=["first_touch"],
    )
    block: Name | None = Field(
        default=None,
        description="The one block to fill; left out: all blocks, each full before the next.",
    )


class ModuloMap(Section):
    """A page lies at its number modulo the pages of the blocks: any trace fits any memory.

    Recorded pages may share their memory then; the result says how many do.
    """

    kind: Literal["modulo"] = Field(description="Modulo the pages.", examples=["modulo"])
    block: Name | None = Field(
        default=None, description="The one block to use; left out: all, one behind the other."
    )


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        kind = value.get("kind", "compact" if value else "auto")
        return kind if isinstance(kind, str) else None
    return getattr(value, "kind", None)


Map = Annotated[
    Annotated[AutoMap, Tag("auto")]
    | Annotated[CompactMap, Tag("compact")]
    | Annotated[RegionMap, Tag("regions")]
    | Annotated[BlocksMap, Tag("blocks")]
    | Annotated[FirstTouchMap, Tag("first_touch")]
    | Annotated[ModuloMap, Tag("modulo")],
    Discriminator(_kind),
]
