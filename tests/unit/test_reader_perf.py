"""Text of perf script: real excerpts, every order of fields, what is refused, damaged text."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.reader import LOAD, STORE
from vmemu.traces.recordings import open_recording

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parent.parent / "data"


def plain(name: str) -> bytes:
    return zstd.decompress((DATA / name).read_bytes())


def accesses(path: Path) -> list[tuple[int, int, int, int | None]]:
    """Stream, address, kind, time of each access; sizes are all 1."""
    found: list[tuple[int, int, int, int | None]] = []
    with open_recording(path) as reader:
        for chunk in reader.chunks():
            assert (chunk.sizes == 1).all()
            times = [None] * len(chunk.kinds) if chunk.times is None else chunk.times.tolist()
            columns = (chunk.addresses.tolist(), chunk.kinds.tolist(), times)
            found += [(chunk.stream, *row) for row in zip(*columns, strict=True)]
    return found


def lines(tmp_path: Path, *text: str) -> Path:
    path = tmp_path / "t.txt"
    path.write_text("".join(line + "\n" for line in text))
    return path


class TestExcerpts:
    """Counted by an independent script with regular expressions."""

    @pytest.mark.parametrize(
        ("name", "counts", "dropped"),
        [
            ("perf-page-fault-user-excerpt.txt.zst", (47, 853, 885, 2), {}),
            ("perf-page-faults-excerpt.txt.zst", (600, 0, 598, 1), {}),
            ("perf-call-chains-excerpt.txt.zst", (76, 114, 189, 6), {}),
            ("perf-minor-faults-chains-excerpt.txt.zst", (191, 0, 190, 6), {"other_event": 152}),
        ],
    )
    def test_counts(
        self, name: str, counts: tuple[int, int, int, int], dropped: dict[str, int]
    ) -> None:
        found = stats.stats_of(DATA / name)
        assert (found.reads, found.writes, found.pages_4k, found.threads) == counts
        assert (found.dropped, found.unknown_lines) == (dropped, 0)
        assert (found.format, found.address_kind, found.truncated) == ("perf", "virtual", False)

    def test_times(self) -> None:
        times = [row[3] for row in accesses(DATA / "perf-page-fault-user-excerpt.txt.zst")]
        assert (min(times), max(times)) == (1465524508000, 1465615196000)
        times = [row[3] for row in accesses(DATA / "perf-call-chains-excerpt.txt.zst")]
        assert (min(times), max(times)) == (12491062145554, 12491079685247)

    def test_converted(self, tmp_path: Path) -> None:
        meta = convert(DATA / "perf-page-fault-user-excerpt.txt.zst", tmp_path / "t.vmtrace")
        assert meta.time_range_ns == (1465524508000, 1465615196000)
        assert meta.counts.accesses == 900
        assert native.open(tmp_path / "t.vmtrace").meta.missing == (
            "sizes",
            "repeats",
            "instruction_fetches",
        )


FAULT = "page-faults:     7f2a61267110 dl_close (/lib/ld.so) ffffffff817554ea elf_load ([kernel])"
ADDRESS = 0x7F2A61267110


class TestFields:
    @pytest.mark.parametrize(
        ("line", "thread", "time"),
        [
            (f"  python3 13391/13392  1466.908162:          1 {FAULT}", 13392, 1466908162000),
            (f"  python3 13391  1466.908162001:   {FAULT}", 13391, 1466908162001),
            (f"a b: 7  13391 [003]  1466.908162:   1 {FAULT}", 13391, 1466908162000),
            (f"12.5: [003] 8/9 y 13391/13392  1466.908162: {FAULT}", 13392, 1466908162000),
            (f"  kworker/1:2-ev   91 [127] 0.000001: 1 {FAULT}", 91, 1000),
            (f"python3 13391 U  1466.908162: {FAULT}", 13391, 1466908162000),
            (f"python3 13391 [002] Hg 1466.908162: {FAULT}", 13391, 1466908162000),
            (f"13391 1466.908162: {FAULT}", 13391, 1466908162000),
            (f"python3 1466.908162: {FAULT}", 0, 1466908162000),
            (f"1466.908162:    7 {FAULT}", 0, 1466908162000),
            (f"python3 13391/13392     1 {FAULT}", 13392, None),
            (f"python3 13391 [001]     1 {FAULT}", 13391, None),
            (f"python3 13391 {FAULT}", 13391, None),
            (f"{FAULT}", 0, None),
        ],
    )
    def test_before_the_event(
        self, line: str, thread: int, time: int | None, tmp_path: Path
    ) -> None:
        path = lines(tmp_path, line)
        assert accesses(path) == [(thread, ADDRESS, LOAD, time)]
        missing = stats.stats_of(path).missing
        assert ("times" in missing) == (time is None)
        assert ("threads" in missing) == (thread == 0)

    @pytest.mark.parametrize(
        "event",
        [
            *("page-faults", "page-faults:u", "faults:uppp", "minor-faults", "major-faults:k"),
            *("software/page-faults/", "software/page-faults/u", "page-faults:uH"),
        ],
    )
    def test_software_events(self, event: str, tmp_path: Path) -> None:
        path = lines(tmp_path, f"w 7 1.000000: {event}:     7f2a61267110")
        assert accesses(path) == [(7, ADDRESS, LOAD, 10**9)]
        assert "writes" in stats.stats_of(path).missing

    @pytest.mark.parametrize(
        ("rest", "known"),
        [
            ("     7f2a61267110", True),
            ("     7f2a61267110 [unknown] (//anon)", True),
            (" ffff8880a1267110 x (y)", True),
            (" 7f2a61267110 x+0x1 (/a b) 7f2a6124db70 y (/c)", True),
            (" 7f2a61267110 7f2a6124db70", True),
            ("  ffffffff817554ea elf_load+0x28a ([kernel.kallsyms])", False),
            ("      7f2a61267110 _start (/lib/ld.so)", False),
            (" 7f2a61267110", False),
            (" 7f2a61267110 fade (/bin/add)", False),
            (" ", False),
            ("", False),
            (" [unknown]", False),
        ],
    )
    def test_address_or_instruction(self, rest: str, known: bool, tmp_path: Path) -> None:
        path = lines(tmp_path, f"w 7 1.000000: page-faults:{rest}")
        if known:
            found = stats.stats_of(path)
            assert found.accesses + sum(found.dropped.values()) == 1
        else:
            with pytest.raises(TraceError, match="printed no addresses"):
                stats.stats_of(path)

    def test_sampled(self, tmp_path: Path) -> None:
        path = lines(tmp_path, f"w 7 1.000000: 1 {FAULT}", f"w 7 2.000000: 7 {FAULT}")
        assert "every_access" in stats.stats_of(path).missing
        path = lines(tmp_path, f"w 7 1.000000: 1 {FAULT}", f"w 7 2.000000: 1 {FAULT}")
        assert "every_access" not in stats.stats_of(path).missing


class TestTracepoints:
    @pytest.mark.parametrize(
        ("rest", "kind"),
        [
            ("address=0x7f2a61267110 ip=0x7f8fbd5177ad error_code=0x6", STORE),
            ("address=0x7f2a61267110 ip=_copy_to_user error_code=0x2", STORE),
            ("address=0x7f2a61267110 ip=0x7f2a61267110 error_code=0x14", LOAD),
            ("address=0x7f2a61267110 ip=a+0x1 error_code=0x0   0 ffffffff821f5421 x", LOAD),
            ("user page fault, address=0x7f2a61267110 epc=0x10 cause=0xf", STORE),
            ("user page fault, address=0x7f2a61267110 epc=0x10 cause=0xc", LOAD),
        ],
    )
    def test_exceptions(self, rest: str, kind: int, tmp_path: Path) -> None:
        for event in ("page_fault_user", "page_fault_kernel"):
            path = lines(tmp_path, f"w 7 [001] 1.000000: exceptions:{event}: {rest}")
            assert accesses(path) == [(7, ADDRESS, kind, 10**9)]
            assert "writes" not in stats.stats_of(path).missing

    @pytest.mark.parametrize(
        ("rest", "kind"),
        [
            ("address 7f2a61267110 error_code 6", STORE),
            ("address 7f2a61267110 error_code 14", LOAD),
            ("address 0x00007f2a61267110 error_code 0x182", STORE),
            ("vcpu 0 rip 0xffffffff81000000 address 0x00007f2a61267110 error_code 0x181", LOAD),
            ("vcpu 1 rip 0x10 address 0x00007f2a61267110 error_code 0x184", LOAD),
            ("vcpu 1 rip 0x10 address 0x00007f2a61267110 error_code 0x100000006", STORE),
            ("vcpu 1 rip 0x10 address 0x00007f2a61267110 error_code 0x200000014", LOAD),
        ],
    )
    def test_kvm(self, rest: str, kind: int, tmp_path: Path) -> None:
        path = lines(tmp_path, f"CPU 0/KVM 4321 [001] 1.000000: kvm:kvm_page_fault: {rest}")
        assert accesses(path) == [(4321, ADDRESS, kind, 10**9)]
        assert stats.stats_of(path).address_kind == "guest-physical"

    def test_kernel_addresses_are_left_out(self, tmp_path: Path) -> None:
        event = "w 7 1.000000: exceptions:page_fault_kernel:"
        path = lines(
            tmp_path,
            f"{event} address=0x10 ip=f error_code=0x2",
            f"{event} address=0xffff888001234000 ip=f error_code=0x0",
            f"{event} address=irq_stack ip=f error_code=0x0",
            "w 7 1.000000: page-faults:  ffff888001234000 f (k)",
        )
        assert len(accesses(path)) == 1
        assert stats.stats_of(path).dropped == {"kernel_address": 2, "no_address": 1}

    def test_one_of_several_events_is_read(self, tmp_path: Path) -> None:
        path = lines(
            tmp_path,
            "w 7 1.000000: kvm:kvm_page_fault: address 1000 error_code 2",
            "w 7 1.000000: exceptions:page_fault_user: address=0x10 ip=0x0 error_code=0x2",
            "w 7 1.000000:  1 page-faults:     7f2a61267110",
            "w 7 1.000000:  250000 cycles:u:      7f2a61267110 f (x)",
            "w 7 1.000000: sched:sched_switch: prev_comm=w ==> next_comm=x",
        )
        found = stats.stats_of(path)
        assert (found.accesses, found.unknown_lines) == (1, 0)
        assert found.dropped == {"other_event": 2}


class TestOtherLines:
    def test_known(self, tmp_path: Path) -> None:
        path = lines(
            tmp_path,
            "# ========",
            "# captured on : today",
            f"w 7 1.000000: 1 {FAULT}",
            "\tffffffff817554ea elf_load+0x28a ([kernel.kallsyms])",
            "\t    7f74490f2ad7 [unknown] ([unknown])",
            "\t    7f74490f2ad7",
            "  a b.c:12",
            "",
            "  w  8927/8927  2.196075: PERF_RECORD_COMM exec: w:8927/8927",
            "  w  8927/8927  2.196098: PERF_RECORD_MMAP2 8927/8927: [0x7f(0x2) @ 0]: rw-p [stack]",
        )
        found = stats.stats_of(path)
        assert (found.accesses, found.unknown_lines) == (1, 0)

    @pytest.mark.parametrize(
        "wrong",
        [
            "hello",
            "w 7 1.000000 page-faults 7f2a61267110",
            "word page-faults:     7f2a61267110",
            "w 7 page-faults:     7f2a61267110",
            "w 7 1.000000: exceptions:page_fault_user: address=0x10 ip=0x10",
            "w 7 1.000000: kvm:kvm_page_fault: address x error_code 2",
            "w 7 1.000000: exceptions:page_fault_user: address=0x10 ip=0x0 error_code=x",
            "1.000000: 1 page-faults:     7f2a61267110",
        ],
    )
    def test_unknown(self, wrong: str, tmp_path: Path) -> None:
        found = stats.stats_of(lines(tmp_path, f"w 7 1.000000: 1 {FAULT}", wrong))
        assert (found.accesses, found.unknown_lines) == (1, 1)
        assert found.first_unknown == f"line 2: {wrong[:80]!r}"


class TestRefused:
    def test_without_addresses(self) -> None:
        path = DATA / "perf-no-addresses-excerpt.txt.zst"
        with pytest.raises(TraceError) as refusal:
            stats.stats_of(path)
        message = str(refusal.value)
        assert "no addresses" in message and "\n" not in message
        assert "perf record -e page-faults -c 1 -d" in message
        assert "perf script -F comm,pid,tid,time,period,event,addr,ip,sym,dso" in message

    def test_tracepoint_without_its_text(self, tmp_path: Path) -> None:
        path = lines(tmp_path, "w 7 1.000000: exceptions:page_fault_user: ")
        with pytest.raises(TraceError, match="with the field trace"):
            stats.stats_of(path)

    @pytest.mark.parametrize("magic", [b"PERFILE2", b"2ELIFREP", b"PERFFILE"])
    def test_perf_data(self, magic: bytes, tmp_path: Path) -> None:
        path = tmp_path / "perf.data"
        path.write_bytes(magic + bytes(200))
        with pytest.raises(TraceError, match=r"perf.data, which only perf reads; .*perf script -i"):
            stats.stats_of(path)

    @pytest.mark.parametrize(
        "text",
        [
            "perf record -e page-faults: see the manual\n",
            "2024: the page-faults: 12 of them\n",
            "w 7 1.000000: 250000 cycles: 7f2a61267110\n",
        ],
    )
    def test_other_text(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "x").write_text(text)
        with pytest.raises(TraceError, match="not a recording of a known format"):
            stats.stats_of(tmp_path / "x")


EXCERPTS = [plain(path.name)[:6000] for path in sorted(DATA.glob("perf-*.zst"))]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(EXCERPTS), st.integers(0, 6000), st.integers(0, 300), st.binary(max_size=40))
def test_mutated(raw: bytes, at: int, length: int, new: bytes) -> None:
    """Figures that agree with the converted trace, or a TraceError."""
    with tempfile.TemporaryDirectory() as directory:
        path, out = Path(directory) / "x", Path(directory) / "t.vmtrace"
        path.write_bytes(raw[:at] + new + raw[at + length :])
        try:
            counts = stats.stats_of(path).to_json()
            convert(path, out)
        except TraceError:
            return
        found = stats.native_stats(native.open(out)).to_json()
        for key in ("accesses", "reads", "writes", "pages_4k", "threads", "dropped", "missing"):
            assert found[key] == counts[key]
