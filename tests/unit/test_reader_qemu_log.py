"""QEMU's log of trace events: page faults of a post-copy destination."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from backports import zstd
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trace_readers import read_or_refuse

from vmemu.cli.trace import trace as trace_command
from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.reader import LOAD, BlockBase, Reader
from vmemu.traces.readers.qemu_log import QemuLogReader
from vmemu.traces.recordings import known_readers, open_recording

DATA = Path(__file__).parent.parent / "data"
FAULTS = DATA / "qemu72-postcopy-faults.dst.log.zst"
EXCERPT = DATA / "qemu72-postcopy-excerpt.dst.log.zst"
SOURCE_LOG = DATA / "qemu72-postcopy-excerpt.src.log"

Row = tuple[int, int, int | None]
"""Stream, address, time."""

REQUEST = "postcopy_ram_fault_thread_request Request for HVA=0x7f0000001000"
STAMP = "16729@1795396638.782056:"
STAMP_NS = 1795396638782056000
OLD_BEGIN = (
    "mark_postcopy_blocktime_begin addr: 0x7f0000001000, dd: 0x5654fd320ac0, time: 1006,"
    " cpu: 1, already_received: 0"
)
NEW_BEGIN = "postcopy_blocktime_begin addr: 0x7f0000001000, time: 98765432100, cpu: 1, exist: 0"


def read(reader: Reader) -> list[Row]:
    rows: list[Row] = []
    for chunk in reader.chunks():
        assert set(chunk.kinds.tolist()) == {LOAD}
        assert set(chunk.sizes.tolist()) == {1}
        times = [None] * len(chunk.kinds) if chunk.times is None else chunk.times.tolist()
        addresses = chunk.addresses.tolist()
        rows += [(chunk.stream, *row) for row in zip(addresses, times, strict=True)]
    return rows


def opened(tmp_path: Path, *lines: str) -> Reader:
    path = tmp_path / "qemu.log"
    path.write_text("".join(line + "\n" for line in lines))
    return open_recording(path)


def request(block: str = "pc.ram", offset: int = 0x1000, pid: int | None = 16722) -> str:
    return f"{REQUEST} rb={block} offset={offset:#x}" + ("" if pid is None else f" pid={pid}")


class TestRealLogs:
    def test_every_fault_is_as_a_plain_reading_of_the_text_finds_it(self) -> None:
        text = zstd.decompress(FAULTS.read_bytes()).decode()
        found = re.findall(r"@(\d+)\.(\d{6}):\S+ Request .* offset=0x(\w+) pid=(\d+)", text)
        expected = [
            (int(pid), int(offset, 16), int(seconds + micros) * 1000)
            for seconds, micros, offset, pid in found
        ]
        with open_recording(FAULTS) as reader:
            rows = read(reader)
        assert len(rows) == 271
        for stream in (16722, 16723):
            assert [r for r in rows if r[0] == stream] == [r for r in expected if r[0] == stream]
        assert {row[0] for row in rows} == {16722, 16723}
        assert reader.blocks == (BlockBase("pc.ram", 0),)
        assert reader.address_kind == "ram-block"

    def test_figures(self) -> None:
        result = stats.stats_of(FAULTS)
        assert (result.accesses, result.pages_4k, result.threads) == (271, 252, 2)
        assert (result.unknown_lines, result.truncated, result.recorded_format) == (
            0,
            False,
            "qemu-log",
        )
        assert result.missing == ("sizes", "writes", "repeats", "instruction_fetches")

    def test_a_fault_that_was_logged_twice_counts_once(self) -> None:
        result = stats.stats_of(EXCERPT)
        assert (result.accesses, result.unknown_lines) == (60, 0)
        assert result.dropped["logged_twice"] == 59

    def test_the_native_trace_has_blocks_and_times(self, tmp_path: Path) -> None:
        convert(FAULTS, tmp_path / "t.vmtrace")
        meta = native.open(tmp_path / "t.vmtrace").meta
        assert meta.blocks == (BlockBase("pc.ram", 0),)
        assert meta.address_kind == "ram-block"
        assert meta.time_range_ns == (1795396638782056000, 1795396645086243000)

    def test_the_log_of_a_source_is_refused_in_a_line_that_helps(self) -> None:
        result = CliRunner().invoke(trace_command, ["info", str(SOURCE_LOG)])
        error = result.exception
        assert isinstance(error, TraceError)
        assert "\n" not in str(error)
        for part in ("destination", "-trace postcopy_ram_fault_thread_request", "timestamp=on"):
            assert part in str(error)

    @pytest.mark.parametrize("path", [FAULTS, EXCERPT, SOURCE_LOG], ids=["faults", "dst", "src"])
    def test_no_other_reader_takes_it(self, path: Path) -> None:
        raw = path.read_bytes()
        head = zstd.decompress(raw) if path.suffix == ".zst" else raw
        taking = [reader for reader in known_readers() if reader.sniff(head[: 1 << 16])]
        assert taking == [QemuLogReader]


class TestVersions:
    @pytest.mark.parametrize(
        ("prefix", "time"),
        [
            ("", None),
            ("qemu-system-x86_64(772366:mig/dst/fault): ", None),
            ("qemu-system-x86_64: (772366:mig/dst/fault): ", None),
            (STAMP, STAMP_NS),
            ("2026-11-23T01:17:18.782056Z ", STAMP_NS),
            ("2026-11-23T01:17:18.782056Z vm1 ", STAMP_NS),
            ("2026-11-23T01:17:18.782056Z [vm 1] qemu-system-x86_64(12:mig/dst/fault): ", STAMP_NS),
            ("2024-02-29T23:59:59Z ", 1709251199 * 10**9),
        ],
    )
    @pytest.mark.parametrize("end", ["", "\r"])
    def test_what_stands_before_the_event(
        self, prefix: str, time: int | None, end: str, tmp_path: Path
    ) -> None:
        line = prefix + request() + end
        with opened(tmp_path, f"{prefix}postcopy_ram_fault_thread_entry {end}", line) as reader:
            assert read(reader) == [(16722, 0x1000, time)]
        assert ("times" in reader.missing) == (time is None)
        assert reader.tally.unknown_lines == 0

    @pytest.mark.parametrize("pid", [None, 0])
    def test_without_the_thread_that_faulted(self, pid: int | None, tmp_path: Path) -> None:
        with opened(tmp_path, STAMP + request(pid=pid)) as reader:
            assert read(reader) == [(0, 0x1000, STAMP_NS)]
        assert "threads" in reader.missing

    @pytest.mark.parametrize("begin", [OLD_BEGIN, NEW_BEGIN], ids=["to-10.0", "from-10.1"])
    def test_blocktime_alone(self, begin: str, tmp_path: Path) -> None:
        lines = (STAMP + begin, STAMP + begin.replace("cpu: 1", "cpu: -1"))
        with opened(tmp_path, *lines) as reader:
            rows = read(reader)
        address = 0x7F0000001000
        assert sorted(rows) == [(1, address, STAMP_NS), (0xFFFFFFFF, address, STAMP_NS)]
        assert (reader.address_kind, reader.blocks) == ("virtual", ())
        assert "threads" not in reader.missing

    @pytest.mark.parametrize("begin", [OLD_BEGIN, NEW_BEGIN], ids=["to-10.0", "from-10.1"])
    @pytest.mark.parametrize("cut", [0, 1], ids=["whole", "first-request-cut-off"])
    def test_requests_count_where_both_are_logged(
        self, begin: str, cut: int, tmp_path: Path
    ) -> None:
        lines = [STAMP + request(), STAMP + begin, STAMP + request(offset=0x5000), STAMP + begin]
        with opened(tmp_path, *lines[cut:]) as reader:
            assert [row[1] for row in read(reader)] == [0x1000, 0x5000][cut:]
        assert reader.tally.dropped["logged_twice"] == 2

    def test_requests_far_behind_blocktime_are_not_counted_too(self, tmp_path: Path) -> None:
        lines = [STAMP + OLD_BEGIN] * 1000 + [STAMP + request()] * 3
        with opened(tmp_path, *lines) as reader:
            assert len(read(reader)) == 1000
        assert reader.tally.dropped["logged_twice"] == 3
        assert reader.address_kind == "virtual"

    def test_faults_of_other_processes_are_left_out(self, tmp_path: Path) -> None:
        shared = "postcopy_request_shared_page for vhost-user0 in pc.ram offset 0x2000"
        with opened(tmp_path, request(), shared) as reader:
            assert len(read(reader)) == 1
        assert reader.tally.dropped["other_processes"] == 1


class TestBlocks:
    def test_they_are_laid_in_the_order_of_first_sight(self, tmp_path: Path) -> None:
        names = ["pc.ram", "/rom@etc/acpi/tables", "0000:00:02.0/vga.vram", "a b rb=c offset 1"]
        blocks = [*names, "pc.ram", names[2]]
        lines = [request(name, 0x1000 * n) for n, name in enumerate(blocks)]
        with opened(tmp_path, *lines) as reader:
            found = [row[1] for row in read(reader)]
        order = (0, 1, 2, 3, 0, 2)
        assert found == [(b << 44) + 0x1000 * n for n, b in enumerate(order)]
        assert reader.blocks == tuple(BlockBase(name, n << 44) for n, name in enumerate(names))

    def test_lines_with_more_blocks_than_there_is_room_for_are_unknown(
        self, tmp_path: Path
    ) -> None:
        with opened(tmp_path, *(request(f"dimm{number}") for number in range(513))) as reader:
            assert len(read(reader)) == 512
        assert reader.tally.unknown_lines == 1
        assert len(reader.blocks) == 512


class TestLines:
    @pytest.mark.parametrize(
        "line",
        [
            "",
            "get_mem_fault_cpu_index cpu: 0, pid: 16722",
            "postcopy_ram_fault_thread_exit ",
            "postcopy_ram_fault_thread_quit",
            STAMP + "anything goes here",
            "qemu-system-x86_64: warning: TCG doesn't support requested feature",
            "2026-11-23T01:17:18.782056Z qemu-system-x86_64: terminating on signal 15",
            "kvm: something",
            "qemu-system-x86_64(772366:main): Unable to access credentials",
        ],
    )
    def test_known_ones_that_are_no_fault(self, line: str, tmp_path: Path) -> None:
        with opened(tmp_path, request(), line) as reader:
            assert len(read(reader)) == 1
        assert reader.tally.unknown_lines == 0

    @pytest.mark.parametrize(
        "line",
        [
            "hello",
            "hello(world",
            "QEMU 7.2.0 monitor - type 'help' for more information",
            f"{REQUEST} rb= offset=0x1000 pid=1",
            f"{REQUEST} rb=pc.ram offset=0x1000 pid=",
            f"{REQUEST} rb=pc.ram offset=0x1000 pid=4294967296",
            f"{REQUEST} rb=pc.ram offset=1000 pid=1",
            f"{REQUEST} rb=pc.ram offset=0x100000000000 pid=1",
            f"{REQUEST} rb=pc.ram offset=0x1000 pid=1 and more",
            REQUEST,
            "postcopy_ram_fault_thread_request",
            "postcopy_blocktime_begin addr: 0x7f0000001000, time: 5",
            "postcopy_request_shared_page",
        ],
    )
    def test_unknown_ones_are_counted_and_the_first_is_shown(
        self, line: str, tmp_path: Path
    ) -> None:
        with opened(tmp_path, request(), request(), line, request(), line) as reader:
            assert len(read(reader)) == 3
        assert reader.tally.unknown_lines == 2
        assert reader.tally.first_unknown == f"line 3: {line[:80]!r}"

    def test_a_fault_without_a_time_among_others_with_one_is_unknown(self, tmp_path: Path) -> None:
        with opened(tmp_path, STAMP + request(), request()) as reader:
            assert len(read(reader)) == 1
        assert reader.tally.unknown_lines == 1

    @pytest.mark.parametrize(
        "moment",
        ["2026-11-32T01:17:18Z", "2026-11-23T24:17:18Z", "2026-11-23T01:60:18Z"]
        + [f"2026-11-23T01:17:{seconds}Z" for seconds in ("61", "18446744072")],
    )
    def test_a_time_that_no_calendar_has_is_none(self, moment: str, tmp_path: Path) -> None:
        with opened(tmp_path, STAMP + request(), f"{moment} {request()}") as reader:
            assert len(read(reader)) == 1
        assert reader.tally.unknown_lines == 1

    def test_a_last_line_that_is_cut_off(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_text(f"{STAMP}{request()}\n{STAMP}{request()}")
        result = stats.stats_of(tmp_path / "x")
        assert (result.accesses, result.truncated) == (1, True)


RAW = zstd.decompress(FAULTS.read_bytes())[:20_000] + f"{OLD_BEGIN}\n{NEW_BEGIN}\n".encode()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_logs_give_figures_or_a_trace_error(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(RAW)))
    length = data.draw(st.integers(0, 5000))
    new = data.draw(st.binary(max_size=40))
    read_or_refuse(RAW[:at] + new + RAW[at + data.draw(st.sampled_from((0, length))) :])
