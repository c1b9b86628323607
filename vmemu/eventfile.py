"""Event logs as files: ours as JSON lines or text, and what QEMU's log trace backend wrote.

The text is ``TID@SEC.USEC:event arguments`` a line, as QEMU prints it with ``-msg timestamp=on``.
Which events there are, and what their arguments are called, says one table in the C core: the
writer there and the patterns here are made from the same lines. Files may be compressed.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vmemu import core
from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream, open_stream

DESTINATION, SOURCE = "destination", "source"
LOG_EVENT = "vmemu_event_log"
"""The event at the head of each side of a log of ours: its side, vCPUs, events, events lost."""

Args = dict[str, Any]
"""Numbers are int, everything else is str."""

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 20
_UNKNOWN_ALWAYS_ALLOWED = 1000
_LINE = re.compile(
    # Ten digits of seconds at most, so that the nanoseconds fit into 63 bits.
    r"^([0-9]{1,10})@([0-8][0-9]{9}|[0-9]{1,9})\.([0-9]{6}):([A-Za-z_][A-Za-z0-9_]*) ?([^\n]*)$",
    re.MULTILINE,
)
_FIELD = re.compile(r"\{(\w+):(.)(.)\}")
_FORMS = {
    "s": ("(.*)", 0),
    "u": ("([0-9]{1,20})", 10),
    "d": ("(-?[0-9]{1,20})", 10),
    "x": ("([0-9a-f]{1,16})", 16),
    "p": ("(0x[0-9a-f]{1,16})", 16),
}
"""How a field looks in a text, and the base of its number; 0: it is no number."""
_MOST = 1 << 64


class Event(NamedTuple):
    """One event. ``t_ns``: of a clock that both sides share when they ran on one machine."""

    t_ns: int
    tid: int
    side: str
    """``destination`` or ``source``."""
    name: str
    args: Args


class Field(NamedTuple):
    """An argument of an event: its name, where the C core takes it from, how it is printed."""

    name: str
    source: str
    form: str


@dataclass(frozen=True)
class Kind:
    """One line of the C core's table. ``side`` is empty for an event that both sides have."""

    id: int
    name: str
    side: str
    fields: tuple[Field, ...]
    pattern: re.Pattern[str]
    """Of the text behind the name; a group for each field of the text."""
    bases: tuple[tuple[str, int], ...]
    """Of those fields: name, base of its number or 0."""

    def parse(self, text: str) -> Args | None:
        """The arguments in a text, None when it is not of this event's form."""
        match = self.pattern.fullmatch(text)
        if match is not None:
            values = zip(self.bases, match.groups(), strict=True)
            return {n: int(v, base) if base else v for (n, base), v in values}
        if "(nil)" in text:  # how glibc prints a pointer that is NULL
            return self.parse(text.replace("(nil)", "0x0"))
        return None

    def accepts(self, args: Args) -> bool:
        """Whether JSON arguments are all there and of the right types."""
        for name, _, form in self.fields:
            value = args.get(name)
            if form == "s":
                if type(value) is not str:
                    return False
            elif type(value) is not int or not -_MOST < value < _MOST:
                return False
        return True


@functools.cache
def kinds() -> dict[str, Kind]:
    """Every event of the table by its name."""
    table = {}
    number = 1
    while (entry := core.lib.vm_event_kind(number)) != core.ffi.NULL:
        kind = _kind(number, entry)
        table[kind.name] = kind
        number += 1
    return table


@functools.cache
def words() -> dict[str, int]:
    """The words that events carry by number, such as the states of a migration."""
    table: dict[str, int] = {}
    while (entry := core.lib.vm_event_word(len(table))) != core.ffi.NULL:
        table[core.text(entry)] = len(table)
    return table


def _kind(number: int, entry: Any) -> Kind:
    sides = {core.lib.VM_SIDE_DESTINATION: DESTINATION, core.lib.VM_SIDE_SOURCE: SOURCE}
    text = core.text(entry.text)
    in_text = [Field(*parts) for parts in _FIELD.findall(text)]
    extra = [Field(*parts) for parts in _FIELD.findall(core.text(entry.extra))]
    pattern, end = "", 0
    for match in _FIELD.finditer(text):
        pattern += re.escape(text[end : match.start()]) + _FORMS[match[3]][0]
        end = match.end()
    return Kind(
        id=number,
        name=core.text(entry.name),
        side=sides.get(entry.side, ""),
        fields=(*in_text, *extra),
        pattern=re.compile(pattern + re.escape(text[end:])),
        bases=tuple((one.name, _FORMS[one.form][1]) for one in in_text),
    )


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
        if side not in (DESTINATION, SOURCE) or not 0 <= t_ns < _MOST // 2:
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
