"""The kinds of synthetic traces, each made from the seed.

A kind is a pattern: a walk over a range of RAM. It is a trace of its own (with ``accesses``), or
stands in a phase (with ``weight``).
"""

import math
from fractions import Fraction
from typing import Annotated, Any, Literal

from vmemu._config import wording
from vmemu._config.ranges import Bound, MemoryBound
from vmemu._config.section import Section
from vmemu._config.types import MOST_ACCESSES, Flag, Means, Name, Share, Size, Whole, by_kind
from vmemu._config.wording import refuse
from vmemu.model.fields import (
    AfterValidator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from vmemu.units import counted, format_size

LARGEST_STRIDE = 1 << 46
LARGEST_ACCESS = 4096
LARGEST_THETA = 10


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        low = 1 << (value.bit_length() - 1)
        remedy = f"use {format_size(low)} or {format_size(low * 2)}"
        raise refuse(f"{format_size(value)} is no power of two", remedy)
    return value


def _theta(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= LARGEST_THETA:
        raise refuse(
            f"{wording.show(value)} is no exponent for zipf",
            f"give a number above 0, {LARGEST_THETA} at most, such as 0.99",
        )
    return float(value)


def _partial(value: float) -> float:
    if not 0 < value < 1:
        raise refuse(f"{value} leaves nothing hot, or nothing cold", "give a share between 0 and 1")
    return value


PowerOfTwo = Annotated[Size, AfterValidator(_power_of_two)]
Partial = Annotated[Share, AfterValidator(_partial)]
Theta = Annotated[
    float,
    PlainValidator(_theta),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": LARGEST_THETA}),
    Means(f"number, more than 0, up to {LARGEST_THETA}", float),
]


class _Made(Section):
    kind: str


class _Alone(_Made):
    accesses: Whole = Field(
        ge=1, le=MOST_ACCESSES, description="Accesses of all vCPUs together.", examples=[100000]
    )


class _OneRound(_Made):
    accesses: Whole | None = Field(
        default=None,
        ge=1,
        le=MOST_ACCESSES,
        description="Accesses of all vCPUs together; left out: one round.",
    )


class _InPhase(_Made):
    weight: Whole = Field(
        default=1,
        ge=0,
        le=1_000_000,
        description="How often it is chosen, beside the other patterns of its phase; 0: never.",
    )


# ---- the walks ----


class _Walk(_Made):
    write_share: Share = Field(
        default=0.5, description="Share of the accesses that write, 0.0 to 1.0."
    )
    access_size: PowerOfTwo = Field(
        default=8,
        ge=1,
        le=LARGEST_ACCESS,
        description="Bytes in an access, a power of two; aligned to it.",
    )
    block: Name | None = Field(
        default=None,
        description="The block it stays in; left out: all blocks, which lie one behind the other.",
    )
    start: MemoryBound = Field(
        default=Bound(size=0),
        description="Where its range begins: a share of the block or of all memory, rounded down to"
        " 4KiB, or a multiple of 4KiB.",
    )
    stop: MemoryBound = Field(
        default=Bound(share=Fraction(1)), description="Where its range ends, exclusive."
    )


class _SequentialWalk(_Walk):
    stride: Size | None = Field(
        default=None,
        ge=1,
        le=LARGEST_STRIDE,
        description="Bytes from one access to the next; left out: 64B, or access_size if that is"
        " more. Accesses are aligned only where it is a multiple of access_size.",
    )


class _StridedWalk(_Walk):
    stride: Size = Field(
        ge=1,
        le=LARGEST_STRIDE,
        description="Bytes from one access to the next, a multiple of access_size.",
        examples=["4KiB"],
    )

    @field_validator("stride")
    @classmethod
    def _check_stride(cls, value: int, info: ValidationInfo) -> int:
        size = info.data.get("access_size")
        if size and value % size:
            fitting = [
                format_size(at) for at in (value - value % size, value + -value % size) if at
            ]
            raise refuse(
                f"{format_size(value)} is no multiple of access_size, {format_size(size)}",
                f"use {' or '.join(fitting)}",
            )
        return value


class _ZipfWalk(_Walk):
    theta: Theta = Field(
        default=0.99, description="Rank r is chosen as often as r^-theta; 0.99 is YCSB's."
    )
    unit: PowerOfTwo = Field(
        default=4096,
        ge=64,
        le=1 << 30,
        description="Bytes that have one rank, a power of two, access_size or more.",
    )
    scatter: Flag = Field(
        default=True,
        description="Lay the ranks all over the range, by the seed; without, from its start on.",
    )

    @field_validator("unit")
    @classmethod
    def _check_unit(cls, value: int, info: ValidationInfo) -> int:
        return _holds_an_access(value, info)


class _HotColdWalk(_Walk):
    hot_share: Partial = Field(
        default=0.1, description="Share of the range's 4KiB pages that are hot; one at the least."
    )
    hot_accesses: Share = Field(
        default=0.9, description="Share of the accesses that go to hot pages, each as likely."
    )
    period: Whole | None = Field(
        default=None,
        ge=1,
        le=MOST_ACCESSES,
        description="Accesses of all vCPUs together after which the hot pages are those next to"
        " them; left out: they stay the same.",
    )
    scatter: Flag = Field(
        default=False,
        description="Lay the hot pages all over the range, by the seed; without, side by side.",
    )


class _PointerChaseWalk(_Walk):
    write_share: Share = Field(
        default=0.0, description="Share of the accesses that write, 0.0 to 1.0."
    )
    node: PowerOfTwo = Field(
        default=64,
        ge=1,
        le=1 << 30,
        description="Bytes in a node, a power of two, access_size or more; its start is accessed.",
    )

    @field_validator("node")
    @classmethod
    def _check_node(cls, value: int, info: ValidationInfo) -> int:
        return _holds_an_access(value, info)


def _holds_an_access(value: int, info: ValidationInfo) -> int:
    size = info.data.get("access_size")
    if size and value < size:
        raise refuse(
            f"{format_size(value)} holds no access of {format_size(size)}",
            f"use {format_size(size)} or more, or a smaller access_size",
        )
    return value


# ---- a trace of one walk ----


class Sequential(_SequentialWalk, _Alone):
    """Accesses at a fixed distance. Each vCPU walks a part of the range, from its beginning again
    at its end, so it meets the same places in each pass."""

    kind: Literal["sequential"] = Field(description="One after another.", examples=["sequential"])


class Strided(_StridedWalk, _Alone):
    """Accesses at a fixed distance, as a walk down the columns of a matrix: the next pass begins
    one access further on, so that every place is met after stride / access_size passes. Each vCPU
    walks a part of the range."""

    kind: Literal["strided"] = Field(description="Column by column.", examples=["strided"])


class Uniform(_Walk, _Alone):
    """Accesses at random, each place in the range as likely as any other."""

    kind: Literal["uniform"] = Field(description="At random.", examples=["uniform"])


class Permutation(_Walk, _OneRound):
    """Every host page once, shuffled, at a random place in it; then all again, otherwise."""

    kind: Literal["permutation"] = Field(description="Each page once.", examples=["permutation"])


class Zipf(_ZipfWalk, _Alone):
    """A few pages most of the time and the others now and then, by Zipf's law; at a random place
    in the page."""

    kind: Literal["zipf"] = Field(description="By Zipf's law.", examples=["zipf"])


class HotCold(_HotColdWalk, _Alone):
    """A hot part of the range has most of the accesses, the cold rest has the others; after a
    period another part is hot."""

    kind: Literal["hot_cold"] = Field(description="Hot and cold pages.", examples=["hot_cold"])


class PointerChase(_PointerChaseWalk, _OneRound):
    """From node to node along a cycle through all of them in an order that is made from the seed,
    the same in each round. Each vCPU begins at a place of its own."""

    kind: Literal["pointer_chase"] = Field(
        description="Along a chain of nodes.", examples=["pointer_chase"]
    )


# ---- phases of several walks ----


class SequentialPattern(_SequentialWalk, _InPhase):
    """Accesses at a fixed distance."""

    kind: Literal["sequential"] = Field(description="One after another.", examples=["sequential"])


class StridedPattern(_StridedWalk, _InPhase):
    """Accesses at a fixed distance, each pass one access further on."""

    kind: Literal["strided"] = Field(description="Column by column.", examples=["strided"])


class UniformPattern(_Walk, _InPhase):
    """Accesses at random."""

    kind: Literal["uniform"] = Field(description="At random.", examples=["uniform"])


class PermutationPattern(_Walk, _InPhase):
    """Every host page once, shuffled; then all again, otherwise. Each vCPU has a part of them."""

    kind: Literal["permutation"] = Field(description="Each page once.", examples=["permutation"])


class ZipfPattern(_ZipfWalk, _InPhase):
    """A few pages most of the time, by Zipf's law."""

    kind: Literal["zipf"] = Field(description="By Zipf's law.", examples=["zipf"])


class HotColdPattern(_HotColdWalk, _InPhase):
    """A hot part of the range has most of the accesses. The period counts this pattern's alone."""

    kind: Literal["hot_cold"] = Field(description="Hot and cold pages.", examples=["hot_cold"])


class PointerChasePattern(_PointerChaseWalk, _InPhase):
    """From node to node along a cycle through all of them."""

    kind: Literal["pointer_chase"] = Field(
        description="Along a chain of nodes.", examples=["pointer_chase"]
    )


Pattern = Annotated[
    Annotated[SequentialPattern, Tag("sequential")]
    | Annotated[StridedPattern, Tag("strided")]
    | Annotated[UniformPattern, Tag("uniform")]
    | Annotated[PermutationPattern, Tag("permutation")]
    | Annotated[ZipfPattern, Tag("zipf")]
    | Annotated[HotColdPattern, Tag("hot_cold")]
    | Annotated[PointerChasePattern, Tag("pointer_chase")],
    by_kind(),
]


class Phase(Section):
    """A number of accesses, each of a pattern that is chosen at random by its weight."""

    accesses: Whole = Field(
        ge=1, le=MOST_ACCESSES, description="Accesses of all vCPUs together.", examples=[100000]
    )
    patterns: tuple[Pattern, ...] = Field(
        min_length=1,
        description="What is accessed; a pattern goes on where it was when its phase comes again.",
        examples=["[{kind: uniform, stop: 10%}]"],
    )

    @field_validator("patterns", mode="before")
    @classmethod
    def _check_nesting(cls, value: Any) -> Any:
        for index, pattern in enumerate(value if isinstance(value, list | tuple) else ()):
            if isinstance(pattern, dict) and pattern.get("kind") == "phases":
                raise refuse(
                    "a phase can't have phases", "write them as further phases", index, "kind"
                )
        return value

    @field_validator("patterns")
    @classmethod
    def _check_weights(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not any(pattern.weight for pattern in value):
            raise refuse("all weights are 0", "give a pattern a weight of 1 or more")
        return value


class Phases(Section):
    """Phases one after the other, as a program does now this and now that."""

    kind: Literal["phases"] = Field(description="Phase by phase.", examples=["phases"])
    phases: tuple[Phase, ...] = Field(
        min_length=1,
        description="The phases, in their order.",
        examples=["[{accesses: 100000, patterns: [{kind: uniform, stop: 10%}]}]"],
    )
    repeat: Whole = Field(
        default=1,
        ge=1,
        le=MOST_ACCESSES,
        description="How often all of them are gone through.",
    )

    @field_validator("repeat")
    @classmethod
    def _check_repeat(cls, value: int, info: ValidationInfo) -> int:
        once = sum(phase.accesses for phase in info.data.get("phases", ()))
        if once * value > MOST_ACCESSES:
            raise refuse(
                f"{value} times {counted(once, 'access')} are more than a trace can have,"
                f" {MOST_ACCESSES}",
                f"use {MOST_ACCESSES // once} at most"
                if once <= MOST_ACCESSES
                else "give the phases fewer accesses",
            )
        return value


Synthetic = Annotated[
    Annotated[Sequential, Tag("sequential")]
    | Annotated[Strided, Tag("strided")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Permutation, Tag("permutation")]
    | Annotated[Zipf, Tag("zipf")]
    | Annotated[HotCold, Tag("hot_cold")]
    | Annotated[PointerChase, Tag("pointer_chase")]
    | Annotated[Phases, Tag("phases")],
    by_kind(),
]
