"""The result document, its schema, how it is written and how it is shown."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import scenario

from vmemu import core
from vmemu._config.models import Channel, Postcopy
from vmemu.blocktime import STAGE_DTYPE
from vmemu.collapse import Collapse
from vmemu.core import PeerGone
from vmemu.delivery import Deliveries
from vmemu.errors import CoreError, HugepageShortage, InputError, MigrationError, VmemuError
from vmemu.guest_worker import FAULT_DTYPE, Mismatch, Waiting
from vmemu.postcopy import Discards, PostcopyState
from vmemu.results import document, schema, terminal
from vmemu.runstate import Phase, Run, StallError, VerificationError
from vmemu.userfault import Feature, How

EXAMPLE = Path(__file__).parents[1] / "data" / "result-example.json"

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def example() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(EXAMPLE.read_text())
    return loaded


# ---- runs that ended anywhere ----


class FakeUffd:
    def __init__(self, how: How) -> None:
        self.how = how
        self.features = Feature.THREAD_ID | Feature.MISSING_SHMEM


class FakeIncoming:
    """The figures of an incoming side, in the C structures that hold them."""

    uffd: FakeUffd | None
    ram: Any

    def __init__(self, run: Run, how: How = How.SYSCALL) -> None:
        self.uffd = FakeUffd(how)
        self.figures = core.ffi.new("struct vm_incoming *")
        blocks = run.scenario.blocks
        self.ram = core.owned(core.lib.vm_ram_create(len(blocks)), core.lib.vm_ram_destroy)
        for index, block in enumerate(blocks):
            shift = block.page_size.bit_length() - 1
            name = block.name.encode()
            assert core.lib.vm_ram_set(self.ram, index, name, 0, block.size, shift, False) == 0
        self.discards = Discards(commands=2, ranges=13, bytes=65536)
        self.states = [(PostcopyState.ADVISE, 60), (PostcopyState.LISTENING, 90)]
        self.warnings = ["block ram is not locked again"]
        self.collapse = Collapse([])
        self.requested: list[tuple[int, ...]] = []
        self.deliveries = Deliveries([], self.figures)

    def requested_pages(self) -> np.ndarray[Any, Any]:
        return np.array(self.requested, STAGE_DTYPE)


class FakeWorker:
    """A vCPU whose faults are given as (start, end)."""

    def __init__(self, index: int, *faults: tuple[int, int]) -> None:
        self.index = index
        self.figures = core.ffi.new("struct vm_vcpu *")
        self.figures.faults = len(faults)
        self.figures.blocktime_ns = sum(end - start for start, end in faults)
        self.found: list[Mismatch] = []
        self._faults = np.zeros(len(faults), FAULT_DTYPE)
        for record, (start, end) in zip(self._faults, faults, strict=True):
            record["start_ns"], record["end_ns"] = start, end

    def faults(self) -> np.ndarray[Any, Any]:
        return self._faults

    def mismatches(self) -> list[Mismatch]:
        return self.found


class FakeVerification:
    def __init__(self, checked: int, wrong: int = 0, found: tuple[Mismatch, ...] = ()) -> None:
        self.bytes_checked, self.bytes_wrong = checked, wrong
        self._found = list(found)

    def mismatches(self) -> list[Mismatch]:
        return self._found


def fake_run(status: str = "failed", error: BaseException | None = None) -> Run:
    """A run that ended before anything was mapped."""
    return Run(scenario(), status, error)


def busy_run(how: How = How.SYSCALL) -> tuple[Run, FakeIncoming, list[FakeWorker]]:
    """A run that completed, with figures of every kind."""
    run = fake_run("completed")
    incoming = FakeIncoming(run, how)
    workers = [FakeWorker(0, (1_000, 3_000), (10_000, 20_000)), FakeWorker(1, (2_000, 12_000))]
    for worker in workers:
        worker.figures.accesses = worker.figures.reads_checked = 100
    arrived = incoming.ram.block[0].arrived
    arrived.requested, arrived.pushed, arrived.zero = 3, 200, 53
    incoming.figures.stats.requests, incoming.figures.stats.messages = 3, 4
    incoming.figures.bytes_received = 203 * 4096
    run.incoming = incoming  # type: ignore[assignment]
    run.workers = workers  # type: ignore[assignment]
    run.verification = FakeVerification(1 << 20)  # type: ignore[assignment]
    run.phases = [Phase("prepare", 0, 5), Phase("guest", 5, 100_000), Phase("cleanup", 100_005, 1)]
    run.started_ns, run.postcopy_started_ns, run.postcopy_ended_ns = 50, 100, 1_000_000_100
    return run, incoming, workers


def build(run: Run) -> dict[str, Any]:
    """The run's document, which must be valid JSON of the schema."""
    built = document.build(run)
    schema.validate(json.loads(json.dumps(built, allow_nan=False)))
    return built


def test_a_run_that_reached_nothing_has_every_key_and_no_figures() -> None:
    built = build(fake_run("interrupted", KeyboardInterrupt()))
    assert built["error"] == {"kind": "interrupted", "message": "interrupted"}
    assert built["host"]["userfault"] == {"how": None, "features": []}
    assert built["blocks"][0]["pages"] == {
        "total": 256, "precopied": 0, "discarded": 0, "requested": 0, "pushed": 0, "zero": 0,
    }  # fmt: skip
    assert [vcpu["id"] for vcpu in built["vcpus"]] == [0, 1]
    assert built["vcpus"][0]["latency_ns"] == {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    assert built["faults"]["histogram"] == []
    assert built["throughput"] == {"bytes": 0, "seconds": 0, "bytes_per_second": 0}
    assert built["verify"]["ok"] is None


def test_figures_come_from_where_they_are_counted() -> None:
    run, _, _ = busy_run()
    built = build(run)
    assert built["error"] is None
    assert built["host"]["userfault"] == {
        "how": "userfaultfd(2)",
        "features": ["MISSING_SHMEM", "THREAD_ID"],
    }
    assert built["blocks"][0]["pages"]["pushed"] == 200
    assert built["faults"]["count"] == 3
    assert built["faults"]["requests_sent"] == 3
    assert built["faults"]["messages"] == 4
    assert built["faults"]["latency_ns"]["max"] == 10_000
    assert sum(bucket["count"] for bucket in built["faults"]["histogram"]) == 3
    assert built["faults"]["worst"] == [
        {"vcpu": vcpu, "block": "ram", "offset": 0, "write": False, **times}
        for vcpu, times in [
            (1, {"start_ns": 1_950, "latency_ns": 10_000}),
            (0, {"start_ns": 9_950, "latency_ns": 10_000}),
            (0, {"start_ns": 950, "latency_ns": 2_000}),
        ]
    ]
    assert built["blocktime"] == {"overlapped_ns": 3_000, "total_ns": 22_000}
    assert built["throughput"] == {
        "bytes": 831_488, "seconds": 1.0, "bytes_per_second": 831_488,
    }  # fmt: skip
    assert built["verify"]["ok"] is True
    assert built["verify"]["reads_checked"] == 200


def test_a_run_that_mapped_but_has_no_table_of_blocks_yet() -> None:
    run, incoming, _ = busy_run()
    run.status, run.error = "failed", MigrationError("source and destination differ")
    incoming.ram, incoming.uffd, run.workers = None, None, []
    built = build(run)
    assert built["blocks"][0]["pages"]["pushed"] == 0
    assert built["host"]["userfault"]["how"] is None


def test_throughput_of_a_run_that_gave_up_ends_with_its_clean_up() -> None:
    run, _, _ = busy_run()
    run.status, run.error, run.postcopy_ended_ns = "failed", PeerGone("gone"), 0
    assert build(run)["throughput"]["seconds"] == pytest.approx((50 + 100_005 - 100) / 1e9)


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (PeerGone("main channel: gone"), {}),
        (
            CoreError("mmap", 12, 4096),
            {"operation": "mmap", "errno": 12, "address": 4096},
        ),
        (
            StallError(3.0, [Waiting(1, "ram", 4096, 2.5)], 7),
            {"waiting": [{"vcpu": 1, "block": "ram", "offset": 4096, "waited_ns": 2_500_000_000}]},
        ),
        (HugepageShortage("too few", "sysctl x"), {"remedy": "sysctl x"}),
    ],
)
def test_errors_keep_what_they_know(error: VmemuError, more: dict[str, Any]) -> None:
    status = "skipped" if isinstance(error, HugepageShortage) else "failed"
    described = build(fake_run(status, error))["error"]
    assert described == {"kind": error.kind, "message": str(error), **more}


def test_verdicts_of_the_verification() -> None:
    run, _, workers = busy_run()
    wrong = Mismatch("ram", 7, 1, 2)
    workers[0].found, workers[1].found = [wrong], [wrong]
    workers[0].figures.reads_wrong = 1
    run.status, run.error = "failed", VerificationError("wrong")
    verify = build(run)["verify"]
    assert verify["ok"] is False
    # Found by two vCPUs, and one byte all the same.
    assert verify["mismatches"] == [{"block": "ram", "offset": 7, "expected": 1, "found": 2}]


def test_a_completed_run_without_verification_claims_nothing() -> None:
    run, _, workers = busy_run()
    run.verification = None
    for worker in workers:
        worker.figures.reads_checked = 0
    assert build(run)["verify"]["ok"] is None
    assert terminal.verdict(build(run)) == "completed: nothing was verified"


def test_a_completed_run_that_checked_reads_only_says_so() -> None:
    run, _, _ = busy_run()
    run.verification = None
    assert terminal.verdict(build(run)) == (
        "completed: all 200 reads right; memory was not compared at the end"
    )


def test_build_changes_nothing_in_the_run() -> None:
    run, _, _ = busy_run()
    first = build(run)
    assert copy.deepcopy(first) == build(run)


figures = st.integers(0, (1 << 63) - 1)


@relaxed
@given(
    arrived=st.tuples(*[st.integers(0, 85)] * 3),
    counters=st.lists(figures, min_size=7, max_size=7),
    spans=st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=20),
    status=st.sampled_from(["failed", "interrupted"]),
    message=st.text(),
    checked=st.tuples(figures, figures),
)
def test_whatever_the_figures_the_document_is_valid_and_can_be_shown(
    *,
    arrived: tuple[int, ...],
    counters: list[int],
    spans: list[tuple[int, int]],
    status: str,
    message: str,
    checked: tuple[int, int],
) -> None:
    run, incoming, _ = busy_run()
    run.status, run.error, run.started_ns = status, MigrationError(message), 0
    block = incoming.ram.block[0].arrived
    block.requested, block.pushed, block.zero = arrived
    names = ("messages", "requests", "shared", "late", "spurious", "foreign", "deferred")
    for name, value in zip(names, counters, strict=True):
        setattr(incoming.figures.stats, name, value)
    ordered, now = [], 0
    for gap, length in spans:  # a vCPU's own faults follow one another
        ordered.append((now + gap, now + gap + length))
        now += gap + length
    run.workers = [FakeWorker(0, *ordered)]  # type: ignore[list-item]
    run.verification = FakeVerification(*checked)  # type: ignore[assignment]
    built = build(run)
    assert sum(bucket["count"] for bucket in built["faults"]["histogram"]) == len(spans)
    text = terminal.plain(built)
    assert text.startswith(f"{status}")
    assert text.endswith("\n")


# ---- the schema ----


def test_a_real_result_is_valid(example: dict[str, Any]) -> None:
    result = schema.validate(example)
    assert result.status == "completed"
    assert sum(vcpu.accesses for vcpu in result.vcpus) == 1_594_333


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            if path != () or key != "scenario":  # the configuration has models of its own
                found += _leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        found += _leaves(value[0], (*path, 0))
    return found


PATHS = _leaves(json.loads(EXAMPLE.read_text()))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_type_is_refused_and_named(
    example: dict[str, Any], path: tuple[Any, ...]
) -> None:
    *way, last = path
    place: Any = example
    for step in way:
        place = place[step]
    place[last] = {"surely": "wrong"}
    with pytest.raises(InputError, match=re.escape(".".join(map(str, path)))):
        schema.validate(example)


@pytest.mark.parametrize(
    "path",
    [path for path in PATHS if isinstance(path[-1], str)],
    ids=lambda p: ".".join(map(str, p)),
)
def test_a_missing_key_is_refused(example: dict[str, Any], path: tuple[Any, ...]) -> None:
    *way, last = path
    place: Any = example
    for step in way:
        place = place[step]
    del place[last]
    with pytest.raises(InputError, match="is missing"):
        schema.validate(example)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.update(schema="vmemu-result/2"), "schema"),
        (lambda d: d["vcpus"][0].update(accesses=-1), "vcpus.0.accesses"),
        (lambda d: d["vcpus"][0].update(accesses=True), "vcpus.0.accesses"),
        (lambda d: d["blocks"][0]["pages"].update(zero=1 << 30), "pages arrived, of 32768"),
        (lambda d: d["blocks"][0]["pages"].update(zero=0), "pc.ram is not complete"),
        (lambda d: d["blocks"][0].update(size=4096), "32768 pages of 4096 are not 4096"),
        (lambda d: d.update(status="failed"), "have an error"),
        (lambda d: d["verify"].update(ok=False), "wrong bytes"),
        (lambda d: d["vcpus"][0].update(accesses=None), "only unknown of a run that ended in pre"),
        (lambda d: d["precopy"].update(rounds=None), "knows what the source did"),
    ],
)
def test_what_a_document_may_not_say(example: dict[str, Any], change: Any, message: str) -> None:
    change(example)
    with pytest.raises(InputError, match=message):
        schema.validate(example)


def test_the_documentation_names_every_key(example: dict[str, Any]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    named = set(re.findall(r"\w+", text))
    keys = {step for path in PATHS for step in path if isinstance(step, str)}
    errors = set(schema.Error.model_fields) | set(schema.WaitingVcpu.model_fields)
    mismatch = set(schema.Mismatch.model_fields)
    assert keys | errors | mismatch <= named


# ---- writing ----


def test_a_file_is_written_whole_with_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    before = os.umask(0o027)
    try:
        document.write({"a": 1}, str(path))
    finally:
        os.umask(before)
    assert json.loads(path.read_text()) == {"a": 1}
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_file_that_is_there_is_replaced_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    document.write({}, str(link))
    assert link.is_symlink()
    assert target.read_text() == "{}\n"


@pytest.mark.parametrize(
    "failing", ["os.fsync", "os.replace"], ids=["the disk is full", "the rename fails"]
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "result.json"
    path.write_text("old")
    monkeypatch.setattr(f"vmemu.results.document.{failing}", fail)
    with pytest.raises(VmemuError, match=r"result\.json: .*No space left on device") as caught:
        document.write({}, str(path))
    assert caught.value.exit_code == 1
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_an_interrupt_in_the_middle_of_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vmemu.results.document.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        document.write({}, str(tmp_path / "result.json"))
    assert os.listdir(tmp_path) == []


def test_a_device_is_written_to_and_not_replaced() -> None:
    document.write({}, "/dev/null")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(VmemuError, match="No space left on device"):
        document.write({}, "/dev/full")


@pytest.mark.parametrize("name", ["missing/result.json", "file/result.json", ""])
def test_a_place_that_can_not_be_written_is_found_before_the_run(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    path = str(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(path)):
        document.check_place(path)
    with pytest.raises(InputError, match=re.escape(path)):
        document.write({}, path)


def test_places_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("")
    for place in ("-", "/dev/null", str(tmp_path / "new.json"), str(tmp_path / "there.json")):
        document.check_place(place)


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    document.write({"a": 1}, "-")
    assert json.loads(capsys.readouterr().out) == {"a": 1}


# ---- showing ----


def test_a_completed_run_in_plain_text(example: dict[str, Any]) -> None:
    lines = terminal.plain(example, "vmemu run quickstart.yaml").splitlines()
    assert lines[0] == "completed: all 134,479,872 bytes right; 1,273,439 reads checked as well"
    assert lines[1] == "quickstart, seed 7"
    rows = {line.split()[0]: line.split() for line in lines if line}
    pages = example["blocks"][0]["pages"]
    assert rows["pc.ram"] == [
        "pc.ram", "anonymous", "4KiB", "32,768",
        f"{pages['requested']:,}", f"{pages['pushed']:,}", f"{pages['zero']:,}",
    ]  # fmt: skip
    assert rows["block"][-3:] == ["requested", "pushed", "zero"]
    assert rows["0"][1:3] == ["925,567", f"{example['vcpus'][0]['faults']:,}"]
    assert rows["userfaultfd"] == ["userfaultfd", "userfaultfd(2)"]
    assert lines[-1].startswith("next: vmemu run quickstart.yaml --json ")


def test_settings_that_are_not_the_usual_ones_are_told(example: dict[str, Any]) -> None:
    assert "settings" not in terminal.plain(example)
    assert "mapped" not in terminal.plain(example)
    assert "came along" not in terminal.plain(example)
    postcopy = example["scenario"]["migration"]["postcopy"]
    postcopy |= {"delivery": "sigbus", "fault_around": 64, "prefetch": "adaptive"}
    postcopy["push_order"] = "recorded"
    example["scenario"]["channel"]["kind"] = "shm"
    example["channel"] = {"kind": "shm", "pages": {"copied": 4096, "continued": 1023}}
    lines = {line.partition(" ")[0]: line for line in terminal.plain(example).splitlines()}
    assert lines["settings"].endswith(
        "  channel shm, delivery sigbus, fault_around 64, prefetch adaptive, push_order recorded"
    )
    assert lines["came"] == "came along   none"
    assert lines["throughput"].endswith("/s; 1,023 pages mapped in place, 4,096 copied")


def test_usual_is_what_a_scenario_has_by_default(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Postcopy.model_fields["prefetch"], "default", "adaptive")
    monkeypatch.setattr(Channel.model_fields["kind"], "default", "shm")
    assert "settings     channel pipe, prefetch none" in terminal.plain(example).splitlines()


def test_the_placement_has_the_threads_that_there_are(example: dict[str, Any]) -> None:
    where = "vcpus, fault, urgent on CPU 0; listen, push on CPU 1 (colocate: "
    assert where in terminal.plain(example)
    example["placement"]["cpus"]["fault"] = None
    assert where.replace("fault, ", "") in terminal.plain(example)


def test_warnings_are_shown(example: dict[str, Any]) -> None:
    example["warnings"] = ["block ram stays in small pages: refused", "spread has 1 CPU"]
    shown = terminal.plain(example).splitlines()
    assert [line for line in shown if line.startswith("warning")] == [
        "warning      block ram stays in small pages: refused",
        "warning      spread has 1 CPU",
    ]


def test_columns_are_aligned(example: dict[str, Any]) -> None:
    lines = terminal.plain(example).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("block "))
    assert len({len(line) for line in lines[start : start + 3]}) == 1


def test_user_mode_faults_are_said_plainly() -> None:
    run, _, _ = busy_run(How.USER_MODE_ONLY)
    shown = terminal.plain(build(run))
    assert "user-mode faults only (vm.unprivileged_userfaultfd=0)" in shown


def test_a_wrong_byte_is_shown_with_its_place(example: dict[str, Any]) -> None:
    example["status"] = "failed"
    example["error"] = {"kind": "verification", "message": "1 bytes of memory are wrong"}
    wrong = {"block": "pc.ram", "offset": 4099, "expected": 0, "found": 255}
    example["verify"] |= {"ok": False, "bytes_wrong": 1, "mismatches": [wrong]}
    schema.validate(example)
    lines = terminal.plain(example, "vmemu run q.yaml").splitlines()
    assert lines[0] == "failed: 1 bytes of memory are wrong"
    assert ["pc.ram", "0x1003", "0x00", "0xff"] in [line.split() for line in lines]
    assert lines[-1].startswith("next: vmemu run q.yaml --seed 7 ")


def test_an_interrupted_run_says_where(example: dict[str, Any]) -> None:
    example["status"] = "interrupted"
    example["error"] = {"kind": "interrupted", "message": "interrupted by SIGINT"}
    example["blocks"][0]["pages"]["zero"] -= 3
    example["phases"] = [p for p in example["phases"] if p["name"] not in ("drain", "verify")]
    lines = terminal.plain(example).splitlines()
    assert lines[0].startswith("interrupted in phase guest")
    assert next(line for line in lines if line.startswith("block ")).endswith("missing")
    assert next(line for line in lines if line.startswith("pc.ram ")).endswith(" 3")


def test_a_skipped_run_is_its_reason_and_its_remedy() -> None:
    shortage = HugepageShortage("block b needs 4 hugepages", "sysctl vm.nr_hugepages=4")
    built = build(fake_run("skipped", shortage))
    assert terminal.plain(built, "vmemu run b.yaml").splitlines() == [
        f"skipped: {shortage}",
        "next: sysctl vm.nr_hugepages=4 && vmemu run b.yaml",
    ]


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("pace", "said"),
    [
        ({"kind": "recorded", "factor": 1.0}, "at recorded times"),
        ({"kind": "recorded", "factor": 2.5}, "at recorded times, 2.5 times as fast"),
        ({"kind": "rate", "accesses_per_second": 50_000}, "50,000 accesses a second of each vCPU"),
    ],
)
def test_how_late_a_paced_guest_was_is_shown(
    example: dict[str, Any], pace: dict[str, Any], said: str
) -> None:
    assert "lag" not in terminal.plain(example)
    example["pace"] = pace
    with pytest.raises(InputError, match="exactly the vCPUs of a guest with a pace have a lag"):
        schema.validate(example)
    for vcpu in example["vcpus"]:
        vcpu["lag_ns"] = {"mean": 1500, "max": 2_000_000, "end": 0}
    schema.validate(example)
    lines = [re.split(r"  +", line) for line in terminal.plain(example).splitlines()]
    (heading,) = [line for line in lines if line[0] == "vCPU"]
    assert heading[-3:] == ["lag mean", "lag max", "lag end"]
    assert lines[lines.index(heading) + 1][-3:] == ["1.5us", "2ms", "-"]
    assert ["pace", said] in lines


def test_on_a_terminal_the_same_figures_are_drawn_by_rich(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    # Rich would take these for text of its own.
    example["blocks"][0]["name"] = "[red]:smile:"
    stream = FakeTerminal()
    terminal.show(example, stream)
    drawn = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    words = set(drawn.split())
    assert set(terminal.plain(example).split()) <= words


def test_what_the_encoding_lacks_is_escaped(example: dict[str, Any]) -> None:
    example["scenario"]["name"] = "Läufe"
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, "ascii") as stream:
        terminal.show(example, stream)
        shown = raw.getvalue()
    assert b"L\\xe4ufe, seed 7" in shown


def test_plain_text_imports_neither_rich_nor_numpy() -> None:
    code = (
        "import json, sys\n"
        "from vmemu.results import document, terminal\n"
        f"terminal.show(json.load(open({str(EXAMPLE)!r})), sys.stdout)\n"
        "assert not {'rich', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
