"""The event log: what is noted is what is read, in both formats, whatever the names and threads."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import tempfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu import core, events, handover
from vmemu.errors import InputError, TraceError, VmemuError
from vmemu.eventfile import LOG_EVENT
from vmemu.events import DESTINATION, SOURCE, EventBlock, EventLog
from vmemu.eventtable import Kind, kinds, words

DATA = Path(__file__).parent.parent / "data"
QEMU_DST = DATA / "qemu72-postcopy-excerpt.dst.log.zst"
QEMU_SRC = DATA / "qemu72-postcopy-excerpt.src.log"

BLOCKS = (
    EventBlock("pc.ram", 0x7F00_0000_0000, 1 << 30, 4096),
    EventBlock('/rom@"etc"\\acpi', 0x7F10_0000_0000, 1 << 20, 4096),
    EventBlock("höhe", 0x7F20_0000_0000, 1 << 30, 2 << 20),
)


def _log(side: str = DESTINATION, **options: Any) -> EventLog:
    log = EventLog(side, **options)
    log.describe(BLOCKS)
    return log


def _round_trip(logs: list[EventLog], suffix: str) -> events.Events:
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, f"events{suffix}")
        events.write(path, logs)
        return events.read(path)


def _without_heads(read: events.Events) -> list[events.Event]:
    return [event for event in read if event.name != LOG_EVENT]


# ---- round trips ----

_OWN = {"a": st.integers(0, (1 << 63) - 1), "b": st.integers(0, (1 << 63) - 1)}
_HALF = st.integers(-(1 << 31), (1 << 31) - 1)


def _arguments(kind: Kind) -> st.SearchStrategy[dict[str, Any]]:
    values: dict[str, st.SearchStrategy[Any]] = {}
    taken = set()
    for field in kind.fields:
        if field.source in taken or (field.source in "lu" and "b" in taken):
            continue
        taken.add(field.source)
        if field.source == "n":
            values[field.name] = st.sampled_from([block.name for block in BLOCKS])
        elif field.source == "w":
            values[field.name] = st.sampled_from(sorted(words()))
        elif field.name in ("pages", "offset"):
            values[field.name] = st.integers(0, 1 << 20)
        elif field.source in _OWN:
            values[field.name] = _OWN[field.source]
        elif field.source in "lu":
            values[field.name] = _HALF
    return st.fixed_dictionaries(values)


_NOTES = st.lists(
    st.sampled_from([kind for name, kind in sorted(kinds().items()) if name != LOG_EVENT]).flatmap(
        lambda kind: st.tuples(st.just(kind), _arguments(kind))
    ),
    max_size=30,
)


@settings(deadline=None)
@given(notes=_NOTES)
def test_json_lines_have_what_was_noted(notes: list[tuple[Kind, dict[str, Any]]]) -> None:
    with _log(capacity=100) as log:
        for kind, args in notes:
            log.note(kind.name, **args)
        read = _round_trip([log], ".jsonl")
    assert not read.tally.unlike
    assert not read.tally.unknown_lines
    got = _without_heads(read)
    assert [event.name for event in got] == [kind.name for kind, _ in notes]
    for event, (_, args) in zip(got, notes, strict=True):
        assert {name: event.args[name] for name in args} == args
        assert event.side == DESTINATION


@settings(deadline=None)
@given(notes=_NOTES)
def test_text_says_the_same_as_json(notes: list[tuple[Kind, dict[str, Any]]]) -> None:
    with _log(capacity=100) as log:
        for kind, args in notes:
            one_page = {"pages": 1} if "pages" in args else {}
            log.note(kind.name, **{**args, **one_page})
        as_json, as_text = _round_trip([log], ".jsonl"), _round_trip([log], ".log")
    assert not as_text.tally.unlike
    assert len(as_json) == len(as_text)
    for one, other in zip(as_json, as_text, strict=True):
        assert (one.name, one.tid, one.t_ns // 1000) == (other.name, other.tid, other.t_ns // 1000)
        assert {name: one.args[name] for name in other.args} == other.args


def test_text_is_what_qemu_prints(tmp_path: Path) -> None:
    with _log() as log:
        log.note("postcopy_init_range", block='/rom@"etc"\\acpi', length=1 << 20)
        log.note("loadvm_postcopy_ram_handle_discard_header", block="pc.ram", len=16)
        log.note("loadvm_postcopy_handle_run")
        log.note("postcopy_ram_fault_thread_request", block="pc.ram", offset=0x5000, pid=77)
        log.note("postcopy_page_req_add", block="pc.ram", offset=0x5000, total=1)
        log.note("mark_postcopy_blocktime_begin", block="pc.ram", offset=0x5000, cpu=1)
        log.note("postcopy_place_page", block="pc.ram", offset=0x5000, pages=1)
        log.note("get_queued_page", block="höhe", offset=0x200000)
        log.write(str(tmp_path / "x.log"))
    lines = (tmp_path / "x.log").read_text().splitlines()
    texts = [line.split(":", 1)[1] for line in lines]
    assert all(line.split("@")[0] == str(threading.get_native_id()) for line in lines)
    assert texts == [
        "vmemu_event_log side=destination vcpus=0 events=8 lost=0",
        'postcopy_init_range /rom@"etc"\\acpi: 0x7f1000000000 offset=0x40000000 length=0x100000',
        "loadvm_postcopy_ram_handle_discard_header pc.ram: 16d",
        "loadvm_postcopy_handle_run ",
        "postcopy_ram_fault_thread_request Request for HVA=0x7f0000005000 rb=pc.ram offset=0x5000"
        " pid=77",
        "postcopy_page_req_add new page req 0x7f0000005000 total 1",
        "mark_postcopy_blocktime_begin addr: 0x7f0000005000, dd: 0x0, time: 0, cpu: 1,"
        " already_received: 0",
        "postcopy_place_page host=0x7f0000005000",
        "get_queued_page höhe/0x200000 page_abs=0x200",
    ]


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80))
def test_any_name_is_valid_json(name: str) -> None:
    with EventLog(DESTINATION, capacity=10) as log:
        log.describe([EventBlock(name, 0, 4096, 4096)])
        log.note("postcopy_place_page", block=name, pages=1)
        (event,) = _without_heads(_round_trip([log], ".jsonl"))
    assert event.args["block"] == name


def test_a_name_that_is_no_utf8_is_replaced(tmp_path: Path) -> None:
    raw = b"a\xc0\x80\xed\xa0\x80\xf5\xffz\xe2\x82"
    with EventLog(DESTINATION) as log:
        log.describe([EventBlock(raw.decode(errors="surrogateescape"), 0, 4096, 4096)])
        log.note("postcopy_place_page", block=0, pages=1)
        log.write(str(tmp_path / "x"))
    line = (tmp_path / "x").read_bytes().splitlines()[1].decode()
    assert json.loads(line)["block"].strip("�az") == ""


def test_a_run_of_pages_is_a_line_each_in_text() -> None:
    with _log() as log:
        log.note("postcopy_place_page", block="höhe", offset=2 << 20, pages=3)
        (one,) = _without_heads(_round_trip([log], ".jsonl"))
        three = _without_heads(_round_trip([log], ".log"))
    assert (one.args["pages"], one.args["length"]) == (3, 6 << 20)
    assert [event.args["host"] - BLOCKS[2].host for event in three] == [2 << 20, 4 << 20, 6 << 20]


def test_blocktime_until_now_is_in_the_end_event() -> None:
    base = core.lib.vm_event_at
    table = kinds()
    begin, end = (table[f"mark_postcopy_blocktime_{name}"].id for name in ("begin", "end"))
    with _log(vcpus=2) as log:
        start = log.pointer.start_ns
        for ms, kind, cpu in ((1, begin, 0), (3, begin, 1), (8, end, 1), (9, end, 0)):
            base(log.pointer, start + ms * 1_000_000, kind, 0, 4096 * cpu, cpu)
        read = _without_heads(_round_trip([log], ".log"))
    assert [event.args["time"] for event in read] == [1, 3, 5, 5]


# ---- the log itself ----


def test_what_a_full_log_loses_is_counted() -> None:
    capacity = 304  # fills whole pages of memory: one more would lie outside the mapping
    with _log(capacity=capacity) as log:
        for number in range(capacity + 15):
            log.note("postcopy_place_page", block="pc.ram", offset=4096 * number, pages=1)
        assert (log.written, log.lost) == (capacity, 15)
        read = _round_trip([log], ".jsonl")
    assert read.tally.lost == 15
    offsets = [event.args["offset"] // 4096 for event in _without_heads(read)]
    assert offsets == list(range(capacity))


def test_threads_never_share_a_slot() -> None:
    writers, each = 8, 5000
    kind = kinds()["postcopy_place_page"].id
    gate = threading.Barrier(writers)

    def write_some(log: EventLog, me: int) -> None:
        gate.wait()
        for number in range(each):
            core.lib.vm_event(log.pointer, kind, 0, me * each + number, 1)

    with _log(capacity=writers * each - 100) as log:
        threads = [threading.Thread(target=write_some, args=(log, me)) for me in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (log.written, log.lost) == (writers * each - 100, 100)
        read = _without_heads(_round_trip([log], ".jsonl"))
    offsets = [event.args["offset"] for event in read]
    assert len(set(offsets)) == len(offsets) == writers * each - 100
    assert len({event.tid for event in read}) == writers
    times = [event.t_ns for event in read]
    assert times == sorted(times)


def _in_another_process(way: Connection) -> None:
    log: EventLog = handover.receive(way)
    log.note("migrate_set_state", new_state="postcopy-active")
    log.note("get_queued_page", block="pc.ram", offset=4096)
    os._exit(9)  # as if it was killed


def test_a_process_that_was_killed_leaves_its_events() -> None:
    with _log(vcpus=2) as destination, _log(SOURCE) as source:
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_in_another_process, args=(there,)
        )
        destination.note("loadvm_postcopy_handle_listen", step="enter")
        process.start()
        with here, there:
            handover.send(here, source)
            process.join()
        destination.note("loadvm_postcopy_handle_run")
        read = _round_trip([destination, source], ".jsonl")
        text = _round_trip([destination, source], ".log")
    expected = [
        (DESTINATION, "loadvm_postcopy_handle_listen"),
        (SOURCE, "migrate_set_state"),
        (SOURCE, "get_queued_page"),
        (DESTINATION, "loadvm_postcopy_handle_run"),
    ]
    assert [(event.side, event.name) for event in _without_heads(read)] == expected
    assert [(event.side, event.name) for event in _without_heads(text)] == expected
    assert read.tally.vcpus == 2
    assert read.events[1].tid == process.pid


def test_without_a_log_nothing_happens() -> None:
    core.lib.vm_event(events.pointer(None), kinds()["postcopy_start"].id, 0, 0, 0)


def test_a_closed_log_is_refused() -> None:
    log = _log()
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.note("postcopy_start")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("no_such_event", {}),
        ("postcopy_start", {"more": 1}),
        ("postcopy_place_page", {"host": 4096}),  # it follows from the block
        ("migrate_set_state", {"new_state": "nowhere"}),
    ],
)
def test_a_wrong_note_is_a_type_error(name: str, args: dict[str, Any]) -> None:
    with _log() as log, pytest.raises(TypeError):
        log.note(name, **args)


# ---- writing ----


def test_a_full_disk_is_an_error() -> None:
    with _log() as log:
        log.note("postcopy_start")
        with pytest.raises(VmemuError, match="No space left"):
            log.write("/dev/full")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with _log() as log:
        for number in range(1000):
            log.note("postcopy_place_page", block="pc.ram", offset=number << 12, pages=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(VmemuError, match=os.strerror(errno.EFBIG)):
                log.write(str(path))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["events.jsonl"]


def test_a_place_that_can_not_be_written_is_the_inputs_fault(tmp_path: Path) -> None:
    with _log() as log, pytest.raises(InputError, match="can't be written"):
        log.write(str(tmp_path / "no" / "such" / "x.log"))


# ---- QEMU's logs ----


def test_a_recorded_log_is_read_whole() -> None:
    read = events.read(QEMU_DST)
    assert len(read) == 451
    assert not read.tally.unlike
    assert not read.tally.unknown_events
    assert {event.side for event in read} == {DESTINATION}
    faults = [e for e in read if e.name == "postcopy_ram_fault_thread_request"]
    assert faults[0] == events.Event(
        1795396638782056000,
        16729,
        DESTINATION,
        "postcopy_ram_fault_thread_request",
        {"host": 0x7F4CF91A0000, "block": "pc.ram", "offset": 0x53A0000, "pid": 16722},
    )
    assert len(faults) == 60


def test_states_of_a_source_are_the_sources() -> None:
    read = events.read(QEMU_SRC)
    assert len(read) == 153
    assert {event.side for event in read} == {SOURCE}
    assert read.events[0].args == {"new_state": "setup"}


def test_a_state_is_the_sources_in_a_text_of_both_sides() -> None:
    with _log() as destination, _log(SOURCE) as source:
        destination.note("loadvm_postcopy_handle_run")
        source.note("migrate_set_state", new_state="active")
        both = _round_trip([destination, source], ".log")
        destination.note("migrate_set_state", new_state="active")
        alone = _round_trip([destination], ".log")
    assert both.events[-1].side == SOURCE
    assert alone.events[-1].side == DESTINATION


def test_unknown_events_and_a_cut_line_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(
        b"qemu-system-x86_64: warning: something\n"
        b"1@2.000003:postcopy_start \r\n"
        b"1@2.000003:vmstate_load ram, ram\n"
        b"1@2.000004:postcopy_place_page (no host)\n"
        b"1@2.000005:postcopy_place_page host=(nil)\n"
        b"1@2.000006:postcopy_place_page host=0x7f4cf4"
    )
    read = events.read(path)
    assert [event.t_ns for event in read] == [2000003000, 2000005000]
    assert read.events[1].args == {"host": 0}
    assert read.tally.unknown_events == {"vmstate_load": 1}
    assert read.tally.unlike == {"postcopy_place_page": 1}
    assert read.tally.unknown_lines == 1
    assert read.tally.truncated


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"postcopy_start \n",
        b'{\n "schema": "vmemu-result/1"\n}\n',
        b"x" * (3 << 20),
        b"[" * 100_000 + b"\n",
        b'{"t_ns": 1, "tid": 1, "side": "both", "event": "postcopy_start"}\n',
        b"1@99999999999.000000:postcopy_start \n",
        b"\n" * 5000,
    ],
)
def test_what_is_no_event_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="not an event log"):
        events.read(path)


_GOOD = (
    b'{"t_ns":5,"tid":1,"side":"destination","event":"vmemu_event_log","of":"destination",'
    b'"vcpus":2,"events":1,"lost":0}\n'
    b'{"t_ns":6,"tid":1,"side":"destination","event":"postcopy_place_page","host":4096,'
    b'"block":"pc.ram","offset":4096,"pages":1,"length":4096}\n'
)


@settings(deadline=None)
@given(
    text=st.sampled_from([_GOOD, QEMU_SRC.read_bytes()[:3000]]),
    cuts=st.lists(st.tuples(st.integers(0, 3000), st.binary(max_size=4)), max_size=8),
)
def test_damaged_logs_never_crash(text: bytes, cuts: list[tuple[int, bytes]]) -> None:
    for at, put in cuts:
        text = text[:at] + put + text[at + 1 :]
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        try:
            read = events.read(file.name)
        except InputError:
            return
    assert all(0 <= event.t_ns < 1 << 63 for event in read)
