"""Traces of DRAM simulators: DRAMsim3 and 2, Ramulator 1 and 2."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader_drmemtrace import accesses
from test_trace_readers import read_or_refuse

from vmemu.errors import TraceError
from vmemu.traces.figures import stats
from vmemu.traces.reader import FETCH, LOAD, STORE
from vmemu.traces.recordings import open_recording

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parent.parent / "data"
DRAMSIM3 = DATA / "dramsim3-excerpt.trace.zst"

INSTRUCTIONS = """\
3 20734016
1 20846400
6 20734208
8 20841280 20841280
0 20734144
2 20918976 20734016
"""
ALL_MISSING = ("times", "threads", "sizes", "modifies", "instruction_fetches")

Row = tuple[int, int, int]


def of(text: str, tmp_path: Path, fetches: bool = False) -> list[Row]:
    """Address, kind and size of each access."""
    (tmp_path / "t").write_text(text)
    return [row[1:4] for row in accesses(tmp_path / "t", fetches)]


def info(tmp_path: Path) -> stats.TraceStats:
    return stats.stats_of(tmp_path / "t")


class TestDramsim:
    def test_a_real_one(self) -> None:
        # Counted by an independent script.
        result = stats.stats_of(DRAMSIM3)
        assert (result.format, result.address_kind) == ("dramsim3", "guest-physical")
        assert (result.accesses, result.reads, result.writes) == (4000, 1659, 2341)
        assert (result.pages_4k, result.pages_2m, result.pages_written) == (148, 3, 101)
        assert (result.span_bytes, result.unknown_lines) == (538055361, 0)
        assert result.missing == ALL_MISSING

    @pytest.mark.parametrize(
        ("line", "row"),
        [
            ("0x2000D5C0 READ  30", (0x2000D5C0, LOAD, 1)),
            ("0x1ff96fc0 WRITE   160", (0x1FF96FC0, STORE, 1)),
            ("2000d5c0 READ 30", (0x2000D5C0, LOAD, 1)),
            ("  0X40\twrite\t0a1b2c3d00000000ffffffffffffffff", (0x40, STORE, 1)),
            ("0x40 read", (0x40, LOAD, 1)),
            ("0x40 P_MEM_RD 1", (0x40, LOAD, 1)),
            ("0x40 P_MEM_WR 1", (0x40, STORE, 1)),
            ("0x40 P_LOCK_RD 1", (0x40, LOAD, 1)),
            ("0x40 P_LOCK_WR 1", (0x40, STORE, 1)),
            ("0x40 BOFF 1", (0x40, STORE, 1)),
            ("0x40 P_FETCH 1", (0x40, FETCH, 1)),
            ("0x40 IFETCH 1", (0x40, FETCH, 1)),
            ("0x40 WRITE 12 64B", (0x40, STORE, 64)),
            ("0x40 READ 18446744073709551615\r", (0x40, LOAD, 1)),
        ],
    )
    def test_lines(self, line: str, row: Row, tmp_path: Path) -> None:
        assert of(f"{line}\n\n", tmp_path, fetches=True) == [row]
        assert info(tmp_path).unknown_lines == 0

    @pytest.mark.parametrize(
        "line",
        [
            "0x40",
            "0x40 FLUSH 3",
            "READ 0x40 3",
            "0x40 READ 3 4",
            "0x40 READ x",
            "0x40 READ 3 0B",
            "0x40 READ 3 5000B",
            "0x10000000000000000 READ 3",
            "xyz",
        ],
    )
    def test_malformed_lines(self, line: str, tmp_path: Path) -> None:
        assert len(of("0x40 READ 1\n" * 20 + f"{line}\n", tmp_path)) == 20
        assert info(tmp_path).unknown_lines == 1

    def test_what_is_there_is_not_missing(self, tmp_path: Path) -> None:
        of("0x40 READ 1 64B\n0x80 IFETCH 2 64B\n", tmp_path)
        assert info(tmp_path).missing == ("times", "threads", "modifies")
        assert info(tmp_path).instruction_fetches == 1

    def test_device_accesses_are_left_out(self, tmp_path: Path) -> None:
        assert len(of("0x40 P_MEM_RD 1\n0x3f8 P_IO_WR 2\n0x0 P_INT_ACK 3\n", tmp_path)) == 1
        assert info(tmp_path).dropped == {"io": 2}


class TestRamulator:
    def test_instructions(self, tmp_path: Path) -> None:
        rows = of(INSTRUCTIONS, tmp_path)
        assert [row[1] for row in rows] == [LOAD] * 4 + [STORE] + [LOAD] * 2 + [STORE]
        assert rows[-2:] == [(20918976, LOAD, 1), (20734016, STORE, 1)]
        assert (info(tmp_path).format, info(tmp_path).address_kind) == ("ramulator", "unknown")
        assert info(tmp_path).missing == ALL_MISSING

    @pytest.mark.parametrize(
        ("text", "rows", "kind"),
        [
            (
                "LD 0x100000\nST 4096\n",
                [(0x100000, LOAD, 1), (4096, STORE, 1)],
                "guest-physical",
            ),
            (
                "ST 0x40 2 17 255\nLD 0x80 64\n",
                [(0x40, STORE, 2), (0x80, LOAD, 64)],
                "guest-physical",
            ),
            (
                "0x12345680 R\n4cbd56c0 W\n12345680 R\n",
                [(0x12345680, LOAD, 1), (0x4CBD56C0, STORE, 1), (0x12345680, LOAD, 1)],
                "guest-physical",
            ),
            ("3 0x1003 R\n1 20 W\n", [(0x1003, LOAD, 1), (20, STORE, 1)], "unknown"),
            (
                "3 0x1008 0x2000\n1 0x40\n",
                [(0x1008, LOAD, 1), (0x2000, STORE, 1), (0x40, LOAD, 1)],
                "unknown",
            ),
        ],
    )
    def test_all_kinds(self, text: str, rows: list[Row], kind: str, tmp_path: Path) -> None:
        assert of(text, tmp_path) == rows
        assert info(tmp_path).address_kind == kind
        assert info(tmp_path).unknown_lines == 0

    def test_sizes_that_are_there(self, tmp_path: Path) -> None:
        of("ST 0x40 2 17 255\nLD 0x80 64\n", tmp_path)
        assert "sizes" not in info(tmp_path).missing

    @pytest.mark.parametrize(
        "line",
        [
            "3",
            "3 4 5 6",
            "x 4",
            "3 x",
            "3 4 x",
            "-3 4096",
            "3,4096",
            "LD",
            "LD x",
            "LDX 0x40",
            "0x40 X",
            "3 18446744073709551616",
        ],
    )
    def test_malformed_lines(self, line: str, tmp_path: Path) -> None:
        head = INSTRUCTIONS * 1000
        assert len(head) > 1 << 16
        assert len(of(f"{head}{line}\n", tmp_path)) == 8000
        assert info(tmp_path).unknown_lines == 1

    def test_places_in_dram_are_no_addresses(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="no addresses; use the LoadStoreTrace"):
            of("R 0,0,1,2,345,6\nW 0,0,1,2,345,7\n", tmp_path)

    @pytest.mark.parametrize(
        "text",
        [
            "1,4096\n2,8192\n",
            "time address\n3 4096\n1 8192\n",
            "3 4096\n",
            "".join(f"{second} {second * 4096}\n" for second in range(50)),
            "3 4097\n1 8190\n2 12345\n",
            "3 0x1003\n1 0x2001\n",
            "1 8\n1 16\n",
            "3 4096 0 0\n1 8192 0 0\n",
            "1.5 4096\n1.0 8192\n",
        ],
    )
    def test_other_numbers_are_not_claimed(self, text: str, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="not a recording of a known format"):
            of(text, tmp_path)

    def test_random_numbers_are_not_claimed(self, tmp_path: Path) -> None:
        numbers = random.Random(7)
        text = "".join(
            f"{numbers.randrange(1000)} {numbers.randrange(1 << 30)}\n" for _ in range(30)
        )
        (tmp_path / "t").write_text(text)
        with pytest.raises(TraceError, match="not a recording of a known format"):
            open_recording(tmp_path / "t")


class TestFuzz:
    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_mutated(self, data: st.DataObject) -> None:
        texts = [
            zstd.decompress(DRAMSIM3.read_bytes())[:3000],
            INSTRUCTIONS.encode() * 20,
            b"LD 0x40\nST 0x1000 2 1 2\n" * 20,
            b"0x40 R\n4cbd56c0 W\n" * 20,
        ]
        raw = data.draw(st.sampled_from(texts))
        at = data.draw(st.integers(0, len(raw)))
        new = data.draw(st.one_of(st.binary(max_size=20), st.from_regex(rb"[0-9xRWLDST \n]{1,9}")))
        gone = data.draw(st.sampled_from([0, len(new), 40]))
        read_or_refuse(raw[:at] + new + raw[at + gone :])
