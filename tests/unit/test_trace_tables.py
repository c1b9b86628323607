"""Tables with named columns: CSV, Parquet, Arrow, read and written."""

from __future__ import annotations

import gzip
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.cli.trace import trace as trace_command
from vmemu.errors import HostError, TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.reader import FETCH, LOAD, MODIFY, STORE, BlockBase
from vmemu.traces.recordings import open_recording

DATA = Path(__file__).parent.parent / "data"
REAL = (DATA / "lackey-sort-excerpt.txt.zst", DATA / "gpa-boot-excerpt.bin.zst")

Row = tuple[int, int, int, int, int | None]  # stream, address, kind, size, time


def rows(path: Path, fetches: bool = True) -> list[Row]:
    got: list[Row] = []
    with open_recording(path, fetches=fetches) as reader:
        for chunk in reader.chunks():
            columns = (chunk.addresses.tolist(), chunk.kinds.tolist(), chunk.sizes.tolist())
            times = [None] * len(chunk.kinds) if chunk.times is None else chunk.times.tolist()
            got += [(chunk.stream, *row) for row in zip(*columns, times, strict=True)]
    return got


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "t").write_text(text)
    return tmp_path / "t"


class TestCsv:
    def test_all_columns(self, tmp_path: Path) -> None:
        path = table(
            tmp_path,
            "# recorded by hand\nTime_us, Thread ,Kind,Virtual Address,note,size\r\n"
            '1.5,7,load,0x1000,"a, b",8\r\n'
            "2,7,W,8192,x,1\n"
            "\n# between\n"
            '"3.0005",9, "modify" ,0xfff,,4096\n'
            "4,9,ifetch,0x10,,2\n",
        )
        assert rows(path) == [
            (7, 0x1000, LOAD, 8, 1500),
            (7, 8192, STORE, 1, 2000),
            (9, 0xFFF, MODIFY, 4096, 3000),
            (9, 0x10, FETCH, 2, 4000),
        ]
        got = stats.stats_of(path)
        assert (got.accesses, got.instruction_fetches, got.unknown_lines) == (3, 1, 0)
        assert (got.address_kind, got.missing) == ("virtual", ())

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_separators(self, separator: str, tmp_path: Path) -> None:
        path = table(tmp_path, "gpa,write\n0x1000,0\n0x2000,1\n".replace(",", separator))
        assert rows(path) == [(0, 0x1000, LOAD, 1, None), (0, 0x2000, STORE, 1, None)]
        got = stats.stats_of(path)
        assert got.address_kind == "guest-physical"
        assert set(got.missing) == {
            "times",
            "threads",
            "sizes",
            "modifies",
            "instruction_fetches",
        }

    def test_addresses_in_hexadecimal_without_saying_so(self, tmp_path: Path) -> None:
        assert [row[1] for row in rows(table(tmp_path, "addr\n10\n1f\n20\n"))] == [16, 31, 32]
        assert [row[1] for row in rows(table(tmp_path, "addr\n10\n11\n20\n"))] == [10, 11, 20]

    def test_page_numbers(self, tmp_path: Path) -> None:
        assert [row[1] for row in rows(table(tmp_path, "pfn,size\n0x10,1\n3,1\n"))] == [
            0x10000,
            0x3000,
        ]

    def test_blocks_and_offsets(self, tmp_path: Path) -> None:
        path = table(tmp_path, "block,offset\npc.ram,0x1000\nvga,16\npc.ram,0\n")
        with open_recording(path) as reader:
            addresses = [a for chunk in reader.chunks() for a in chunk.addresses.tolist()]
            assert reader.blocks == (BlockBase("pc.ram", 0), BlockBase("vga", 1 << 44))
        assert addresses == [0x1000, (1 << 44) + 16, 0]
        assert reader.address_kind == "ram-block"

    @pytest.mark.parametrize("wrong", ["0x100000000000,1", "0xfffffffffff,2"])
    @pytest.mark.parametrize("block", ["pc.ram", "vga"])
    def test_an_offset_beyond_what_a_block_can_have(
        self, block: str, wrong: str, tmp_path: Path
    ) -> None:
        lines = f"pc.ram,0x1000,8\nvga,16,8\n{block},{wrong}\n{block},0xfffffffffff,1\n"
        got = stats.stats_of(table(tmp_path, f"block,offset,size\n{lines}"))
        assert (got.accesses, got.unknown_lines) == (3, 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            "0x1000",
            "0x1000,8,1",
            "1000x,8",
            ",8",
            "0x1000,",
            "0x1000,0",
            "0x1000,4097",
            "-1,8",
            "0x10000000000000000,8",
            "0xffffffffffffffff,2",
            '"0x1000,8',
            "0x1000,8.5",
        ],
    )
    def test_lines_that_mean_nothing(self, wrong: str, tmp_path: Path) -> None:
        path = table(tmp_path, f"address,size\n0x1000,8\n{wrong}\n0x2000,8\n")
        got = stats.stats_of(path)
        assert (got.accesses, got.unknown_lines) == (2, 1)
        assert got.first_unknown == f"line 3: {wrong!r}"

    def test_last_line_without_its_end(self, tmp_path: Path) -> None:
        got = stats.stats_of(table(tmp_path, "address,size\n0x1000,8\n0x20"))
        assert (got.accesses, got.truncated) == (1, True)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("address,addr", "address and addr both say"),
            ("address,time_ns,seconds", "both say"),
            ("address,tid,thread", "both say"),
        ],
    )
    def test_ambiguous_columns(self, header: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=message):
            stats.stats_of(table(tmp_path, f"{header}\n1,2,3\n"))

    def test_a_table_without_places_is_no_trace(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="not a recording of a known format"):
            stats.stats_of(table(tmp_path, "time,size\n1,2\n"))


def arrow_table(**columns: Any) -> pa.Table:
    return pa.table(columns)


class TestArrow:
    def write(self, made: pa.Table, path: Path, kind: str) -> None:
        if kind == "parquet":
            pyarrow.parquet.write_table(made, path)
            return
        new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as sink, new(sink, made.schema) as writer:
            writer.write_table(made)

    @pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
    def test_columns_of_many_types(self, kind: str, tmp_path: Path) -> None:
        made = arrow_table(
            vaddr=pa.array(["0x1000", "8192", "0x3000"]),
            op=pa.array(["R", "write", "fetch"]).dictionary_encode(),
            size=pa.array([1, 2, 4], pa.int32()),
            tid=pa.array([5, 5, 6], pa.int64()),
            timestamp=pa.array([1, 2, 3], pa.timestamp("us")),
            note=pa.array(["a", None, "b"]),
        )
        self.write(made, tmp_path / "t", kind)
        assert rows(tmp_path / "t") == [
            (5, 0x1000, LOAD, 1, 1000),
            (5, 0x2000, STORE, 2, 2000),
            (6, 0x3000, FETCH, 4, 3000),
        ]
        assert [row[2] for row in rows(tmp_path / "t", fetches=False)] == [LOAD, STORE]

    @pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
    def test_other_columns_are_not_looked_at(self, kind: str, tmp_path: Path) -> None:
        made = arrow_table(
            note=[["a"], ["b"]],
            size=[1, 2],
            why=[{"x": 1}, {"x": 2}],
            address=[16, 32],
            offset=["no", "number"],
        )
        self.write(made, tmp_path / "t", kind)
        assert rows(tmp_path / "t") == [(0, 16, LOAD, 1, None), (0, 32, LOAD, 2, None)]
        packed = tmp_path / "t.gz"
        packed.write_bytes(gzip.compress((tmp_path / "t").read_bytes()))
        assert rows(packed) == rows(tmp_path / "t")

    def test_types_of_databases_and_old_writers(self, tmp_path: Path) -> None:
        made = pa.table(
            {
                "block": pa.array([b"pc.ram", b"rom"], pa.large_binary()),
                "offset": pa.array([Decimal(4096), Decimal(8192)], pa.decimal128(20, 0)),
                "kind": pa.array([b"w", b"read"], pa.binary()).dictionary_encode(),
            }
        )
        self.write(made, tmp_path / "t", "parquet")
        found = stats.stats_of(tmp_path / "t")
        assert [block.name for block in found.blocks] == ["pc.ram", "rom"]
        assert (found.reads, found.writes, found.unknown_lines) == (1, 1, 0)

    def test_a_column_without_any_value(self, tmp_path: Path) -> None:
        self.write(pa.table({"page": [1, 2], "kind": pa.nulls(2)}), tmp_path / "t", "parquet")
        with pytest.raises(TraceError, match=r"2 of 2 lines .* the first is row 1"):
            stats.stats_of(tmp_path / "t")

    def test_rows_that_mean_nothing(self, tmp_path: Path) -> None:
        made = arrow_table(
            address=pa.array([1, None, 3, 4, 5, 6] + [1] * 5, pa.int64()),
            size=pa.array([8, 8, 0, 4097, None, 8] + [8] * 5),
            is_write=pa.array([True, False, False, True, True, None] + [True] * 5),
            seconds=pa.array([0.5, 1.0, 1.0, 1.0, 1.0, 1.0] + [0.5] * 5),
        )
        self.write(made, tmp_path / "t", "parquet")
        assert rows(tmp_path / "t") == [(0, 1, STORE, 8, 500_000_000)] * 6
        got = stats.stats_of(tmp_path / "t")
        assert (got.unknown_lines, got.first_unknown) == (5, "row 2")

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"address": [1.5]}, "column address holds double"),
            ({"address": [1], "size": [[1]]}, "column size holds list"),
            ({"when": [1]}, "without a column of places: it has when"),
            ({"block": ["a", None], "offset": [1, 2]}, "rows without a block"),
        ],
    )
    def test_wrong_columns(self, columns: Any, message: str, tmp_path: Path) -> None:
        self.write(arrow_table(**columns), tmp_path / "t", "file")
        with pytest.raises(TraceError, match=message):
            stats.stats_of(tmp_path / "t")

    @pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
    def test_damaged(self, kind: str, tmp_path: Path) -> None:
        self.write(arrow_table(address=list(range(5000))), tmp_path / "t", kind)
        raw = (tmp_path / "t").read_bytes()
        for cut in (20, len(raw) // 2, len(raw) - 9):
            (tmp_path / "cut").write_bytes(raw[:cut])
            with pytest.raises(TraceError) as caught:
                stats.stats_of(tmp_path / "cut")
            assert "\n" not in str(caught.value)

    @settings(deadline=None, max_examples=100)
    @given(st.data())
    def test_any_damage_is_a_trace_error(self, data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "t"
            kind = data.draw(st.sampled_from(["parquet", "file", "stream"]))
            self.write(arrow_table(address=list(range(300)), size=[8] * 300), path, kind)
            raw = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 8))):
                raw[data.draw(st.integers(6, len(raw) - 1))] = data.draw(st.integers(0, 255))
            path.write_bytes(raw)
            try:
                stats.stats_of(path)
            except TraceError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either outcome is right

    def test_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write(arrow_table(address=[1]), tmp_path / "t", "parquet")
        monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
        with pytest.raises(HostError, match="pip install"):
            stats.stats_of(tmp_path / "t")


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
    @pytest.mark.parametrize("path", REAL, ids=["lackey", "gpa"])
    @pytest.mark.parametrize("fetches", [False, True])
    def test_tables_carry_everything(
        self, path: Path, suffix: str, fetches: bool, tmp_path: Path
    ) -> None:
        first, out, second = tmp_path / "a.vmtrace", tmp_path / f"t{suffix}", tmp_path / "b.vmtrace"
        convert(path, first, fetches=fetches)
        convert(first, out)
        convert(out, second)
        assert contents(first) == contents(second)

    @pytest.mark.parametrize("path", REAL, ids=["lackey", "gpa"])
    def test_csv_carries_the_accesses(self, path: Path, tmp_path: Path) -> None:
        first, out, second = tmp_path / "a.vmtrace", tmp_path / "t.csv", tmp_path / "b.vmtrace"
        convert(path, first, fetches=True)
        convert(first, out)
        convert(out, second, fetches=True)
        one, other = contents(first), contents(second)
        assert (one.pop("meta.json"), other.pop("meta.json")) != ("", "")
        assert one == other

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.one_of(st.integers(0, 1 << 20), st.integers(0, (1 << 44) - 5000)),
                st.integers(0, 2),
                st.sampled_from([1, 2, 8, 4096]),
                st.integers(0, (1 << 64) - 1),
                st.integers(0, 1),
            ),
            min_size=1,
            max_size=50,
        ),
        st.booleans(),
        st.booleans(),
        st.sampled_from([".csv", ".parquet", ".arrow"]),
    )
    def test_any_trace(
        self, accesses: list[tuple[int, ...]], timed: bool, blocks: bool, suffix: str
    ) -> None:
        with tempfile.TemporaryDirectory() as directory:
            first = Path(directory) / "a.vmtrace"
            with native.TraceWriter(first, missing=() if timed else ("times",)) as writer:
                for stream, address, kind, size, time, block in accesses:
                    place = address + (block << 44 if blocks else 0)
                    writer.append(
                        stream,
                        np.array([place], np.uint64),
                        np.array([kind], np.uint8),
                        np.array([size], np.uint16),
                        np.array([time], np.uint64) if timed else None,
                    )
                if blocks:
                    writer.address_kind = "ram-block"
                    writer.blocks = (BlockBase("pc.ram", 0), BlockBase('odd, "name"', 1 << 44))
                writer.finish()
            out, second = Path(directory) / f"t{suffix}", Path(directory) / "b.vmtrace"
            convert(first, out)
            convert(out, second)
            one, other = contents(first), contents(second)
            if suffix == ".csv":
                one.pop("meta.json"), other.pop("meta.json")
                if blocks:  # laid in the order of first sight again
                    return
            assert one == other

    def test_what_the_recording_had_unknown_is_no_fault_of_the_table(self, tmp_path: Path) -> None:
        recording = tmp_path / "r.txt"
        recording.write_text(" L 1000,8\n" * 400 + "hello\n" * 30)
        convert(recording, tmp_path / "c.vmtrace", collapse=True)
        convert(tmp_path / "c.vmtrace", tmp_path / "c.parquet")
        convert(tmp_path / "c.parquet", tmp_path / "d.vmtrace")
        assert contents(tmp_path / "c.vmtrace") == contents(tmp_path / "d.vmtrace")
        found = stats.stats_of(tmp_path / "c.parquet")
        assert (found.accesses, found.unknown_lines) == (1, 30)

    def test_what_was_not_recorded_is_no_column(self, tmp_path: Path) -> None:
        path = table(tmp_path, "vaddr\n0x1000\n0x2000\n")
        convert(path, tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_text() == "virtual_address\n0x1000\n0x2000\n"
        assert stats.stats_of(tmp_path / "out.csv").missing == stats.stats_of(path).missing

    def test_what_csv_loses_is_said(self, tmp_path: Path) -> None:
        faults = DATA / "perf-page-faults-excerpt.txt.zst"
        arguments = ["convert", str(faults), str(tmp_path / "t.csv")]
        said = CliRunner().invoke(trace_command, arguments)
        assert "note: CSV can't tell what was not recorded: repeats" in said.stderr
        arguments = ["convert", str(faults), str(tmp_path / "t.arrow")]
        assert "CSV" not in CliRunner().invoke(trace_command, arguments).stderr
