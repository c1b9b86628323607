"""The types of a scenario's fields: what each accepts, and the number or path that it becomes.

The classes :class:`Position` and :class:`Region` are plain and frozen; the annotated names below
them say what a field takes of each, and of the units.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from vmemu import units
from vmemu._config import wording
from vmemu._config.wording import refuse
from vmemu.model.fields import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

REGION_GRAIN = 4096
"""What the numbers of a region must be multiples of, in bytes: the smallest guest page."""

LONGEST_NAME = 255
MOST_ACCESSES = (1 << 63) - 1


@dataclass(frozen=True)
class Means:
    """What a field of this type takes, in ``words``; ``write`` puts a value as scenarios do."""

    words: str
    write: Callable[[Any], Any] = str


def validator(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``parse`` as a validator: its UnitError becomes a refusal."""

    def validate(value: Any) -> Any:
        try:
            return parse(value)
        except units.UnitError as error:
            raise refuse(error.what, error.remedy) from None

    return validate


def _name(value: Any) -> Any:
    if not isinstance(value, str):
        return value  # the str type that follows says so
    if not value:
        raise refuse("is empty", "give a name of 1 to 255 bytes")
    if any(not c.isprintable() for c in value):
        raise refuse(
            f"'{units.printable(value)}' has an unprintable character",
            "use letters, digits, '.', '-' and '_'",
        )
    length = len(value.encode())
    if length > LONGEST_NAME:
        raise refuse(
            f"is {units.counted(length, 'byte')} long", f"use at most {LONGEST_NAME} bytes"
        )
    return value


def _path_text(value: Any) -> str:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise refuse(
            f"{wording.show(value)} is no path", "give the path as text, in quotes if need be"
        )
    if not value:
        raise refuse("the path is empty", "give the path of a file")
    if "\0" in value or not value.isprintable():
        raise refuse(f"'{units.printable(value)}' has an unprintable character", "rename the file")
    return value


def _existing(value: Any, info: ValidationInfo) -> Path:
    """An existing file or directory; a relative path starts at the scenario's directory."""
    directory = (info.context or {}).get("directory", Path())
    path = Path(os.path.abspath(directory / _path_text(value)))
    try:
        path.stat()
    except OSError as error:
        raise refuse(
            f"{units.printable(str(path), 300)}: {(error.strerror or 'unusable').lower()}",
            "give an existing path; a relative one starts at the scenario's directory",
        ) from None
    return path


def _absolute(value: Any) -> Path:
    text = _path_text(value)
    if not text.startswith("/") or text.endswith("/"):
        raise refuse(
            f"'{units.printable(text)}' is no absolute path of a file",
            "give one such as /dev/hugepages/huge0, or leave it out for a memfd",
        )
    return Path(os.path.normpath(text))


def _rate(value: Any) -> int:
    return 0 if value == "unlimited" else units.parse_rate(value)


Size = Annotated[
    int,
    BeforeValidator(validator(units.parse_size)),
    WithJsonSchema({"type": ["string", "integer"], "description": "bytes, or text such as 2MiB"}),
    Means("size", units.format_size),
]
Duration = Annotated[
    int,
    BeforeValidator(validator(units.parse_duration)),
    WithJsonSchema({"type": "string", "description": "text such as 250us, 30s, 2min"}),
    Means("duration", units.format_duration),
]
Rate = Annotated[
    int,
    BeforeValidator(validator(_rate)),
    WithJsonSchema(
        {"type": "string", "description": "text such as 1GiB/s or 10Gbit/s, or unlimited"}
    ),
    Means("rate, or `unlimited`", lambda rate: units.format_rate(rate) if rate else "unlimited"),
]
Share = Annotated[
    float,
    BeforeValidator(lambda value: float(validator(units.parse_share)(value))),
    WithJsonSchema({"type": ["number", "string"], "description": "0.0 to 1.0, or 0% to 100%"}),
    Means("share", float),
]
Flag = Annotated[bool, Means("`true` or `false`", bool)]
Whole = Annotated[int, Means("whole number", int)]
Positive = Annotated[float, Field(allow_inf_nan=False), Means("number", float)]
Name = Annotated[str, BeforeValidator(_name), Means("name")]
ExistingPath = Annotated[Path, BeforeValidator(_existing), Means("path of what exists")]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute), Means("absolute path")]


@dataclass(frozen=True)
class Position:
    """A place in a trace: a number of ``accesses``, or else a ``share`` of all of them, 0 to 1."""

    accesses: int | None = None
    share: Fraction | None = None

    def resolve(self, total: int) -> int:
        """The number of accesses before this place in a trace of ``total``, rounded down.

        Raises ValueError if the trace is shorter.
        """
        if self.share is not None:
            return int(total * self.share)
        accesses = self.accesses or 0
        if accesses > total:
            raise ValueError(
                f"access {accesses:,} is beyond the end of the trace;"
                f" it has {units.counted(total, 'access')}: give that at most, or 100%"
            )
        return accesses

    def __str__(self) -> str:
        return str(self.accesses or 0) if self.share is None else units.format_share(self.share)


@dataclass(frozen=True)
class FlipPoint:
    """When the guest moves: at a place in its trace, or ``after_ns`` of running at the source."""

    position: Position | None = None
    after_ns: int | None = None

    @property
    def at_once(self) -> bool:
        """Whether the guest makes no access before it, as far as that can be told without its
        traces."""
        at = self.position
        return self.after_ns is None and not (at and (at.accesses or at.share))

    def __str__(self) -> str:
        if self.after_ns is not None:
            return units.format_duration(self.after_ns)
        return str(self.position)


def _flip_point(value: Any) -> FlipPoint:
    if isinstance(value, FlipPoint):
        return value
    if isinstance(value, str) and not value.endswith("%"):
        return FlipPoint(after_ns=validator(units.parse_duration)(value))
    return FlipPoint(position=_position(value))


def _write_flip_point(flip: FlipPoint) -> int | str:
    """A number of accesses as a number: as text it would be a duration without a unit."""
    at = flip.position
    return at.accesses if at is not None and at.accesses is not None else str(flip)


def _position(value: Any) -> Position:
    if isinstance(value, Position):
        return value
    if isinstance(value, str) and value.endswith("%"):
        return Position(share=validator(units.parse_share)(value))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_ACCESSES:
        raise refuse(
            f"{wording.show(value)} is no place in a trace",
            "give a number of accesses, or a percentage such as 25%",
        )
    return Position(accesses=value)


TracePosition = Annotated[
    Position,
    PlainValidator(_position),
    PlainSerializer(lambda p: p.accesses if p.share is None else str(p)),
    WithJsonSchema({"type": ["integer", "string"], "description": "accesses, or a percentage"}),
    Means("place in a trace", lambda place: place.accesses if place.share is None else str(place)),
]


@dataclass(frozen=True)
class Region:
    """Guest-physical ``start`` to ``end`` (exclusive), held by ``block`` from ``offset``; bytes."""

    start: int
    end: int
    block: str
    offset: int = 0

    @property
    def length(self) -> int:
        """Bytes in the region."""
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end:#x}={self.block}+{self.offset:#x}"


_REGION = re.compile(r"(?P<start>[^-=]+)-(?P<end>[^-=]+)=(?P<block>.+)", re.S)
_OFFSET = re.compile(r"(?P<block>.+)\+(?P<offset>0x[0-9a-fA-F]+|[0-9][^+]*)", re.S)
_REGION_FORM = "write START-END=block or START-END=block+OFFSET, such as 0x0-128MiB=pc.ram"


def parse_region(text: str) -> Region:
    """The region in ``START-END=block[+OFFSET]``; END is exclusive.

    Raises UnitError: not of this form, empty, or a number that is no multiple of 4 KiB.
    """
    match = _REGION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise units.UnitError(f"{wording.show(text)} is no region", _REGION_FORM)
    start, end = _address(match["start"]), _address(match["end"])
    tail = _OFFSET.fullmatch(match["block"])
    offset = _address(tail["offset"]) if tail else 0
    if end <= start:
        raise units.UnitError(
            f"the region ends at {end:#x}, not after its start {start:#x}",
            "give an END, which is exclusive, above START",
        )
    return Region(start, end, tail["block"] if tail else match["block"], offset)


def _address(text: str) -> int:
    hexadecimal = re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text)
    number = int(text, 16) if hexadecimal else units.parse_size(text)
    if number % REGION_GRAIN:
        low = number - number % REGION_GRAIN
        raise units.UnitError(
            f"{units.printable(text)} is no multiple of 4KiB",
            f"use {low:#x} or {low + REGION_GRAIN:#x}",
        )
    if number >= 1 << 64:
        raise units.UnitError(f"{units.printable(text)} is beyond 64 bits", "use an address below")
    return number


RegionText = Annotated[
    Region,
    PlainValidator(validator(lambda v: v if isinstance(v, Region) else parse_region(v))),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "description": _REGION_FORM}),
    Means("region"),
]


def by_kind(default: str | None = None) -> Discriminator:
    """Chooses a model by its ``kind``; with a ``default``, the key may be left out."""

    def choose(value: Any) -> str | None:
        if isinstance(value, dict):
            kind = value.get("kind", default)
            return kind if isinstance(kind, str) else None
        return getattr(value, "kind", None)

    return Discriminator(choose)


FlipAt = Annotated[
    FlipPoint,
    PlainValidator(_flip_point),
    PlainSerializer(str),
    WithJsonSchema(
        {"type": ["integer", "string"], "description": "accesses, a percentage, or a duration"}
    ),
    Means("place in a trace, or duration", _write_flip_point),
]
