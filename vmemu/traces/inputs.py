"""What accesses are read from: a recording of any known format, or a native trace."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmemu.traces import native
from vmemu.traces.native.meta import Source
from vmemu.traces.native.trace import Trace
from vmemu.traces.opening import ByteStream
from vmemu.traces.reader import BlockBase, Chunk, Reader, Tally
from vmemu.traces.recordings import Recording, open_recording

NATIVE_FORMAT = "vmtrace"


class Input(ABC):
    """Accesses, to be read once, and what is known about them; all of it is complete when
    ``chunks`` has ended, ``source`` and ``fetches`` from the beginning on."""

    format: str
    source: Source
    """The recording, also that which a native trace was made from."""
    fetches: bool
    """Whether instruction fetches are among the accesses."""

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """The accesses. Raises ``TraceError``."""

    @abstractmethod
    def position(self) -> tuple[int, int | None]:
        """How much was read, and of how much, if that is known."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what reading takes: up to 128 MiB where the input was packed with a long
        window. What is known stays known."""

    @property
    @abstractmethod
    def tally(self) -> Tally: ...

    @property
    @abstractmethod
    def address_kind(self) -> str: ...

    @property
    @abstractmethod
    def missing(self) -> tuple[str, ...]: ...

    @property
    @abstractmethod
    def blocks(self) -> tuple[BlockBase, ...]: ...


def file_of(source: Recording) -> Path | None:
    """The file of a recording, if it is one."""
    if isinstance(source, ByteStream) or os.fspath(source) == "-":
        return None
    return Path(source)


@contextmanager
def open_input(
    source: Recording,
    *,
    fetches: bool = False,
    trace_events: str | os.PathLike[str] | None = None,
) -> Iterator[Input]:
    """Opens a recording or a native trace; ``-`` is a recording on standard input.

    ``fetches``: instruction fetches of a recording are wanted too. ``trace_events``: as in
    ``open_recording``. Raises ``TraceError``.
    """
    file = file_of(source)
    if file and native.is_native(file):
        with native.looking_into(file) as trace:
            yield TraceInput(trace)
        return
    with open_recording(source, fetches=fetches, trace_events=trace_events) as reader:
        name = source.name if isinstance(source, ByteStream) else file.name if file else ""
        yield RecordingInput(reader, name)


class RecordingInput(Input):
    def __init__(self, reader: Reader, file: str) -> None:
        self._reader = reader
        self.format = reader.format
        self.source = Source(*(reader.origin or (reader.format, file)))
        self.fetches = reader.fetches and "instruction_fetches" not in reader.missing

    def chunks(self) -> Iterator[Chunk]:
        accesses = 0
        for chunk in self._reader.chunks():
            accesses += len(chunk.addresses)
            yield chunk
        self._reader.check_end(accesses)

    def position(self) -> tuple[int, int | None]:
        return self._reader.stream.position()

    def close(self) -> None:
        self._reader.close()

    @property
    def tally(self) -> Tally:
        return self._reader.tally

    @property
    def address_kind(self) -> str:
        return self._reader.address_kind

    @property
    def missing(self) -> tuple[str, ...]:
        return self._reader.missing

    @property
    def blocks(self) -> tuple[BlockBase, ...]:
        return self._reader.blocks


class TraceInput(Input):
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._done = 0
        self.format = NATIVE_FORMAT
        self.source = trace.meta.source
        self.fetches = trace.meta.fetches

    def chunks(self) -> Iterator[Chunk]:
        for chunk in self._trace.chunks():
            yield chunk
            self._done += len(chunk.addresses)

    def position(self) -> tuple[int, int | None]:
        return self._done, self._trace.accesses

    def close(self) -> None:
        """Mapped memory is let go of as it is read."""

    @property
    def tally(self) -> Tally:
        counts = self._trace.meta.counts
        return Tally(
            instruction_fetches=counts.instruction_fetches,
            dropped=dict(counts.dropped),
            unknown_lines=counts.unknown_lines,
            truncated=self._trace.meta.truncated,
        )

    @property
    def address_kind(self) -> str:
        return self._trace.meta.address_kind

    @property
    def missing(self) -> tuple[str, ...]:
        return self._trace.meta.missing

    @property
    def blocks(self) -> tuple[BlockBase, ...]:
        return self._trace.meta.blocks
