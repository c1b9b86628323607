"""A host document from a file: what ``vmemu doctor --json`` wrote, here or on another host."""

from __future__ import annotations

import json
import sys
from typing import Any

from vmemu.doctor.figures import contradictions
from vmemu.errors import InputError
from vmemu.host.document import SCHEMA, HostDocument
from vmemu.inputfile import open_input
from vmemu.model.faults import Fault, ValidationError
from vmemu.units import printable

_REMEDY = "write one with: vmemu doctor --json FILE"
_NEVER_LEFT_OUT = (("userfault", "features"), ("proofs",), ("pools",), ("mounts",))
"""Keys that verdicts rest on, and that who makes a document in Python may leave out."""
_SHOWN = 3
_SHOWN_OF_A_VALUE = 40
_WANTED = {
    "int_type": "is no whole number",
    "string_type": "is no text",
    "bool_type": "is neither true nor false",
}


def read(path: str) -> HostDocument:
    """The document in a file, or on standard input for ``-``. Raises InputError, a line that says
    which key is wrong, for anything else."""
    name = "standard input" if path == "-" else printable(path, 4096) or "''"
    return parse(_bytes(path, name), name)


def parse(content: bytes, name: str) -> HostDocument:
    """The document in ``content``; ``name`` is what errors call it. Raises InputError."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON: {error}; {_REMEDY}") from None
    _check_schema(data, name)
    try:
        document = HostDocument.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{name}: {_wording(error)}; {_REMEDY}") from None
    _check_whole(data, name)
    for key, what in contradictions(document):
        raise InputError(f"{name}: {key}: {what}; {_REMEDY}")
    return document


def _bytes(path: str, name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else _content(path)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}; {_REMEDY}") from None
    except ValueError as error:  # a name with a NUL in it
        raise InputError(f"{name}: {error}") from None


def _content(path: str) -> bytes:
    with open_input(path) as file:
        return file.read()


def _check_schema(data: Any, name: str) -> None:
    if not isinstance(data, dict):
        raise InputError(f"{name}: no host document: not an object; {_REMEDY}")
    schema = data.get("schema")
    if schema is None:
        raise InputError(f"{name}: no host document: it has no schema; {_REMEDY}")
    if schema != SCHEMA:
        what = f"its schema is {printable(repr(schema))}, and this version reads {SCHEMA}"
        raise InputError(f"{name}: {what}; {_REMEDY}")


def _check_whole(data: dict[str, Any], name: str) -> None:
    """What was cut out of a document must not pass for what a host has not."""
    for path in _NEVER_LEFT_OUT:
        found = data
        for key in path:
            if key not in found:
                raise InputError(f"{name}: {'.'.join(path)}: is missing; {_REMEDY}")
            found = found[key]


def _wording(error: ValidationError) -> str:
    """The first keys that are wrong, each with its value and why."""
    told = [f"{_key(one.loc)}: {_why(one)}" for one in error.faults[:_SHOWN]]
    more = len(error.faults) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _why(fault: Fault) -> str:
    if fault.type == "missing":
        return fault.message
    shown = printable(json.dumps(fault.value, default=lambda _: "..."), _SHOWN_OF_A_VALUE)
    return f"{shown} {_WANTED.get(fault.type, fault.message)}"


def _key(place: tuple[int | str, ...]) -> str:
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return printable(words.removeprefix("."))
