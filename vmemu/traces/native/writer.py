"""Writes a native trace; ``native.format`` says what it looks like."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.native import npy, placing
from vmemu.traces.native.check import where_dtype
from vmemu.traces.native.meta import MAX_SIZES, META_NAME, Counts, Meta, Source, StreamMeta
from vmemu.traces.native.trace import CHUNK
from vmemu.traces.pageset import GROUPS, PageSet
from vmemu.traces.progress import Report, silent
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

_NO_CODE = 255
_SPOOLED: dict[str, np.dtype[Any]] = {
    "addresses": np.dtype("<u8"),
    "codes": np.dtype("u1"),
    "times": np.dtype("<u8"),
}
_WAITING_LIMIT = 8 << 20


class TraceWriter:
    """Writes a trace directory from chunks of accesses, in memory bounded by the pages they touch.

    Use it as a context manager and end with ``finish``; left without it, nothing stays behind. The
    directory appears when it is whole, in the place of a native trace of that name if it may. While
    it is written, it takes 14 bytes an access in a hidden directory next to it, 22 with times. The
    same accesses give the same bytes, however they are cut into chunks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        source: Source | None = None,
        address_kind: str = "virtual",
        missing: Sequence[str] = (),
        fetches: bool = False,
        groups: int = GROUPS,
        name: str | os.PathLike[str] = "",
        replace: bool = True,
    ) -> None:
        """``fetches``: instruction fetches will be appended too. ``groups``: of ``PageSet``, which
        bounds memory. ``name``: what errors call it, if not ``path``. ``replace``: whether it may
        replace a native trace. Raises ``TraceError``."""
        self.path = Path(path)
        self._name = Path(name or path)
        self._replace = replace
        self._source = source or Source()
        self.address_kind = address_kind
        self.missing = tuple(missing)
        self.blocks: tuple[BlockBase, ...] = ()
        """These three may be set until ``finish``: some readers know them only at the end."""
        self._fetches = fetches
        self._pages = PageSet(groups)
        self._lengths: dict[int, int] = {}
        self._kinds = np.zeros(4, np.int64)
        self._straddling = 0
        self._timed: bool | None = None
        self._time_range = (0, 0)
        self._size_codes = np.full(MAX_ACCESS_SIZE + 1, _NO_CODE, np.uint8)
        self._sizes: list[int] = []
        self._waiting: dict[tuple[int, str], list[bytes]] = {}
        self._waiting_bytes = 0
        placing.refuse_to_take(self.path, placing.NATIVE, replace=replace)
        self._partial = placing.hidden_sibling(self.path)
        try:
            self._partial.mkdir()
        except OSError as error:
            raise placing.cant_write(self._name, error) from None

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
        streams, an access over the end of the address space, pages all over it; ``OutputError``
        when the disk is full.
        """
        if not len(addresses) == len(kinds) == len(sizes):
            raise ValueError("the columns of a chunk must have one length")
        if not len(addresses):
            return
        self._count(kinds, stream_id)
        self._spool_times(stream_id, times, len(addresses))
        codes = self._codes(sizes)
        self._count_straddling(addresses, kinds, sizes)
        self._pages.add(addresses, sizes, both=True)
        self._spool(stream_id, "addresses", addresses)
        self._spool(stream_id, "codes", kinds | codes << 2)
        self._lengths[stream_id] = self._lengths.get(stream_id, 0) + len(addresses)

    def finish(self, tally: Tally | None = None, report: Report = silent) -> Meta:
        """Completes the trace and puts it into its place. ``tally``: what the reader left out."""
        self._pages.sort()
        meta = self._meta(tally or Tally(), self._pages.count().pages)
        try:
            (self._partial / META_NAME).write_bytes(meta.to_json())
            self._write_column("pages.npy", np.dtype("<u8"), meta.pages, self._pages.pages())
            self._pages.rank()
            self._write_streams(meta, report)
            placing.move_into_place(self._partial, self.path, placing.NATIVE, replace=self._replace)
        except OSError as error:
            raise placing.cant_write(self._name, error) from None
        return meta

    @property
    def accesses(self) -> int:
        """Appended so far, to all streams."""
        return sum(self._lengths.values())

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
            raise TraceError(f"{self._name}: more than {MAX_STREAMS} threads or vCPUs")
        self._kinds += counts

    def _codes(self, sizes: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Index of each size into the table in order of first sight, which ``finish`` will sort."""
        if int(sizes.min()) < 1 or int(sizes.max()) > MAX_ACCESS_SIZE:
            raise ValueError("sizes must be from 1 to 4096 bytes")
        codes = self._size_codes[sizes]
        if (codes == _NO_CODE).any():
            for size in np.unique(sizes[codes == _NO_CODE]).tolist():
                if len(self._sizes) == MAX_SIZES:
                    raise TraceError(f"{self._name}: more than {MAX_SIZES} different access sizes")
                self._size_codes[size] = len(self._sizes)
                self._sizes.append(size)
            codes = self._size_codes[sizes]
        return codes

    def _count_straddling(
        self, addresses: NDArray[np.uint64], kinds: NDArray[np.uint8], sizes: NDArray[np.uint16]
    ) -> None:
        ends = addresses + (sizes - np.uint16(1))
        wrapped = ends < addresses
        if wrapped.any():
            address = int(addresses[np.argmax(wrapped)])
            raise TraceError(f"an access at {address:#x} runs over the end of the address space")
        over = (ends ^ addresses) >> np.uint64(12) != 0
        self._straddling += int(np.count_nonzero(over & (kinds != FETCH)))

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

    # There may be more streams than a process may have open files, each with a few accesses in a
    # chunk: they are gathered, so that a file is opened for many of them at once.
    def _spool(self, stream_id: int, name: str, values: NDArray[Any]) -> None:
        raw = values.astype(_SPOOLED[name], copy=False).tobytes()
        self._waiting.setdefault((stream_id, name), []).append(raw)
        self._waiting_bytes += len(raw)
        if self._waiting_bytes >= _WAITING_LIMIT:
            self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            for (stream_id, name), parts in self._waiting.items():
                with (self._partial / f".{stream_id}.{name}").open("ab") as file:
                    file.writelines(parts)
        except OSError as error:
            raise placing.cant_write(self._name, error) from None
        self._waiting, self._waiting_bytes = {}, 0

    def _meta(self, tally: Tally, pages: int) -> Meta:
        kinds = self._kinds.tolist()
        return Meta(
            address_kind=self.address_kind,
            source=self._source,
            sizes=tuple(sorted(self._sizes)),
            pages=pages,
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
                first_unknown=tally.first_unknown,
            ),
            truncated=tally.truncated,
            missing=self.missing,
            time_range_ns=self._time_range if self._timed else None,
            blocks=self.blocks,
        )

    def _write_streams(self, meta: Meta, report: Report) -> None:
        total = sum(entry.accesses for entry in meta.streams)
        final = self._final_codes()
        dtype = where_dtype(meta.pages)
        done = 0
        self._write_waiting()
        for entry in meta.streams:
            count = entry.accesses

            wheres = self._wheres(entry, dtype, lambda here: report("writing", here, total), done)
            self._write_column(f"{entry.id}.where.npy", dtype, count, wheres)
            done += count
            whats = (final[codes] for codes in self._spooled(entry, "codes"))
            self._write_column(f"{entry.id}.what.npy", np.dtype("u1"), count, whats)
            if self._timed:
                times = self._spooled(entry, "times")
                self._write_column(f"{entry.id}.time.npy", np.dtype("<u8"), count, times)

    def _wheres(
        self, entry: StreamMeta, dtype: np.dtype[Any], report: Callable[[int], None], done: int
    ) -> Iterator[NDArray[Any]]:
        for addresses in self._spooled(entry, "addresses"):
            yield self._pages.where(addresses, dtype)
            done += len(addresses)
            report(done)

    def _final_codes(self) -> NDArray[np.uint8]:
        """``what`` of each code: sizes are in the order of first sight until all are known."""
        order = np.argsort(np.array(self._sizes, np.uint16), kind="stable")
        rank = np.zeros(MAX_SIZES, np.uint8)
        rank[order] = np.arange(len(order), dtype=np.uint8)
        codes = np.arange(256, dtype=np.uint8)
        final: NDArray[np.uint8] = codes & 3 | rank[codes >> 2] << 2
        return final

    def _spooled(self, entry: StreamMeta, name: str) -> Iterator[NDArray[Any]]:
        """The spooled values in chunks; then the spool is removed."""
        dtype = _SPOOLED[name]
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
