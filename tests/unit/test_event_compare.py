"""Comparison of event logs: figures of recorded excerpts, counted by hand, and of made-up logs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from vmemu import blocktime, core, events
from vmemu.cli.compare import compare, table
from vmemu.errors import TraceError
from vmemu.eventcompare import Placed, overlapped_from_events, split_names, summarize
from vmemu.eventcompare import compare as compare_logs
from vmemu.eventfile import Event
from vmemu.events import EventBlock, EventLog
from vmemu.eventtable import DESTINATION, SOURCE, kinds

DATA = Path(__file__).parent.parent / "data"
QEMU_DST = str(DATA / "qemu72-postcopy-excerpt.dst.log.zst")
QEMU_SRC = str(DATA / "qemu72-postcopy-excerpt.src.log")
BLOCK = EventBlock("pc.ram", 0x7F00_0000_0000, 1 << 30, 4096)


def test_figures_of_a_recorded_migration() -> None:
    # Counted with awk and a script of its own, line by line.
    figures = summarize(f"{QEMU_DST}+{QEMU_SRC}")
    assert figures["states"] == {
        "source": ["setup", "active", "postcopy-active", "completed"],
        "destination": ["discard", "running", "end"],
    }
    requests = figures["requests"]
    assert (requests["faults"], requests["pages"], requests["repeats"]) == (60, 47, 13)
    assert (requests["queued"], requests["served"], requests["sent_before"]) == (70, 50, 20)
    assert figures["placed"] == {"pages": 79, "zero": 1}
    latency = figures["latency_ns"]
    assert latency["count"] == 46  # the answer to one page is not in the excerpt
    assert (latency["p50"], latency["p90"]) == (604_000, 97_984_000)
    assert (latency["p99"], latency["max"]) == (98_159_000, 98_159_000)
    discards = figures["discards"]
    assert (discards["commands_received"], discards["ranges_received"]) == (6, 6)
    assert discards["ranges_sent"] == 6
    assert discards["pages_sent"]["pc.ram"] == 0xFB0B
    assert figures["blocktime"]["overlapped_told_ns"] == 4_056_000_000
    assert [one["id"] for one in figures["blocktime"]["vcpus"]] == [0, 1]
    assert figures["postcopy_ns"] == 645_583_256_000 - 638_781_839_000
    assert figures["stages_ns"]["queue"]["count"] > 30


def _stops(log: EventLog, vcpus: int, seed: int) -> list[np.ndarray]:
    """Random stops of every vCPU, noted as the replay loop notes them; also as fault records."""
    dice = random.Random(seed)
    begin, end = (kinds()[f"mark_postcopy_blocktime_{name}"].id for name in ("begin", "end"))
    records = []
    for cpu in range(vcpus):
        now, mine = log.pointer.start_ns, []
        for _ in range(dice.randrange(1, 60)):
            start = now + dice.choice((0, 1, dice.randrange(100)))
            now = start + dice.choice((0, 1, dice.randrange(1000)))
            offset = dice.randrange(4) * 4096
            for t_ns, kind in ((start, begin), (now, end)):
                core.lib.vm_event_at(log.pointer, t_ns, kind, 0, offset, cpu)
            mine.append((start, now))
        columns = [("start_ns", np.uint64), ("end_ns", np.uint64)]
        records.append(np.array(mine, columns))
    return records


@pytest.mark.parametrize("seed", range(40))
def test_overlapped_blocktime_is_the_same_to_the_nanosecond(tmp_path: Path, seed: int) -> None:
    vcpus = seed % 4 + 1
    path = str(tmp_path / "x.jsonl")
    with EventLog(DESTINATION, vcpus=vcpus, capacity=1000) as log:
        log.describe([BLOCK])
        records = _stops(log, vcpus, seed)
        log.write(path)
    expected = blocktime.overlapped(records)
    assert overlapped_from_events(events.read(path)) == expected
    figures = summarize(path)["blocktime"]
    assert figures["overlapped_ns"] == expected
    for one, record in zip(figures["vcpus"], records, strict=True):
        assert one["blocktime_ns"] == int((record["end_ns"] - record["start_ns"]).sum())


def _begin(t_ns: int, tid: int, cpu: int, address: int, received: int = 0) -> Event:
    args = {"addr": address, "cpu": cpu, "already_received": received, "dd": 0, "time": 0}
    return Event(t_ns, tid, DESTINATION, "mark_postcopy_blocktime_begin", args)


def _end(t_ns: int, tid: int, address: int) -> Event:
    args = {"addr": address, "affected_cpu": 1, "dd": 0, "time": 0}
    return Event(t_ns, tid, DESTINATION, "mark_postcopy_blocktime_end", args)


def test_a_page_lets_all_go_on_that_wait_for_it_as_qemu_says_it() -> None:
    log = [_begin(10, 1, 0, 4096), _begin(20, 1, 1, 4096), _end(50, 2, 4096), _end(60, 2, 8192)]
    assert overlapped_from_events(log) == 30


def test_a_thread_ends_its_own_stop_as_ours_says_it_in_text() -> None:
    log = [_begin(10, 7, 0, 4096), _begin(20, 8, 1, 4096), _end(50, 7, 4096), _end(90, 8, 4096)]
    assert overlapped_from_events(log) == 30


def test_a_page_that_was_there_stops_nobody() -> None:
    log = [_begin(10, 1, 0, 4096), _begin(20, 1, 1, 8192, received=1), _end(50, 2, 4096)]
    assert overlapped_from_events(log) == 0


def test_a_vcpu_that_stops_elsewhere_has_gone_on() -> None:
    # The page wakes it before the end is logged.
    log = [
        _begin(10, 1, 0, 4096),
        _begin(30, 1, 0, 8192),
        _end(31, 2, 4096),
        _end(70, 2, 8192),
    ]
    assert overlapped_from_events(log) == 60


def test_a_vcpu_that_never_stopped_means_no_overlap() -> None:
    log = [_begin(10, 1, 0, 4096), _end(50, 2, 4096)]
    assert overlapped_from_events(log) == 40
    assert overlapped_from_events(log, vcpus=2) == 0


def test_a_page_is_found_in_the_run_that_brought_it() -> None:
    placed = Placed()
    for host, pages, t_ns in ((0x1000, 4, 50), (0x9000, 1, 70), (0x9000, 1, 60)):
        args = {"host": host, "pages": pages, "length": pages * 4096}
        placed.add(Event(t_ns, 1, DESTINATION, "postcopy_place_page", args))
    hosts = [0x1000, 0x4000, 0x5000, 0x9000, 0, 1 << 64]
    assert placed.times(hosts).tolist() == [50, 50, -1, 60, -1, -1]
    assert (placed.pages, placed.zero) == (6, 0)


def _our_log(path: Path) -> None:
    at = core.lib.vm_event_at
    with EventLog(DESTINATION, vcpus=1) as destination, EventLog(SOURCE) as source:
        destination.describe([BLOCK])
        source.describe([BLOCK._replace(host=0)])
        zero = destination.pointer.start_ns
        page = 5 * 4096
        steps = (
            (destination, 100, "postcopy_ram_fault_thread_request", page, 77),
            (source, 130, "ram_save_queue_pages", page, 4096),
            (source, 170, "get_queued_page", page, 0),
            (destination, 230, "postcopy_place_page", page, 1),
            (destination, 300, "postcopy_place_page_zero", 0, 3),
            (destination, 310, "ram_discard_range", 0, 8192),
        )
        for log, t_ns, name, a, b in steps:
            at(log.pointer, zero + t_ns, kinds()[name].id, 0, a, b)
        events.write(str(path), [destination, source])


@pytest.mark.parametrize("suffix", [".jsonl", ".log"])
def test_stages_of_a_fault(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ours{suffix}"
    _our_log(path)
    figures = summarize(str(path))
    assert figures["placed"] == {"pages": 1, "zero": 3}
    assert figures["discards"]["bytes_dropped"] == {"pc.ram": 8192}
    assert figures["latency_ns"]["count"] == 1
    if suffix == ".jsonl":
        assert figures["latency_ns"]["max"] == 130
        stages = figures["stages_ns"]
        assert [stages[s]["max"] for s in ("request", "queue", "answer")] == [30, 40, 60]


def test_names_of_a_migration(tmp_path: Path) -> None:
    assert split_names("a.log+b.log") == ["a.log", "b.log"]
    both = tmp_path / "a+b"
    both.touch()
    assert split_names(str(both)) == [str(both)]
    with pytest.raises(TraceError):
        summarize("+")


def test_the_verb_lays_them_side_by_side(tmp_path: Path) -> None:
    ours = tmp_path / "ours.jsonl"
    _our_log(ours)
    out = tmp_path / "out.json"
    names = [f"{QEMU_DST}+{QEMU_SRC}", str(ours)]
    result = CliRunner().invoke(compare, [*names, "--json", str(out)])
    assert result.exit_code == 0, result.output
    lines = {line[:34].strip(): line[34:].split() for line in result.stdout.splitlines()}
    assert lines["repeats"] == ["13", "-"]
    assert lines["faults"] == ["60", "1"]
    assert json.loads(out.read_text()) == compare_logs(names)


def test_a_log_can_not_write_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("1@1.000000:migrate_set_state new state \x1b[2J\n")
    assert "\x1b" not in table(compare_logs([str(path)]))
