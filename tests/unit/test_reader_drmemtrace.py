"""DynamoRIO's traces: entries of all kinds, files of one thread, of several, and directories."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trace_readers import read_or_refuse

from vmemu.cli.trace import trace as trace_command
from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.reader import FETCH, LOAD, STORE
from vmemu.traces.readers import drmemtrace
from vmemu.traces.recordings import open_recording

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parent.parent / "data"
LEGACY = zstd.decompress((DATA / "drmemtrace-legacy-excerpt.bin.zst").read_bytes())
V4 = zstd.decompress((DATA / "drmemtrace-v4-excerpt.bin.zst").read_bytes())

# Counted by an independent script, entry by entry.
FIGURES = {
    "legacy": {
        "accesses": 12140,
        "reads": 9682,
        "writes": 2458,
        "modifies": 0,
        "instruction_fetches": 37795,
        "pages_4k": 70,
        "pages_2m": 12,
        "pages_written": 17,
        "span_bytes": 162145336524,
        "straddling": 0,
        "threads": 2,
        "unknown_lines": 0,
        "address_kind": "virtual",
        "missing": ["exact_times", "modifies"],
    },
    "v4": {
        "accesses": 2699,
        "reads": 2359,
        "writes": 340,
        "modifies": 0,
        "instruction_fetches": 11777,
        "pages_4k": 7,
        "pages_2m": 2,
        "pages_written": 5,
        "span_bytes": 287593974409,
        "straddling": 0,
        "threads": 1,
        "unknown_lines": 0,
        "address_kind": "virtual",
        "missing": ["exact_times", "modifies"],
    },
}
TIMES = {
    "legacy": (1542051763117589000, 1542051763149663000),
    "v4": (1668734756788331000, 1668734756844630000),
}
RECORDINGS = [("legacy", LEGACY), ("v4", V4)]

READ, WRITE, INSTR, THREAD, PID, HEADER, FOOTER, MARKER = 0, 1, 10, 22, 24, 25, 26, 28
TIMESTAMP, FILETYPE, VERSION = 2, 9, 12
EPOCH_US = 11_644_473_600_000_000

Entry = tuple[int, int, int]
Access = tuple[int, int, int, int, int]


def packed(*entries: Entry, narrow: bool = False) -> bytes:
    form = "<HHI" if narrow else "<HHQ"
    return b"".join(struct.pack(form, *entry) for entry in entries)


def trace(*entries: Entry, thread: int = 7, filetype: int = 0x40, time: int = 5) -> bytes:
    """A file of one thread as current versions write it."""
    return packed(
        (HEADER, 0, 5),
        (MARKER, VERSION, 5),
        (MARKER, FILETYPE, filetype),
        (THREAD, 4, thread),
        (PID, 4, 1),
        (MARKER, TIMESTAMP, EPOCH_US + time),
        (MARKER, 3, 0),
        *entries,
    )


def accesses(path: Path, fetches: bool = False) -> list[Access]:
    """Thread, address, kind, size and time (-1 without) of each access."""
    result = []
    with open_recording(path, fetches=fetches) as reader:
        for chunk in reader.chunks():
            times = [-1] * len(chunk.kinds) if chunk.times is None else chunk.times.tolist()
            rows = zip(
                chunk.addresses.tolist(),
                chunk.kinds.tolist(),
                chunk.sizes.tolist(),
                times,
                strict=True,
            )
            result += [(chunk.stream, *row) for row in rows]
    return result


def of(raw: bytes, tmp_path: Path, fetches: bool = False) -> list[Access]:
    (tmp_path / "t").write_bytes(raw)
    return accesses(tmp_path / "t", fetches)


def expected(raw: bytes, fetches: bool = False) -> list[Access]:
    """The accesses of a sound trace, entry by entry."""
    result = []
    thread = time = 0
    for kind, size, value in struct.iter_unpack("<HHQ", raw):
        if kind == THREAD:
            thread = value
        elif kind == MARKER and size == TIMESTAMP:
            time = (value - EPOCH_US) * 1000
        elif kind in (READ, WRITE):
            result.append((thread, value, (LOAD, STORE)[kind], max(size, 1), time))
        elif fetches and kind in (*range(10, 17), 31, 48, 49):
            result.append((thread, value, FETCH, max(size, 1), time))
    return result


def by_thread(rows: list[Access]) -> dict[int, list[Access]]:
    threads: dict[int, list[Access]] = {}
    for row in rows:
        threads.setdefault(row[0], []).append(row)
    return threads


@pytest.mark.parametrize(("name", "raw"), RECORDINGS)
class TestRealRecordings:
    def test_counts(self, name: str, raw: bytes, tmp_path: Path) -> None:
        (tmp_path / "t").write_bytes(raw)
        found = stats.stats_of(tmp_path / "t").to_json()
        assert {key: found[key] for key in FIGURES[name]} == FIGURES[name]
        meta = convert(tmp_path / "t", tmp_path / "t.vmtrace")
        assert meta.time_range_ns == TIMES[name]
        assert native.open(tmp_path / "t.vmtrace").accesses == FIGURES[name]["accesses"]

    @pytest.mark.parametrize("fetches", [False, True])
    def test_every_access(self, name: str, raw: bytes, fetches: bool, tmp_path: Path) -> None:
        assert by_thread(of(raw, tmp_path, fetches)) == by_thread(expected(raw, fetches))

    def test_chunks_of_any_length(
        self, name: str, raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = by_thread(of(raw, tmp_path))
        monkeypatch.setattr(drmemtrace, "_ENTRIES_A_CHUNK", 777)
        assert by_thread(of(raw, tmp_path)) == whole

    def test_cut_off(self, name: str, raw: bytes, tmp_path: Path) -> None:
        (tmp_path / "t").write_bytes(raw[:-5])
        assert stats.stats_of(tmp_path / "t").truncated
        whole, cut = by_thread(expected(raw)), by_thread(accesses(tmp_path / "t"))
        assert all(rows[: len(cut[thread])] == cut[thread] for thread, rows in whole.items())


class TestEntries:
    def test_what_is_an_access(self, tmp_path: Path) -> None:
        others = [(kind, 8, 0x9000) for kind in (*range(2, 10), *range(18, 22), 27, *range(32, 48))]
        raw = trace(*others, (READ, 8, 0x1000), (29, 3, 0x5000), (WRITE, 0, 0x2FFF), (FOOTER, 0, 0))
        assert of(raw, tmp_path) == [(7, 0x1000, LOAD, 8, 5000), (7, 0x2FFF, STORE, 1, 5000)]
        assert stats.stats_of(tmp_path / "t").unknown_lines == 0

    def test_instructions_of_all_kinds(self, tmp_path: Path) -> None:
        kinds = (*range(10, 17), 31, 48, 49)
        raw = trace(*((kind, 4, kind << 12) for kind in kinds))
        assert [row[1] >> 12 for row in of(raw, tmp_path, fetches=True)] == list(kinds)
        assert stats.stats_of(tmp_path / "t").instruction_fetches == len(kinds)

    def test_times_are_of_the_last_timestamp(self, tmp_path: Path) -> None:
        raw = trace((READ, 1, 0x1000), (MARKER, TIMESTAMP, EPOCH_US + 9), (READ, 1, 0x2000), time=3)
        assert [row[4] for row in of(raw, tmp_path)] == [3000, 9000]

    def test_without_a_timestamp_there_are_no_times(self, tmp_path: Path) -> None:
        raw = packed((HEADER, 0, 1), (THREAD, 4, 7), (READ, 8, 0x1000), (MARKER, TIMESTAMP, 9))
        assert of(raw, tmp_path) == [(7, 0x1000, LOAD, 8, -1)]
        assert stats.stats_of(tmp_path / "t").missing == ("times", "modifies")

    def test_what_the_kernel_did_is_left_out(self, tmp_path: Path) -> None:
        kernel = [(INSTR, 4, 0xFFFF8000_00001000), (READ, 8, 0xFFFF8000_00002000)]
        raw = trace(
            (READ, 8, 0x1000),
            (MARKER, 27, 1),
            *kernel,
            (MARKER, 28, 1),
            (WRITE, 8, 0x2000),
            (MARKER, 34, 0),
            *kernel,
            (MARKER, 35, 0),
            (INSTR, 1, 0x3000),
        )
        assert [row[1] for row in of(raw, tmp_path)] == [0x1000, 0x2000]
        assert [row[1] for row in of(raw, tmp_path, True)] == [0x1000, 0x2000, 0x3000]
        result = stats.stats_of(tmp_path / "t")
        assert (result.dropped, result.instruction_fetches) == ({"kernel": 2}, 1)

    def test_of_a_32_bit_process(self, tmp_path: Path) -> None:
        raw = packed(
            (HEADER, 0, 4),
            (MARKER, VERSION, 4),
            (THREAD, 4, 7),
            (MARKER, TIMESTAMP, 99),
            (WRITE, 4, 0xFFFFFFFC),
            (INSTR, 2, 0x8048000),
            narrow=True,
        )
        assert of(raw, tmp_path) == [(7, 0xFFFFFFFC, STORE, 4, -1)]
        (tmp_path / "t").write_bytes(raw[:-1])
        assert stats.stats_of(tmp_path / "t").truncated

    def test_filtered_by_a_cache(self, tmp_path: Path) -> None:
        (tmp_path / "t").write_bytes(trace((READ, 8, 0x1000), filetype=0x140))
        assert stats.stats_of(tmp_path / "t").missing == ("exact_times", "modifies", "cached")

    def test_instructions_only(self, tmp_path: Path) -> None:
        raw = trace((INSTR, 4, 0x1000), filetype=0x44)
        with pytest.raises(TraceError, match="record it without -instr_only_trace, or convert"):
            of(raw, tmp_path)
        assert of(raw, tmp_path, fetches=True) == [(7, 0x1000, FETCH, 4, 5000)]

    @pytest.mark.parametrize(
        "wrong", [(17, 3, 0), (30, 3, 0), (50, 0, 0), (READ, 4097, 0), (WRITE, 2, (1 << 64) - 1)]
    )
    def test_what_means_nothing_is_counted(self, wrong: Entry, tmp_path: Path) -> None:
        good = [(READ, 8, number << 12) for number in range(600)]
        (tmp_path / "t").write_bytes(trace(*good, wrong, (READ, 8, 0)))
        result = stats.stats_of(tmp_path / "t")
        assert (result.accesses, result.unknown_lines) == (601, 1)
        assert result.first_unknown == f"record 608: {packed(wrong).hex()}"

    def test_mostly_unknown_is_refused(self, tmp_path: Path) -> None:
        bad = packed((99, 0, 0)) * 5000
        with pytest.raises(TraceError, match="not a whole DynamoRIO drmemtrace: 5000 of 5607"):
            of(trace(*[(READ, 8, 0)] * 600) + bad, tmp_path)


def zipped(raw: bytes, chunk: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, at in enumerate(range(0, len(raw), chunk)):
            archive.writestr(f"chunk.{number:04}", raw[at : at + chunk])
    return out.getvalue()


def threads_apart(raw: bytes) -> dict[int, bytes]:
    """Each thread's entries as a trace of their own."""
    entries = np.frombuffer(raw, drmemtrace.WIDE)
    at = np.flatnonzero(entries["type"] == THREAD)
    parts = {int(entries["value"][start]): packed((HEADER, 0, 1)) for start in at}
    for start, end in zip(at, [*at[1:], len(entries)], strict=True):
        parts[int(entries["value"][start])] += entries[start:end].tobytes()
    return parts


class TestDirectories:
    @pytest.mark.parametrize("below", [".", "trace"])
    def test_one_file_a_thread(self, below: str, tmp_path: Path) -> None:
        root = tmp_path / "drmemtrace.app.1.dir"
        where = root / below
        where.mkdir(parents=True)
        (root / "raw").mkdir()
        (root / "raw" / "x.raw.lz4").write_bytes(b"\x04\x22\x4d\x18")
        packs = (lambda raw: zipped(raw, 120_000), gzip.compress)
        for number, (thread, raw) in enumerate(threads_apart(LEGACY).items()):
            (where / f"drmemtrace.app.{thread}.1.trace.x").write_bytes(packs[number % 2](raw))
        (where / "cpu_schedule.bin.zip").write_bytes(zipped(trace((READ, 8, 0)), 1000))
        (where / "modules.log").write_text("Module Table: version 5, count 9\n")
        assert by_thread(accesses(root)) == by_thread(expected(LEGACY))
        out = tmp_path / "t.vmtrace"
        result = CliRunner().invoke(trace_command, ["convert", str(root), str(out)])
        assert "12,140 accesses, 70 pages, 2 streams" in result.stdout
        assert native.open(out).meta.source.file == "drmemtrace.app.1.dir"

    def test_times_only_if_all_have_them(self, tmp_path: Path) -> None:
        (tmp_path / "1").write_bytes(trace((READ, 8, 0x1000)))
        (tmp_path / "2").write_bytes(packed((HEADER, 0, 1), (THREAD, 4, 8), (READ, 8, 0x2000)))
        rows = accesses(tmp_path)
        assert sorted(rows) == [(7, 0x1000, LOAD, 8, -1), (8, 0x2000, LOAD, 8, -1)]

    def test_a_thread_id_that_was_given_again(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(trace((READ, 8, 0x1000), time=500))
        (tmp_path / "b").write_bytes(trace((READ, 8, 0x2000), time=100))
        assert [row[1] for row in accesses(tmp_path)] == [0x2000, 0x1000]

    def test_windows_in_directories_of_their_own(self, tmp_path: Path) -> None:
        for number in range(2):
            window = tmp_path / "trace" / f"window.{number:04}"
            window.mkdir(parents=True)
            raw = trace((READ, 8, 0x1000 << number), time=number)
            (window / "drmemtrace.app.1.1.trace").write_bytes(raw)
        assert [row[1] for row in accesses(tmp_path)] == [0x1000, 0x2000]
        assert [row[1] for row in accesses(window)] == [0x2000]

    def test_cut_into_cores(self, tmp_path: Path) -> None:
        for core in range(3):
            switch = ((THREAD, 4, 8), (WRITE, 8, 0x2000 + core))
            raw = trace((READ, 8, 0x1000 + core), *switch, filetype=0x10040, time=9 - core)
            (tmp_path / f"drmemtrace.core.{core:06}.trace").write_bytes(raw)
        rows = accesses(tmp_path)
        assert [row[:2] for row in rows] == [
            (core, base + core) for core in range(3) for base in (0x1000, 0x2000)
        ]
        assert stats.stats_of(tmp_path).missing == ("times", "modifies")

    def test_one_of_its_files_is_cut_off(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(trace((READ, 8, 0x1000), time=1) + b"half")
        (tmp_path / "b").write_bytes(trace((READ, 8, 0x2000), thread=8, time=2))
        result = stats.stats_of(tmp_path)
        assert (result.accesses, result.truncated) == (2, True)

    def test_raw_files_are_told_how_to_convert(self, tmp_path: Path) -> None:
        root = tmp_path / "drmemtrace.app.1.dir"
        (root / "raw").mkdir(parents=True)
        (root / "raw" / "app.1.raw.lz4").write_bytes(b"\x04\x22\x4d\x18")
        for path in (root, root / "raw"):
            with pytest.raises(TraceError, match=f"raw files .* drraw2trace -indir {root}$"):
                open_recording(path)

    def test_others_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="Is a directory, and neither a native trace nor"):
            open_recording(tmp_path)


SMALL = {
    "legacy": LEGACY[: 12 * 2000],
    "v4": V4[: 12 * 2000],
    "zip": zipped(LEGACY[: 12 * 2000], 5000),
    "gz": gzip.compress(V4[: 12 * 2000]),
}


class TestFuzz:
    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_mutated(self, data: st.DataObject) -> None:
        raw = SMALL[data.draw(st.sampled_from(sorted(SMALL)))]
        at = data.draw(st.integers(0, len(raw)))
        new = data.draw(st.binary(max_size=64))
        gone = data.draw(st.sampled_from([0, len(new), 12, 5000]))
        read_or_refuse(raw[:at] + new + raw[at + gone :])

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([READ, WRITE, INSTR, THREAD, MARKER, 27, 31, 99]),
                st.sampled_from([0, 1, TIMESTAMP, 8, 27, 28, 34, 4096, 4097, 65535]),
                st.integers(0, (1 << 64) - 1),
            ),
            max_size=40,
        )
    )
    def test_any_entries(self, entries: list[Entry]) -> None:
        read_or_refuse(trace(*entries))
