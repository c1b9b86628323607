"""What ``vmemu trace info`` says of recordings that know little, and of those that know more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vmemu.cli.trace import trace as trace_command
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.figures.missing import MEANING
from vmemu.traces.reader import LOAD, STORE, BlockBase

DATA = Path(__file__).parent.parent / "data"
LACKEY = DATA / "lackey-sort-excerpt.txt.zst"
GPA = DATA / "gpa-boot-excerpt.bin.zst"

STABLE = (
    "format accesses reads writes modifies instruction_fetches pages_4k pages_2m pages_written"
    " span_bytes straddling threads time_range_ns unknown_lines missing"
)


def shown(path: Path) -> str:
    result = CliRunner().invoke(trace_command, ["info", str(path)])
    assert result.exit_code == 0
    return result.stdout


def rows(path: Path) -> dict[str, str]:
    """The first table."""
    lines = shown(path).split("\n\n")[0].splitlines()
    pairs = (line.strip().split("  ", 1) for line in lines)
    return {name: value.strip() for name, value in pairs}


def test_the_first_table(tmp_path: Path) -> None:
    lackey, gpa = rows(LACKEY), rows(GPA)
    assert lackey["threads or vCPUs"] == gpa["instruction fetches"] == "not recorded"
    assert (gpa["threads or vCPUs"], lackey["instruction fetches"]) == ("2", "48,084")
    assert (lackey["left out"], gpa["left out"]) == ("-", "199 accesses (io)")
    assert gpa["span"] == "4.125GiB (4,429,180,929 bytes)"
    assert lackey["reads"] == "9,192 (77.2%)"
    assert lackey["time"] == "not recorded"
    convert(GPA, tmp_path / "t.vmtrace")
    native_trace = rows(tmp_path / "t.vmtrace")
    assert (native_trace["format"], native_trace["recorded format"]) == ("vmtrace", "tcg-gpa")


def test_everything_missing_is_explained() -> None:
    text = shown(LACKEY)
    assert MEANING["times"] in text
    assert MEANING["threads"] in text
    assert MEANING["writes"] not in text


def test_sections(tmp_path: Path) -> None:
    text = shown(GPA)
    for title in ("reuse of 4 KiB pages", "mean working set", "busiest streams"):
        assert title in text
    assert "busiest streams" not in shown(LACKEY)
    assert "recorded RAM blocks" not in text
    assert text.isascii()


def test_stable_keys() -> None:
    figures = stats.stats_of(LACKEY).to_json()
    assert set(STABLE.split()) <= set(figures)
    assert json.loads(json.dumps(figures)) == figures
    assert list(figures["reuse"]["time"]) == ["p50", "p90", "p99"]
    assert figures["working_set"][-1] == {"percent": 100, "pages": figures["pages_4k"]}
    assert figures["streams"] == [{"id": 0, "accesses": 11913}]


@pytest.fixture
def faults(tmp_path: Path) -> Path:
    """Faults on two RAM blocks, with times and without directions."""
    path = tmp_path / "faults.vmtrace"
    with native.TraceWriter(path, address_kind="ram-block") as writer:
        for stream, pages in ((40, [3, 5, 1 << 32]), (41, [7])):
            addresses = np.array(pages, np.uint64) << np.uint64(12)
            count = len(pages)
            times = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(1_000_000_000)
            writer.append(
                stream, addresses, np.zeros(count, np.uint8), np.ones(count, np.uint16), times
            )
        writer.missing = ("repeats", "writes", "sizes", "instruction_fetches")
        writer.blocks = (BlockBase("pc.ram", 0), BlockBase("vga", 1 << 44), BlockBase("x", 1 << 50))
        writer.finish()
    return path


def test_faults_claim_nothing_that_is_not_known(faults: Path) -> None:
    figures = stats.stats_of(faults).to_json()
    assert (figures["reuse"], figures["windows"]) == (None, [])
    assert figures["span_bytes"] == (7 + 1 - 3 + 1) * 4096
    assert figures["blocks"] == [
        {"name": "pc.ram", "pages_4k": 3, "pages_written": 0, "span_bytes": 5 * 4096},
        {"name": "vga", "pages_4k": 1, "pages_written": 0, "span_bytes": 4096},
        {"name": "x", "pages_4k": 0, "pages_written": 0, "span_bytes": 0},
    ]
    table = rows(faults)
    assert table["reads and writes"] == "not told apart"
    assert table["written"] == table["straddling two pages"] == "not recorded"
    assert table["time"] == "2.000000 s (from 1.000000 to 3.000000), 2 accesses/s"
    text = shown(faults)
    assert "pc.ram  3 pages, span 20KiB" in text
    assert "reuse" not in text


def test_without_the_order_no_time_between_touches(tmp_path: Path) -> None:
    with native.TraceWriter(tmp_path / "t.vmtrace", missing=("order",)) as writer:
        addresses = np.zeros(5000, np.uint64)
        kinds = np.full(5000, STORE, np.uint8)
        writer.append(0, addresses, kinds, np.ones(5000, np.uint16))
        writer.finish()
    result = stats.stats_of(tmp_path / "t.vmtrace")
    assert result.reuse is not None
    assert result.reuse.time is None
    assert result.reuse.accesses_per_page.max == 5000
    assert result.windows == []


def test_an_empty_trace(tmp_path: Path) -> None:
    with native.TraceWriter(tmp_path / "t.vmtrace") as writer:
        writer.finish()
    table = rows(tmp_path / "t.vmtrace")
    assert (table["accesses"], table["pages of 4 KiB"]) == ("0", "0 (0B)")


def test_busiest_streams_and_the_rest(tmp_path: Path) -> None:
    with native.TraceWriter(tmp_path / "t.vmtrace") as writer:
        for stream in range(20):
            count = 1000 - stream
            kinds = np.full(count, LOAD, np.uint8)
            writer.append(stream, np.zeros(count, np.uint64), kinds, np.ones(count, np.uint16))
        writer.finish()
    text = shown(tmp_path / "t.vmtrace")
    assert "12 others" in text
    assert text.index("  0    ") < text.index("  1    ")


def test_a_large_packed_trace_is_unpacked_on_disk_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(GPA, tmp_path / "t.vmtrace.zst")
    whole = stats.stats_of(tmp_path / "t.vmtrace.zst").to_json()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(native.format, "_SMALL", 1000)
    assert stats.stats_of(tmp_path / "t.vmtrace.zst").to_json() == whole
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("verb", ["info", "map"])
def test_json_does_not_replace_what_is_read(verb: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.vmtrace.zst"
    convert(DATA / "gpa-boot-excerpt.bin.zst", trace)
    before = trace.read_bytes()
    done = CliRunner().invoke(trace_command, [verb, str(trace), "--json", str(trace)])
    assert "is read by this command" in str(done.exception)
    assert trace.read_bytes() == before
