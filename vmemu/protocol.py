"""The messages between source and destination: one table that both ends use and the C core is
checked against.

Every message in either direction is a header of 40 bytes, little-endian, then ``length`` bytes of
payload::

    byte  0  u16 type      Message
          2  u16 flags     FLAG_*
          4  u32 block     index in the table of HELLO
          8  u64 offset    first byte in the block, whole host pages
         16  u32 pages     host pages that are meant; target pages (4 KiB) in pre-copy
         20  u32 length    bytes that follow
         24  u64 queued    when the source read the request that this answers, ns, or 0
             i64 stride    of a request with FLAG_AHEAD: from one page to the next, in pages
         32  u64 sent      when it began to send the answer, ns, or 0

HELLO, ADVISE, FLIP and FAILED carry JSON or text, DISCARD ranges; a request carries a block's
name, once, until another block is meant. Page messages and requests are only ever handled in C
(``_core/wire.h``).
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, NamedTuple

from vmemu.errors import ProtocolError
from vmemu.units import counted, format_size

VERSION = 2
HEADER = struct.Struct("<HHIQIIQQ")
FLAG_URGENT = 1
FLAG_IN_IMAGE = 2
FLAG_AROUND = 4
FLAG_AHEAD = 8
MAX_CONTROL_PAYLOAD = 1 << 20
"""The longest JSON that an end accepts, in bytes."""
MAX_DISCARDS_PER_COMMAND = 12
"""Ranges of one block that a DISCARD carries at most, as in QEMU."""
_RANGE = struct.Struct("<QQ")


class Message(enum.IntEnum):
    """Message types; below 16 from the source, from 16 on the return path. As ``enum
    vm_message``."""

    HELLO = 1
    PRECOPY_PAGES = 2
    PRECOPY_ZERO = 3
    ROUND = 4
    FLIP = 5
    DISCARD = 6
    LISTEN = 7
    RUN = 8
    PAGES = 9
    ZERO = 10
    COMPLETE = 11
    FAILED = 12
    ELSEWHERE = 15
    ADVISE = 16
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
    queued_ns: int = 0
    sent_ns: int = 0

    def pack(self) -> bytes:
        """The bytes."""
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


class Summary(NamedTuple):
    """What both ends tell each other at advise: QEMU's summary of page sizes, and the blocks."""

    blocks: list[BlockEntry]
    target_page_size: int

    @property
    def page_sizes(self) -> int:
        """All page sizes in use, each a bit, as QEMU's ram_pagesize_summary."""
        summary = 0
        for block in self.blocks:
            summary |= block.page_size
        return summary

    def pack(self) -> bytes:
        """The payload of HELLO and ADVISE."""
        document = {
            "version": VERSION,
            "target_page_size": self.target_page_size,
            "page_sizes": self.page_sizes,
            "blocks": [block._asdict() for block in self.blocks],
        }
        return json.dumps(document).encode()

    def differences(self, theirs: Summary) -> list[str]:
        """What differs in the source's summary from ours, in words."""
        found = []
        if theirs.target_page_size != self.target_page_size:
            found.append(
                f"target page size {theirs.target_page_size} at the source, "
                f"{self.target_page_size} here"
            )
        if [block.name for block in self.blocks] != [block.name for block in theirs.blocks]:
            here = ", ".join(block.name for block in self.blocks)
            there = ", ".join(block.name for block in theirs.blocks)
            return [*found, f"blocks {there} at the source, {here} here"]
        for our, their in zip(self.blocks, theirs.blocks, strict=True):
            name = our.name
            if our.size != their.size:
                sizes = f"{counted(their.size, 'byte')} at the source, {our.size} here"
                found.append(f"block {name}: {sizes}")
            if our.page_size != their.page_size:
                there, here = format_size(their.page_size), format_size(our.page_size)
                found.append(f"block {name}: pages of {there} at the source, {here} here")
        return found


def unpack_summary(payload: bytes) -> Summary:
    """Read the payload of HELLO or ADVISE. Raises ProtocolError for anything but this version."""
    document = load_object(payload)
    if type(document.get("version")) is not int or document["version"] != VERSION:
        raise ProtocolError(
            f"the other end speaks version {document.get('version')!r}, this end {VERSION}"
        )
    try:
        blocks = [_block_entry(entry) for entry in document["blocks"]]
        summary = Summary(blocks, _whole(document["target_page_size"]))
        page_sizes = _whole(document["page_sizes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the summary of blocks is not well formed: {error!r}") from None
    if page_sizes != summary.page_sizes:
        raise ProtocolError(
            f"the summary of page sizes is {page_sizes:#x}, that of the blocks "
            f"{summary.page_sizes:#x}"
        )
    return summary


def pack_discard(name: str, ranges: list[tuple[int, int]]) -> bytes:
    """The payload of DISCARD: (offset, length) in bytes, at most 12 of one block."""
    encoded = name.encode()
    return bytes([len(encoded)]) + encoded + b"".join(_RANGE.pack(*one) for one in ranges)


def unpack_discard(payload: bytes) -> tuple[str, list[tuple[int, int]]]:
    """(block name, ranges). Raises ProtocolError."""
    size = payload[0] if payload else 0
    name, ranges = payload[1 : 1 + size], payload[1 + size :]
    if len(name) != size or not size or len(ranges) % _RANGE.size:
        raise ProtocolError(f"a discard of {counted(len(payload), 'byte')} is not well formed")
    count = len(ranges) // _RANGE.size
    if not 1 <= count <= MAX_DISCARDS_PER_COMMAND:
        raise ProtocolError(
            f"a discard has {counted(count, 'range')}; 1 to {MAX_DISCARDS_PER_COMMAND} are allowed"
        )
    found = [_RANGE.unpack_from(ranges, at * _RANGE.size) for at in range(count)]
    return name.decode(errors="replace"), [(offset, length) for offset, length in found]


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


def load_object(payload: bytes) -> dict[str, Any]:
    """A JSON object from a peer. Raises ProtocolError."""
    try:
        loaded = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a control message carries no JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise ProtocolError("a control message carries no JSON object")
    return loaded
