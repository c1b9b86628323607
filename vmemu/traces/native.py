"""The native trace format: what replay maps into memory.

A trace is a directory ``NAME.vmtrace/``. All numbers are little-endian, all ``.npy`` files are one
column of numpy's format 1.0.

``pages.npy``: ``u64``, sorted, each value once. The page dictionary: the numbers (address >> 12) of
all 4 KiB pages that an access touches, the second page of an access that straddles two included.

For each stream (a recorded thread or vCPU) with id N two columns of the same length, an access
each:

``N.where.npy``: ``u32``, or ``u64`` in all streams when there are more than 2^20 pages::

    bits  0-11  offset in the page
    bits 12-..  index into pages.npy

``N.what.npy``: ``u8``::

    bits  0-1   0 load, 1 store, 2 modify (load and store of the same bytes), 3 instruction fetch
    bits  2-7   index into "sizes" of meta.json

A trace with times has a third column for each stream, of the same length:

``N.time.npy``: ``u64``, nanoseconds as recorded, from whatever moment the recorder counts.

An access with offset + size > 4096 goes on at the start of the next page; that is page + 1, so it
is index + 1 of the dictionary. No access is longer than 4096 bytes, so none touches a third page.

``meta.json``, UTF-8::

    magic         "vmemu-trace"
    version       2; version 1, which has neither time_range_ns nor blocks, is read too
    page_shift    12
    address_kind  "virtual", "guest-physical", "ram-block" or "unknown"
    source        {format, file}: the recording it was made from; both may be ""
    sizes         [bytes], ascending, at most 64 of them, each from 1 to 4096
    pages         length of pages.npy
    streams       [{id, accesses}], ascending by id; accesses = length of the two columns
    fetches       whether the columns hold the instruction fetches
    counts        {accesses, reads, writes, modifies, straddling: data accesses;
                  instruction_fetches: of the recording, held or not;
                  dropped: {reason: accesses left out}; unknown_lines}
    truncated     whether the recording ended in the middle of something
    missing       what the recording can't say: "times", "threads", ...
    time_range_ns null, or the first and the last of all times: then there are columns of them
    blocks        [{name, start}], ascending by start: of a "ram-block" trace, the address at which
                  the first byte of each recorded RAM block was laid; else []

For transport the directory is a plain tar in one zstd frame, ``NAME.vmtrace.zst``, meta.json first,
which ``tar --zstd -xf`` opens. ``open`` reads both; the packed one is held in memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces import npy, tarball
from vmemu.traces.check import check_columns, where_dtype
from vmemu.traces.meta import MAX_SIZES, META_NAME, Counts, Meta, Source, StreamMeta, parse_meta
from vmemu.traces.opening import ByteStream, open_stream
from vmemu.traces.pageset import PageSet
from vmemu.traces.reader import (
    FETCH,
    LOAD,
    MAX_ACCESS_SIZE,
    MAX_STREAMS,
    MODIFY,
    STORE,
    BlockBase,
    Tally,
)
from vmemu.traces.trace import CHUNK, Stream, Trace

PACKED_LIMIT = 4 << 30
"""Bytes of a packed trace that are read into memory at most."""
DEFAULT_LEVEL = 12

_WHERE = ("<u4", "<u8")
_META_LIMIT = 16 << 20
_NO_CODE = 255


def is_native(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` looks like a native trace, packed or not; it may still be damaged."""
    path = Path(path)
    if path.is_dir():
        return (path / META_NAME).is_file()
    if not path.is_file():
        return False
    with open_stream(path) as stream:
        return tarball.looks_like_tar(stream.head(512))


def open(path: str | os.PathLike[str]) -> Trace:
    """Opens a trace, packed or not, and checks everything that replay relies on.

    After it, every index of every column is within its table and meta.json says the truth about
    them. Raises ``TraceError`` with the file and the reason otherwise. The files of a directory
    must not be changed while the trace is in use.
    """
    path = Path(path)
    try:
        is_directory = path.is_dir()
        trace = _open_directory(path) if is_directory else _open_packed(path)
    except OSError as error:
        raise TraceError(f"{path}: can't be opened: {error.strerror or error}") from None
    check_columns(trace)
    return trace


def _open_directory(path: Path) -> Trace:
    file = path / META_NAME
    if not file.is_file():
        raise TraceError(f"{path}: not a native trace: it has no {META_NAME}")
    if file.stat().st_size > _META_LIMIT:
        raise TraceError(f"{file}: more than {_META_LIMIT >> 20} MiB")
    meta = parse_meta(str(file), file.read_bytes())

    def column(name: str, dtypes: tuple[str, ...]) -> npy.Column:
        return npy.map_column(path / name, dtypes)

    return _assemble(str(path), meta, column)


def _open_packed(path: Path) -> Trace:
    with open_stream(path) as stream:
        _refuse_other_formats(stream)
        files = tarball.read(stream, PACKED_LIMIT)
    raw = files.get(META_NAME)
    if raw is None or len(raw) > _META_LIMIT:
        raise TraceError(f"{path}: not a native trace: it has no {META_NAME} of a sensible size")
    meta = parse_meta(f"{path}: {META_NAME}", bytes(raw))

    def column(name: str, dtypes: tuple[str, ...]) -> npy.Column:
        if name not in files:
            raise TraceError(f"{path}: {name} is missing")
        return npy.parse_column(f"{path}: {name}", files[name], dtypes)

    return _assemble(str(path), meta, column)


def _refuse_other_formats(stream: ByteStream) -> None:
    if not tarball.looks_like_tar(stream.head(512)):
        raise TraceError(
            f"{stream.name}: not a native trace",
            f"if it is a recording, convert it: vmemu trace convert {stream.name} NAME.vmtrace",
        )


def _assemble(name: str, meta: Meta, column: Any) -> Trace:
    pages = column("pages.npy", ("<u8",))
    streams = [
        Stream(
            entry.id,
            column(f"{entry.id}.where.npy", _WHERE),
            column(f"{entry.id}.what.npy", ("|u1",)),
            column(f"{entry.id}.time.npy", ("<u8",)) if meta.time_range_ns else None,
        )
        for entry in meta.streams
    ]
    sizes = np.zeros(MAX_SIZES, np.uint16)
    sizes[: len(meta.sizes)] = meta.sizes
    return Trace(name, meta, pages, sizes, streams)


def file_names(meta: Meta) -> list[str]:
    """The files of a trace in the order in which they are packed."""
    kinds = ("where", "what", "time") if meta.time_range_ns else ("where", "what")
    columns = [f"{entry.id}.{kind}.npy" for entry in meta.streams for kind in kinds]
    return [META_NAME, "pages.npy", *columns]


def pack(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    level: int = DEFAULT_LEVEL,
) -> None:
    """Packs a trace directory into one file, ``out``, which replaces a packed trace of that name.

    ``level``: of zstd, 1 to 22. In the tar the directory has the name of ``out``, so that the bytes
    do not depend on where it was made. Raises ``TraceError``; then ``out`` is as it was.
    """
    directory, out = Path(directory), Path(out)
    trace = open(directory)
    refuse_to_replace(out)
    try:
        tarball.write(directory, file_names(trace.meta), inside_name(out), out, level)
    except OSError as error:
        raise TraceError(f"{out}: can't be written: {error.strerror or error}") from None


def unpack(packed: str | os.PathLike[str], directory: str | os.PathLike[str]) -> None:
    """Unpacks into ``directory``, which replaces a trace of that name.

    Raises ``TraceError``, also when what was packed is no sound trace; then ``directory`` is as it
    was.
    """
    packed, directory = Path(packed), Path(directory)
    refuse_to_replace(directory)
    partial = tarball.hidden_sibling(directory)
    try:
        partial.mkdir()
        with open_stream(packed) as stream:
            _refuse_other_formats(stream)
            tarball.extract(stream, partial)
        open(partial)
        move_into_place(partial, directory)
    except OSError as error:
        raise TraceError(f"{directory}: can't be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def inside_name(out: Path) -> str:
    """Name of the directory inside a packed trace."""
    stem = out.name.removesuffix(".zst")
    return stem if stem.endswith(".vmtrace") else f"{stem}.vmtrace"


def refuse_to_replace(path: Path) -> None:
    """Raises ``TraceError`` if ``path`` exists and is not a trace of ours."""
    if path.is_symlink() or path.exists():
        empty = path.is_file() and path.stat().st_size == 0
        if not empty and not is_native(path):
            raise TraceError(f"{path}: exists and is no native trace, so it is not replaced")


def move_into_place(finished: Path, path: Path) -> None:
    """Renames a finished directory to ``path``; a trace that is there makes room and is removed."""
    if not path.exists():
        finished.rename(path)
        return
    old = tarball.hidden_sibling(path)
    path.rename(old)
    try:
        finished.rename(path)
    except OSError:
        old.rename(path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


class TraceWriter:
    """Writes a trace directory from chunks of accesses, in memory bounded by the pages they touch.

    Use it as a context manager and end with ``finish``; left without it, nothing stays behind. The
    directory appears when it is whole and replaces a native trace of that name. While it is
    written, it takes 14 bytes an access in a hidden directory next to it, 22 with times. The same
    accesses give the same bytes, however they are cut into chunks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        source: Source | None = None,
        address_kind: str = "virtual",
        missing: Sequence[str] = (),
        fetches: bool = False,
    ) -> None:
        """``fetches``: instruction fetches will be appended too. Raises ``TraceError``."""
        self.path = Path(path)
        self._source = source or Source()
        self.address_kind = address_kind
        self.missing = tuple(missing)
        self.blocks: tuple[BlockBase, ...] = ()
        """These three may be set until ``finish``: some readers know them only at the end."""
        self._fetches = fetches
        self._pages = PageSet()
        self._lengths: dict[int, int] = {}
        self._kinds = np.zeros(4, np.int64)
        self._straddling = 0
        self._timed: bool | None = None
        self._time_range = (0, 0)
        self._size_codes = np.full(MAX_ACCESS_SIZE + 1, _NO_CODE, np.uint8)
        self._sizes: list[int] = []
        refuse_to_replace(self.path)
        self._partial = tarball.hidden_sibling(self.path)
        try:
            self._partial.mkdir()
        except OSError as error:
            raise TraceError(f"{self.path}: can't be written: {error.strerror}") from None

    def append(
        self,
        stream_id: int,
        addresses: NDArray[np.uint64],
        kinds: NDArray[np.uint8],
        sizes: NDArray[np.uint16],
        times: NDArray[np.uint64] | None = None,
    ) -> None:
        """Adds accesses at the end of a stream; arrays of one length, not kept.

        ``sizes`` in bytes, 1 to 4096; ``times`` in nanoseconds, given always or never. Raises
        ``TraceError`` for what the format can't hold: more than 64 different sizes, too many
        streams, an access over the end of the address space.
        """
        if not len(addresses) == len(kinds) == len(sizes):
            raise ValueError("the columns of a chunk must have one length")
        if not len(addresses):
            return
        self._count(kinds, stream_id)
        self._spool_times(stream_id, times, len(addresses))
        codes = self._codes(sizes)
        last_pages = self._last_pages(addresses, sizes)
        pages = addresses >> np.uint64(12)
        over = last_pages != pages
        self._pages.add(pages)
        self._pages.add(last_pages[over])
        self._straddling += int(np.count_nonzero(over & (kinds != FETCH)))
        self._spool(stream_id, "addresses", addresses)
        self._spool(stream_id, "codes", kinds | codes << 2)
        self._lengths[stream_id] = self._lengths.get(stream_id, 0) + len(addresses)

    def finish(self, tally: Tally | None = None) -> Meta:
        """Completes the trace and puts it into its place. ``tally``: what the reader left out."""
        meta = self._meta(tally or Tally())
        pages = self._pages.pages()
        order = np.argsort(np.array(self._sizes, np.uint16), kind="stable")
        rank = np.zeros(MAX_SIZES, np.uint8)
        rank[order] = np.arange(len(order), dtype=np.uint8)
        codes = np.arange(256, dtype=np.uint8)
        final = codes & 3 | rank[codes >> 2] << 2
        try:
            (self._partial / META_NAME).write_bytes(meta.to_json())
            self._write_column("pages.npy", np.dtype("<u8"), len(pages), [pages])
            for entry in meta.streams:
                self._write_stream(entry, pages, final)
            move_into_place(self._partial, self.path)
        except OSError as error:
            raise TraceError(f"{self.path}: can't be written: {error.strerror or error}") from None
        return meta

    def abandon(self) -> None:
        """Removes what was written, unless it is finished. May be called at any time."""
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def _count(self, kinds: NDArray[np.uint8], stream_id: int) -> None:
        counts = np.bincount(kinds, minlength=4)
        if len(counts) > 4 or (counts[FETCH] and not self._fetches):
            raise ValueError("a kind of access that this trace does not hold")
        if stream_id not in self._lengths and len(self._lengths) == MAX_STREAMS:
            raise TraceError(f"{self.path}: more than {MAX_STREAMS} threads or vCPUs")
        self._kinds += counts

    def _codes(self, sizes: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Index of each size into the table in order of first sight, which ``finish`` will sort."""
        if int(sizes.min()) < 1 or int(sizes.max()) > MAX_ACCESS_SIZE:
            raise ValueError("sizes must be from 1 to 4096 bytes")
        codes = self._size_codes[sizes]
        if (codes == _NO_CODE).any():
            for size in np.unique(sizes[codes == _NO_CODE]).tolist():
                if len(self._sizes) == MAX_SIZES:
                    raise TraceError(f"{self.path}: more than {MAX_SIZES} different access sizes")
                self._size_codes[size] = len(self._sizes)
                self._sizes.append(size)
            codes = self._size_codes[sizes]
        return codes

    def _last_pages(
        self, addresses: NDArray[np.uint64], sizes: NDArray[np.uint16]
    ) -> NDArray[np.uint64]:
        ends = addresses + (sizes - np.uint16(1))
        wrapped = ends < addresses
        if wrapped.any():
            address = int(addresses[np.argmax(wrapped)])
            raise TraceError(f"an access at {address:#x} runs over the end of the address space")
        return ends >> np.uint64(12)

    def _spool_times(self, stream_id: int, times: NDArray[np.uint64] | None, accesses: int) -> None:
        timed = times is not None
        if self._timed is not None and timed != self._timed:
            raise ValueError("all chunks of a trace have times, or none has")
        first_chunk = self._timed is None
        self._timed = timed
        if times is None:
            return
        if len(times) != accesses:
            raise ValueError("the columns of a chunk must have one length")
        low, high = int(times.min()), int(times.max())
        known_low, known_high = (low, high) if first_chunk else self._time_range
        self._time_range = min(low, known_low), max(high, known_high)
        self._spool(stream_id, "times", times)

    def _spool(self, stream_id: int, name: str, values: NDArray[Any]) -> None:
        # Opened anew for each chunk: there may be more streams than a process may have open files.
        try:
            with (self._partial / f".{stream_id}.{name}").open("ab") as file:
                npy.write_values(file, values)
        except OSError as error:
            raise TraceError(f"{self.path}: can't be written: {error.strerror or error}") from None

    def _meta(self, tally: Tally) -> Meta:
        kinds = self._kinds.tolist()
        return Meta(
            address_kind=self.address_kind,
            source=self._source,
            sizes=tuple(sorted(self._sizes)),
            pages=len(self._pages.pages()),
            streams=tuple(StreamMeta(id_, self._lengths[id_]) for id_ in sorted(self._lengths)),
            fetches=self._fetches,
            counts=Counts(
                accesses=kinds[LOAD] + kinds[STORE] + kinds[MODIFY],
                reads=kinds[LOAD],
                writes=kinds[STORE],
                modifies=kinds[MODIFY],
                instruction_fetches=kinds[FETCH] if self._fetches else tally.instruction_fetches,
                straddling=self._straddling,
                dropped=dict(sorted(tally.dropped.items())),
                unknown_lines=tally.unknown_lines,
            ),
            truncated=tally.truncated,
            missing=self.missing,
            time_range_ns=self._time_range if self._timed else None,
            blocks=self.blocks,
        )

    def _write_stream(
        self, entry: StreamMeta, pages: NDArray[np.uint64], final: NDArray[np.uint8]
    ) -> None:
        dtype = where_dtype(len(pages))

        def where(addresses: NDArray[Any]) -> NDArray[Any]:
            index = np.searchsorted(pages, addresses >> np.uint64(12)).astype(np.uint64)
            return (index << np.uint64(12) | addresses & np.uint64(0xFFF)).astype(dtype)

        spooled = self._spooled(entry, "addresses", np.dtype("<u8"))
        self._write_column(f"{entry.id}.where.npy", dtype, entry.accesses, map(where, spooled))
        spooled = self._spooled(entry, "codes", np.dtype("u1"))
        what = (final[codes] for codes in spooled)
        self._write_column(f"{entry.id}.what.npy", np.dtype("u1"), entry.accesses, what)
        if self._timed:
            times = self._spooled(entry, "times", np.dtype("<u8"))
            self._write_column(f"{entry.id}.time.npy", np.dtype("<u8"), entry.accesses, times)

    def _spooled(
        self, entry: StreamMeta, name: str, dtype: np.dtype[Any]
    ) -> Iterator[NDArray[Any]]:
        """The spooled values in chunks; then the spool is removed."""
        path = self._partial / f".{entry.id}.{name}"
        with path.open("rb") as file:
            while part := file.read(CHUNK * dtype.itemsize):
                yield np.frombuffer(part, dtype)
        path.unlink()

    def _write_column(
        self, name: str, dtype: np.dtype[Any], count: int, values: Iterable[NDArray[Any]]
    ) -> None:
        with (self._partial / name).open("xb") as file:
            file.write(npy.header(dtype, count))
            for part in values:
                npy.write_values(file, part)
