"""The messages between source and destination: one table that both ends use and the C core is
checked against.

Every message in either direction is a header of 24 bytes, little-endian, then ``length`` bytes of
payload::

    byte  0  u16 type      Message
          2  u16 flags     FLAG_URGENT
          4  u32 block     index in the table of HELLO
          8  u64 offset    first byte in the block, whole host pages
         16  u32 pages     host pages that are meant
         20  u32 length    bytes that follow

HELLO, READY and FAILED carry JSON or text; a request carries a block's name, once, until another
block is meant. Page messages and requests are only ever handled in C (``_core/wire.h``).
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, NamedTuple

from vmemu.errors import ProtocolError

VERSION = 1
HEADER = struct.Struct("<HHIQII")
FLAG_URGENT = 1
MAX_CONTROL_PAYLOAD = 1 << 20
"""The longest JSON that an end accepts, in bytes."""


class Message(enum.IntEnum):
    """Message types; below 16 from the source, from 16 on the return path. As ``enum
    vm_message``."""

    HELLO = 1
    LISTEN = 2
    RUN = 3
    PAGES = 4
    ZERO = 5
    COMPLETE = 6
    FAILED = 7
    READY = 16
    REQ_PAGES = 17
    REQ_PAGES_ID = 18
    PUSH = 19
    SHUT = 20


class Header(NamedTuple):
    """A header as it travels."""

    type: int
    flags: int = 0
    block: int = 0
    offset: int = 0
    pages: int = 0
    length: int = 0

    def pack(self) -> bytes:
        """The 24 bytes."""
        return HEADER.pack(*self)

    @property
    def name(self) -> str:
        """The type's name, for messages to people."""
        return Message(self.type).name if self.type in set(Message) else f"type {self.type}"


class BlockEntry(NamedTuple):
    """A block as HELLO announces it; sizes in bytes."""

    name: str
    size: int
    page_size: int


def pack_hello(blocks: list[BlockEntry], target_page_size: int) -> bytes:
    """The payload of HELLO."""
    hello = {
        "version": VERSION,
        "target_page_size": target_page_size,
        "blocks": [block._asdict() for block in blocks],
    }
    return json.dumps(hello).encode()


def unpack_hello(payload: bytes) -> tuple[list[BlockEntry], int]:
    """(blocks, target page size). Raises ProtocolError for anything but a HELLO of this version."""
    hello = _load(payload)
    if type(hello.get("version")) is not int or hello["version"] != VERSION:
        raise ProtocolError(
            f"the source speaks version {hello.get('version')!r}, this end {VERSION}"
        )
    try:
        blocks = [_block_entry(entry) for entry in hello["blocks"]]
        return blocks, _whole(hello["target_page_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"HELLO is not well formed: {error!r}") from None


def _block_entry(entry: Any) -> BlockEntry:
    name = entry["name"]
    if not isinstance(name, str):
        raise TypeError(f"a block's name is {name!r}")
    return BlockEntry(name, _whole(entry["size"]), _whole(entry["page_size"]))


def _whole(value: Any) -> int:
    """A JSON number that is whole and not negative; neither ``true`` nor ``1e3`` is one."""
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no number of bytes")
    return value


def _load(payload: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"HELLO carries no JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise ProtocolError("HELLO carries no JSON object")
    return loaded
