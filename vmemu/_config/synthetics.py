"""The kinds of synthetic traces, each made from the seed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from vmemu._config.section import Section
from vmemu._config.types import MOST_ACCESSES, Share, Size, Whole, by_kind

LARGEST_STRIDE = 1 << 46


class Sequential(Section):
    """Accesses of 8 bytes at a fixed distance. All blocks lie one behind the other and each vCPU
    walks a part of them, from its beginning again at its end."""

    kind: Literal["sequential"] = Field(description="One after another.", examples=["sequential"])
    accesses: Whole = Field(
        ge=1, le=MOST_ACCESSES, description="Accesses of all vCPUs together.", examples=[100000]
    )
    write_share: Share = Field(
        default=0.5, description="Share of the accesses that write, 0.0 to 1.0."
    )
    stride: Size = Field(
        default=64, ge=1, le=LARGEST_STRIDE, description="Bytes from one access to the next."
    )


class Uniform(Section):
    """Accesses of 8 bytes at random, each place in RAM as likely as any other."""

    kind: Literal["uniform"] = Field(description="At random.", examples=["uniform"])
    accesses: Whole = Field(
        ge=1, le=MOST_ACCESSES, description="Accesses of all vCPUs together.", examples=[100000]
    )
    write_share: Share = Field(
        default=0.5, description="Share of the accesses that write, 0.0 to 1.0."
    )


class Permutation(Section):
    """Accesses of 8 bytes: every host page once, shuffled; then all again, otherwise."""

    kind: Literal["permutation"] = Field(description="Each page once.", examples=["permutation"])
    accesses: Whole | None = Field(
        default=None,
        ge=1,
        le=MOST_ACCESSES,
        description="Accesses of all vCPUs together; left out: each page once.",
    )
    write_share: Share = Field(
        default=0.5, description="Share of the accesses that write, 0.0 to 1.0."
    )


Synthetic = Annotated[
    Annotated[Sequential, Tag("sequential")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Permutation, Tag("permutation")],
    by_kind(),
]
