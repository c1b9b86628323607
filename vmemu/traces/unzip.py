"""Zip archives read forwards: the members' bytes one behind the other, in the archive's order.

The list of members at an archive's end is not needed, so a pipe works without any disk, and an
archive without its end (DynamoRIO writes it when a thread ends) gives the members that are there.
Memory is bounded whatever the archive claims to unpack to.

A member, little-endian::

    byte  0  u32  "PK\\3\\4"
    byte  4  u16  version needed
    byte  6  u16  flags: bit 0 encrypted, bit 3 checksum and sizes stand behind the data
    byte  8  u16  method: 0 stored, 8 deflate
    byte 10  u32  time and date
    byte 14  u32  CRC-32 of what it unpacks to
    byte 18  u32  bytes packed; all ones: in the extra field 1 (zip64)
    byte 22  u32  bytes unpacked; likewise
    byte 26  u16  bytes of the name
    byte 28  u16  bytes of extra fields
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

from vmemu.errors import TraceError

MAGIC = b"PK\x03\x04"
_DIRECTORY_MAGICS = (b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x08")
_END = b"PK\x05\x06"
EMPTY_MAGIC = _END
"""An archive without members begins with its end."""
_END_BYTES = 22
_DESCRIPTOR = b"PK\x07\x08"
_HEADER = struct.Struct("<HHHIIIIHH")
_ENCRYPTED, _SIZES_BEHIND = 1, 8
_STORED, _DEFLATED = 0, 8
_IN_EXTRA = 0xFFFFFFFF
_ZIP64 = 1
_READ_SIZE = 1 << 18


class ZipStream:
    """The unpacked bytes of all members.

    ``read1`` raises ``EOFError`` where the archive is cut off, ``zlib.error`` on damaged data, and
    ``TraceError`` on a member that can't be read forwards.
    """

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name = name
        self._input = _Input(file)
        self._parts = self._members()
        self._left = b""

    def read1(self, size: int, /) -> bytes:
        """At least one and at most ``size`` bytes; none at the end."""
        if not self._left:
            self._left = next(self._parts, b"")
        part, self._left = self._left[:size], self._left[size:]
        return part

    def close(self) -> None:
        """The file below is its owner's to close."""

    def _members(self) -> Iterator[bytes]:
        source = self._input
        while (magic := source.exactly(4)) == MAGIC:
            fields = _HEADER.unpack(source.exactly(_HEADER.size))
            _, flags, method, _, crc, packed, unpacked, name_bytes, extra_bytes = fields
            member = source.exactly(name_bytes).decode("utf-8", "replace")
            packed = _packed_size(packed, unpacked, source.exactly(extra_bytes))
            known = not flags & _SIZES_BEHIND
            self._refuse_unreadable(member, flags, method, known)
            parts = source.inflated() if method == _DEFLATED else source.stored(packed)
            before = source.consumed
            sum_so_far = 0
            for part in parts:
                sum_so_far = zlib.crc32(part, sum_so_far)
                yield part
            if not known:
                crc = self._descriptor(source.consumed - before)
            elif source.consumed - before != packed:
                raise zlib.error(f"member {member!r} has not the size that it claims")
            if sum_so_far != crc:
                raise zlib.error(f"the checksum of member {member!r} is wrong")
        if magic not in _DIRECTORY_MAGICS:
            raise zlib.error("neither a member nor the directory where one must be")
        if not source.drain(magic, _END, _END_BYTES):
            raise EOFError

    def _refuse_unreadable(self, member: str, flags: int, method: int, known: bool) -> None:
        if flags & _ENCRYPTED:
            raise TraceError(
                f"{self._name}: member {member!r} is encrypted",
                "unpack it: unzip -p -P PASSWORD FILE | vmemu trace convert - OUT.vmtrace",
            )
        if method not in (_STORED, _DEFLATED) or (method == _STORED and not known):
            how = f"with method {method}" if known else "as it was, without its size before it"
            raise TraceError(
                f"{self._name}: member {member!r} is packed {how}, which can't be read here",
                "unpack it: unzip -p FILE | vmemu trace convert - OUT.vmtrace",
            )

    def _descriptor(self, packed: int) -> int:
        """The CRC-32 behind a member's data. Its magic is optional, its sizes have 4 or 8 bytes."""
        first = self._input.exactly(4)
        crc = self._input.exactly(4) if first == _DESCRIPTOR else first
        wide = packed > _IN_EXTRA or self._input.peek(12)[8:12] not in (MAGIC, *_DIRECTORY_MAGICS)
        self._input.exactly(16 if wide else 8)
        return int.from_bytes(crc, "little")


class _Input:
    """The archive's bytes; ``consumed`` counts those that were taken."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ahead = b""
        self.consumed = 0

    def peek(self, size: int) -> bytes:
        """The next bytes, fewer only at the end."""
        while len(self._ahead) < size and (more := self._file.read(_READ_SIZE)):
            self._ahead += more
        return self._ahead[:size]

    def exactly(self, size: int) -> bytes:
        part = self.peek(size)
        if len(part) < size:
            raise EOFError
        self._take(size)
        return part

    def stored(self, size: int) -> Iterator[bytes]:
        while size:
            part = self._some()[:size]
            self._take(len(part))
            size -= len(part)
            yield part

    def inflated(self) -> Iterator[bytes]:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        while not inflater.eof:
            part = self._some()
            unpacked = inflater.decompress(part, _READ_SIZE)
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            self._take(len(part) - len(rest))
            if unpacked:
                yield unpacked

    def drain(self, begin: bytes, mark: bytes, least: int) -> bool:
        """Reads to the end; whether ``mark`` and what belongs to it stood near it.

        A producer in a pipe is not cut off that way.
        """
        limit = least + 0xFFFF
        tail = begin
        while part := self.peek(1) and self._ahead:
            self._take(len(part))
            tail = (tail + part)[-limit:]
        at = tail.rfind(mark)
        return at >= 0 and len(tail) - at >= least

    def _some(self) -> bytes:
        if not self.peek(1):
            raise EOFError
        return self._ahead

    def _take(self, size: int) -> None:
        self._ahead = self._ahead[size:]
        self.consumed += size


def _packed_size(packed: int, unpacked: int, extra: bytes) -> int:
    """Bytes of the packed data; in a zip64 member they are in an extra field."""
    while packed == _IN_EXTRA and len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        if tag == _ZIP64:
            # It holds only those of the two sizes that do not fit, unpacked before packed.
            at = 4 + 8 * (unpacked == _IN_EXTRA)
            return int.from_bytes(extra[at : at + 8], "little")
        extra = extra[4 + size :]
    return packed
