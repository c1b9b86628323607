"""A directory of columns as a plain tar in one zstd frame, and back into memory or onto disk."""

from __future__ import annotations

import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from vmemu.errors import TraceError
from vmemu.traces.opening import ZSTD_WINDOW_LOG, ByteStream
from vmemu.traces.progress import Report, silent
from vmemu.units import counted

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MIN_WINDOW_LOG = 10
# zstd sizes these by the level, up to 640 MiB. With the window, what packs and what it packs with
# stay below 300 MB together.
_MAX_CHAIN_LOG, _MAX_HASH_LOG = 22, 22
_LARGE_TABLES_FROM = 17
_COPY_BYTES = 1 << 20
_BLOCK = 512
_OUR_NAME = re.compile(r"meta\.json|pages\.npy|[0-9]+\.[a-z]+\.npy")
_OCTAL = re.compile(rb"[0-7]+")


class TooLarge(TraceError):
    """A packed trace takes more memory than it may."""


def looks_like_tar(head: bytes) -> bool:
    """Whether an uncompressed input that starts with these bytes is a tar."""
    return head[257:262] == b"ustar"


def write(
    directory: Path, names: list[str], inside: str, out: Path, level: int, *, report: Report
) -> None:
    """Packs the files ``names`` of ``directory`` as ``inside/NAME`` into a new file, in this order.

    The same files give the same bytes (with the same zstd library). ``level``: 1 to 22. When it
    fails, what was written by then stays.
    """
    total = sum((directory / name).stat().st_size for name in names)
    with (
        zstd.ZstdFile(out, "xb", options=_packing(level, total)) as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        done = 0
        for name in names:
            done = _add(tar, directory / name, f"{inside}/{name}", _Watched(report, done, total))


def _packing(level: int, total: int) -> dict[int, int]:
    """Options of zstd for so many bytes, in bounded memory."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
        zstd.CompressionParameter.window_log: min(
            ZSTD_WINDOW_LOG, max(_MIN_WINDOW_LOG, total.bit_length())
        ),
        zstd.CompressionParameter.checksum_flag: 1,
    }
    if level >= _LARGE_TABLES_FROM:
        options[zstd.CompressionParameter.chain_log] = _MAX_CHAIN_LOG
        options[zstd.CompressionParameter.hash_log] = _MAX_HASH_LOG
    return options


class _Watched:
    """A file that says how much of it has been read."""

    def __init__(self, report: Report, done: int, total: int) -> None:
        self._report = report
        self.done = done
        self._total = total
        self.file: IO[bytes]

    def read(self, size: int) -> bytes:
        part = self.file.read(size)
        self.done += len(part)
        self._report("packing", self.done, self._total)
        return part


def _add(tar: tarfile.TarFile, path: Path, name: str, watched: _Watched) -> int:
    member = tarfile.TarInfo(name)
    member.size = path.stat().st_size
    member.mode = 0o644
    with path.open("rb") as watched.file:
        tar.addfile(member, cast(IO[bytes], watched))
    return watched.done


def read(stream: ByteStream, limit: int) -> dict[str, memoryview]:
    """The files of a packed directory by their last name, in memory.

    Raises ``TraceError`` when it is damaged or cut off, ``TooLarge`` when it would take more than
    ``limit`` bytes.
    """
    files: dict[str, memoryview] = {}
    total = 0
    for name, size in _members(stream):
        total += size
        if total > limit:
            raise TooLarge(
                f"{stream.name}: more than {limit >> 20} MiB when unpacked; unpack it, so that"
                f" it is mapped and not read: tar --zstd -xf {stream.name}"
            )
        if name in files:
            raise TraceError(f"{stream.name}: {name} is in it twice")
        # Memory that is not touched before there is something to put there: a lie about the size
        # costs nothing.
        buffer = np.empty(size, np.uint8).data
        if (there := stream.readinto(buffer)) < size:
            raise _cut_off(stream, name, size, there)
        files[name] = buffer.toreadonly()
    return files


def extract(stream: ByteStream, directory: Path, report: Report = silent) -> None:
    """Writes the files of a packed directory, by their last name, into an existing ``directory``.

    Raises ``TraceError`` when it is damaged or cut off; what was written by then stays.
    """
    for name, size in _members(stream):
        try:
            with (directory / name).open("xb") as file:
                for part in _parts(stream, name, size):
                    file.write(part)
                    report("unpacking", *stream.position())
        except FileExistsError:
            raise TraceError(f"{stream.name}: {name} is in it twice") from None


def _parts(stream: ByteStream, name: str, size: int) -> Iterator[bytes]:
    left = size
    while left:
        part = stream.read(min(left, _COPY_BYTES))
        if not part:
            raise _cut_off(stream, name, size, size - left)
        left -= len(part)
        yield part


def _cut_off(stream: ByteStream, name: str, promised: int, there: int) -> TraceError:
    return TraceError(
        f"{stream.name}: {name} is cut off: {counted(promised, 'byte')} promised, {there:,} there",
        "take a whole copy of it",
    )


# tarfile could read this too, but it holds whatever an extended header claims to be long in memory.
def _members(stream: ByteStream) -> Iterator[tuple[str, int]]:
    """Last name and size of every file of ours; the caller takes its bytes from the stream.

    All else in the tar is passed over: directories, extended headers, files of other names.
    """
    while True:
        block = stream.read(_BLOCK)
        if len(block) < _BLOCK:
            raise TraceError(f"{stream.name}: cut off, the end of the tar is missing")
        if not block.strip(b"\0"):
            break
        name, regular, size = _parse_member(stream, block)
        if regular and _OUR_NAME.fullmatch(name):
            yield name, size
        else:
            for _ in _parts(stream, name, size):
                pass
        stream.read(-size % _BLOCK)
    # The end of the tar comes before the end of the frame, where the checksum is.
    while stream.read(_COPY_BYTES):
        pass
    if stream.truncated:
        raise TraceError(f"{stream.name}: cut off")


def _parse_member(stream: ByteStream, block: bytes) -> tuple[str, bool, int]:
    """Last name, whether it is a regular file, size in bytes."""
    blanked = block[:148] + b" " * 8 + block[156:]
    if not looks_like_tar(block) or _number(block[148:156]) != sum(blanked):
        raise TraceError(f"{stream.name}: the tar in it is damaged")
    size = _number(block[124:136])
    if size is None:
        raise TraceError(f"{stream.name}: the tar in it is damaged: a file without a size")
    name = block[:100].rstrip(b"\0").decode("latin-1")
    return name.rpartition("/")[2], block[156:157] in (b"0", b"\0"), size


def _number(text: bytes) -> int | None:
    """Octal, or, with the first bit set, big-endian binary, as GNU tar does from 8 GiB on."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b" \0")
    return int(digits, 8) if _OCTAL.fullmatch(digits) else None
