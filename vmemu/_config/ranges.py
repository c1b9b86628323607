"""The part of RAM that a pattern of synthetic accesses walks: its type, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from vmemu import units
from vmemu._config import wording, yamlfile
from vmemu._config.types import Means, validator
from vmemu.model.fields import PlainSerializer, PlainValidator, WithJsonSchema

GRAIN = 4096
"""What a range begins and ends at multiples of, in bytes: the smallest guest page."""

Found = tuple[yamlfile.Path, str, str] | tuple[yamlfile.Path, str, str, str]
"""Where something is wrong, what it is, what would do, and the code of what does not fit."""


@dataclass(frozen=True)
class Bound:
    """Where a range begins or ends: ``size`` bytes from the start, or else a ``share`` of all."""

    size: int | None = None
    share: Fraction | None = None

    def resolve(self, total: int) -> int:
        """Bytes from the start of ``total`` bytes; a share is rounded down to a page."""
        if self.share is not None:
            return int(total * self.share) // GRAIN * GRAIN
        return self.size or 0

    def __str__(self) -> str:
        if self.share is not None:
            return units.format_share(self.share)
        return units.format_size(self.size or 0)


def parse_bound(value: Any) -> Bound:
    """The bound in ``25%``, ``64MiB`` or a number of bytes. Raises UnitError."""
    if isinstance(value, Bound):
        return value
    if isinstance(value, str) and value.endswith("%"):
        return Bound(share=units.parse_share(value))
    if isinstance(value, float):
        raise units.UnitError(
            f"{value} is no place in memory", "write a share as a percentage such as 25%"
        )
    size = units.parse_size(value)
    if size % GRAIN:
        low = size - size % GRAIN
        raise units.UnitError(
            f"{wording.show(value)} is no multiple of 4KiB",
            f"use {units.format_size(low)} or {units.format_size(low + GRAIN)}",
        )
    return Bound(size=size)


MemoryBound = Annotated[
    Bound,
    PlainValidator(validator(parse_bound)),
    PlainSerializer(str),
    WithJsonSchema({"type": ["string", "integer"], "description": "a size, or a percentage"}),
    Means("size, or percentage", str),
]


def across_synthetic(
    data: Any, where: yamlfile.Path, named: Mapping[str, int | None], whole: int | None
) -> list[Found]:
    """What is wrong with the ranges of the synthetic trace at ``where`` of a scenario's ``data``.

    ``named`` are the blocks that there are with their sizes, ``whole`` is the size of those that it
    lies on. A size that is None or no multiple of 4 KiB is wrong itself and reported elsewhere.
    """
    found: list[Found] = []
    for path, pattern in patterns_at(data, where):
        block = pattern.get("block")
        if isinstance(block, str) and block not in named:
            what = f"no block is named '{units.printable(block)}'"
            found.append(((*path, "block"), what, wording.nearest(block, named)))
            continue
        total = named[block] if isinstance(block, str) else whole
        if total and total % GRAIN == 0:
            inside = f"'{units.printable(block)}'" if isinstance(block, str) else "memory"
            wrong = _wrong(pattern, total, inside)
            found += [((*path, key), what, remedy, "trace") for key, what, remedy in wrong]
    return found


def patterns_at(data: Any, where: yamlfile.Path) -> Iterator[tuple[yamlfile.Path, dict[str, Any]]]:
    """The mappings that have a range: the trace itself, or the patterns of its phases."""
    made = yamlfile.value_at(data, where)
    if not isinstance(made, dict):
        return
    yield where, made
    for number, phase in enumerate(_list(made.get("phases"))):
        patterns = phase.get("patterns") if isinstance(phase, dict) else None
        for index, pattern in enumerate(_list(patterns)):
            if isinstance(pattern, dict):
                yield (*where, "phases", number, "patterns", index), pattern


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _wrong(pattern: dict[str, Any], total: int, inside: str) -> list[tuple[str, str, str]]:
    """The key that is wrong, what, and the remedy."""
    bounds: dict[str, Bound] = {}
    for key, default in (("start", "0%"), ("stop", "100%")):
        given = pattern.get(key)
        try:
            bounds[key] = parse_bound(default if given is None else given)
        except units.UnitError:
            return []  # the models say so
    start, stop = bounds["start"].resolve(total), bounds["stop"].resolve(total)
    size = units.format_size(total)
    beyond = [
        (key, f"{bounds[key]} is beyond the end of {inside}, {size}", f"give {size} at most")
        for key, at in (("start", start), ("stop", stop))
        if at > total
    ]
    if beyond or start < stop:
        return beyond
    what = f"the range from {bounds['start']} to {bounds['stop']} of {inside} holds no page"
    key = "stop" if pattern.get("stop") is not None else "start"
    remedy = f"leave 4KiB or more between start and stop; there are {size}"
    return [(key, what, remedy)]
