"""What every byte of a block must be, as the C core wants to hear it (``_core/content.h`` has the
functions)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmemu import core
from vmemu.errors import InputError
from vmemu.ramblock import RAMBlock

ALL = (1 << 64) - 1
"""A threshold on a 64-bit random number that every number is below."""


@dataclass(frozen=True)
class ContentSpec:
    """A block's content before the guest runs: made from the seed, or a file followed by zeros.

    ``zero_share`` (0 to 1) of the host pages are zeros, chosen by the seed; only for seeded
    content.
    """

    zero_share: float = 0.0
    path: str | None = None


def key_of(seed: int, name: str) -> int:
    """64 bits that differ for each (seed, name): the block's content follows from them alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def threshold(share: float) -> int:
    """The number below which ``share`` of all 64-bit numbers lie; ALL stands for every one of
    them."""
    return ALL if share >= 1 else int(share * (1 << 64))


def read_into(path: str, memory: Any) -> None:
    """Read a file into a writable buffer. Raises InputError, also when the file is longer."""
    try:
        with open(path, "rb") as file:
            file.readinto(memory)
            longer = file.read(1)
    except OSError as error:
        raise InputError(f"content file {path}: {error.strerror}") from None
    if longer:
        raise InputError(f"content file {path} is longer than its block of {len(memory)} bytes")


class ExpectedContent:
    """The ``struct vm_content`` of each block, and the files' bytes that they point into."""

    def __init__(self, seed: int, blocks: Sequence[RAMBlock], specs: Sequence[ContentSpec]) -> None:
        self.table = core.ffi.new("struct vm_content[]", len(blocks))
        self._files: list[Any] = []
        for entry, block, spec in zip(self.table, blocks, specs, strict=True):
            fill_entry(entry, seed, block.name, block.page_shift, spec.zero_share)
            if spec.path is not None:
                memory = core.ffi.new("uint8_t[]", block.size)  # zeros behind the file's bytes
                read_into(spec.path, core.ffi.buffer(memory))
                entry.file = self._keep(memory)

    def _keep(self, memory: Any) -> Any:
        self._files.append(memory)
        return memory


def fill_entry(entry: Any, seed: int, name: str, page_shift: int, zero_share: float) -> None:
    """Fill one ``struct vm_content`` for seeded content."""
    entry.key = key_of(seed, name)
    entry.zero_below = threshold(zero_share)
    entry.page_shift = page_shift
    entry.file = core.ffi.NULL
