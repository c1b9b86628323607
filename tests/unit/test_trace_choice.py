"""How the reader of a recording is chosen, whatever stands before what it knows, and what all
readers have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from backports import zstd
from click.testing import CliRunner

from vmemu.cli.trace import trace as trace_command
from vmemu.errors import TraceError
from vmemu.traces.figures import missing, stats
from vmemu.traces.reader import HEAD_BYTES
from vmemu.traces.readers.qemu_faults import DROPPED_SHARED, DROPPED_TWICE
from vmemu.traces.recordings import known_readers, open_recording
from vmemu.traces.text import TextReader

DATA = Path(__file__).parents[1] / "data"
TEXTS = {
    "lackey": (DATA / "lackey-sort-excerpt.txt.zst").read_bytes(),
    "perf": (DATA / "perf-page-fault-user-excerpt.txt.zst").read_bytes(),
    "qemu-log": (DATA / "qemu72-postcopy-faults.dst.log.zst").read_bytes(),
    "qemu-execlog": (DATA / "qemu72-execlog-excerpt.txt.zst").read_bytes(),
    "dramsim3": (DATA / "dramsim3-excerpt.trace.zst").read_bytes(),
    "damon": (DATA / "damo-perf-script.txt.zst").read_bytes(),
    "reap": b"0\n3f9d000\n1fe0000\n",
    "ramulator": b"LD 0x12345680\nST 0x12345680\n",
    "csv": b"tid,address,kind\n1,0x1000,load\n2,0x2000,store\n",
}
COMMENT = b"# recorded on a rainy day\n"


def text_of(name: str) -> bytes:
    raw = TEXTS[name]
    return zstd.decompress(raw) if raw.startswith(b"\x28\xb5") else raw


def figures(path: Path, raw: bytes) -> dict[str, object]:
    path.write_bytes(raw)
    return stats.stats_of(path).to_json()


@pytest.mark.parametrize("name", TEXTS)
class TestAroundTheRecording:
    @pytest.mark.parametrize(
        "before",
        [
            b"\xef\xbb\xbf",
            b"\n\n",
            COMMENT * 2,
            b"\xef\xbb\xbf" + COMMENT,
            COMMENT * (HEAD_BYTES // len(COMMENT) + 50),
            b"\n" * (HEAD_BYTES + 10),
        ],
        ids=["mark", "blank", "comments", "mark and comments", "64 KiB of comments", "of blanks"],
    )
    def test_before_it(self, name: str, before: bytes, tmp_path: Path) -> None:
        expected = figures(tmp_path / "r", text_of(name))
        assert expected["format"] == name
        assert figures(tmp_path / "r", before + text_of(name)) == expected

    def test_behind_it_and_at_the_ends_of_lines(self, name: str, tmp_path: Path) -> None:
        expected = figures(tmp_path / "r", text_of(name))
        assert figures(tmp_path / "r", text_of(name) + b"\n\n\r\n") == expected
        assert figures(tmp_path / "r", text_of(name).replace(b"\n", b"\r\n")) == expected

    def test_utf16_is_refused_with_what_mends_it(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "r").write_text(text_of(name).decode(), encoding="utf-16")
        with pytest.raises(TraceError, match=r"UTF-16.*iconv"):
            open_recording(tmp_path / "r")

    def test_no_other_reader_claims_it(self, name: str) -> None:
        head = text_of(name)[:HEAD_BYTES]
        assert [reader.format for reader in known_readers() if reader.sniff(head)] == [name]


@pytest.mark.parametrize(
    "head",
    [
        b"\n" * (1 << 20),
        b"a page-faults: " * (1 << 16) + b"\n",
        b"# \n" * (1 << 18),
        b"1 2\n" * (1 << 18),
    ],
    ids=["empty lines", "one long line", "comments", "numbers"],
)
def test_what_is_nothing_is_refused_before_the_timeout(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(head)
    with pytest.raises(TraceError, match="not a recording of a known format"):
        open_recording(tmp_path / "r")


def test_lackey_with_the_time_in_valgrinds_own_lines(tmp_path: Path) -> None:
    found = figures(
        tmp_path / "r",
        b"==00:00:00:00.000 2169== Lackey, an example Valgrind tool\n"
        b"--00:00:00:00.000 2169-- Valgrind options:\n"
        b" L 1ffe,4\n"
        b"==00:00:00:12.345 2169== \n"
        b"==00:00 2169- \n",
    )
    assert (found["accesses"], found["straddling"], found["unknown_lines"]) == (1, 1, 1)


def test_a_conversion_shows_the_first_unknown_line(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b" L 1000,8\nhello\n S 2000,8\n")
    arguments = ["convert", str(tmp_path / "r"), str(tmp_path / "t.vmtrace")]
    shown = CliRunner().invoke(trace_command, arguments)
    assert "1 line or record means nothing; line 2: 'hello'" in shown.stderr


def test_fields_of_perf_behind_a_long_list_of_mappings(tmp_path: Path) -> None:
    mapping = (
        b"     swapper     0/0         0.000000: PERF_RECORD_MMAP -1/0: [0x1(0x2) @ 0x3]: x y\n"
    )
    fault = b"  sort 7/8 12.000001: page-faults:     7f35e6600000\n"
    found = figures(tmp_path / "r", mapping * (HEAD_BYTES // len(mapping) + 9) + fault)
    assert (found["format"], found["accesses"], found["unknown_lines"]) == ("perf", 1, 0)


class TestWhatReadersSay:
    @pytest.mark.parametrize("reader", known_readers(), ids=lambda reader: reader.format)
    def test_missing_is_explained_and_in_order(self, reader: type[TextReader]) -> None:
        assert [key for key in missing.MEANING if key in reader.missing] == list(reader.missing)

    def test_left_out_is_explained(self) -> None:
        reasons = {DROPPED_TWICE, DROPPED_SHARED}
        for reader in known_readers():
            reasons |= set(getattr(reader, "drop_reasons", ()))
        assert reasons <= set(missing.LEFT_OUT)

    @pytest.mark.parametrize("name", TEXTS)
    def test_what_was_not_left_out_is_not_told(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "r").write_bytes(text_of(name))
        assert 0 not in stats.stats_of(tmp_path / "r").dropped.values()

    @pytest.mark.parametrize("format_", ["tcg-gpa", "qemu-execlog"])
    def test_plugins_show_a_modify_as_two_accesses(self, format_: str) -> None:
        (reader,) = (reader for reader in known_readers() if reader.format == format_)
        assert "modifies" in reader.missing
