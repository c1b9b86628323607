"""Event logs laid side by side: what each migration did, as figures that can be compared.

``summarize`` reads the log or logs of one migration, ours or QEMU's, and gives a document of plain
data; times are integer nanoseconds. Nothing of a log is kept but what the figures need.
"""

from __future__ import annotations

import array
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu.blocktime import summary
from vmemu.errors import TraceError
from vmemu.eventfile import Event, Tally, open_events
from vmemu.eventtable import DESTINATION, SOURCE

SCHEMA = "vmemu-event-comparison/1"
TARGET_PAGE = 4096
"""Bytes; the unit of discards on the wire."""
RANGE_BYTES = 16
"""Of one range in a discard command; a command of QEMU tells how many bytes its ranges have."""

Document = dict[str, Any]
Page = tuple[str, int]
"""(block, offset of the page)."""

_INCOMING = {
    "loadvm_postcopy_handle_advise": "advise",
    "loadvm_postcopy_ram_handle_discard": "discard",
    "loadvm_postcopy_ram_handle_discard_header": "discard",
    "loadvm_postcopy_handle_listen": "listening",
    "loadvm_postcopy_handle_run": "running",
    "postcopy_pause_incoming": "paused",
    "postcopy_pause_incoming_continued": "running",
    "postcopy_ram_listen_thread_exit": "end",
    "postcopy_ram_incoming_cleanup_entry": "end",
}
"""QEMU logs no state of its incoming side; these are the events that change it."""


# ---- blocktime ----


@dataclass
class Blocktime:
    """Pairs the begins and ends of vCPUs being stopped, in the order of the log.

    QEMU says at an end only which page came, and all that wait for it go on; ours says which vCPU,
    in JSON by its number, in text by the thread, which is that of the begin.
    """

    stops: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Of each vCPU: (begin, end) in ns."""
    _open: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def begin(self, event: Event) -> None:
        """A vCPU stops, unless its page had come already; threads that are no vCPU don't count."""
        args = event.args
        cpu, address = args["cpu"], args["addr"]
        if cpu < 0:
            return
        self.stops.setdefault(cpu, [])
        if args["already_received"]:
            return
        before = self._open.get(cpu)
        if before is not None and before[0] != address:
            # A page wakes its waiters before QEMU logs the end: a vCPU that stops elsewhere has
            # gone on, and the end that follows is not for it any more.
            self._close(cpu, event.t_ns)
        if before is None or before[0] != address:
            self._open[cpu] = (address, event.tid, event.t_ns)

    def end(self, event: Event) -> None:
        """A page came: who waited for it goes on."""
        if not self._open:
            return  # nearly every page: nobody waits
        address = event.args["addr"]
        waiting = [cpu for cpu, one in self._open.items() if one[0] == address]
        if "cpu" in event.args:
            waiting = [cpu for cpu in waiting if cpu == event.args["cpu"]]
        elif any(self._open[cpu][1] == event.tid for cpu in waiting):
            waiting = [cpu for cpu in waiting if self._open[cpu][1] == event.tid]
        for cpu in waiting:
            self._close(cpu, event.t_ns)

    def _close(self, cpu: int, t_ns: int) -> None:
        begun = self._open.pop(cpu)[2]
        self.stops[cpu].append((begun, max(t_ns, begun)))

    def overlapped(self, vcpus: int = 0) -> int:
        """Time in ns in which every vCPU was stopped; ``vcpus`` 0: those that ever were."""
        count = vcpus or len(self.stops)
        intervals = [stop for stops in self.stops.values() for stop in stops]
        edges = [(begin, 1) for begin, _ in intervals] + [(end, -1) for _, end in intervals]
        total = stopped = since = 0
        for t, step in sorted(edges):
            if stopped == count > 0:
                total += t - since
            stopped += step
            since = t
        return total


def overlapped_from_events(events: Iterable[Event], vcpus: int = 0) -> int:
    """``blocktime.overlapped_ns`` anew, from a log's begins and ends alone.

    Exact to the nanosecond from JSON lines, to the microsecond from text. ``vcpus`` 0: what the log
    says, else as many as were ever stopped.
    """
    blocktime = Blocktime()
    for event in events:
        if event.name == "mark_postcopy_blocktime_begin":
            blocktime.begin(event)
        elif event.name == "mark_postcopy_blocktime_end":
            blocktime.end(event)
        elif event.name == "vmemu_event_log":
            vcpus = vcpus or event.args["vcpus"]
    return blocktime.overlapped(vcpus)


# ---- pages ----


class Placed:
    """Where and when pages were placed: runs of host addresses."""

    def __init__(self) -> None:
        self.pages = self.zero = 0
        self._columns = array.array("Q"), array.array("Q"), array.array("Q")

    def add(self, event: Event) -> None:
        """A run of pages, or one page where the log has a line for each."""
        args = event.args
        pages = args.get("pages", 1)
        if event.name == "postcopy_place_page_zero":
            self.zero += pages
        else:
            self.pages += pages
        row = (args["host"], args.get("length", TARGET_PAGE), event.t_ns)
        if all(0 <= value < 1 << 63 for value in row):
            for column, value in zip(self._columns, row, strict=True):
                column.append(value)

    def times(self, hosts: Sequence[int]) -> NDArray[np.int64]:
        """When the page at each address was first placed; -1: never."""
        start, length, time = (np.frombuffer(c, np.uint64).astype(np.int64) for c in self._columns)
        if not len(start) or not len(hosts):
            return np.full(len(hosts), -1, np.int64)
        order = np.lexsort((time, start))
        start, first = np.unique(start[order], return_index=True)
        length, time = length[order][first], time[order][first]
        host = np.array([h if 0 <= h < 1 << 63 else -1 for h in hosts], np.int64)
        at = np.searchsorted(start, host, side="right") - 1
        inside = (at >= 0) & (host - start[at] < length[at])
        return np.where(inside, time[at], -1)


@dataclass
class Requests:
    """Faults at the destination, and what became of them at the source."""

    faults: int = 0
    repeats: int = 0
    blocks: Counter[str] = field(default_factory=Counter)
    first: dict[int, tuple[Page, int]] = field(default_factory=dict)
    """Of each page by its host address: the page, when it was asked for first."""
    queued: dict[Page, int] = field(default_factory=dict)
    taken: dict[Page, int] = field(default_factory=dict)
    queue_events: int = 0
    taken_events: int = 0
    not_dirty: int = 0

    def fault(self, event: Event) -> None:
        """The fault thread has read a fault."""
        args = event.args
        self.faults += 1
        self.blocks[args["block"]] += 1
        if args["host"] in self.first:
            self.repeats += 1
        else:
            self.first[args["host"]] = ((args["block"], args["offset"]), event.t_ns)

    def queue(self, event: Event) -> None:
        """The source has the request."""
        self.queue_events += 1
        self.queued.setdefault((event.args["block"], event.args["start"]), event.t_ns)

    def take(self, event: Event) -> None:
        """The source sends the page."""
        self.taken_events += 1
        self.taken.setdefault((event.args["block"], event.args["offset"]), event.t_ns)

    def drop(self, event: Event) -> None:
        """The source had sent it already."""
        self.not_dirty += 1


@dataclass
class Discards:
    """What the destination was told to forget, as each side says it."""

    commands_sent: int = 0
    ranges_sent: int = 0
    commands_received: int = 0
    ranges_received: int = 0
    pages: Counter[str] = field(default_factory=Counter)
    """Target pages of each block, as the source sent them."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Bytes of each block, as the destination dropped them."""

    def send_range(self, event: Event) -> None:
        """The source sends a range."""
        self.ranges_sent += 1
        self.pages[event.args["block"]] += event.args["length"]

    def send_command(self, event: Event) -> None:
        """The source sends a command of some ranges."""
        self.commands_sent += 1

    def receive_command(self, event: Event) -> None:
        """The destination has a command."""
        self.commands_received += 1
        self.ranges_received += event.args["len"] // RANGE_BYTES

    def drop_range(self, event: Event) -> None:
        """The destination drops a range."""
        self.dropped[event.args["block"]] += event.args["length"]


# ---- one migration ----


class Summary:
    """Takes the events of one migration, file after file, and makes its figures."""

    def __init__(self) -> None:
        self.states: dict[str, list[str]] = {SOURCE: [], DESTINATION: []}
        self.discards, self.requests, self.placed = Discards(), Requests(), Placed()
        self.blocktime = Blocktime()
        self.tally = Tally()
        self._first = self._last = -1
        self._marks: dict[str, int] = {}
        self._qemu_blocktime_ms = -1
        self._steps = {
            "migrate_set_state": self._state,
            "postcopy_discard_send_range": self.discards.send_range,
            "qemu_savevm_send_postcopy_ram_discard": self.discards.send_command,
            "loadvm_postcopy_ram_handle_discard_header": self.discards.receive_command,
            "ram_discard_range": self.discards.drop_range,
            "postcopy_ram_fault_thread_request": self.requests.fault,
            "ram_save_queue_pages": self.requests.queue,
            "get_queued_page": self.requests.take,
            "get_queued_page_not_dirty": self.requests.drop,
            "postcopy_place_page": self.placed.add,
            "postcopy_place_page_zero": self.placed.add,
            "mark_postcopy_blocktime_begin": self.blocktime.begin,
            "mark_postcopy_blocktime_end": self.blocktime.end,
            "postcopy_ram_incoming_cleanup_blocktime": self._total_blocktime,
        }

    def add(self, events: Iterable[Event]) -> None:
        """All events of a file."""
        steps = self._steps
        for event in events:
            if self._first < 0 or event.t_ns < self._first:
                self._first = event.t_ns
            self._last = max(self._last, event.t_ns)
            step = steps.get(event.name)
            if step is not None:
                step(event)
            if event.name in _INCOMING:
                self._enter(DESTINATION, _INCOMING[event.name], event.t_ns)

    def note(self, tally: Tally) -> None:
        """What the reader of a file has to say, once it was added."""
        mine = self.tally
        mine.events += tally.events
        mine.unknown_events += tally.unknown_events
        mine.unlike += tally.unlike
        mine.unknown_lines += tally.unknown_lines
        mine.truncated |= tally.truncated
        mine.lost += tally.lost
        mine.vcpus = max(mine.vcpus, tally.vcpus)

    def _state(self, event: Event) -> None:
        self._enter(event.side, event.args["new_state"], event.t_ns)

    def _enter(self, side: str, state: str, t_ns: int) -> None:
        states = self.states[side]
        if not states or states[-1] != state:
            states.append(state)
        self._marks.setdefault(f"{side} {state}", t_ns)

    def _total_blocktime(self, event: Event) -> None:
        self._qemu_blocktime_ms = event.args["total"]

    # ---- figures ----

    def document(self, name: str) -> Document:
        """The figures as plain data."""
        tally = self.tally
        return {
            "name": name,
            "events": {
                "read": tally.events,
                "lost": tally.lost,
                "unknown": dict(tally.unknown_events),
                "unlike": dict(tally.unlike),
                "unknown_lines": tally.unknown_lines,
                "truncated": tally.truncated,
            },
            "duration_ns": max(self._last - self._first, 0),
            "postcopy_ns": self._postcopy(),
            "states": self.states,
            "discards": self._discards(),
            "requests": self._requests(),
            "placed": {"pages": self.placed.pages, "zero": self.placed.zero},
            "latency_ns": self._latency(),
            "stages_ns": self._stages(),
            "blocktime": self._blocktime(),
        }

    def _postcopy(self) -> int | None:
        """From the guest's run, or the source's switch, to the end; None when it is not there."""
        pairs = (
            (f"{DESTINATION} running", f"{DESTINATION} end"),
            (f"{SOURCE} postcopy-active", f"{SOURCE} completed"),
        )
        for begin, end in pairs:
            if begin in self._marks and end in self._marks:
                return max(self._marks[end] - self._marks[begin], 0)
        return None

    def _discards(self) -> Document:
        d = self.discards
        return {
            "commands_sent": d.commands_sent,
            "commands_received": d.commands_received,
            "ranges_sent": d.ranges_sent,
            "ranges_received": d.ranges_received,
            "pages_sent": dict(d.pages),
            "bytes_dropped": dict(d.dropped),
        }

    def _requests(self) -> Document:
        r = self.requests
        return {
            "faults": r.faults,
            "pages": len(r.first),
            "repeats": r.repeats,
            "faults_by_block": dict(r.blocks),
            "queued": r.queue_events,
            "served": r.taken_events,
            "sent_before": r.not_dirty,
        }

    def _answers(self) -> list[tuple[Page, int, int]]:
        """Pages that were placed after they were asked for: (page, asked, placed)."""
        hosts = list(self.requests.first)
        times = self.placed.times(hosts)
        both = zip(self.requests.first.values(), times.tolist(), strict=True)
        return [(page, asked, placed) for (page, asked), placed in both if placed >= asked]

    def _latency(self) -> Document:
        return _distribution([placed - asked for _, asked, placed in self._answers()])

    def _stages(self) -> Document | None:
        """Where the time of an answer went; only with both sides, on one clock."""
        r = self.requests
        request, queue, answer = [], [], []
        for page, asked, placed in self._answers():
            queued, taken = r.queued.get(page), r.taken.get(page)
            if queued is None or taken is None or not asked <= queued <= taken <= placed:
                continue
            request.append(queued - asked)
            queue.append(taken - queued)
            answer.append(placed - taken)
        if not request:
            return None
        return {
            "request": _distribution(request),
            "queue": _distribution(queue),
            "answer": _distribution(answer),
        }

    def _blocktime(self) -> Document:
        vcpus = []
        for cpu, stops in sorted(self.blocktime.stops.items()):
            lengths = [end - begin for begin, end in stops]
            vcpus.append({"id": cpu, "blocktime_ns": sum(lengths), **_distribution(lengths)})
        told = self._qemu_blocktime_ms
        return {
            "overlapped_ns": self.blocktime.overlapped(self.tally.vcpus),
            "overlapped_told_ns": told * 1_000_000 if told >= 0 else None,
            "vcpus": vcpus,
        }


def _distribution(values: list[int]) -> Document:
    """count, p50, p90, p99, p999, max, mean of nanoseconds; zeros of nothing."""
    return {"count": len(values), **summary(np.array(values, np.uint64))}


def split_names(text: str) -> list[str]:
    """The files of one migration: ``A.dst.log+A.src.log`` are two, unless there is a file of that
    very name."""
    if "+" not in text or os.path.exists(text):
        return [text]
    return [part for part in text.split("+") if part]


def summarize(text: str) -> Document:
    """The figures of one migration, from a file or several with ``+`` between.

    Raises TraceError when one can't be read or holds no events.
    """
    names = split_names(text)
    if not names:
        raise TraceError(f"{text!r} names no file")
    one = Summary()
    for name in names:
        with open_events(name) as reader:
            one.add(reader)
            one.note(reader.tally)
    return one.document(text)


def compare(names: Sequence[str]) -> Document:
    """The figures of several migrations. Raises TraceError."""
    return {"schema": SCHEMA, "runs": [summarize(name) for name in names]}
