"""The final check: every byte of every block against what it must be after the guest's writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.balloon import Balloon
from vmemu.content import ExpectedContent
from vmemu.guest_worker import Guest, Mismatch, mismatches


class Writer(Protocol):
    """Whoever has written to the guest's memory beside the guest."""

    def add_marks(self, index: int, marks: NDArray[np.uint8]) -> None:
        """Add what it has written to the marks of a block, a byte for each of its words."""


class Verification:
    """Compares complete blocks with what the guest, and the ``writers`` beside it, made of them.

    ``run`` is one long call for a thread of its own, ``stop`` ends it early.
    """

    def __init__(
        self,
        guest: Guest,
        expected: ExpectedContent,
        balloon: Balloon | None = None,
        writers: Sequence[Writer] = (),
    ) -> None:
        self._balloon = balloon
        self._writers = writers
        self._guest = guest
        self._expected = expected
        self._verify: Any = core.ffi.new("struct vm_verify *")

    def run(self) -> None:
        """Compare all blocks. They must be complete: a missing page would stop the calling
        thread. Raises CoreError when there is no memory for a page that a balloon has given back.
        """
        self._populate()
        for index, block in enumerate(self._guest.blocks):
            marks = self._guest.block_marks(index)
            pointer = core.ffi.NULL
            if marks is not None:
                for writer in self._writers:
                    writer.add_marks(index, marks)
                pointer = core.ffi.from_buffer("uint8_t[]", marks)
            host = core.ffi.cast("uint8_t *", block.address)
            content = core.ffi.addressof(self._expected.table, index)
            core.lib.vm_verify_block(
                self._verify, index, host, block.size, content, pointer, self._gone(index)
            )

    def _populate(self) -> None:
        """What a balloon has given back takes a page again when it is read; somebody else may have
        filled its tmpfs since, and to read it would be a SIGBUS."""
        maps = () if self._balloon is None else self._balloon.page_maps
        for block, page_map in zip(self._guest.blocks, maps, strict=False):
            if any(page_map):
                core.call(core.lib.vm_populate_read, block.address, block.size)

    def _gone(self, index: int) -> Any:
        """The block's pages that a balloon has given back, a byte a host page."""
        if self._balloon is None:
            return core.ffi.NULL
        return core.ffi.from_buffer("uint8_t[]", self._balloon.page_maps[index])

    def stop(self) -> None:
        """End it soon."""
        self._verify.stop = 1

    @property
    def bytes_checked(self) -> int:
        """Bytes compared so far."""
        return int(self._verify.bytes_checked)

    @property
    def bytes_wrong(self) -> int:
        """Bytes that differ so far."""
        return int(self._verify.bytes_wrong)

    def mismatches(self) -> list[Mismatch]:
        """The first differences, one a word."""
        return mismatches(self._guest.blocks, self._verify.mismatch, self._verify.noted)
