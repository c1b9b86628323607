"""Reader of the text of valgrind's lackey: ``valgrind --tool=lackey --trace-mem=yes COMMAND``.

The lines are parsed in C (``_core/lackey.c`` says what they look like). The last line counts only
with its newline: without it, it may have been cut in the middle of a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from vmemu.core import ffi, lib
from vmemu.traces.reader import Chunk, Reader

_BUFFER_BYTES = 1 << 22
_ACCESSES_A_CHUNK = 1 << 18
_SNIFF_SHARE = 2

_ACCESS_LINE = re.compile(rb"(?:I | [LSM]) [0-9a-fA-F]{1,16},[0-9]{1,4}\r?")
_OWN_LINE = re.compile(rb"(==|--|\*\*)[0-9]+\1")


class LackeyReader(Reader):
    """One stream: lackey does not tell threads apart."""

    format = "lackey"
    title = "valgrind lackey text"
    address_kind = "virtual"
    missing = ("times", "threads")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        lines = head.split(b"\n")[:-1]
        if any(b"== Lackey, an example Valgrind tool" in line for line in lines[:100]):
            return True
        others = [line for line in lines if not _OWN_LINE.match(line)]
        accesses = sum(1 for line in others if _ACCESS_LINE.fullmatch(line))
        return accesses > 0 and accesses * _SNIFF_SHARE >= len(others)

    def chunks(self) -> Iterator[Chunk]:
        text = bytearray(_BUFFER_BYTES)
        view = memoryview(text)
        columns = _Columns()
        state = ffi.new("struct vm_lackey *")
        left = 0
        while got := self.stream.readinto(view[left:]):
            end = left + got
            start = 0
            while True:
                start += columns.parse(state, view[start:end], self.fetches)
                if not state.filled:
                    break
                yield columns.chunk(int(state.filled))
            # A slice of a bytearray is a copy, so the two ranges may overlap.
            left = end - start
            text[:left] = text[start:end]
            self._take_counts(state)
            self._refuse_mostly_unknown(int(state.lines - state.unknown))
        self.tally.truncated = self.stream.truncated or left > 0 or bool(state.in_long_line)

    def _take_counts(self, state: Any) -> None:
        tally = self.tally
        tally.instruction_fetches = int(state.fetches)
        tally.unknown_lines = int(state.unknown)
        if tally.unknown_lines and not tally.first_unknown:
            raw = bytes(ffi.buffer(state.first_unknown_text))[: state.first_unknown_length]
            tally.first_unknown = f"line {int(state.first_unknown)}: {raw.decode('latin-1')!r}"


class _Columns:
    """The arrays that C fills, used again for every chunk."""

    def __init__(self) -> None:
        self.addresses = np.empty(_ACCESSES_A_CHUNK, np.uint64)
        self.kinds = np.empty(_ACCESSES_A_CHUNK, np.uint8)
        self.sizes = np.empty(_ACCESSES_A_CHUNK, np.uint16)
        self._pointers = (
            ffi.from_buffer("uint64_t[]", self.addresses, require_writable=True),
            ffi.from_buffer("uint8_t[]", self.kinds, require_writable=True),
            ffi.from_buffer("uint16_t[]", self.sizes, require_writable=True),
        )

    def parse(self, state: Any, text: memoryview, fetches: bool) -> int:
        """Bytes of ``text`` consumed; ``state.filled`` accesses are in the columns."""
        with ffi.from_buffer("char[]", text) as raw:
            return int(
                lib.vm_lackey_parse(
                    state, raw, len(text), fetches, *self._pointers, _ACCESSES_A_CHUNK
                )
            )

    def chunk(self, filled: int) -> Chunk:
        return Chunk(0, self.addresses[:filled], self.kinds[:filled], self.sizes[:filled])
