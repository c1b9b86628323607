"""Reader of the traces of Ramulator 1 and 2, of which ``_core/text/ramulator.c`` has the lines.

An instruction trace has nothing but numbers, so it is known only if every line of its head could
be one: no numbers that rise from line to line before the addresses, and whole words as addresses.
"""

from __future__ import annotations

import re

import numpy as np

from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream
from vmemu.traces.text import TextReader, whole_lines

_NUMBER = rb"(?:0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})"
_LOAD_STORE = re.compile(rb"(?:LD|ST) +" + _NUMBER + rb"((?: +[0-9]{1,3})*)\s*")
_READ_WRITE = re.compile(rb"(?:0[xX])?[0-9a-fA-F]{1,16} +[RW]\s*")
_INSTRUCTION = re.compile(rb" *([0-9]{1,9}) +(" + _NUMBER + rb")(?: +(" + _NUMBER + rb"|[RW]))?\s*")
_VECTOR = re.compile(rb"[RW] +-?[0-9]+(?:,-?[0-9]+)+\s*")

_LEAST_LINES = 2
_WORD = 8
_PAGE = 4096


class RamulatorReader(TextReader):
    """One stream: a file is what one core or one memory controller does."""

    format = "ramulator"
    title = "Ramulator trace"
    address_kind = "unknown"
    missing: tuple[str, ...] = ("times", "threads", "sizes", "modifies", "instruction_fetches")
    c_format = "VM_TEXT_RAMULATOR"

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        first = whole_lines(self._head())[0]
        if _VECTOR.fullmatch(first):
            raise TraceError(
                f"{stream.name}: a Ramulator trace of places in DRAM (channel, rank, ..., column),"
                " which are no addresses",
                "use the LoadStoreTrace that it was made from",
            )
        load_store = _LOAD_STORE.fullmatch(first)
        if load_store or _READ_WRITE.fullmatch(first):
            self.address_kind = "guest-physical"
        if load_store and load_store[1]:
            self.missing = tuple(key for key in self.missing if key != "sizes")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        lines = whole_lines(head)
        return bool(lines) and (
            any(
                all(form.fullmatch(line) for line in lines)
                for form in (_LOAD_STORE, _READ_WRITE, _VECTOR)
            )
            or _are_instructions(lines)
        )


def _are_instructions(lines: list[bytes]) -> bool:
    matches = [_INSTRUCTION.fullmatch(line) for line in lines]
    if len(lines) < _LEAST_LINES or not all(matches):
        return False
    rows = [match.groups() for match in matches if match]
    counts = np.array([int(row[0]) for row in rows])
    if len(rows) > _LEAST_LINES and (np.diff(counts) > 0).all():
        return False
    if all(row[2] in (b"R", b"W") for row in rows):
        return True
    numbers = [field for row in rows for field in row[1:] if field not in (None, b"R", b"W")]
    addresses = [int(field, 16 if field[1:2] in b"xX" else 10) for field in numbers]
    return max(addresses) >= _PAGE and all(address % _WORD == 0 for address in addresses)
