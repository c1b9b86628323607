"""Recordings as a stream of bytes, whatever they are compressed with.

The compression is told by the first bytes, never by the name: zstd (windows up to 2^27 bytes),
gzip, xz, bzip2, zip (its members one behind the other), or none. A stream that ends in the middle
of its compressed data gives what was whole and has ``truncated`` set; damaged data is a
``TraceError``, and so is lz4 or snappy, with the command that unpacks it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from types import TracebackType
from typing import IO, Protocol, cast

from vmemu.errors import TraceError
from vmemu.inputfile import denied, open_input
from vmemu.traces.unzip import EMPTY_MAGIC as EMPTY_ZIP_MAGIC
from vmemu.traces.unzip import MAGIC as ZIP_MAGIC
from vmemu.traces.unzip import ZipStream
from vmemu.units import printable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_WINDOW_LOG = 27
_MAGIC_BYTES = 10
_UNPACKERS = (
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -d"),
    (b"\x02\x21\x4c\x18", "lz4", "lz4 -d"),
    (b"\xff\x06\x00\x00sNaPpY", "snappy", "snzip -d"),
)
"""What is refused: the first bytes, what it is, and what unpacks it."""
_READ_SIZE = 1 << 18


class _Raw(Protocol):
    def read1(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class ByteStream:
    """The uncompressed bytes of one input, read forwards once.

    ``name`` is what messages call it; ``truncated`` is set when the end was reached in the middle
    of the compressed data. Every method that reads raises ``TraceError`` on damaged data.
    """

    def __init__(
        self,
        name: str,
        raw: _Raw,
        owned: tuple[_Raw | IO[bytes], ...] = (),
        file: IO[bytes] | None = None,
    ) -> None:
        """``file``: what ``raw`` takes its bytes from, for ``position``."""
        self.name = name
        self.truncated = False
        self._file = file
        self._size = None if file is None else _size_of(file)
        self._raw = raw
        self._owned = owned
        self._ahead = b""
        self.looked_at = 0
        """Bytes that ``head`` was asked for, at most."""
        self._ended = False

    def head(self, size: int) -> bytes:
        """The next bytes, at most ``size`` of them, without taking them from the stream."""
        self.looked_at = max(self.looked_at, size)
        while len(self._ahead) < size:
            more = self._read_raw(_READ_SIZE)
            if not more:
                break
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer only at the end."""
        buffer = bytearray(size)
        return bytes(memoryview(buffer)[: self.readinto(buffer)])

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fills ``buffer``; returns the bytes it got, fewer than its length only at the end."""
        view = memoryview(buffer)
        filled = 0
        while filled < len(view):
            part = self._take(len(view) - filled)
            if not part:
                break
            view[filled : filled + len(part)] = part
            filled += len(part)
        return filled

    def position(self) -> tuple[int, int | None]:
        """Bytes of the input consumed, as they lie on disk, and its size if it is a file."""
        if self._file is None or self._size is None:
            return 0, None
        return self._file.tell(), self._size

    def seekable_file(self) -> IO[bytes] | None:
        """The file itself, for a format whose index is at its end; None when there is only a stream
        of it: it is compressed, or no regular file. Once taken, nothing else may be read here."""
        plain = cast(object, self._raw) is self._file and self._size is not None
        return self._file if plain else None

    def close(self) -> None:
        for file in self._owned:
            file.close()

    def __enter__(self) -> ByteStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, size: int) -> bytes:
        if not self._ahead:
            return self._read_raw(min(size, _READ_SIZE))
        part, self._ahead = self._ahead[:size], self._ahead[size:]
        return part

    def _read_raw(self, size: int) -> bytes:
        # read1 and not read: when the data ends too early, a read loses what it had gathered.
        if self._ended:
            return b""
        try:
            part = self._raw.read1(size)
        except EOFError:
            self.truncated = True
            part = b""
        except (zstd.ZstdError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
            raise TraceError(f"{self.name}: the compressed data is damaged: {error}") from None
        except OSError as error:
            raise TraceError(f"{self.name}: can't be read: {error.strerror or error}") from None
        self._ended = not part
        return part


def open_stream(path: str | os.PathLike[str]) -> ByteStream:
    """Opens a file, or standard input for ``-``. Raises ``TraceError`` when that can't be done."""
    if os.fspath(path) == "-":
        if sys.stdin is None:
            raise TraceError("standard input: it is closed")
        return _decompressing("standard input", _buffered(sys.stdin.buffer), owned=False)
    name = os.fspath(path)
    try:
        file = open_input(path)
    except PermissionError:
        what, remedy = denied(name)
        raise TraceError(f"{name}: {what}", remedy) from None
    except OSError as error:
        raise TraceError(f"{name}: can't be opened: {error.strerror}") from None
    except ValueError as error:  # a name with a NUL in it
        raise TraceError(f"{printable(name)}: {error}") from None
    try:
        return _decompressing(name, file, owned=True)
    except BaseException:
        file.close()
        raise


def _size_of(file: IO[bytes]) -> int | None:
    """Bytes of a regular file; None for a pipe and for what is no file of the system's."""
    try:
        about = os.fstat(file.fileno())
    except OSError:
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _buffered(file: IO[bytes]) -> io.BufferedReader:
    if isinstance(file, io.BufferedReader):
        return file
    return io.BufferedReader(cast(io.RawIOBase, file))


def _decompressing(name: str, file: io.BufferedReader, *, owned: bool) -> ByteStream:
    try:
        # peek may give less than asked for on a pipe, but never nothing before the end.
        magic = file.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]
    except OSError as error:
        raise TraceError(f"{name}: can't be read: {error.strerror}") from None
    if magic.startswith(EMPTY_ZIP_MAGIC):
        raise TraceError(f"{name}: an empty zip archive")
    for begin, kind, command in _UNPACKERS:
        if magic.startswith(begin):
            raise TraceError(
                f"{name}: compressed with {kind}, which can't be read here",
                f"unpack it first: {command} FILE",
            )
    raw = _decompressor(magic, name, file)
    return ByteStream(name, raw, (raw, file) if owned else (), file)


def _decompressor(magic: bytes, name: str, file: io.BufferedReader) -> _Raw:
    if magic.startswith(b"\x28\xb5\x2f\xfd") or _is_skippable_frame(magic):
        return zstd.ZstdFile(
            file, options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
        )
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(file)
    if magic.startswith(b"BZh") and magic[4:10] == b"1AY&SY":
        return bz2.BZ2File(file)
    if magic.startswith(ZIP_MAGIC):
        return ZipStream(name, file)
    return file


def _is_skippable_frame(magic: bytes) -> bool:
    """What pzstd puts before each frame."""
    return magic[1:4] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50
