"""The text of drmemtrace's view tool, in the forms that it had over the years."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reader_drmemtrace import EPOCH_US, LEGACY, Access, accesses, by_thread, expected
from test_trace_readers import read_or_refuse

from vmemu.errors import TraceError
from vmemu.traces.figures import stats
from vmemu.traces.reader import FETCH, LOAD, STORE
from vmemu.traces.recordings import open_recording

DIVIDER = "-" * 60

NUMBERED = f"""Output format:
<record#>: T<tid> <record details>
{DIVIDER}
        1: T1774673 <marker: version 4>
        2: T1774673 <marker: filetype 0x240>
        5: T1774673 <marker: page size 4096>
   173368: T1774669 <marker: timestamp 13309323446399001>
   173369: T1774669 ifetch       3 byte(s) @ 0x0000000000402680 f3 48 a5             rep movsq
   173370: T1774669 read         8 byte(s) @ 0x00007f8881e37c70 by PC 0x0000000000402680
   173371: T1774669 write        8 byte(s) @ 0x00007f8881e37a70 by PC 0x0000000000402680
{DIVIDER}
   173372: T1774668 <marker: timestamp 13309323446399692>
   173373: T1774668 <marker: tid 1774668 on core 3>
   173374: T1774668 ifetch       1 byte(s) @ 0x000000000040361e 5d                   pop    %rbp
   173375: T1774668 read         8 byte(s) @ 0x00007ffdf9d85090 by PC 0x000000000040361e
   173376: T1774668 <thread 1774668 exited>
View tool results:
             2 : total instructions
"""
TWO_NUMBERS = f"""Output format:
<--record#-> <--instr#->: <---tid---> <record details>
{DIVIDER}
           1           0:     2765542 <marker: version 5>
<...>
       47445       37770:     2765543 ifetch       5 byte(s) @ 0x0000000000404a7e 48 8b 5c 24 08 mov
       47446       37770:     2765543 read         8 byte(s) @ 0x00007fdf64e2adc8 by PC 0x404a7e
       47447       37771:     2765543 pref-r-L1    0 byte(s) @ 0x00007fdf64e2b000 by PC 0x404a7e
       47448       37771:     2765543 <marker: system call 273>
"""
WORKLOADS = """\
           5           0:       W0.T3 <marker: timestamp 13309323446399001>
           6           0:       W0.T3 <marker: W0.T3 on core 2>
           7           1:       W0.T3 ifetch      10 byte(s) @ 0x00007f86ef03d107 00001931 04020204
           7           1:       W0.T3                                             00000026
           8           1:       W0.T3 write       4 byte(s) @ 0x00007f86ef000000 by PC 0x7f8600
           9           1:       W1.T3 read        4 byte(s) @ 0x00007f86ef000000 by PC 0x7f8600
"""
THREAD_FIRST = """\
T342625 <marker: version 3>
T342625   0x00007f8aa4a7f6a6  4c 8b 03             mov    (%rbx), %r8
T342625     read   8 byte(s) @ 0x00007ffd51ace110
"""


def of(text: str, tmp_path: Path, fetches: bool = False) -> list[Access]:
    (tmp_path / "v.txt").write_text(text)
    return accesses(tmp_path / "v.txt", fetches)


class TestForms:
    def test_numbered(self, tmp_path: Path) -> None:
        first, second = (13309323446399001 - EPOCH_US) * 1000, (13309323446399692 - EPOCH_US) * 1000
        assert by_thread(of(NUMBERED, tmp_path, fetches=True)) == {
            1774669: [
                (1774669, 0x402680, FETCH, 3, first),
                (1774669, 0x7F8881E37C70, LOAD, 8, first),
                (1774669, 0x7F8881E37A70, STORE, 8, first),
            ],
            1774668: [
                (1774668, 0x40361E, FETCH, 1, second),
                (1774668, 0x7FFDF9D85090, LOAD, 8, second),
            ],
        }
        result = stats.stats_of(tmp_path / "v.txt")
        assert (result.format, result.unknown_lines) == ("drmemtrace-view", 0)
        assert result.missing == ("exact_times", "modifies")

    def test_two_numbers_and_no_timestamp(self, tmp_path: Path) -> None:
        assert of(TWO_NUMBERS, tmp_path) == [(2765543, 0x7FDF64E2ADC8, LOAD, 8, -1)]
        result = stats.stats_of(tmp_path / "v.txt")
        assert result.unknown_lines == 0
        assert result.missing == ("times", "modifies")

    def test_workloads_are_kept_apart(self, tmp_path: Path) -> None:
        rows = of(WORKLOADS, tmp_path)
        assert [row[:2] for row in rows] == [(3, 0x7F86EF000000), (1 << 22 | 3, 0x7F86EF000000)]
        assert stats.stats_of(tmp_path / "v.txt").unknown_lines == 0

    def test_without_numbers(self, tmp_path: Path) -> None:
        assert of(THREAD_FIRST, tmp_path, fetches=True) == [
            (342625, 0x7F8AA4A7F6A6, FETCH, 1, -1),
            (342625, 0x7FFD51ACE110, LOAD, 8, -1),
        ]
        assert stats.stats_of(tmp_path / "v.txt").unknown_lines == 0

    def test_the_programs_own_lines_are_counted(self, tmp_path: Path) -> None:
        of("Hello, world!\n" + NUMBERED, tmp_path)
        result = stats.stats_of(tmp_path / "v.txt")
        assert (result.unknown_lines, result.first_unknown) == (1, "line 1: 'Hello, world!'")

    def test_what_the_kernel_did_is_left_out(self, tmp_path: Path) -> None:
        inside = "  9  9: 3 read  8 byte(s) @ 0xffff800000001000 by PC 0xffff800000000000\n"
        text = (
            TWO_NUMBERS
            + "  8  8: 3 <marker: trace start for system call number 273>\n"
            + inside * 2
            + "  8  8: 3 <marker: trace end for system call number 273>\n"
            + inside
        )
        assert len(of(text, tmp_path)) == 2
        assert stats.stats_of(tmp_path / "v.txt").dropped == {"kernel": 2}

    @pytest.mark.parametrize(
        "line",
        [
            "   9: T1 read         8 byte(s) @ 7ffd51ace110 by PC 0x1",
            "   9: T1 read         8 byte(s) @ 0x10000000000000000 by PC 0x1",
            "   9: T1 read         4097 byte(s) @ 0x1000 by PC 0x1",
            "   9: T1 read         8 byte(s) @ 0x1000by PC 0x1",
            "   9: T1 read         8 byte(s)",
            "   9: T1",
            "   9: X1 read         8 byte(s) @ 0x1000 by PC 0x1",
            "   9: W1 read         8 byte(s) @ 0x1000 by PC 0x1",
            "read         8 byte(s) @ 0x1000 by PC 0x1",
        ],
    )
    def test_malformed_lines(self, line: str, tmp_path: Path) -> None:
        of(NUMBERED + line + "\n", tmp_path)
        result = stats.stats_of(tmp_path / "v.txt")
        assert (result.accesses, result.unknown_lines) == (3, 1)


def numbered(number: int, instruction: int, thread: int) -> str:
    return f"{number:9}: T{thread} "


def two_numbers(number: int, instruction: int, thread: int) -> str:
    return f"{number:12}{instruction:12}: {thread:11} "


def workload(number: int, instruction: int, thread: int) -> str:
    return f"{number:12}{instruction:12}: {f'W0.T{thread}':>11} "


@pytest.mark.parametrize("prefix", [numbered, two_numbers, workload])
def test_the_same_as_the_trace_that_it_shows(
    prefix: Callable[[int, int, int], str], tmp_path: Path
) -> None:
    rows = expected(LEGACY[: 12 * 49_000], fetches=True)
    words = {LOAD: "read", STORE: "write", FETCH: "ifetch"}
    lines, now, instruction = [], -1, 0
    for number, (thread, address, kind, size, time) in enumerate(rows, start=1):
        begin = prefix(number, instruction, thread)
        if time != now:
            lines.append(f"{begin}<marker: timestamp {time // 1000 + EPOCH_US}>")
            now = time
        instruction += kind == FETCH
        rest = "non-branch" if kind == FETCH else "by PC 0x0000000000401000"
        lines.append(f"{begin}{words[kind]:12}{size:2} byte(s) @ 0x{address:016x} {rest}")
    text = "".join(line + "\n" for line in lines)
    assert by_thread(of(text, tmp_path, fetches=True)) == by_thread(rows)
    assert stats.stats_of(tmp_path / "v.txt").unknown_lines == 0


class TestFuzz:
    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_mutated(self, data: st.DataObject) -> None:
        text = data.draw(st.sampled_from([NUMBERED, TWO_NUMBERS, WORKLOADS, THREAD_FIRST]))
        raw = text.encode() * 3
        at = data.draw(st.integers(0, len(raw)))
        new = data.draw(st.one_of(st.binary(max_size=20), st.from_regex(rb"[W0-9T.: x@<]{1,9}")))
        gone = data.draw(st.sampled_from([0, len(new), 40]))
        read_or_refuse(raw[:at] + new + raw[at + gone :])


def test_other_logs_are_not_claimed(tmp_path: Path) -> None:
    text = "".join(f"{second}: T12 started job {second}\n" for second in range(50))
    (tmp_path / "log").write_text(text)
    with pytest.raises(TraceError, match="not a recording of a known format"):
        open_recording(tmp_path / "log")
