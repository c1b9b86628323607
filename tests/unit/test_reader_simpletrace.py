"""Files of QEMU's simple trace backend, made here from the definition of the format.

The encoder below shares nothing with the reader: it writes what QEMU's ``trace/simple.c`` does.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trace_readers import read_or_refuse

from vmemu.cli.trace import trace as trace_command
from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.reader import LOAD, BlockBase, Reader
from vmemu.traces.readers import simpletrace
from vmemu.traces.recordings import known_readers, open_recording

EVENTS = {
    "object_dynamic_cast_assert": 3,
    "postcopy_ram_fault_thread_request": 700,
    "mark_postcopy_blocktime_begin": 701,
    "postcopy_blocktime_begin": 702,
    "postcopy_request_shared_page": 703,
}
FAULT = "postcopy_ram_fault_thread_request"


class Event(NamedTuple):
    name: str
    time: int
    arguments: tuple[int | str, ...]


def header(version: int = 4, order: str = "<") -> bytes:
    return struct.pack(f"{order}QQQ", 0xFFFFFFFFFFFFFFFF, 0xF2B177CB0AA429B4, version)


def mapping(events: dict[str, int] = EVENTS) -> bytes:
    return b"".join(
        struct.pack("<QQI", 0, number, len(name)) + name.encode() for name, number in events.items()
    )


def body(number: int, time: int, arguments: tuple[int | str, ...]) -> bytes:
    packed = b""
    for argument in arguments:
        if isinstance(argument, str):
            packed += struct.pack("<I", len(argument.encode())) + argument.encode()
        else:
            packed += struct.pack("<Q", argument & 0xFFFFFFFFFFFFFFFF)
    return struct.pack("<QQII", number, time, 24 + len(packed), 4711) + packed


def record(event: Event) -> bytes:
    return struct.pack("<Q", 1) + body(EVENTS[event.name], event.time, event.arguments)


def lost(count: int) -> bytes:
    return struct.pack("<Q", 1) + body(0xFFFFFFFFFFFFFFFE, 5, (count,))


def request(offset: int, block: str = "pc.ram", pid: int = 7, time: int = 10) -> Event:
    return Event(FAULT, time, (0x7F0000000000 + offset, block, offset, pid))


def trace(*events: Event) -> bytes:
    return header() + mapping() + b"".join(map(record, events))


def opened(tmp_path: Path, raw: bytes, declarations: str | None = None) -> Reader:
    path = tmp_path / "trace-4711"
    path.write_bytes(raw)
    if declarations is None:
        return open_recording(path)
    (tmp_path / "trace-events-all").write_text(declarations)
    return open_recording(path, trace_events=tmp_path / "trace-events-all")


def read(reader: Reader) -> list[tuple[int, int, int]]:
    """Stream, address, time."""
    rows: list[tuple[int, int, int]] = []
    for chunk in reader.chunks():
        assert chunk.times is not None
        assert set(chunk.kinds.tolist()) == {LOAD}
        assert set(chunk.sizes.tolist()) == {1}
        columns = zip(chunk.addresses.tolist(), chunk.times.tolist(), strict=True)
        rows += [(chunk.stream, *column) for column in columns]
    return rows


class TestVersion4:
    def test_requests(self, tmp_path: Path) -> None:
        other = Event("object_dynamic_cast_assert", 1, ("a", "b", "c.c", 5, "f"))
        raw = trace(
            other,
            request(0x1000, pid=7, time=11),
            request(0x2000, block="vga.vram", pid=8, time=12),
            other,
            request(0x3000, pid=8, time=13),
        )
        with opened(tmp_path, raw) as reader:
            second = 1 << 44
            assert sorted(read(reader)) == [
                (7, 0x1000, 11),
                (8, 0x3000, 13),
                (8, second + 0x2000, 12),
            ]
        assert reader.blocks == (BlockBase("pc.ram", 0), BlockBase("vga.vram", second))
        assert reader.address_kind == "ram-block"
        assert reader.missing == ("sizes", "writes", "repeats", "instruction_fetches")
        assert not reader.tally.truncated
        assert reader.tally.unknown_lines == 0

    def test_blocks_are_laid_in_the_order_of_first_sight_whatever_their_length(
        self, tmp_path: Path
    ) -> None:
        names = ["zz", "a", "/rom@etc/acpi/tables", "b", "a", "pc.ram"]
        with opened(tmp_path, trace(*(request(0, block=name) for name in names))) as reader:
            assert [row[1] >> 44 for row in read(reader)] == [0, 1, 2, 3, 1, 4]
        assert [block.name for block in reader.blocks] == [*names[:4], "pc.ram"]

    @pytest.mark.parametrize(
        "begin",
        [
            Event("mark_postcopy_blocktime_begin", 9, (0x7F1000, 0x55, 3, 1, 0)),
            Event("postcopy_blocktime_begin", 9, (0x7F1000, 77, 1, 0)),
        ],
        ids=["to-10.0", "from-10.1"],
    )
    def test_blocktime(self, begin: Event, tmp_path: Path) -> None:
        at = 3 if len(begin.arguments) == 5 else 2
        none = begin._replace(arguments=(*begin.arguments[:at], -1, *begin.arguments[at + 1 :]))
        with opened(tmp_path, trace(begin, none)) as reader:
            assert sorted(read(reader)) == [(1, 0x7F1000, 9), (0xFFFFFFFF, 0x7F1000, 9)]
        assert (reader.address_kind, reader.blocks) == ("virtual", ())
        with opened(tmp_path, trace(begin, request(0x1000), begin)) as reader:
            assert read(reader) == [(7, 0x1000, 10)]
        assert reader.tally.dropped == {"logged_twice": 2}

    def test_before_threads_were_told(self, tmp_path: Path) -> None:
        old = request(0x1000)
        old = old._replace(arguments=old.arguments[:3])
        for event in (old, request(0x1000, pid=0)):
            with opened(tmp_path, trace(event)) as reader:
                assert read(reader) == [(0, 0x1000, 10)]
            assert "threads" in reader.missing

    def test_what_qemu_lost_is_said(self, tmp_path: Path) -> None:
        shared = Event("postcopy_request_shared_page", 1, ("vhost-user0", "pc.ram", 0x1000))
        raw = trace(request(0), shared) + lost(3) + lost(4)
        with opened(tmp_path, raw) as reader:
            assert len(read(reader)) == 1
        assert reader.tally.dropped == {
            "other_processes": 1,
            "lost_by_qemu": 7,
        }

    def test_names_may_come_late(self, tmp_path: Path) -> None:
        late = {FAULT: EVENTS[FAULT]}
        raw = header() + lost(1) + mapping(late) + record(request(0x5000))
        with opened(tmp_path, raw) as reader:
            assert read(reader) == [(7, 0x5000, 10)]

    def test_every_size_of_buffer_gives_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = trace(*(request(n << 12, block="abc"[n % 3] * (1 + n % 5)) for n in range(300)))
        with opened(tmp_path, raw) as reader:
            whole = read(reader)
            blocks = reader.blocks
        assert len(whole) == 300
        for size, records in ((4200, 5), (5001, 64), (1 << 16, 1)):
            monkeypatch.setattr(simpletrace, "_BUFFER_BYTES", size)
            monkeypatch.setattr(simpletrace, "_RECORDS_A_CALL", records)
            with opened(tmp_path, raw) as reader:
                assert (read(reader), reader.blocks) == (whole, blocks)


class TestWrongFiles:
    @pytest.mark.parametrize("cut", [1, 10, 40, 60])
    def test_a_file_that_is_cut_off_gives_what_was_whole(self, cut: int, tmp_path: Path) -> None:
        raw = trace(request(0x1000), request(0x2000))
        with opened(tmp_path, raw[:-cut]) as reader:
            assert read(reader) == [(7, 0x1000, 10)]
        assert reader.tally.truncated

    def test_records_of_another_length_than_declared_are_counted(self, tmp_path: Path) -> None:
        wrong = Event(FAULT, 1, (1, "pc.ram", 2, 3, 4))
        too_long = Event(FAULT, 1, (1, 2, 3))
        far = request(1 << 44)
        with opened(tmp_path, trace(request(0), wrong, too_long, far)) as reader:
            assert len(read(reader)) == 1
        assert reader.tally.unknown_lines == 3
        assert reader.tally.first_unknown.startswith("among the first ")

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (header()[:20], "ends in its header"),
            (header(order=">"), "big-endian host"),
            (header(0), "version 0 of QEMU's simple trace"),
            (header(3), "version 3 .* give the trace-events-all of that QEMU with --trace-events"),
            (trace(), "no page fault .* log of the destination"),
            (
                trace(Event(FAULT, 1, (1, 2, 3, 4, 5))),
                "not those of any known QEMU.*--trace-events",
            ),
            (trace(request(0)) + bytes([9] * 40), "damaged: what follows record 6 is no record"),
        ],
    )
    def test_refused_in_one_line(self, raw: bytes, message: str, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=message) as error, opened(tmp_path, raw) as reader:
            read(reader)
        assert "\n" not in str(error.value)

    def test_no_other_reader_takes_it(self) -> None:
        head = trace(*(request(n << 12) for n in range(1000)))
        assert [r for r in known_readers() if r.sniff(head)] == [simpletrace.SimpletraceReader]


DECLARED = """\
# comment
disable unused_event(void) ""
vcpu tcg_event(void *p) "%p"
postcopy_ram_fault_thread_request(uint64_t offset, const char *ramblock, char **more, int pid) "x"
object_dynamic_cast_assert(const char *type, const char* file, int line) "%s %s %d"
"""


class TestDeclarations:
    def test_those_of_another_qemu(self, tmp_path: Path) -> None:
        event = Event(FAULT, 4, (0x6000, "ram", 1, 99))
        with opened(tmp_path, trace(event), DECLARED) as reader:
            assert read(reader) == [(99, 0x6000, 4)]

    @pytest.mark.parametrize("version", [2, 3])
    def test_version_before_names(self, version: int, tmp_path: Path) -> None:
        """Events are numbered by their lines, and records have no type."""
        raw = header(version)
        raw += body(3, 8, ("a", "b", 4)) + body(2, 9, (0x7000, "ram", 1, 98))
        with opened(tmp_path, raw, DECLARED) as reader:
            assert read(reader) == [(98, 0x7000, 9)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "declares no trace events"),
            (f'{FAULT}(uint64_t offset) "x"', "has no text 'ramblock' there"),
            (f'{FAULT}(uint64_t offset, uint64_t ramblock) "x"', "has no text 'ramblock' there"),
            ('postcopy_blocktime_begin(uint64_t addr) "x"', "has no number 'cpu' there"),
        ],
    )
    def test_wrong_ones_are_refused(self, text: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=message):
            opened(tmp_path, trace(request(0)), text)

    def test_option_of_convert_and_info(self, tmp_path: Path) -> None:
        (tmp_path / "t").write_bytes(header(3) + body(2, 9, (0x7000, "ram", 1, 98)))
        (tmp_path / "all").write_text(DECLARED)
        option = ["--trace-events", str(tmp_path / "all")]
        out = str(tmp_path / "t.vmtrace")
        for arguments in (["info", str(tmp_path / "t")], ["convert", str(tmp_path / "t"), out]):
            result = CliRunner().invoke(trace_command, [*arguments, *option])
            assert result.exit_code == 0
        assert native.open(out).accesses == 1

    def test_option_for_another_format_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text(" L 1000,8\n")
        (tmp_path / "all").write_text(DECLARED)
        with pytest.raises(TraceError, match="--trace-events is for QEMU simple traces"):
            open_recording(tmp_path / "x", trace_events=tmp_path / "all")


FAULTS = st.builds(
    request,
    st.integers(0, (1 << 44) - 1),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=20),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, (1 << 64) - 1),
)
OTHERS = st.builds(
    Event,
    st.just("object_dynamic_cast_assert"),
    st.integers(0, (1 << 64) - 1),
    st.tuples(st.text(max_size=40), st.integers(0, 5)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(FAULTS, OTHERS), max_size=30))
def test_what_is_written_is_what_is_read(events: list[Event]) -> None:
    faults = [event for event in events if event.name == FAULT]
    blocks = list(dict.fromkeys(fault.arguments[1] for fault in faults))
    with tempfile.TemporaryDirectory() as directory:
        try:
            with opened(Path(directory), trace(*events)) as reader:
                rows = read(reader)
        except TraceError:
            assert not faults
            return
    expected = [
        (
            fault.arguments[3],
            blocks.index(fault.arguments[1]) << 44 | fault.arguments[2],
            fault.time,
        )
        for fault in faults
    ]
    for stream in {row[0] for row in expected}:
        assert [r for r in rows if r[0] == stream] == [r for r in expected if r[0] == stream]
    assert len(rows) == len(faults)
    assert [block.name for block in reader.blocks] == blocks


RAW = trace(*(request(n << 12, block=f"b{n % 3}" * (n % 4 + 1)) for n in range(100)))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(RAW)), st.binary(max_size=40), st.sampled_from((0, 1, 8, 500)))
def test_mutated_files_give_figures_or_a_trace_error(at: int, new: bytes, gone: int) -> None:
    read_or_refuse(RAW[:at] + new + RAW[at + gone :])
