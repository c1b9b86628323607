"""The text of QEMU's plugin execlog: instructions and their accesses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trace_readers import read_or_refuse

from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.reader import FETCH, LOAD, STORE, Reader
from vmemu.traces.readers.execlog import ExeclogReader
from vmemu.traces.recordings import known_readers, open_recording

DATA = Path(__file__).parent.parent / "data"
EXCERPT = DATA / "qemu72-execlog-excerpt.txt.zst"

Row = tuple[int, int, int]
"""Stream, kind, address."""


def rows_of(reader: Reader) -> list[Row]:
    rows: list[Row] = []
    for chunk in reader.chunks():
        assert chunk.times is None
        assert set(chunk.sizes.tolist()) <= {1}
        columns = zip(chunk.kinds.tolist(), chunk.addresses.tolist(), strict=True)
        rows += [(chunk.stream, *column) for column in columns]
    return rows


def opened(tmp_path: Path, *lines: str, fetches: bool = False) -> Reader:
    path = tmp_path / "execlog.txt"
    path.write_text("".join(line + "\n" for line in lines))
    return open_recording(path, fetches=fetches)


class TestRealRecording:
    def test_every_access_is_as_a_plain_reading_of_the_text_finds_it(self) -> None:
        text = zstd.decompress(EXCERPT.read_bytes()).decode()
        kinds = {"load": LOAD, "store": STORE}
        found = re.findall(r", (load|store), 0x([0-9a-f]+), RAM", text)
        with open_recording(EXCERPT) as reader:
            assert rows_of(reader) == [(0, kinds[kind], int(at, 16)) for kind, at in found]
        assert len(found) == 1962
        assert reader.tally.instruction_fetches == text.count("\n") == 2200
        assert reader.tally.unknown_lines == 0
        assert reader.address_kind == "guest-physical"
        assert reader.missing == ("times", "sizes", "modifies", "rom_places")

    def test_no_other_reader_takes_it(self) -> None:
        head = zstd.decompress(EXCERPT.read_bytes())[: 1 << 16]
        assert [one for one in known_readers() if one.sniff(head)] == [ExeclogReader]

    def test_fetches_are_not_mixed_with_addresses_of_another_kind(self, tmp_path: Path) -> None:
        meta = convert(EXCERPT, tmp_path / "t.vmtrace", fetches=True)
        assert not meta.fetches
        assert meta.counts.dropped["fetches_at_virtual_addresses"] == 2200
        assert native.open(tmp_path / "t.vmtrace").accesses == 1962


class TestLines:
    def test_accesses_of_a_process(self, tmp_path: Path) -> None:
        lines = (
            '0, 0x401000, 0xe8, "callq 0x401010", store, 0x7ffffff8',
            '3, 0x401010, 0x8b48, "popq %rax", load, 0x7ffffff8, store, 0x00000010',
        )
        with opened(tmp_path, *lines, fetches=True) as reader:
            assert rows_of(reader) == [
                (0, FETCH, 0x401000),
                (0, STORE, 0x7FFFFFF8),
                (3, FETCH, 0x401010),
                (3, LOAD, 0x7FFFFFF8),
                (3, STORE, 0x10),
            ]
        assert reader.address_kind == "virtual"

    def test_device_accesses_are_dropped(self, tmp_path: Path) -> None:
        lines = (
            '0, 0x10, 0x1, "a", load, 0x000b8000, vga-lowmem, store, 0x00001000, RAM',
            '0, 0x10, 0x1, "a", store, 0x00000cf8, pci-conf-idx',
        )
        with opened(tmp_path, *lines) as reader:
            assert rows_of(reader) == [(0, STORE, 0x1000)]
        assert reader.tally.dropped["io"] == 2
        assert reader.address_kind == "guest-physical"

    def test_an_access_without_a_physical_address_among_others_is_left_out(
        self, tmp_path: Path
    ) -> None:
        line = '0, 0x10, 0x1, "a", store, 0x00001000, RAM, load, 0xffff888000001000'
        with opened(tmp_path, line) as reader:
            assert rows_of(reader) == [(0, STORE, 0x1000)]
        assert reader.tally.dropped["no_guest_physical_address"] == 1

    @pytest.mark.parametrize(
        ("line", "accesses"),
        [
            ('0, 0x10, 0x1, "addl $1, %eax", rax -> 0x0000000000000001', 0),
            ('0, 0x10, 0x1, "ret", load, 0x00001000, RAM, rsp -> 0x10, eflags -> 0x46', 1),
            ('0, 0x10, 0x1, "ret", rsp -> 0x10, load, 0x00001000', 1),
            ('0, 0x10, 0x1, ""', 0),
            ('0, 0x10, 0x1, "movb $\\"a\\", %al, load, 1 "x" y", load, 0x00000005, RAM', 1),
            ('0, 0x10, 0x1, ".byte 0x22, ""', 0),
            ('0, 0x10, 0x1, "a", load, 0x00000005, RAM\r', 1),
            ('0, 0xffffffffffffffff, 0xffffffff, "a", load, 0xffffffffffffffff', 1),
            ("", 0),
        ],
    )
    def test_known(self, line: str, accesses: int, tmp_path: Path) -> None:
        with opened(tmp_path, '7, 0x1, 0x1, "nop "', line) as reader:
            assert len(rows_of(reader)) == accesses
        assert reader.tally.unknown_lines == 0
        assert reader.tally.instruction_fetches == 1 + (line != "")

    @pytest.mark.parametrize(
        "line",
        [
            "hello",
            "0",
            "0, 0x10, 0x1",
            '0, 0x10, 0x1, "a',
            '0, 10, 0x1, "a"',
            '0, 0x10, 1, "a"',
            '4294967296, 0x10, 0x1, "a"',
            '0, 0x10, 0x1, "a", ',
            '0, 0x10, 0x1, "a", what',
            '0, 0x10, 0x1, "a", load',
            '0, 0x10, 0x1, "a", load, 5, RAM',
            '0, 0x10, 0x1, "a", load, 0x5, ',
            '0, 0x10, 0x1, "a", load, 0x5, RAM, RAM',
            '0, 0x10, 0x1, "a", load, 0x5, RAM, load, 0x6, RAM, eax -> 0x',
            '0, 0x10, 0x1, "a" b',
            '0, 0x10, 0x1, "a", load, 0x5, RAM1, 0x20',
            '0, 0x10, 0x1, "' + "a" * 5000 + '"',
        ],
    )
    def test_unknown_lines_are_counted_and_leave_nothing(self, line: str, tmp_path: Path) -> None:
        good = '0, 0x10, 0x1, "a", load, 0x00000005, RAM'
        with opened(tmp_path, good, good, line, good, line) as reader:
            assert len(rows_of(reader)) == 3
        tally = reader.tally
        assert (tally.unknown_lines, tally.instruction_fetches) == (2, 3)
        assert tally.first_unknown == f"line 3: {line[:80]!r}"

    def test_lines_of_two_vcpus_that_ran_into_each_other(self, tmp_path: Path) -> None:
        lines = (
            '0, 0x10, 0x1, "a", load, 0x00000005, RAM1, 0x20, 0x1, "b", store, 0x00000006, RAM',
            "",
            '0, 0x11, 0x1, "cli "12, 0x21, 0x1, "c", load, 0x00000007, RAM',
            "",
        )
        with opened(tmp_path, *lines) as reader:
            expected = [(0, LOAD, 5), (1, STORE, 6), (12, LOAD, 7)]
            assert sorted(rows_of(reader)) == expected
        assert (reader.tally.instruction_fetches, reader.tally.unknown_lines) == (4, 0)

    def test_an_instruction_with_many_accesses(self, tmp_path: Path) -> None:
        items = "".join(f", store, 0x{number:08x}" for number in range(150))
        with opened(tmp_path, f'0, 0x10, 0x1, "xsave (%rax)"{items}') as reader:
            assert [row[2] for row in rows_of(reader)] == list(range(150))

    def test_more_accesses_than_a_line_may_have(self, tmp_path: Path) -> None:
        good = '0, 0x10, 0x1, "a", load, 0x5'
        with opened(tmp_path, good, good + ", load, 0x5" * 300, good) as reader:
            assert len(rows_of(reader)) == 2
        assert reader.tally.unknown_lines == 1

    def test_a_last_line_that_is_cut_off(self, tmp_path: Path) -> None:
        good = '0, 0x10, 0x1, "a", load, 0x00000005, RAM\n'
        (tmp_path / "x").write_text(good + good[:-8])
        result = stats.stats_of(tmp_path / "x")
        assert (result.accesses, result.truncated) == (1, True)

    def test_fetches_kept_before_the_first_access_turns_out_physical(self, tmp_path: Path) -> None:
        lines = ['0, 0x10, 0x1, "nop "'] * 4000 + ['0, 0x10, 0x1, "a", load, 0x00000005, RAM']
        with opened(tmp_path, *lines) as reader:
            assert rows_of(reader) == [(0, LOAD, 5)]
        assert reader.address_kind == "guest-physical"
        with (
            opened(tmp_path, *lines, fetches=True) as reader,
            pytest.raises(TraceError, match="convert it without --fetches"),
        ):
            rows_of(reader)


RAW = zstd.decompress(EXCERPT.read_bytes())[:8000]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_recordings_give_figures_or_a_trace_error(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(RAW)))
    length = data.draw(st.sampled_from((0, 1, 50, 2000)))
    new = data.draw(st.one_of(st.binary(max_size=40), st.sampled_from((b'"', b", ", b"\n"))))
    read_or_refuse(RAW[:at] + new + RAW[at + length :])
