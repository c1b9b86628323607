"""What a plain scalar of YAML means, and which are traps: YAML readers disagree about them."""

from __future__ import annotations

import re
from collections.abc import Callable

from vmemu.units import printable

_LONGEST_NUMBER = 64

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)", re.ASCII)


def plain_value(text: str) -> str | int | float | bool:
    """The value of a plain scalar that is no trap."""
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INTEGER.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def truth(text: str) -> bool | None:
    """What a word means to YAML readers that take it for a truth value; None for any other."""
    return {"y": True, "yes": True, "on": True, "n": False, "no": False, "off": False}.get(
        text.lower()
    )


def _word_remedy(text: str) -> str:
    return f"write {str(truth(text)).lower()}, or '{text}' in quotes if text is meant"


def _exponent_remedy(text: str) -> str:
    number = float(text.replace("_", ""))
    if number.is_integer() and abs(number) < 1e15:
        return f"write it out: {int(number)}"
    return "write it out in digits"


def _octal_remedy(text: str) -> str:
    digits = text.replace("_", "").lstrip("+-0").lower()
    decimal = digits.lstrip("o").lstrip("0") or "0"
    return f"write {decimal} for the decimal number, 0x... for hexadecimal, or quote it"


# Each trap: what is matched, what is wrong with it, and what would do.
_TRAPS: tuple[tuple[re.Pattern[str], str, str | Callable[[str], str]], ...] = (
    (re.compile(r"(~|null|Null|NULL)?"), "no value is given", "give a value, or leave the key out"),
    (
        re.compile(r"y|n|yes|no|on|off", re.I),
        "'{}' is a truth value to some YAML readers and text to others",
        _word_remedy,
    ),
    (
        re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]{1,3}", re.ASCII),
        "'{}' is a number to some YAML readers and text to others",
        _exponent_remedy,
    ),
    (
        re.compile(r"[-+]?0(o[0-9_]+|[0-9_]+)", re.ASCII | re.I),
        "'{}' is octal to some YAML readers and decimal or text to others",
        _octal_remedy,
    ),
    (
        re.compile(r"[-+]?0b[01_]+", re.ASCII),
        "'{}' is binary to some YAML readers and text to others",
        "write it in decimal, or quote it",
    ),
    (
        re.compile(
            r"[-+]?(0x[0-9a-f]*_[0-9a-f_]*|[0-9][0-9]*_[0-9_]*(\.[0-9_]*)?)", re.ASCII | re.I
        ),
        "'{}' is a number to some YAML readers and text to others",
        "write it without '_', or quote it",
    ),
    (
        re.compile(r"[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?", re.ASCII),
        "'{}' is a number in base 60 to some YAML readers",
        "write a duration as 90s, or quote it if text is meant",
    ),
    (
        re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt \t].*)?", re.ASCII | re.S),
        "'{}' is a date to YAML",
        "put it in quotes",
    ),
    (
        re.compile(r"[-+]?\.(inf|nan)", re.I),
        "'{}' is no number that can be used here",
        "write the number in digits",
    ),
)


def find_trap(text: str) -> tuple[str, str] | None:
    """What is wrong with a plain scalar that YAML readers disagree about, and what would do."""
    for pattern, what, remedy in _TRAPS:
        if pattern.fullmatch(text):
            shown = printable(text)
            advice = remedy if isinstance(remedy, str) else printable(remedy(text), 160)
            return what.format(shown), advice
    if len(text) > _LONGEST_NUMBER and (_INTEGER.fullmatch(text) or _FLOAT.fullmatch(text)):
        return f"'{printable(text)}' is too long for a number", "put it in quotes if it is text"
    return None
