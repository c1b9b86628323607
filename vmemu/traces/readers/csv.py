"""Reader of comma-separated values with a header line that names the columns.

:mod:`vmemu.traces.tables.columns` says which names are known. Values may be separated by commas,
semicolons or tabs and stand in double quotes; lines that begin with ``#`` are comments.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from vmemu.core import ffi, lib
from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream
from vmemu.traces.tables.columns import Columns, meaning_of, understand
from vmemu.traces.text import TextReader

_ROLES = {
    "": "OTHER",
    "address": "ADDRESS",
    "virtual": "ADDRESS",
    "physical": "ADDRESS",
    "page": "PAGE",
    "offset": "OFFSET",
    "block": "BLOCK",
    "kind": "KIND",
    "write": "WRITE",
    "size": "SIZE",
    "stream": "STREAM",
    "time_ns": "TIME_NS",
    "time_us": "TIME_US",
    "time_ms": "TIME_MS",
    "time_s": "TIME_S",
    "time": "TIME_S",
}
_PLACES = ("address", "virtual", "physical", "page")
_HEADER = re.compile(rb"^(?![ \t]*(?:#|\r?$))([^\n]*)(?:\n|\Z)", re.MULTILINE)
"""The first line that is neither empty nor a comment."""
_HEX = re.compile(rb"[0-9a-fA-F]+")


class CsvReader(TextReader):
    """One stream a thread; an unnamed time is in seconds."""

    format = "csv"
    title = "CSV with named columns"
    address_kind = "unknown"
    missing: tuple[str, ...] = ()
    c_format = "VM_TEXT_CSV"

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        head = self._head()
        self._before, line, rest = _header(head)
        names, self._separator = _names(line)
        self._columns = understand(stream.name, names)
        if len(names) > lib.VM_CSV_COLUMNS:
            raise TraceError(f"{stream.name}: more than {lib.VM_CSV_COLUMNS} columns")
        self._hexadecimal = _is_hexadecimal(self._columns, rest, self._separator)
        self.address_kind = self._columns.address_kind
        self.missing = self._columns.missing
        stream.read(len(head) - len(rest))

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        _, line, _ = _header(head)
        names, _ = _names(line)
        return len(names) <= 1000 and any(
            meaning_of(name) in (*_PLACES, "offset") for name in names
        )

    def _begin(self, state: Any) -> None:
        roles = [_ROLES[meaning] for meaning in self._columns.meanings]
        if self._hexadecimal:
            roles[self._columns.place] = "ADDRESS_HEX"
        codes = np.array([getattr(lib, f"VM_CSV_{role}") for role in roles], np.uint8)
        pointer = ffi.from_buffer("uint8_t[]", codes)
        lib.vm_csv_begin(state, self._separator, pointer, len(codes))
        state.lines = self._before + 1


def _header(head: bytes) -> tuple[int, bytes, bytes]:
    """Lines before the header, the header, and what is behind it."""
    match = _HEADER.search(head)
    if match is None:
        return head.count(b"\n"), b"", b""
    return head.count(b"\n", 0, match.start()), match[1].rstrip(b"\r"), head[match.end() :]


def _names(line: bytes) -> tuple[list[str], bytes]:
    """The names in a header, and what separates them."""
    separator = max((b",", b";", b"\t"), key=line.count)
    names = [name.strip(b" \"'").decode("utf-8", "replace") for name in line.split(separator)]
    return names, separator


def _is_hexadecimal(columns: Columns, lines: bytes, separator: bytes) -> bool:
    """Whether addresses are hexadecimal without saying so: all look it, and one has a letter."""
    if columns.meanings[columns.place] == "page" or columns.address_kind == "ram-block":
        return False
    values = [
        fields[columns.place].strip(b' "\r')
        for line in lines.split(b"\n")[:-1]
        if not line.startswith(b"#")
        and len(fields := line.split(separator)) == len(columns.meanings)
    ]
    digits = [value for value in values if _HEX.fullmatch(value)]
    return len(digits) * 2 > len(values) and any(not value.isdigit() for value in digits)
