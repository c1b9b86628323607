"""What every reader of a recorded format gives, and the choice of the reader by content.

A reader is one class in a file of its own. It looks at the first bytes of an uncompressed stream
and says whether they are its format (``sniff``); it then turns the stream into chunks of columns
(``chunks``) in bounded memory and counts what it left out (``tally``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream

LOAD, STORE, MODIFY, FETCH = range(4)
MAX_ACCESS_SIZE = 4096
"""Bytes; with it an access touches two 4 KiB pages at most."""
MAX_STREAMS = 4096

HEAD_BYTES = 1 << 16
"""Of an input, to tell its format by."""
_UNKNOWN_ALWAYS_ALLOWED = 1000
_UNKNOWN_SHARE = 10


class Chunk(NamedTuple):
    """Some accesses of one stream in recorded order; all columns have the same length.

    The arrays belong to the reader and may be overwritten when the next chunk is asked for.
    """

    stream: int
    """Thread or vCPU as recorded; 0 when the recording doesn't tell them apart."""
    addresses: NDArray[np.uint64]
    """Of the first byte. No access runs over the end of the 64-bit address space."""
    kinds: NDArray[np.uint8]
    """LOAD, STORE, MODIFY or FETCH."""
    sizes: NDArray[np.uint16]
    """Bytes, 1 to MAX_ACCESS_SIZE."""
    times: NDArray[np.uint64] | None = None
    """Nanoseconds as recorded; None in all chunks of a recording without times."""


class BlockBase(NamedTuple):
    """A recorded RAM block, in a recording that names places by block and offset."""

    name: str
    start: int
    """Address at which the reader has laid its first byte: a multiple of 4 KiB."""


@dataclass
class Tally:
    """What a reader saw but did not give; complete when ``chunks`` has ended."""

    instruction_fetches: int = 0
    """All of the recording, given as accesses or not."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Accesses left out on purpose, by reason: ``{"io": 16555}``."""
    unknown_lines: int = 0
    """Lines (records, of a binary format) that mean nothing in this format."""
    first_unknown: str = ""
    """The first of them with its number, for people."""
    truncated: bool = False
    """The input ends in the middle of a line, a record, or its compressed data."""

    def drop(self, reason: str, count: int) -> None:
        """Counts accesses that were left out; a reason that never was is not told."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def unknown(self, count: int, first: str) -> None:
        """Counts lines or records that mean nothing; ``first``: the first of these."""
        self.unknown_lines += count
        self.first_unknown = self.first_unknown or first


class Reader(ABC):
    """A recording being read, once. Use it as a context manager; it closes its stream."""

    format: ClassVar[str]
    """Short name, the same in ``meta.json`` and in results."""
    title: ClassVar[str]
    """What people call it."""
    address_kind: str
    """``virtual``, ``guest-physical``, ``ram-block`` (``blocks`` says where each was laid), or
    ``unknown``."""
    missing: tuple[str, ...]
    """What a recording can't say, keys of ``MEANING`` in ``vmemu.traces.figures.missing``. A reader
    whose format leaves it open sets its own ``missing`` and ``address_kind``: whether there are
    times before the first chunk, the rest by the end."""
    blocks: tuple[BlockBase, ...] = ()
    """Complete when ``chunks`` has ended; empty unless addresses are ``ram-block``."""
    origin: tuple[str, str] | None = None
    """Format and file of the recording that a table was written from, if it says so."""

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        self.stream = stream
        self.fetches = fetches
        self.tally = Tally()
        self._known = 0
        self._unknown_before = 0
        """Of the tally's unknown lines those of another recording, which this was made from."""

    @classmethod
    @abstractmethod
    def sniff(cls, head: bytes) -> bool:
        """Whether an input that starts with these bytes is of this format."""

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """The accesses; instruction fetches only if ``fetches``. Raises ``TraceError``."""

    def _head(self) -> bytes:
        """What the format was told by, and what it leaves open may be told by."""
        return self.stream.head(max(HEAD_BYTES, self.stream.looked_at))

    def _refuse_mostly_unknown(self, known: int) -> None:
        """Ends the reading when so much is unknown that this can't be the format it looked like."""
        self._known = known
        unknown = self._unknown()
        if unknown > _UNKNOWN_ALWAYS_ALLOWED and unknown > known // _UNKNOWN_SHARE:
            raise self._mostly_unknown()

    def _unknown(self) -> int:
        """Lines or records of this input that mean nothing."""
        return self.tally.unknown_lines - self._unknown_before

    def _mostly_unknown(self) -> TraceError:
        unknown = self._unknown()
        return TraceError(
            f"{self.stream.name}: not a whole {self.title}: {unknown} of {unknown + self._known}"
            f" lines or records mean nothing in it, the first is {self.tally.first_unknown}"
        )

    def check_end(self, accesses: int) -> None:
        """Called at the end of the chunks, with their accesses. Raises ``TraceError`` when most of
        the recording means nothing, however short it is, or when nothing at all is in it."""
        tally = self.tally
        if self._unknown() > self._known:
            raise self._mostly_unknown()
        if not accesses and not tally.instruction_fetches and not any(tally.dropped.values()):
            cut = ", and it is cut off" if tally.truncated else ""
            raise TraceError(f"{self.stream.name}: a {self.title} without any access{cut}")

    def close(self) -> None:
        """Closes what it reads from."""
        self.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def by_stream(
    streams: NDArray[np.uint32],
    addresses: NDArray[np.uint64],
    kinds: NDArray[np.uint8],
    sizes: NDArray[np.uint16],
    times: NDArray[np.uint64] | None = None,
) -> Iterator[Chunk]:
    """Columns of accesses of several streams as a chunk for each, in their order."""
    if not len(streams):
        return
    if (streams == streams[0]).all():
        yield Chunk(int(streams[0]), addresses, kinds, sizes, times)
        return
    order = np.argsort(streams, kind="stable")
    ids, starts = np.unique(streams[order], return_index=True)
    for stream, part in zip(ids.tolist(), np.split(order, starts[1:]), strict=True):
        own_times = None if times is None else times[part]
        yield Chunk(stream, addresses[part], kinds[part], sizes[part], own_times)
