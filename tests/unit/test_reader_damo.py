"""DAMON's recordings: damo's JSON of every kind, tracepoints as text, absurd and damaged ones.

The recordings are of damo 3.4.3 itself, and so are the counts: its own snapshots, summed up.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.errors import TraceError
from vmemu.traces import native, regions
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.readers.damo import _nanoseconds, _number
from vmemu.traces.recordings import open_recording

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parent.parent / "data"
JSON = DATA / "damo-record.json.zst"
COMPRESSED = DATA / "damo-record.json_compressed"
SCRIPT = DATA / "damo-perf-script.txt.zst"

Touch = tuple[int, int, int]


def touches(path: Path) -> list[Touch]:
    """Stream, address, time of each access; they are loads of one byte."""
    found: list[Touch] = []
    with open_recording(path) as reader:
        for chunk in reader.chunks():
            assert (chunk.sizes == 1).all() and (chunk.kinds == 0).all()
            assert chunk.times is not None
            rows = zip(chunk.addresses.tolist(), chunk.times.tolist(), strict=True)
            found += [(chunk.stream, *row) for row in rows]
    return found


def region(start: int, end: int, samples: Any = 1, **more: Any) -> dict[str, Any]:
    return {"start": f"{start:,}", "end": f"{end:,}", "nr_accesses": {"samples": samples}, **more}


def record(*snapshots: tuple[Any, list[dict[str, Any]]], target: Any = 0) -> dict[str, Any]:
    return {
        "kdamond_idx": 0,
        "context_idx": 0,
        "target_id": target,
        "snapshots": [
            {"start_time": "0", "end_time": end, "regions": found} for end, found in snapshots
        ],
    }


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content, indent=4))
    return path


class TestRecordings:
    @pytest.mark.parametrize("path", [JSON, COMPRESSED, SCRIPT], ids=lambda path: path.name)
    def test_counts(self, path: Path) -> None:
        found = stats.stats_of(path)
        assert (found.accesses, found.reads, found.pages_4k) == (8486, 8486, 3837)
        assert (found.threads, found.unknown_lines, found.truncated) == (1, 0, False)
        assert found.address_kind == "virtual"
        assert {"threads", "order", "sizes", "writes", "repeats", "pages"} <= set(found.missing)

    def test_same_touches_whichever_way_it_was_written(self) -> None:
        plain, compressed, script = map(touches, (JSON, COMPRESSED, SCRIPT))
        assert compressed == plain
        # damo prints seconds with six places.
        assert [row[:2] for row in script] == [row[:2] for row in plain]
        assert max(abs(a[2] - b[2]) for a, b in zip(script, plain, strict=True)) < 1000
        assert plain[0] == (0, 94106999996416, 82877415633000)

    def test_converted(self, tmp_path: Path) -> None:
        meta = convert(COMPRESSED, tmp_path / "t.vmtrace")
        assert meta.time_range_ns is not None
        assert meta.time_range_ns[0] == 82877415633000
        assert native.open(tmp_path / "t.vmtrace").meta.counts.accesses == 8486


class TestJson:
    def test_what_is_touched(self, tmp_path: Path) -> None:
        path = written(
            tmp_path,
            [
                record(
                    ("1 s 5 us", [region(0x1000, 0x3000), region(0x3000, 0x9000, 0)]),
                    (2_000_000_000, [region(0x10800, 0x11800, "3")]),
                    target=11,
                ),
                record(("3 s", [region(0x4000, 0x5000, 20)]), target=12),
                record(("4 s", [region(0x6000, 0x6000, 20)]), target=11),
                record(("5 s", [region(0x7000, 0x8000, 20)]), target=11),
            ],
        )
        assert touches(path) == [
            (0, 0x1000, 1_000_005_000),
            (0, 0x2000, 1_000_005_000),
            (0, 0x10800, 2_000_000_000),
            (0, 0x11000, 2_000_000_000),
            (1, 0x4000, 3_000_000_000),
            (0, 0x7000, 5_000_000_000),
        ]
        assert stats.stats_of(path).address_kind == "unknown"

    @pytest.mark.parametrize(
        ("accesses", "touched"),
        [
            ({"samples": 0, "percent": 7}, False),
            ({"samples": None, "percent": "5 %"}, True),
            ({"samples": None, "percent": 0.4}, True),
            ({"samples": "1,234", "percent": None}, True),
            ({"samples": -1, "percent": None}, False),
            (3, True),
            ("0", False),
        ],
    )
    def test_numbers_of_accesses(self, accesses: Any, touched: bool, tmp_path: Path) -> None:
        one = region(0x1000, 0x2000) | {"nr_accesses": accesses}
        path = written(tmp_path, [record(("1 s", [one, region(0x5000, 0x6000)]))])
        assert len(touches(path)) == 1 + touched
        assert stats.stats_of(path).unknown_lines == 0

    def test_a_record_that_is_no_list(self, tmp_path: Path) -> None:
        one = record(("1 s", [region(0x1000, 0x2000)]))
        for content in (one, {"damon_records": {"kdamonds": [], "record_list": [one]}}):
            assert touches(written(tmp_path, content)) == [(0, 0x1000, 10**9)]

    @pytest.mark.parametrize(
        "wrong",
        [
            {},
            {"start": "1", "nr_accesses": {"samples": 1}},
            region(0x2000, 0x1000),
            region(0, 1 << 65),
            region(0, 1, None),
            region(0, 1, "many"),
            region(0, 1) | {"start": True},
            {"start": 0, "end": 1},
        ],
    )
    def test_regions_without_sense_are_counted(self, wrong: Any, tmp_path: Path) -> None:
        good = region(0x1000, 0x2000)
        found = stats.stats_of(written(tmp_path, [record(("1 s", [good, wrong, good]))]))
        assert (found.accesses, found.unknown_lines) == (2, 1)
        assert found.first_unknown.startswith("region 2: ")

    def test_mostly_without_sense(self, tmp_path: Path) -> None:
        path = written(tmp_path, [record(("1 s", [{}] * 1001))])
        with pytest.raises(TraceError, match="1001 of 1001 lines or records mean nothing"):
            stats.stats_of(path)

    @pytest.mark.parametrize(
        "content",
        [
            [{"snapshots": record(("1 s", [region(0, 1)]))["snapshots"], "target_id": 0}],
            [record((None, [region(0, 1)]))],
            [record(("soon", [region(0, 1)]))],
        ],
    )
    def test_without_time_or_target(self, content: Any, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=r"region 1 has no end_time of its snapshot, or no"):
            stats.stats_of(written(tmp_path, content))

    def test_made_of_percentiles(self, tmp_path: Path) -> None:
        content = record(("1 s", [region(0, 1)])) | {"kdamond_idx": -1}
        with pytest.raises(TraceError, match=r"it has no addresses; record .* damo record"):
            stats.stats_of(written(tmp_path, [content]))

    def test_old_binary_record(self, tmp_path: Path) -> None:
        (tmp_path / "damon.data").write_bytes(b"damon_recfmt_ver" + bytes(100))
        with pytest.raises(TraceError, match="damo convert_record_format"):
            stats.stats_of(tmp_path / "damon.data")

    def test_cut_off(self, tmp_path: Path) -> None:
        whole = touches(JSON)
        for number, raw in enumerate((zstd.decompress(JSON.read_bytes()), COMPRESSED.read_bytes())):
            path = tmp_path / str(number)
            path.write_bytes(raw[: len(raw) // 2])
            found = touches(path)
            assert 0 < len(found) < len(whole)
            assert found == whole[: len(found)]
            assert stats.stats_of(path).truncated

    def test_damaged(self, tmp_path: Path) -> None:
        raw = zstd.decompress(JSON.read_bytes())
        (tmp_path / "x").write_bytes(raw.replace(b'"total_bytes"', b"}}]]", 1))
        with pytest.raises(TraceError, match="not the JSON of damo"):
            stats.stats_of(tmp_path / "x")
        # Larger than what is sniffed, or the damage would show there.
        raw = zlib.compress(raw * 20, 0)
        (tmp_path / "x").write_bytes(raw[:900_000] + bytes(50) + raw[900_050:])
        with pytest.raises(TraceError, match=r"compressed data is damaged|not the JSON"):
            stats.stats_of(tmp_path / "x")

    def test_other_json(self, tmp_path: Path) -> None:
        for content in ({"a": 1}, [{"snapshots": []}], []):
            with pytest.raises(TraceError, match="not a recording of a known format"):
                stats.stats_of(written(tmp_path, content))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,428 d 21 h 33 m 9 s 12 ms 345 us 678 ns", 123456789012345678),
        ("8 m 59.809 s", 539809000000),
        ("0 ns", 0),
        ("82877315633000", 82877315633000),
        (17, 17),
        ("-5 s", None),
        ("5 parsecs", None),
        ("max", None),
        (None, None),
    ],
)
def test_times(text: Any, value: int | None) -> None:
    assert _nanoseconds(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("5 %", 5),
        (0.4, 1),
        ("-1", -1),
        ("x", None),
        ("inf", None),
        ("9" * 5000, None),
    ],
)
def test_numbers(text: Any, value: int | None) -> None:
    assert _number(text) == value


class TestAbsurd:
    def test_a_region_of_tebibytes(self, tmp_path: Path) -> None:
        path = written(
            tmp_path, [record(("1 s", [region(0, 1 << 42), region(1 << 42, 1 << 43, 0)]))]
        )
        with pytest.raises(TraceError, match=r"0x0 to 0x40000000000, has 4096 GiB: at most 64 GiB"):
            stats.stats_of(path)
        path = written(tmp_path, [record(("1 s", [region(0, 1 << 43, 0), region(0, 1)]))])
        assert stats.stats_of(path).accesses == 1

    def test_many_regions(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(regions, "MOST_TOUCHES", 1000)
        path = written(tmp_path, [record(("1 s", [region(0, 0x1000 * 501)] * 2))])
        with pytest.raises(TraceError, match="more than 1,000 pages in all; record smaller"):
            stats.stats_of(path)

    def test_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = touches(JSON)
        monkeypatch.setattr(regions, "_CHUNK", 7)
        assert touches(JSON) == whole

    def test_at_the_end_of_the_address_space(self) -> None:
        columns = np.array([[(1 << 64) - 4097], [(1 << 64) - 1], [5]], np.uint64)
        (chunk,) = regions.RegionTouches("x").chunks(0, *columns)
        assert chunk.addresses.tolist() == [(1 << 64) - 4097, (1 << 64) - 4096]


LINE = (
    " kdamond.0  4452 [000] 82877.315633: damon:damon_aggregated: target_id={} nr_regions=1"
    " {}-{}: {} 3"
)


class TestText:
    @pytest.mark.parametrize(
        "line",
        [
            "kdamond.0  4452 [000] 82877.315633: damon:damon_aggregated: target_id=0 nr_regions=17"
            " 4096-12288: 1",
            "kdamond.0  4452 [000] 82877.315633: damon:damon_aggregated: target_id=0 nr_regions=17"
            " 4096-12288: 1 3",
            "kdamond.0-4452  [005] ..... 82877.315633: damon_aggregated:     target_id=0"
            " nr_regions=11 4096-12288: 1 974",
            "<...>-4452 [000] 82877.315633: damon_region_aggregated:     target_id=0 nr_regions=11"
            " 4096-12288: 1 560 probe_hits=13 00",
            "kdamond.x xxxx xxxx 82877.315633: damon:damon_aggregated:"
            " target_id=18446623435582458880 nr_regions=17 4096-12288: 1 3",
            "kdamond.0 12 [1] 82877.315633: damon:damos_before_apply: ctx_idx=0 scheme_idx=0"
            " target_idx=0 nr_regions=11 4096-12288: 1 136",
        ],
    )
    def test_lines(self, line: str, tmp_path: Path) -> None:
        (tmp_path / "t").write_text(line + "\n")
        assert touches(tmp_path / "t") == [(0, a, 82877315633000) for a in (0x1000, 0x2000)]

    def test_targets_are_streams(self, tmp_path: Path) -> None:
        lines = [
            LINE.format(1 << 63, 0, 4096, 1),
            LINE.format(5, 4096, 8192, 2),
            LINE.format(5, 8192, 12288, 0),
            LINE.format(1 << 63, 12288, 16384, 2),
        ]
        (tmp_path / "t").write_text("".join(line + "\n" for line in lines))
        found = sorted(row[:2] for row in touches(tmp_path / "t"))
        assert found in ([(0, 0), (0, 12288), (1, 4096)], [(0, 4096), (1, 0), (1, 12288)])

    def test_other_lines(self, tmp_path: Path) -> None:
        one = LINE.format(0, 4096, 8192, 1)
        lines = [
            "# header",
            "",
            one,
            "kdamond.0 4 [0] 92713.218210: damon:damon_monitor_intervals_tune: sample_us=80000",
            one.replace("damon_aggregated", "damon_region_aggregated") + " probe_hits=",
            LINE.format(0, 0, 0, -1).replace(" 3", " -1"),
            LINE.format(0, 8192, 4096, 1),
            LINE.format(0, "x", 4096, 1),
            "hello",
        ]
        (tmp_path / "t").write_text("".join(line + "\n" for line in lines))
        found = stats.stats_of(tmp_path / "t")
        assert (found.accesses, found.unknown_lines) == (1, 3)
        assert found.dropped == {"other_event": 1}


EXCERPTS = [
    zstd.decompress(JSON.read_bytes())[:6000],
    zlib.compress(zstd.decompress(JSON.read_bytes())),
    zstd.decompress(SCRIPT.read_bytes())[:6000],
]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(EXCERPTS),
    st.integers(0, 6000),
    st.integers(0, 300),
    st.one_of(st.binary(max_size=40), st.from_regex(rb'[][{}",0-9:]{1,12}', fullmatch=True)),
)
def test_mutated(raw: bytes, at: int, length: int, new: bytes) -> None:
    """Figures that agree with the converted trace, or a TraceError."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "MOST_TOUCHES", 1 << 20)
        path, out = Path(directory) / "x", Path(directory) / "t.vmtrace"
        path.write_bytes(raw[:at] + new + raw[at + length :])
        try:
            counts = stats.stats_of(path).to_json()
            convert(path, out)
        except TraceError:
            return
        found = stats.native_stats(native.open(out)).to_json()
        for key in ("accesses", "pages_4k", "threads", "unknown_lines", "address_kind"):
            assert found[key] == counts[key]
