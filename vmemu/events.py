"""The event log of a run: what happened, when, in which thread, under QEMU's names.

::

    destination = EventLog(DESTINATION, vcpus=2)
    source = EventLog(SOURCE)              # sent to the source process with its other arguments
    incoming.log = pointer(destination)    # the C core writes to it; NULL is no log
    destination.note("loadvm_postcopy_handle_advise")
    write("run.jsonl", [destination, source])

A log is a mapping that two processes share, so the events of a source that was killed are there all
the same. Without a log nothing is written and nothing is paid.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from vmemu import core, unfinished
from vmemu.errors import CoreError, InputError, VmemuError
from vmemu.eventfile import Event, EventReader, Events, Tally, open_events, read
from vmemu.eventtable import DESTINATION, SOURCE, Field, Kind, kinds, words
from vmemu.handover import Descriptor

__all__ = [
    "DESTINATION",
    "SOURCE",
    "Event",
    "EventBlock",
    "EventLog",
    "EventReader",
    "Events",
    "Tally",
    "open_events",
    "pointer",
    "read",
    "write",
]

CAPACITY = 1 << 24
"""Events of a log; each takes 40 bytes once it is written, and nothing before."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


class EventBlock(NamedTuple):
    """What a log has to know of a block: ``host`` is its address on that side, 0 if it has none.

    Sizes are bytes. Blocks are known by their place in the sequence, as on the wire.
    """

    name: str
    host: int
    size: int
    page_size: int


class EventLog:
    """The events of one side. May be sent to a process that is being spawned, which then writes to
    the same log.

    ``vcpus`` is how many the guest has, at the destination. Threads write to it without the GIL:
    close it after they have ended. Raises CoreError when the host has no memory for it.
    """

    def __init__(self, side: str, *, vcpus: int = 0, capacity: int = CAPACITY) -> None:
        if side not in (DESTINATION, SOURCE) or not 0 < capacity < 1 << 32:
            raise ValueError(f"no log of side {side!r} with {capacity} events")
        self.side = side
        self.blocks: tuple[EventBlock, ...] = ()
        fd = core.ffi.new("int *")
        self._log = _made(core.lib.vm_event_log_create, capacity, vcpus, fd)
        self._fd = fd[0]

    def describe(self, blocks: Sequence[EventBlock]) -> None:
        """Say what the blocks are; before it is written, and before ``note`` names one."""
        self.blocks = tuple(blocks)

    @property
    def pointer(self) -> Any:
        """The C core's ``struct vm_event_log *``."""
        if self._fd < 0:
            raise ValueError("the event log is closed")
        return self._log

    @property
    def written(self) -> int:
        """Events in it."""
        return int(core.lib.vm_event_log_written(self.pointer))

    @property
    def lost(self) -> int:
        """Events that came when it was full."""
        return int(core.lib.vm_event_log_lost(self.pointer))

    def note(self, name: str, **args: int | str) -> None:
        """Log an event from Python. ``args`` are named as in a file; what is left out is 0.

        Raises TypeError for an unknown event or argument, or one that is not the caller's to give.
        """
        kind = kinds().get(name)
        if kind is None:
            raise TypeError(f"no event {name!r}")
        block, a, b = self._numbers(kind, args)
        core.lib.vm_event(self.pointer, kind.id, block, a, b)

    def _numbers(self, kind: Kind, args: dict[str, int | str]) -> tuple[int, int, int]:
        fields = {field.name: field for field in kind.fields}
        values = dict.fromkeys(("n", "a", "b", "l", "u"), 0)
        for name, value in args.items():
            if name not in fields:
                raise TypeError(f"event {kind.name!r} has no argument {name!r}")
            source, number = self._number(fields[name], value)
            values[source] = number
        low = values["l"] & 0xFFFFFFFF | (values["u"] & 0xFFFFFFFF) << 32
        return values["n"], values["a"] & _U64, values["b"] & _U64 | low

    def _number(self, field: Field, value: int | str) -> tuple[str, int]:
        """Which of the event's numbers an argument is, and what it becomes."""
        if field.source == "n" and isinstance(value, str):
            return "n", [block.name for block in self.blocks].index(value)
        if field.source == "w" and value in words():
            return "a", words()[str(value)]
        if field.source in ("a", "b", "l", "u", "n") and isinstance(value, int):
            return field.source, value
        raise TypeError(f"argument {field.name!r} can't be {value!r}")

    def write(self, path: str) -> None:
        """Write this log alone; see ``write``."""
        write(path, [self])

    def close(self) -> None:
        """Give its memory back; safe to do twice. No thread may write to it any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            core.lib.vm_event_log_destroy(self._log)
            self._log = core.ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"side": self.side, "blocks": self.blocks, "fd": Descriptor(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.side, self.blocks = state["side"], state["blocks"]
        self._fd = state["fd"]
        self._log = _made(core.lib.vm_event_log_attach, self._fd)


_U64 = (1 << 64) - 1


def _made(function: Any, *arguments: Any) -> Any:
    error = core.ffi.new("struct vm_error *")
    log = function(*arguments, error)
    if log == core.ffi.NULL:
        core.raise_error(error)
    return log


def pointer(log: EventLog | None) -> Any:
    """What a C struct's log pointer is to be: NULL without a log."""
    return core.ffi.NULL if log is None else log.pointer


# ---- writing it ----


def write(path: str, logs: Sequence[EventLog]) -> None:
    """Write the logs of all sides into one file, in the order of time; ``-`` is stdout.

    A name that ends in ``.log`` gets the text of QEMU's log trace backend, any other JSON lines. A
    file is there as a whole or not at all. Raises InputError when the place can't be written,
    VmemuError when it is full.
    """
    form = core.lib.VM_EVENTS_TEXT if path.endswith(".log") else core.lib.VM_EVENTS_JSON
    keep: list[Any] = []
    sides = core.ffi.new("struct vm_event_side[]", len(logs))
    for side, log in zip(sides, logs, strict=True):
        _fill_side(side, log, keep)
    try:
        with _opened(path) as fd:
            core.call(core.lib.vm_events_write, sides, len(logs), fd, form)
    except (OSError, CoreError) as error:
        number = error.errno or 0
        if number == errno.EPIPE:
            raise BrokenPipeError(number, os.strerror(number)) from None
        if isinstance(error, CoreError) and number == errno.ENOMEM:
            raise
        shown = "standard output" if path == "-" else path
        kind = VmemuError if number in _NO_SPACE else InputError
        reason = os.strerror(number)
        raise kind(f"{shown}: the event log can't be written: {reason}") from None


def _fill_side(side: Any, log: EventLog, keep: list[Any]) -> None:
    blocks = core.ffi.new("struct vm_event_block[]", max(len(log.blocks), 1))
    keep.append(blocks)
    for entry, block in zip(blocks, log.blocks, strict=False):
        name = core.ffi.new("char[]", block.name.encode(errors="surrogateescape"))
        keep.append(name)
        entry.name = name
        entry.host, entry.size, entry.page_size = block[1:]
    side.log = log.pointer
    side.side = getattr(core.lib, f"VM_SIDE_{log.side.upper()}")
    side.blocks = len(log.blocks)
    side.block = blocks


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """A descriptor to write to; a file takes its name only when everything went well."""
    if path == "-":
        sys.stdout.flush()
        yield sys.stdout.fileno()
    elif _replaceable(path):
        yield from _replacing(os.path.realpath(path))
    else:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


def _replaceable(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # not there yet, or whatever opening it will say


def _replacing(path: str) -> Iterator[int]:
    temporary = unfinished.temporary(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
