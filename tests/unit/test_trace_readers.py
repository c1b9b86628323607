"""Readers of recorded formats: counts of real excerpts, the choice by content, damaged inputs."""

from __future__ import annotations

import gzip
import json
import lzma
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.cli.trace import trace as trace_command
from vmemu.errors import TraceError
from vmemu.traces import native, text
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.opening import open_stream
from vmemu.traces.reader import FETCH, LOAD, MODIFY, STORE
from vmemu.traces.recordings import open_recording

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parent.parent / "data"
LACKEY = DATA / "lackey-sort-excerpt.txt.zst"
GPA = DATA / "gpa-boot-excerpt.bin.zst"

# Counted by an independent script, line by line and record by record.
LACKEY_COUNTS = {
    "format": "lackey",
    "accesses": 11913,
    "reads": 9192,
    "writes": 2628,
    "modifies": 93,
    "instruction_fetches": 48084,
    "pages_4k": 35,
    "pages_2m": 6,
    "pages_written": 13,
    "span_bytes": 137421098912,
    "straddling": 1,
    "threads": 1,
    "time_range_ns": None,
    "unknown_lines": 0,
    "missing": ["times", "threads"],
    "address_kind": "virtual",
    "dropped": {},
    "recorded_format": "lackey",
}
GPA_COUNTS = {
    "format": "tcg-gpa",
    "accesses": 29801,
    "reads": 16960,
    "writes": 12841,
    "modifies": 0,
    "instruction_fetches": 0,
    "pages_4k": 8435,
    "pages_2m": 35,
    "pages_written": 4795,
    "span_bytes": 4429180929,
    "straddling": 0,
    "threads": 2,
    "time_range_ns": None,
    "unknown_lines": 0,
    "missing": ["times", "modifies", "rom_places", "instruction_fetches"],
    "address_kind": "guest-physical",
    "dropped": {"io": 199},
    "recorded_format": "tcg-gpa",
}
COUNTS = [(LACKEY, LACKEY_COUNTS), (GPA, GPA_COUNTS)]


def counted(figures: dict[str, Any]) -> dict[str, Any]:
    """Of the figures those that the independent script has counted too."""
    return {key: figures[key] for key in LACKEY_COUNTS}


def plain(path: Path) -> bytes:
    return zstd.decompress(path.read_bytes())


def accesses(path: Path, fetches: bool = False) -> list[tuple[int, int, int, int]]:
    result = []
    with open_recording(path, fetches=fetches) as reader:
        for chunk in reader.chunks():
            columns = (chunk.addresses.tolist(), chunk.kinds.tolist(), chunk.sizes.tolist())
            result += [(chunk.stream, *row) for row in zip(*columns, strict=True)]
    return result


@pytest.mark.parametrize(("path", "counts"), COUNTS, ids=["lackey", "gpa"])
class TestRealRecordings:
    def test_counts(self, path: Path, counts: dict[str, object]) -> None:
        assert counted(stats.stats_of(path).to_json()) == counts

    def test_counts_of_the_native_trace(
        self, path: Path, counts: dict[str, object], tmp_path: Path
    ) -> None:
        convert(path, tmp_path / "t.vmtrace")
        native_figures = stats.stats_of(tmp_path / "t.vmtrace").to_json()
        assert native_figures == stats.stats_of(path).to_json() | {"format": "vmtrace"}
        assert counted(native_figures) == counts | {"format": "vmtrace"}

    @pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstd.compress])
    def test_any_compression_under_any_name(
        self, path: Path, counts: dict[str, object], pack: type[bytes], tmp_path: Path
    ) -> None:
        (tmp_path / "x.doc").write_bytes(pack(plain(path)))
        assert counted(stats.stats_of(tmp_path / "x.doc").to_json()) == counts

    def test_cut_off_gives_what_was_whole(
        self, path: Path, counts: dict[str, object], tmp_path: Path
    ) -> None:
        whole = accesses(path)
        raw = plain(path)
        for number, cut in enumerate(
            (raw[:-5], gzip.compress(raw)[:-20_000], path.read_bytes()[:-10_000])
        ):
            (tmp_path / str(number)).write_bytes(cut)
            result = stats.stats_of(tmp_path / str(number))
            assert result.truncated
            got = accesses(tmp_path / str(number))
            assert 0 < len(got) <= len(whole)
            assert result.accesses == len(got)
            if path == LACKEY:
                assert got == whole[: len(got)]

    def test_info_as_json(self, path: Path, counts: dict[str, object], tmp_path: Path) -> None:
        result = CliRunner().invoke(trace_command, ["info", str(path), "--json", "-"])
        assert result.exit_code == 0
        assert counted(json.loads(result.stdout)) == counts
        file = tmp_path / "info.json"
        result = CliRunner().invoke(trace_command, ["info", str(path), "--json", str(file)])
        assert counted(json.loads(file.read_text())) == counts
        assert f"{counts['accesses']:,}" in result.stdout

    def test_convert(self, path: Path, counts: dict[str, object], tmp_path: Path) -> None:
        out = tmp_path / "t.vmtrace.zst"
        result = CliRunner().invoke(trace_command, ["convert", str(path), str(out)])
        assert result.exit_code == 0
        assert native.open(out).accesses == counts["accesses"]
        assert native.open(out).meta.source.file == path.name


def lines(tmp_path: Path, *text: str) -> Path:
    path = tmp_path / "t.txt"
    path.write_text("".join(line + "\n" for line in text))
    return path


class TestLackey:
    def test_every_kind_of_line(self, tmp_path: Path) -> None:
        path = lines(
            tmp_path,
            "==12== Lackey, an example Valgrind tool",
            "I  0401ab70,3",
            " S 1fff000738,8",
            "--12-- warning: something",
            " L ffffffffffffffff,1",
            " M 10,16\r",
        )
        expected = [
            (0, 0x401AB70, FETCH, 3),
            (0, 0x1FFF000738, STORE, 8),
            (0, 0xFFFFFFFFFFFFFFFF, LOAD, 1),
            (0, 0x10, MODIFY, 16),
        ]
        assert accesses(path, fetches=True) == expected
        assert accesses(path) == expected[1:]
        assert stats.stats_of(path).unknown_lines == 0
        assert stats.stats_of(path).instruction_fetches == 1

    @pytest.mark.parametrize(
        "wrong",
        [
            "hello",
            " L",
            " L ",
            " L  1000,8",
            " X 1000,8",
            "I 1000,8",
            " L 1000",
            " L ,8",
            " L 1000,",
            " L 1000,0",
            " L 1000,4097",
            " L 1000,99999999999999999999",
            " L 1000,8 ",
            " L 0x1000,8",
            " L 10000000000000000,8",
            " L ffffffffffffffff,2",
            "==x== what",
            "==12= what",
            "x" * 5000,
            " L 1000,8\0",
        ],
    )
    def test_unknown_lines_are_counted_and_the_first_is_shown(
        self, wrong: str, tmp_path: Path
    ) -> None:
        result = stats.stats_of(lines(tmp_path, " L 1000,8", " L 1000,8", wrong, " S 1,1", wrong))
        assert (result.accesses, result.unknown_lines) == (3, 2)
        assert result.first_unknown == f"line 3: {wrong[:80]!r}"

    def test_mostly_unknown_is_refused(self, tmp_path: Path) -> None:
        path = lines(tmp_path, "==1== Lackey, an example Valgrind tool", *["what"] * 1001)
        with pytest.raises(TraceError, match=r"1001 of 1002 lines .* line 2: 'what'"):
            stats.stats_of(path)

    def test_a_short_one_that_is_mostly_unknown_is_refused(self, tmp_path: Path) -> None:
        first = "==12== Lackey, an example Valgrind tool"
        path = lines(tmp_path, first, "what", "what", " L 1000,8", "what", "what", "what")
        with pytest.raises(TraceError, match=r"5 of 7 lines .* line 2: 'what'"):
            stats.stats_of(path)

    def test_one_without_any_access_is_refused(self, tmp_path: Path) -> None:
        path = lines(tmp_path, "==12== Lackey, an example Valgrind tool", "==12== ")
        with pytest.raises(TraceError, match="a valgrind lackey text without any access"):
            stats.stats_of(path)

    def test_one_of_fetches_alone_is_converted_with_them(self, tmp_path: Path) -> None:
        path = lines(tmp_path, "I  1000,8", "I  1008,8")
        assert stats.stats_of(path).instruction_fetches == 2
        with pytest.raises(TraceError, match="2 instruction fetches and no other") as caught:
            convert(path, tmp_path / "t.vmtrace")
        assert "--fetches" in str(caught.value)
        assert convert(path, tmp_path / "t.vmtrace", fetches=True).counts.instruction_fetches == 2
        assert sorted(file.name for file in tmp_path.iterdir()) == ["t.txt", "t.vmtrace"]

    def test_lines_longer_than_every_buffer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(text, "_BUFFER_BYTES", 1 << 13)
        path = lines(tmp_path, " L 1000,8", "y" * 100_000, " L 1000,8", "z" * 20_000, " S 2,2")
        result = stats.stats_of(path)
        assert (result.accesses, result.unknown_lines) == (3, 2)
        assert not result.truncated

    @settings(deadline=None, max_examples=50)
    @given(st.integers(4097, 9000), st.integers(257, 500))
    def test_same_result_for_every_size_of_buffer(self, size: int, capacity: int) -> None:
        content = plain(LACKEY)[:30_000].rpartition(b"\n")[0] + b"\n"
        with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
            path = Path(directory) / "t"
            path.write_bytes(content)
            whole = accesses(path, fetches=True)
            patch.setattr(text, "_BUFFER_BYTES", size)
            patch.setattr(text, "_ACCESSES_A_CHUNK", capacity)
            assert accesses(path, fetches=True) == whole
        assert len(whole) == sum(not line.startswith(b"==") for line in content.splitlines())

    def test_last_line_counts_only_with_its_newline(self, tmp_path: Path) -> None:
        path = lines(tmp_path, " L 1000,8", " L 2000,1")
        path.write_bytes(path.read_bytes()[:-1])
        result = stats.stats_of(path)
        assert (result.accesses, result.truncated) == (1, True)

    def test_fetches_are_kept_when_asked_for(self, tmp_path: Path) -> None:
        convert(LACKEY, tmp_path / "t.vmtrace", fetches=True)
        trace = native.open(tmp_path / "t.vmtrace")
        assert trace.accesses == 11913 + 48084
        expected = LACKEY_COUNTS | {"format": "vmtrace"}
        assert counted(stats.native_stats(trace).to_json()) == expected


def record(sequence: int, address: int, vcpu: int = 0, *flags: int) -> bytes:
    store, log2, io, zero = (*flags, *(0, 3, 0, 0)[len(flags) :])
    return struct.pack("<QQIBBBB", sequence, address, vcpu, store, log2, io, zero)


class TestGpa:
    def test_records(self, tmp_path: Path) -> None:
        path = tmp_path / "r"
        path.write_bytes(
            record(1, 0x1000)
            + record(2, 0xFEE00000, 0, 1, 2, 1)
            + record(5, 0x2000, 3, 1, 4)
            + record(6, 0x3000, 0, 1, 0)
        )
        assert accesses(path) == [
            (0, 0x1000, LOAD, 8),
            (0, 0x3000, STORE, 1),
            (3, 0x2000, STORE, 16),
        ]
        assert stats.stats_of(path).dropped == {"io": 1}

    @pytest.mark.parametrize(
        "wrong",
        [
            record(9, 0, 0, 2),
            record(9, 0, 0, 0, 13),
            record(9, 0, 0, 0, 255),
            record(9, 0, 0, 0, 0, 2),
            record(9, 0, 0, 0, 0, 0, 1),
            record(9, 0, 4096),
            record(9, (1 << 64) - 1, 0, 0, 1),
        ],
    )
    def test_malformed_records_are_counted(self, wrong: bytes, tmp_path: Path) -> None:
        good = b"".join(record(number, number << 12) for number in range(600))
        path = tmp_path / "r"
        path.write_bytes(good + wrong + record(9999, 0))
        result = stats.stats_of(path)
        assert (result.accesses, result.unknown_lines) == (601, 1)
        assert result.first_unknown == f"record 601: {wrong.hex()}"

    def test_order_within_a_vcpu_is_kept(self) -> None:
        raw = np.frombuffer(plain(GPA), [("s", "<u8"), ("a", "<u8"), ("v", "<u4"), ("f", "<u4")])
        kept = raw[raw["f"] & 0xFF0000 == 0]
        for vcpu in (0, 1):
            got = [access[1] for access in accesses(GPA) if access[0] == vcpu]
            assert got == kept["a"][kept["v"] == vcpu].tolist()


class TestOpening:
    @pytest.mark.parametrize(
        "content",
        [b"x", b"hello\nworld\n", bytes(480), b"\xff" * 480],
    )
    def test_other_content_is_refused_in_one_line(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(
            TraceError, match=r"x: not a recording of a known format \(known: "
        ) as e:
            open_recording(tmp_path / "x")
        assert "\n" not in str(e.value)

    def test_an_empty_archive(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"PK\x05\x06" + bytes(18))
        with pytest.raises(TraceError, match=r"x: an empty zip archive$"):
            open_recording(tmp_path / "x")

    def test_nothing_to_read(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        (tmp_path / "cut.zst").write_bytes(LACKEY.read_bytes()[:8])
        for name, message in (
            ("empty", "it is empty"),
            ("cut.zst", "is cut off"),
            ("none", "No such file"),
            (".", "Is a directory"),
        ):
            with pytest.raises(TraceError, match=message):
                open_recording(tmp_path / name)

    def test_damaged_compression(self, tmp_path: Path) -> None:
        for number, raw in enumerate((LACKEY.read_bytes(), gzip.compress(plain(LACKEY)))):
            path = tmp_path / str(number)
            path.write_bytes(raw[:20_000] + bytes(100) + raw[20_100:])
            with pytest.raises(TraceError, match="the compressed data is damaged"):
                stats.stats_of(path)

    def test_long_windows(self, tmp_path: Path) -> None:
        options = {
            zstd.CompressionParameter.window_log: 27,
            zstd.CompressionParameter.enable_long_distance_matching: 1,
        }
        with zstd.ZstdFile(tmp_path / "x", "wb", options=options) as file:
            file.write(plain(LACKEY))
        assert stats.stats_of(tmp_path / "x").accesses == 11913

    def test_head_takes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"abcdef")
        with open_stream(tmp_path / "x") as stream:
            assert stream.head(3) == b"abc"
            assert stream.head(100) == b"abcdef"
            assert stream.read(4) == b"abcd"
            assert stream.head(2) == b"ef"
            assert stream.read(4) == b"ef"
            assert stream.read(4) == b""

    def test_standard_input(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(
            trace_command, ["info", "-", "--json", "-"], input=LACKEY.read_bytes()
        )
        assert counted(json.loads(result.stdout)) == LACKEY_COUNTS


EXCERPTS = {
    "lackey": plain(LACKEY)[:20_000],
    "gpa": plain(GPA)[: 24 * 800],
    "lackey.gz": gzip.compress(plain(LACKEY)[:20_000]),
    "lackey.zst": zstd.compress(plain(LACKEY)[:20_000]),
    "gpa.xz": lzma.compress(plain(GPA)[: 24 * 800]),
}


def read_or_refuse(raw: bytes) -> None:
    """Info and conversion of anything: figures that agree, or a TraceError, and nothing left."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "x"
        path.write_bytes(raw)
        out = Path(directory) / "t.vmtrace"
        try:
            counts = stats.stats_of(path).to_json()
            convert(path, out)
        except TraceError:
            assert [file.name for file in Path(directory).iterdir()] == ["x"]
            return
        native_counts = stats.native_stats(native.open(out)).to_json()
        assert native_counts == counts | {"format": "vmtrace", "first_unknown": ""}


class TestFuzz:
    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_mutated_recordings(self, data: st.DataObject) -> None:
        raw = EXCERPTS[data.draw(st.sampled_from(sorted(EXCERPTS)))]
        at = data.draw(st.integers(0, len(raw)))
        length = data.draw(st.integers(0, 5000))
        new = data.draw(st.binary(max_size=64))
        kind = data.draw(st.integers(0, 2))
        read_or_refuse(
            (
                raw[:at] + new + raw[at + len(new) :],
                raw[:at] + new + raw[at:],
                raw[:at] + raw[at + length :],
            )[kind]
        )

    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from([b"", b"==1== Lackey, an example Valgrind tool\n", b" L 10,8\n" * 3]),
        st.lists(
            st.one_of(
                st.binary(max_size=50),
                st.from_regex(rb"( [LSM]|I ) [0-9a-f]{1,17},[0-9]{1,5}\r?\n", fullmatch=True),
            ),
            max_size=20,
        ),
    )
    def test_anything(self, start: bytes, parts: list[bytes]) -> None:
        read_or_refuse(start + b"".join(parts))
