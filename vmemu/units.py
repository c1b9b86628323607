"""Sizes, durations, rates, shares and counts as people write them; strict both ways.

Every parser raises :class:`UnitError` (a ``ValueError``) that says what is wrong and what would do.
A value formatted without ``digits`` parses back to exactly the same number.
"""

from __future__ import annotations

import re
from fractions import Fraction

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

SIZE_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
DURATION_UNITS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60_000_000_000,
}
# Network links are sold in decimal bits, so rates (and only rates) know these as well.
_BIT_UNITS = {
    "bit": Fraction(1, 8),
    "kbit": Fraction(1_000, 8),
    "Mbit": Fraction(1_000_000, 8),
    "Gbit": Fraction(1_000_000_000, 8),
}

# Far above anything meaningful and far below the lengths at which Python refuses to read a number.
_LONGEST_TEXT = 64
_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[^\W\d_]*)", re.ASCII)
_LEADING_ZERO = re.compile(r"0[0-9]")
_LONGEST_SHOWN = 60


class UnitError(ValueError):
    """A quantity can't be read: ``what`` is wrong, and the ``remedy`` that would do."""

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}")


def printable(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """``text`` fit for one line of a message: cut when long, unprintable characters escaped."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def counted(count: int, noun: str) -> str:
    """``1 page``, ``1,024 pages``, ``0 accesses``: the number, and the noun as it is with it."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'ch')) else 's'}"


def parse_size(value: str | int) -> int:
    """Bytes in ``value``: ``"2MiB"``, ``"1.5GiB"``, or a plain number of bytes.

    Raises UnitError: no such unit (KB, MB and the like are refused), negative, part of a byte.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnitError(f"{printable(repr(value))} is no size", "write a size such as 2MiB")
    if isinstance(value, int):
        if value < 0:
            raise UnitError(f"a size can't be negative: {_number(value)}", "write it as 2MiB")
        return value
    number, unit = _split(value, "size", "2MiB")
    if unit not in SIZE_UNITS and unit:
        raise UnitError(
            f"'{printable(value)}' has no unit of size that is known", _size_remedy(value, unit)
        )
    return _whole(value, number * SIZE_UNITS[unit or "B"], "bytes")


def parse_duration(value: str) -> int:
    """Nanoseconds in ``value``: ``"250us"``, ``"1.5s"``, ``"2min"``.

    Raises UnitError: no unit, no such unit, negative, part of a nanosecond.
    """
    if not isinstance(value, str):
        raise UnitError(f"{printable(_number(value))} has no unit of time", _one_of(DURATION_UNITS))
    number, unit = _split(value, "duration", "30s")
    if unit not in DURATION_UNITS:
        raise UnitError(
            f"'{printable(value)}' has no unit of time that is known", _one_of(DURATION_UNITS)
        )
    return _whole(value, number * DURATION_UNITS[unit], "nanoseconds")


def parse_rate(value: str) -> int:
    """Bytes a second in ``value``: ``"1GiB/s"``, or ``"10Gbit/s"`` with decimal bits as links have.

    Raises UnitError: not per second, no such unit, part of a byte a second.
    """
    remedy = "write a rate such as 1GiB/s or 10Gbit/s"
    if not isinstance(value, str) or not value.endswith("/s"):
        raise UnitError(f"'{printable(_number(value))}' is no rate per second", remedy)
    number, unit = _split(value[:-2], "rate", "1GiB/s")
    if unit in _BIT_UNITS:
        return _whole(value, number * _BIT_UNITS[unit], "bytes a second")
    if unit not in SIZE_UNITS:
        raise UnitError(f"'{printable(value)}' has no unit of rate that is known", remedy)
    return _whole(value, number * SIZE_UNITS[unit], "bytes a second")


def parse_share(value: str | float | Fraction) -> Fraction:
    """The share in ``value``, 0 to 1 inclusive and exact: ``"25%"``, ``0.25`` or ``"0.25"``.

    Raises UnitError: no number, or outside 0 to 1 (0% to 100%).
    """
    shown = f"'{printable(value)}'" if isinstance(value, str) else printable(_number(value))
    remedy = "write a share from 0.0 to 1.0, or 0% to 100%"
    if isinstance(value, bool) or not isinstance(value, str | int | float | Fraction):
        raise UnitError(f"{shown} is no share", remedy)
    text = value if isinstance(value, str) else _number(value)
    percent = text.endswith("%")
    digits = text[:-1].rstrip(" ") if percent else text
    if isinstance(value, Fraction):
        share = value
    elif len(text) <= _LONGEST_TEXT and re.fullmatch(
        r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]{1,3})?", digits, re.ASCII
    ):
        share = Fraction(digits) / (100 if percent else 1)
    else:
        raise UnitError(f"{shown} is no share", remedy)
    if not 0 <= share <= 1:
        raise UnitError(f"{shown} is outside 0 to 1", remedy)
    return share


def format_size(size: int, *, digits: int | None = None) -> str:
    """``size`` bytes with a unit: exact (parse_size reads it back), or rounded to ``digits``."""
    return _format(size, SIZE_UNITS, digits)


def format_duration(duration: int, *, digits: int | None = None) -> str:
    """``duration`` ns with a unit: exact (parse_duration reads it back), or rounded."""
    return _format(duration, DURATION_UNITS, digits)


def format_seconds(seconds: float) -> str:
    """A time that was measured, in three digits: ``1.83s``, ``58.1ms``."""
    return format_duration(round(seconds * 1e9), digits=3)


def format_rate(rate: int, *, digits: int | None = None) -> str:
    """``rate`` bytes a second with a unit: exact (parse_rate reads it back), or rounded."""
    return f"{_format(rate, SIZE_UNITS, digits)}/s"


def format_share(share: Fraction) -> str:
    """``share`` as a percentage, ``"25%"``; exact whenever its decimals end."""
    percent = share * 100
    return f"{_decimal(percent)}%"


def _split(text: str, noun: str, example: str) -> tuple[Fraction, str]:
    """The number and the unit of ``text``; the unit may be empty."""
    shown = f"'{printable(text)}'"
    if len(text) > _LONGEST_TEXT:
        raise UnitError(f"{shown} is too long for a {noun}", f"write a {noun} such as {example}")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UnitError(f"{shown} is no {noun}", f"write a {noun} such as {example}")
    if _LEADING_ZERO.match(match["number"]):
        remedy = f"write it without: {text.lstrip('0') or '0'}"
        raise UnitError(f"{shown} has a leading zero", remedy)
    return Fraction(match["number"]), match["unit"]


def _whole(text: str, quantity: Fraction | int, what: str) -> int:
    number = Fraction(quantity)
    if number.denominator != 1:
        raise UnitError(
            f"'{printable(text)}' is no whole number of {what}",
            f"the nearest that would do is {round(number)} {what}",
        )
    return number.numerator


def _size_remedy(text: str, unit: str) -> str:
    initial = unit[0].upper()
    if f"{initial}iB" in SIZE_UNITS and unit.lower().rstrip("b").rstrip("i") == initial.lower():
        number = text[: text.index(unit)].strip()
        return f"{initial}iB is meant (units of 1024): write {number}{initial}iB"
    return _one_of(SIZE_UNITS)


def _one_of(units: dict[str, int]) -> str:
    *rest, last = units
    return f"use one of the units {', '.join(rest)} or {last}"


def _number(value: object) -> str:
    """``value`` in digits; an integer too long for Python to print is shown in hexadecimal."""
    if isinstance(value, int) and value.bit_length() > 1024:
        return hex(value)
    return str(value)


def _format(value: int, units: dict[str, int], digits: int | None) -> str:
    if value < 0:
        raise UnitError(f"{_number(value)} is negative", "give 0 or more")
    names = list(units)
    index = max(i for i, name in enumerate(names) if value >= units[name] or i == 0)
    if digits is not None:
        return _rounded(value, units, names, index, digits)
    # Three decimals at most, and only when they are exact: 1.5GiB, but 1025B.
    while value * 1000 % units[names[index]]:
        index -= 1
    return f"{_decimal(Fraction(value, units[names[index]]))}{names[index]}"


def _rounded(value: int, units: dict[str, int], names: list[str], index: int, digits: int) -> str:
    quotient = Fraction(value, units[names[index]])
    decimals = max(0, digits - len(str(int(quotient))))
    rounded = round(quotient, decimals)
    # 999.9us rounds to 1000us, which reads better as 1ms.
    if index + 1 < len(names) and rounded * units[names[index]] >= units[names[index + 1]]:
        return f"1{names[index + 1]}"
    return f"{_decimal(rounded)}{names[index]}"


def _decimal(number: Fraction) -> str:
    """``number`` in decimal digits, exact where its decimals end within 60 places."""
    whole, rest = divmod(number.numerator, number.denominator)
    places = ""
    while rest and len(places) < _LONGEST_TEXT - 4:
        digit, rest = divmod(rest * 10, number.denominator)
        places += str(digit)
    return f"{whole}.{places}" if places else str(whole)
