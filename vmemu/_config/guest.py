"""The guest: its vCPUs, and the traces that they replay."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

from pydantic import Field, Tag, ValidationInfo, field_validator

from vmemu._config import wording
from vmemu._config.maps import CompactMap, Map
from vmemu._config.section import Section
from vmemu._config.synthetics import Synthetic
from vmemu._config.types import ExistingPath, Position, TracePosition, Whole
from vmemu._config.wording import refuse

MOST_VCPUS = 256


class Window(Section):
    """The part of a trace that is replayed."""

    start: TracePosition = Field(
        default=Position(accesses=0), description="First access: a number from 0, or a percentage."
    )
    stop: TracePosition = Field(
        default=Position(share=Fraction(1)),
        description="End, exclusive: a number, or a percentage.",
    )

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: Position, info: ValidationInfo) -> Position:
        start = info.data.get("start")
        if start is not None and (
            (
                start.accesses is not None
                and value.accesses is not None
                and start.accesses >= value.accesses
            )
            or (start.share is not None and value.share is not None and start.share >= value.share)
            or value in (Position(accesses=0), Position(share=Fraction(0)))
        ):
            raise refuse(
                f"the window from {start} to {value} holds nothing", "give a stop above the start"
            )
        return value


class RecordedTrace(Section):
    """A recorded trace, replayed."""

    file: ExistingPath = Field(
        description="A native trace, as `vmemu trace convert` makes it of a recording; a relative"
        " path starts at the scenario's directory.",
        examples=["traces/linux-boot.vmtrace"],
    )
    map: Map = Field(
        default=CompactMap(), description="How recorded addresses become bytes of blocks."
    )
    window: Window = Field(default=Window(), description="The part of the trace that is replayed.")


class SyntheticTrace(Section):
    """A trace made from the seed, without a file."""

    synthetic: Synthetic = Field(description="How the accesses are made.", examples=["{kind: ...}"])


def _trace_kind(value: Any) -> str | None:
    if isinstance(value, dict):
        given = [kind for kind in ("file", "synthetic") if kind in value]
        return given[0] if len(given) == 1 else None
    if isinstance(value, RecordedTrace):
        return "file"
    return "synthetic" if isinstance(value, SyntheticTrace) else None


Trace = Annotated[
    Annotated[RecordedTrace, Tag("file")] | Annotated[SyntheticTrace, Tag("synthetic")],
    wording.choice(
        _trace_kind,
        "needs exactly one of 'file' (a recording) and 'synthetic'",
        "write {file: PATH} or {synthetic: {kind: uniform, accesses: 100000}}",
    ),
]


class BalloonConfig(Section):
    """A balloon: it gives host pages back, but for hugepages, in an order made from the seed."""

    rate: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        default=1000, description="Pages a second; what is refused is tried again."
    )
    limit: Whole = Field(
        ge=1, description="Pages to give back; refused until post-copy is over.", examples=[100]
    )


class Guest(Section):
    """The guest's vCPUs and what they touch."""

    vcpus: Whole = Field(
        default=1, ge=1, le=MOST_VCPUS, description="Threads that replay the trace, 1 to 256."
    )
    trace: Trace = Field(
        description="What the guest touches: a recording or a synthetic trace.",
        examples=["{file: traces/linux-boot.vmtrace}"],
    )
    balloon: BalloonConfig | None = Field(
        default=None, description="A worker that gives pages back once post-copy is over."
    )
