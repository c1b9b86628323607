"""Event logs as files: ours as JSON lines or text, and what QEMU's log trace backend wrote.

The text is ``TID@SEC.USEC:event arguments`` a line, as QEMU prints it with ``-msg timestamp=on``.
Which events there are, and what their arguments are called, says one table in the C core: the
writer there and the patterns here are made from the same lines. Files may be compressed.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from vmemu.errors import TraceError
from vmemu.eventtable import DESTINATION, SOURCE, Args, kinds

if TYPE_CHECKING:
    from vmemu.traces.opening import ByteStream

LOG_EVENT = "vmemu_event_log"
"""The event at the head of each side of a log of ours: its side, vCPUs, events, events lost."""

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 20
_LATEST_NS = 1 << 63
_UNKNOWN_ALWAYS_ALLOWED = 1000
_LINE = re.compile(
    # Ten digits of seconds at most, so that the nanoseconds fit into 63 bits.
    r"^([0-9]{1,10})@([0-8][0-9]{9}|[0-9]{1,9})\.([0-9]{6}):([A-Za-z_][A-Za-z0-9_]*) ?([^\n]*)$",
    re.MULTILINE,
)


class Event(NamedTuple):
    """One event. ``t_ns``: of a clock that both sides share when they ran on one machine."""

    t_ns: int
    tid: int
    side: str
    """``destination`` or ``source``."""
    name: str
    args: Args


@dataclass
class Tally:
    """What a reader saw and did not give, and what a log says of itself; complete at the end."""

    events: int = 0
    """Given."""
    unknown_events: Counter[str] = field(default_factory=Counter)
    """Events that are not in the table, by name."""
    unlike: Counter[str] = field(default_factory=Counter)
    """Events of the table whose arguments are not as they should be, by name."""
    unknown_lines: int = 0
    """Lines that are no event at all."""
    truncated: bool = False
    """The file ends in the middle of a line or of its compressed data."""
    lost: int = 0
    """Events that a full log had no room for, as it says itself."""
    vcpus: int = 0
    """Of the guest, as the log says; 0 when it does not."""


class EventReader:
    """The events of one file, read once, in bounded memory, in the file's order.

    Raises TraceError when the file can't be read or is no event log. A context manager.
    """

    def __init__(self, stream: ByteStream) -> None:
        self.tally = Tally()
        self._stream = stream
        head = stream.head(_CHUNK)
        self._json = head.lstrip()[:1] == b"{"
        # Who sent an event that both sides have: in the text of one side it is that side's; in
        # that of both, ours, only the source has any.
        self._both = DESTINATION if not self._json and _only_destination(head) else SOURCE

    def __enter__(self) -> EventReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Iterator[Event]:
        parse = self._parse_json if self._json else self._parse_text
        for chunk in self._chunks():
            yield from parse(chunk)
            self._refuse_mostly_unknown()
        if not self._known:
            raise TraceError(f"{self._stream.name}: not an event log: {self._nothing_read()}")

    @property
    def _known(self) -> int:
        tally = self.tally
        return tally.events + tally.unknown_events.total() + tally.unlike.total()

    def _nothing_read(self) -> str:
        if not self.tally.unknown_lines:
            return "it is cut off" if self.tally.truncated else "it is empty"
        return (
            "no line is TID@SEC.USEC:event (QEMU writes times with -msg timestamp=on)"
            " or a JSON object with t_ns and event"
        )

    def _refuse_mostly_unknown(self) -> None:
        unknown = self.tally.unknown_lines
        if unknown > _UNKNOWN_ALWAYS_ALLOWED and unknown > self._known:
            raise TraceError(
                f"{self._stream.name}: not an event log: {unknown} of {unknown + self._known}"
                " lines mean nothing in it"
            )

    # ---- lines ----

    def _chunks(self) -> Iterator[str]:
        """Whole lines, many at a time. A last line without its end may be cut short: left out."""
        rest = b""
        while part := self._stream.read(_CHUNK):
            whole, newline, rest_of_part = part.rpartition(b"\n")
            if newline:
                yield _decode(rest + whole)
                rest = rest_of_part
            else:
                rest += rest_of_part
            if len(rest) > _LONGEST_LINE:
                raise TraceError(
                    f"{self._stream.name}: not an event log: a line of more than"
                    f" {_LONGEST_LINE} bytes"
                )
        self.tally.truncated = bool(rest) or self._stream.truncated

    def _parse_text(self, chunk: str) -> Iterator[Event]:
        tally, table, both = self.tally, kinds(), self._both
        lines = _LINE.findall(chunk)
        tally.unknown_lines += chunk.count("\n") + 1 - len(lines)
        for tid, seconds, micros, name, text in lines:
            kind = table.get(name)
            if kind is None:
                tally.unknown_events[name] += 1
                continue
            args = kind.parse(text)
            if args is None:
                tally.unlike[name] += 1
                continue
            side = kind.side or both
            if name == LOG_EVENT:
                side = self._note_head(args)
            tally.events += 1
            t_ns = int(seconds) * 1_000_000_000 + int(micros) * 1000
            yield Event(t_ns, int(tid), side, name, args)

    def _parse_json(self, chunk: str) -> Iterator[Event]:
        for entry in _json_lines(chunk):
            event = self._event_of(entry)
            if event is not None:
                self.tally.events += 1
                yield event

    def _event_of(self, entry: Any) -> Event | None:
        """The event that a JSON value is; None, and counted, when it is none."""
        tally = self.tally
        if type(entry) is not dict:
            tally.unknown_lines += 1
            return None
        t_ns, tid = entry.pop("t_ns", None), entry.pop("tid", None)
        side, name = entry.pop("side", None), entry.pop("event", None)
        if type(t_ns) is not int or type(tid) is not int or type(name) is not str:
            tally.unknown_lines += 1
            return None
        if side not in (DESTINATION, SOURCE) or not 0 <= t_ns < _LATEST_NS:
            tally.unknown_lines += 1
            return None
        kind = kinds().get(name)
        if kind is None:
            tally.unknown_events[name] += 1
            return None
        if not kind.accepts(entry):
            tally.unlike[name] += 1
            return None
        if name == LOG_EVENT:
            self._note_head(entry)
        return Event(t_ns, tid, side, name, entry)

    def _note_head(self, args: Args) -> str:
        """Keep what a log says of itself; its side."""
        self.tally.lost += args["lost"]
        self.tally.vcpus = max(self.tally.vcpus, args["vcpus"])
        return SOURCE if args["of"] == SOURCE else DESTINATION


def _decode(data: bytes) -> str:
    if b"\r\n" in data:
        data = data.replace(b"\r\n", b"\n")
    return data.decode(errors="replace")


def _only_destination(head: bytes) -> bool:
    """Whether the events at the head are of the destination and none of the source."""
    sides = set()
    for _, _, _, name, text in _LINE.findall(_decode(head)):
        kind = kinds().get(name)
        if kind is not None and name == LOG_EVENT:
            sides.add((kind.parse(text) or {}).get("of"))
        elif kind is not None:
            sides.add(kind.side)
    return DESTINATION in sides and SOURCE not in sides


def _json_lines(chunk: str) -> Iterator[Any]:
    """The JSON value of each line; None for a line that is not JSON."""
    lines = chunk.split("\n")
    try:
        values = json.loads(f"[{','.join(lines)}]")  # several times as fast as line by line
    except (ValueError, RecursionError):
        values = None
    if values is not None and len(values) == len(lines):
        yield from values
        return
    for line in lines:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield None


def open_events(path: str | os.PathLike[str]) -> EventReader:
    """Open an event log of either format; ``-`` is standard input. Raises TraceError."""
    from vmemu.traces.opening import open_stream  # a run that only writes its log opens none

    stream = open_stream(path)
    try:
        return EventReader(stream)
    except BaseException:
        stream.close()
        raise


@dataclass(frozen=True)
class Events:
    """All events of a file and what the reader has to say of it."""

    events: list[Event]
    tally: Tally

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)


def read(path: str | os.PathLike[str]) -> Events:
    """All events of a file at once; ``open_events`` streams them. Raises TraceError."""
    with open_events(path) as reader:
        return Events(list(reader), reader.tally)
