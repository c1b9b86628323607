"""What the readers of text formats share: lines are parsed in C (``_core/text``).

The last line counts only with its newline: without it, it may have been cut in the middle of a
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vmemu.core import ffi, lib
from vmemu.traces.reader import BlockBase, Chunk, Reader, by_stream

_BUFFER_BYTES = 1 << 22
_ACCESSES_A_CHUNK = 1 << 18


class TextReader(Reader):
    """A reader whose lines the C core understands, in the format ``c_format``."""

    c_format: ClassVar[str]
    """Of ``enum vm_text_format``, such as ``VM_TEXT_LACKEY``."""
    drop_reasons: ClassVar[tuple[str, ...]] = ()
    """What the counters ``dropped`` of ``struct vm_text`` are called in the tally."""

    def chunks(self) -> Iterator[Chunk]:
        text = bytearray(_BUFFER_BYTES)
        view = memoryview(text)
        parser = _Parser(getattr(lib, self.c_format), self.fetches)
        self._begin(parser.state)
        left = 0
        while got := self.stream.readinto(view[left:]):
            end = left + got
            start = 0
            while True:
                start += parser.parse(view[start:end])
                self._take_counts(parser.state)
                if not parser.state.filled:
                    break
                yield from self._chunks(*parser.columns(timed="times" not in self.missing))
            # A slice of a bytearray is a copy, so the two ranges may overlap.
            left = end - start
            text[:left] = text[start:end]
            self._refuse_mostly_unknown(int(parser.state.lines - parser.state.unknown))
        self._finish(parser.state)
        self.tally.truncated = self.stream.truncated or left > 0 or bool(parser.state.in_long_line)

    def _chunks(
        self,
        streams: NDArray[np.uint32],
        addresses: NDArray[np.uint64],
        kinds: NDArray[np.uint8],
        sizes: NDArray[np.uint16],
        times: NDArray[np.uint64] | None,
    ) -> Iterator[Chunk]:
        """The accesses that C has written; a format may mean something else with the columns."""
        return by_stream(streams, addresses, kinds, sizes, times)

    def _begin(self, state: Any) -> None:
        """Tells C what the format's function must know before its first line."""

    def _finish(self, state: Any) -> None:
        """Takes over what C knows when all lines have been read."""
        if self.address_kind == "ram-block":
            names = [
                ffi.string(state.block[i]).decode("utf-8", "replace") for i in range(state.blocks)
            ]
            self.blocks = tuple(
                BlockBase(name, i << lib.VM_TEXT_BLOCK_SHIFT) for i, name in enumerate(names)
            )

    def _take_counts(self, state: Any) -> None:
        """Takes over what C has counted so far; called before the accesses of a call are given."""
        tally = self.tally
        tally.instruction_fetches = int(state.fetches)
        tally.unknown_lines = int(state.unknown)
        counts = zip(self.drop_reasons, state.dropped, strict=False)
        tally.dropped = {reason: int(count) for reason, count in counts if count}
        if tally.unknown_lines and not tally.first_unknown:
            raw = bytes(ffi.buffer(state.first_unknown_text))[: state.first_unknown_length]
            tally.first_unknown = f"line {int(state.first_unknown)}: {raw.decode('latin-1')!r}"


def whole_lines(head: bytes) -> list[bytes]:
    """The lines of a head that a format can be told by: neither empty, nor comments, nor cut off,
    nor so long that they are unknown in every format."""
    return [
        line
        for line in head.split(b"\n")[:-1]
        if len(line) < lib.VM_TEXT_MAX_LINE and (text := line.lstrip()) and text[:1] != b"#"
    ]


class _Parser:
    """The C parser with the columns that it fills, used again for every call."""

    def __init__(self, c_format: int, fetches: bool) -> None:
        self._format = c_format
        self._streams = np.empty(_ACCESSES_A_CHUNK, np.uint32)
        self._addresses = np.empty(_ACCESSES_A_CHUNK, np.uint64)
        self._kinds = np.empty(_ACCESSES_A_CHUNK, np.uint8)
        self._sizes = np.empty(_ACCESSES_A_CHUNK, np.uint16)
        self._times = np.empty(_ACCESSES_A_CHUNK, np.uint64)
        self.state = ffi.new("struct vm_text *")
        self.state.keep_fetches = fetches
        out = self.state.out
        self._keep = []
        for name, ctype in (
            ("addresses", "uint64_t[]"),
            ("times", "uint64_t[]"),
            ("streams", "uint32_t[]"),
            ("sizes", "uint16_t[]"),
            ("kinds", "uint8_t[]"),
        ):
            pointer = ffi.from_buffer(ctype, getattr(self, f"_{name}"), require_writable=True)
            setattr(out, name, pointer)
            self._keep.append(pointer)
        out.capacity = _ACCESSES_A_CHUNK

    def parse(self, text: memoryview) -> int:
        """Bytes of ``text`` consumed; ``state.filled`` accesses are in the columns."""
        with ffi.from_buffer("char[]", text) as raw:
            return int(lib.vm_text_parse(self.state, self._format, raw, len(text)))

    def columns(self, *, timed: bool) -> tuple[Any, ...]:
        """What the last call filled: streams, addresses, kinds, sizes, and times or None."""
        filled = int(self.state.filled)
        times = self._times[:filled] if timed else None
        return (
            self._streams[:filled],
            self._addresses[:filled],
            self._kinds[:filled],
            self._sizes[:filled],
            times,
        )
