"""The guest: its vCPUs, the traces that they replay, and when."""

from fractions import Fraction
from typing import Annotated, Any, Literal

from vmemu._config import wording
from vmemu._config.maps import AutoMap, Map
from vmemu._config.section import Section
from vmemu._config.synthetics import Synthetic
from vmemu._config.types import (
    ExistingPath,
    Position,
    Positive,
    Size,
    TracePosition,
    Whole,
    by_kind,
)
from vmemu._config.wording import refuse
from vmemu.model.fields import Field, Tag, ValidationInfo, field_validator
from vmemu.units import format_size

MOST_VCPUS = 256
MOST_LOOPS = 1_000_000
SMALLEST_TARGET_PAGE, LARGEST_TARGET_PAGE = 4 << 10, 64 << 10


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
        default=AutoMap.model_construct(),
        description="How recorded addresses become bytes of blocks.",
    )
    window: Window = Field(
        default=Window.model_construct(), description="The part of the trace that is replayed."
    )
    loops: Whole = Field(
        default=1, ge=1, le=MOST_LOOPS, description="How often the window is replayed, 1 to 10^6."
    )
    threads: Literal["round_robin", "by_id"] = Field(
        default="round_robin",
        description="How recorded threads are dealt to vCPUs: in turn, or by their ids.",
    )


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


def _one_or_many(value: Any) -> str | None:
    return "many" if isinstance(value, list | tuple) else _trace_kind(value)


_NEITHER = "needs exactly one of 'file' (a recording) and 'synthetic'"
_EITHER = "write {file: PATH} or {synthetic: {kind: uniform, accesses: 100000}}"

Trace = Annotated[
    Annotated[RecordedTrace, Tag("file")] | Annotated[SyntheticTrace, Tag("synthetic")],
    wording.choice(_trace_kind, _NEITHER, _EITHER),
]
Traces = Annotated[
    Annotated[RecordedTrace, Tag("file")]
    | Annotated[SyntheticTrace, Tag("synthetic")]
    | Annotated[tuple[Trace, ...], Field(min_length=1), Tag("many")],
    wording.choice(_one_or_many, _NEITHER, _EITHER),
]
"""A trace, or several that are replayed side by side."""


class AsapPace(Section):
    """Each access follows the one before it at once."""

    kind: Literal["asap"] = Field(default="asap", description="As fast as possible.")


class RecordedPace(Section):
    """Each access is made at its recorded time. Needs traces with times."""

    kind: Literal["recorded"] = Field(description="At recorded times.", examples=["recorded"])
    factor: Positive = Field(
        default=1.0, gt=0, description="How much faster than recorded: 2.0 takes half the time."
    )


class RatePace(Section):
    """Each vCPU makes its accesses at equal distances."""

    kind: Literal["rate"] = Field(description="At a fixed rate.", examples=["rate"])
    accesses_per_second: Whole = Field(
        ge=1,
        le=1_000_000_000,
        description="Of each vCPU, 1 to 10^9.",
        examples=[1000000],
    )


PaceConfig = Annotated[
    Annotated[AsapPace, Tag("asap")]
    | Annotated[RecordedPace, Tag("recorded")]
    | Annotated[RatePace, Tag("rate")],
    by_kind(),
]


class BalloonConfig(Section):
    """A balloon: it gives host pages back, in an order made from the seed."""

    rate: Whole = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Pages a second; what is refused is tried again.",
    )
    limit: Whole = Field(
        ge=1, description="Pages to give back; refused until post-copy is over.", examples=[100]
    )


class Guest(Section):
    """The guest's vCPUs and what they touch."""

    vcpus: Whole = Field(
        default=1, ge=1, le=MOST_VCPUS, description="Threads that replay the trace, 1 to 256."
    )
    target_page_size: Size = Field(
        default=4096,
        description="Bytes in a page of the guest, a power of two, 4KiB to 64KiB: no bigger than"
        " the base page of the host.",
    )
    trace: Traces = Field(
        description="What the guest touches: a recording or a synthetic trace, or a list of them.",
        examples=["{file: traces/linux-boot.vmtrace}"],
    )
    pace: PaceConfig = Field(
        default=AsapPace.model_construct(), description="When accesses are made."
    )
    balloon: BalloonConfig | None = Field(
        default=None, description="A worker that gives pages back once post-copy is over."
    )

    @field_validator("target_page_size")
    @classmethod
    def _check_target_page_size(cls, value: int) -> int:
        if value & (value - 1) or not SMALLEST_TARGET_PAGE <= value <= LARGEST_TARGET_PAGE:
            raise refuse(
                f"{format_size(value)} is no page size of a guest",
                "use 4KiB, 8KiB, 16KiB, 32KiB or 64KiB",
            )
        return value
