"""Fault points: named places where a run can be made to go wrong, so that tests see it noticed.

One is written ``POINT@name=value,name=value``, such as ``loader.flip@block=pc.ram,offset=4KiB``:

``loader.flip``
    The source spoils the byte at ``offset`` of ``block`` after it has made its image. Verification
    must find it, unless the guest writes there.
``loader.stall``
    The source never sends a page after the flip: the one at ``offset`` of ``block``, or number
    ``page`` of the first block. Whoever touches it waits, unless pre-copy has brought it.

A further point is an entry of :data:`POINTS` and whatever hands it to the part that it breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmemu.errors import InputError
from vmemu.units import UnitError, parse_size, printable

if TYPE_CHECKING:
    from vmemu.config import Scenario

Form = dict[str, Callable[[str], Any]]
"""The options that are given together, and what reads the value of each."""


Injected = dict[str, tuple[tuple[str, int], ...]]
"""Of fault points, what Migration is told under the names of its keywords."""


@dataclass(frozen=True)
class FaultPoint:
    """One fault to inject: the point's name, and the values of its options."""

    name: str
    options: Mapping[str, Any]


def _offset(text: str) -> int:
    """Bytes, as 4096, 0x1000 or 4KiB."""
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text) else parse_size(text)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise UnitError(f"'{printable(text)}' is no number", "count pages from 0")
    return int(text)


POINTS: dict[str, tuple[Form, ...]] = {
    "loader.flip": ({"block": str, "offset": _offset},),
    "loader.stall": ({"page": _number}, {"block": str, "offset": _offset}),
}
"""Each point, in all the forms in which it can be written; a form needs all of its options."""

# A comma separates only before `name=`: names of blocks may contain commas.
_SEPARATOR = re.compile(r",(?=[a-z_]+=)")


def form(name: str) -> str:
    """How a known point is written: ``loader.flip@block=…,offset=…``."""
    forms = (",".join(f"{option}=…" for option in form) for form in POINTS[name])
    return " or ".join(f"{name}@{options}" for options in forms)


def parse(text: str) -> FaultPoint:
    """The fault point in ``text``. Raises InputError that says what would do."""
    name, _, tail = text.partition("@")
    if name not in POINTS:
        known = ", ".join(form(point) for point in POINTS)
        raise InputError(f"no fault point is called '{printable(name)}'; known: {known}")
    given = _options(name, tail)
    readers = next((known for known in POINTS[name] if given.keys() <= known.keys()), None)
    if readers is None:
        raise InputError(f"fault point {name} is {form(name)}, and not both at once")
    missing = [option for option in readers if option not in given]
    if missing:
        raise InputError(f"fault point {name} needs {' and '.join(missing)}: {form(name)}")
    return FaultPoint(name, {key: _value(key, name, readers, given[key]) for key in readers})


def _options(name: str, tail: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in _SEPARATOR.split(tail) if tail else []:
        key, equals, value = part.partition("=")
        if not equals or not any(key in known for known in POINTS[name]):
            raise InputError(f"fault point {name} has no option '{printable(key)}': {form(name)}")
        if key in given:
            raise InputError(f"fault point {name}: {key} is given twice")
        given[key] = value
    return given


def _value(option: str, name: str, readers: Form, text: str) -> Any:
    try:
        return readers[option](text)
    except UnitError as error:
        raise InputError(f"fault point {name}: {option}: {error}") from None


def injected(texts: Iterable[str], scenario: Scenario) -> Injected:
    """What ``Migration(scenario, **…)`` is told of the fault points ``texts``.

    Raises InputError for one that can't be read, or is about memory that no block has.
    """
    points = [parse(text) for text in texts]
    sizes = {block.name: block.size for block in scenario.blocks}
    return {
        "flips": flips(points, sizes),
        "stalls": stalls(points, sizes, scenario.blocks[0].page_size),
    }


def flips(points: Iterable[FaultPoint], sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """(block, offset) of each ``loader.flip``, for ``Migration(flips=…)``.

    ``sizes`` are the bytes of each block by its name. Raises InputError for a byte in no block.
    """
    return tuple(_place(point, sizes) for point in points if point.name == "loader.flip")


def stalls(
    points: Iterable[FaultPoint], sizes: Mapping[str, int], page_size: int
) -> tuple[tuple[str, int], ...]:
    """(block, offset) of each ``loader.stall``, for ``Migration(stalls=…)``.

    ``sizes`` are as for ``flips``, and ``page_size`` is that of the first block. Raises InputError
    for a page in no block.
    """
    return tuple(
        _place(_by_offset(point, next(iter(sizes)), page_size), sizes)
        for point in points
        if point.name == "loader.stall"
    )


def _by_offset(point: FaultPoint, block: str, page_size: int) -> FaultPoint:
    if "page" not in point.options:
        return point
    offset = point.options["page"] * page_size
    return FaultPoint(point.name, {"block": block, "offset": offset})


def _place(point: FaultPoint, sizes: Mapping[str, int]) -> tuple[str, int]:
    block, offset = point.options["block"], point.options["offset"]
    if block not in sizes:
        known = ", ".join(sizes)
        raise InputError(
            f"fault point {point.name}: no block is called '{printable(block)}'; known: {known}"
        )
    if offset >= sizes[block]:
        raise InputError(
            f"fault point {point.name}: offset {offset:#x} is outside block {block}"
            f" of {sizes[block]:#x} bytes"
        )
    return block, offset
