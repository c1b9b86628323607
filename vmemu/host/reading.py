"""A host document from a file: what ``vmemu doctor --json`` wrote, here or on another host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vmemu.errors import InputError
from vmemu.host.document import SCHEMA, HostDocument
from vmemu.model.faults import ValidationError
from vmemu.units import printable

_REMEDY = "write one with: vmemu doctor --json FILE"
_SHOWN = 3


def read(path: str) -> HostDocument:
    """The document in a file, or on standard input for ``-``. Raises InputError, a line that says
    which key is wrong, for anything else."""
    name = "standard input" if path == "-" else path
    return parse(_bytes(path, name), name)


def parse(content: bytes, name: str) -> HostDocument:
    """The document in ``content``; ``name`` is what errors call it. Raises InputError."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON: {error}; {_REMEDY}") from None
    _check_schema(data, name)
    try:
        return HostDocument.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{name}: {_wording(error)}; {_REMEDY}") from None


def _bytes(path: str, name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}; {_REMEDY}") from None
    except ValueError as error:  # a name with a NUL in it
        raise InputError(f"{printable(name)}: {error}") from None


def _check_schema(data: Any, name: str) -> None:
    if not isinstance(data, dict):
        raise InputError(f"{name}: no host document: not an object; {_REMEDY}")
    schema = data.get("schema")
    if schema is None:
        raise InputError(f"{name}: no host document: it has no schema; {_REMEDY}")
    if schema != SCHEMA:
        what = f"its schema is {printable(repr(schema))}, and this version reads {SCHEMA}"
        raise InputError(f"{name}: {what}; {_REMEDY}")


def _wording(error: ValidationError) -> str:
    """The first keys that are wrong, each with why."""
    told = [f"{_key(one.loc)}: {one.message}" for one in error.faults[:_SHOWN]]
    more = len(error.faults) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _key(place: tuple[int | str, ...]) -> str:
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return printable(words.removeprefix("."))
