"""Fault points: named places where a run can be made to go wrong, so that tests see it noticed.

One is written ``POINT@name=value,name=value``, such as ``loader.flip@block=pc.ram,offset=4KiB``:

``loader.flip``
    The source spoils the byte at ``offset`` of ``block`` after it has made its image. Verification
    must find it, unless the guest writes there.

A further point is an entry of :data:`POINTS` and whatever hands it to the part that it breaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vmemu.errors import InputError
from vmemu.units import UnitError, parse_size, printable


@dataclass(frozen=True)
class FaultPoint:
    """One fault to inject: the point's name, and the values of its options."""

    name: str
    options: Mapping[str, Any]


def _offset(text: str) -> int:
    """Bytes, as 4096, 0x1000 or 4KiB."""
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text) else parse_size(text)


POINTS: dict[str, dict[str, Callable[[str], Any]]] = {
    "loader.flip": {"block": str, "offset": _offset},
}
"""Each point: its options, all of them needed, and what reads the value of each."""

# A comma separates only before `name=`: names of blocks may contain commas.
_SEPARATOR = re.compile(r",(?=[a-z_]+=)")


def form(name: str) -> str:
    """How a known point is written: ``loader.flip@block=…,offset=…``."""
    options = ",".join(f"{option}=…" for option in POINTS[name])
    return f"{name}@{options}" if options else name


def parse(text: str) -> FaultPoint:
    """The fault point in ``text``. Raises InputError that says what would do."""
    name, _, tail = text.partition("@")
    if name not in POINTS:
        known = ", ".join(form(point) for point in POINTS)
        raise InputError(f"no fault point is called '{printable(name)}'; known: {known}")
    readers = POINTS[name]
    given = _options(name, tail)
    missing = [option for option in readers if option not in given]
    if missing:
        raise InputError(f"fault point {name} needs {' and '.join(missing)}: {form(name)}")
    return FaultPoint(name, {key: _value(name, key, given[key]) for key in readers})


def _options(name: str, tail: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in _SEPARATOR.split(tail) if tail else []:
        key, equals, value = part.partition("=")
        if not equals or key not in POINTS[name]:
            raise InputError(f"fault point {name} has no option '{printable(key)}': {form(name)}")
        if key in given:
            raise InputError(f"fault point {name}: {key} is given twice")
        given[key] = value
    return given


def _value(name: str, option: str, text: str) -> Any:
    try:
        return POINTS[name][option](text)
    except UnitError as error:
        raise InputError(f"fault point {name}: {option}: {error}") from None


def flips(points: Iterable[FaultPoint], sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """(block, offset) of each ``loader.flip``, for ``Migration(flips=…)``.

    ``sizes`` are the bytes of each block by its name. Raises InputError for a byte in no block.
    """
    found = []
    for point in points:
        if point.name != "loader.flip":
            continue
        block, offset = point.options["block"], point.options["offset"]
        if block not in sizes:
            known = ", ".join(sizes)
            raise InputError(
                f"fault point loader.flip: no block is called '{printable(block)}'; known: {known}"
            )
        if offset >= sizes[block]:
            raise InputError(
                f"fault point loader.flip: offset {offset:#x} is outside block {block}"
                f" of {sizes[block]:#x} bytes"
            )
        found.append((block, offset))
    return tuple(found)
