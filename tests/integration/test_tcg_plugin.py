"""The TCG plugin in the real QEMU: a guest whose accesses are known is recorded, and migrates."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import bootsector
import numpy as np
import pytest
from numpy.typing import NDArray

from vmemu.traces import native
from vmemu.traces.reader import LOAD, STORE
from vmemu.traces.readers.gpa import RECORD
from vmemu.traces.record import plugin

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
QEMU = (
    "qemu-system-x86_64 -accel tcg,thread=multi -m 16 -smp 2 -display none -nodefaults -no-reboot "
    "-drive file=disk.img,format=raw,snapshot=on -device isa-debug-exit"
)
RAM = 16 << 20
TIMEOUT_S = 60

pytestmark = pytest.mark.usefixtures("qemu")


def vmemu(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmemu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the plugin as a user would build it, and the disk of the guest."""
    path = tmp_path_factory.mktemp("guest")
    (path / "disk.img").write_bytes(bootsector.boot_sector())
    done = vmemu("trace", "record-qemu", "--plugin-source", "-o", path / "plugin.c")
    assert (done.returncode, done.stdout) == (0, "")
    build = done.stderr.splitlines()[0].removeprefix("build:")
    subprocess.run(shlex.split(build), check=True, timeout=TIMEOUT_S)
    return path


def run_guest(directory: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    """The guest with the plugin and its arguments; ``directory`` is the current one."""
    return subprocess.run(
        [*QEMU.split(), "-plugin", f"./plugin.so{arguments}"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


@pytest.fixture(scope="module")
def recorded(directory: Path) -> Path:
    """All accesses of the guest."""
    done = run_guest(directory, ",out=guest.gpa")
    assert done.returncode == bootsector.EXIT_CODE, done.stderr
    size = (directory / "guest.gpa").stat().st_size
    assert size % RECORD.itemsize == 0
    assert f"guest.gpa: {size // RECORD.itemsize} records of 2 vCPUs" in done.stderr
    return directory / "guest.gpa"


@pytest.fixture(scope="module")
def records(recorded: Path) -> NDArray[Any]:
    return np.fromfile(recorded, RECORD)


def between(records: NDArray[Any], first: int, end: int, vcpu: int) -> NDArray[Any]:
    """The accesses of a vCPU to an area, in their order."""
    where = (records["address"] >= first) & (records["address"] < end) & (records["vcpu"] == vcpu)
    return records[where & (records["io"] == 0)]


# ---- the source ----


@pytest.mark.parametrize("api", [None, 1, 2, 3, 4, 5, 6])
def test_the_source_compiles_without_a_warning(tmp_path: Path, api: int | None) -> None:
    (tmp_path / "plugin.c").write_text(plugin.source())
    define = [] if api is None else [f"-DQEMU_PLUGIN_API={api}"]
    options = ["-O2", "-shared", "-fPIC", "-std=c11", *WARNINGS, *define]
    command = ["cc", *options, "-o", "plugin.so", "plugin.c"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_head_of_the_source_has_the_commands_of_its_name(tmp_path: Path) -> None:
    done = vmemu("trace", "record-qemu", "--plugin-source", "-o", tmp_path / "my trace.c")
    assert done.returncode == 0
    head = (tmp_path / "my trace.c").read_text().partition("*/")[0]
    assert "cc -O2 -shared -fPIC -o 'my trace.so' 'my trace.c'" in head
    assert "-plugin './my trace.so,out=guest.gpa'" in head
    assert "vmemu-plugin" not in head


def test_without_a_file_the_source_goes_to_standard_output() -> None:
    done = vmemu("trace", "record-qemu", "--plugin-source")
    assert done.returncode == 0
    assert done.stdout == plugin.source()
    build, run, then = (line.split(":", 1)[1].strip() for line in done.stderr.splitlines())
    assert build in done.stdout
    assert run in done.stdout
    assert then in done.stdout


def test_a_source_that_is_there_is_replaced_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "plugin.c"
    path.write_text("mine")
    refused = vmemu("trace", "record-qemu", "--plugin-source", "-o", path)
    assert (refused.returncode, path.read_text()) == (2, "mine")
    assert refused.stderr == f"{path}: exists already; name another, or take --force\n"
    assert vmemu("trace", "record-qemu", "--plugin-source", "--force", "-o", path).returncode == 0
    assert path.read_text() == plugin.source("plugin.c")


@pytest.mark.parametrize("name", ["nowhere/plugin.c", "plugin.txt"])
def test_a_place_that_can_not_be_is_one_line(tmp_path: Path, name: str) -> None:
    done = vmemu("trace", "record-qemu", "--plugin-source", "-o", tmp_path / name)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / name).exists()


def test_the_verb_alone_says_what_to_do() -> None:
    done = vmemu("trace", "record-qemu")
    assert done.returncode == 2
    assert "vmemu trace record-qemu --plugin-source -o vmemu-plugin.c" in done.stderr


# ---- what is recorded ----


def test_known_accesses_are_there_in_their_order(records: NDArray[Any]) -> None:
    kinds = {"load": LOAD, "store": STORE}
    expected = [
        (page + offset, kinds[kind], size)
        for page in bootsector.PAGES
        for offset, kind, size in bootsector.ON_EACH_PAGE
    ]
    # Each side of the straddling store by itself, as its pages may lie anywhere.
    expected += [(bootsector.STRADDLING + i, STORE, 1) for i in range(2)]
    area = between(records, bootsector.PAGES.start, bootsector.STRADDLING + 0x1001, vcpu=0)
    ours = area[-len(expected) :]  # the BIOS has used that memory before
    found = zip(
        ours["address"].tolist(),
        ours["store"].tolist(),
        (1 << ours["size_log2"]).tolist(),
        strict=True,
    )
    assert list(found) == expected


def test_no_record_is_lost_when_two_vcpus_store_at_once(records: NDArray[Any]) -> None:
    stores = bootsector.FIRST_ROUNDS << 15
    first = bootsector.FIRST_SEGMENT
    filled = between(records, first, first + 0x10000, vcpu=0)[-stores:]
    assert filled["address"].tolist() == [*range(first, first + 0x10000, 2)] * (stores >> 15)
    assert (filled["store"] == 1).all()
    assert (filled["size_log2"] == 1).all()

    # The second vCPU is still storing when QEMU ends: any number of stores, but none left out.
    second = bootsector.SECOND_SEGMENT
    filled = between(records, second, second + 0x10000, vcpu=1)
    assert len(filled) > 1 << 15
    assert filled["address"][0] == second
    steps = np.diff(filled["address"].astype(np.int64))
    assert set(np.unique(steps)) <= {2, 2 - 0x10000}


def test_sequence_numbers_are_unique_and_rise_on_each_vcpu(records: NDArray[Any]) -> None:
    sequence = records["sequence"].astype(np.int64)
    assert np.bincount(sequence).max() == 1
    for vcpu in (0, 1):
        assert np.diff(sequence[records["vcpu"] == vcpu]).min() > 0
    in_order = np.empty(sequence.max() + 1, np.int64)
    in_order[sequence] = records["vcpu"]
    assert np.count_nonzero(np.diff(in_order)) > 2  # the vCPUs took turns


def test_device_accesses_are_marked(records: NDArray[Any]) -> None:
    of_devices = records[records["io"] == 1]
    interrupts = of_devices[of_devices["address"] == 0xFEE00300]
    assert [*interrupts["store"][-2:]] == [1, 1]
    assert [*interrupts["size_log2"][-2:]] == [2, 2]


def test_a_filter_leaves_out_what_it_remembers_and_nothing_else(
    directory: Path, records: NDArray[Any]
) -> None:
    entries = 64
    done = run_guest(directory, f",out=few.gpa,filter={entries}")
    assert done.returncode == bootsector.EXIT_CODE
    few = np.fromfile(directory / "few.gpa", RECORD)
    assert len(few) * 20 < len(records)

    def keys(of: NDArray[Any]) -> NDArray[Any]:
        return of["address"] >> 12 << 1 | of["store"]

    area = (bootsector.PAGES.start, bootsector.PAGES.stop, 0)
    assert set(keys(between(few, *area))) == set(keys(between(records, *area)))
    own = keys(few[few["vcpu"] == 0]).astype(np.int64)
    for entry in range(entries):
        assert (np.diff(own[own % entries == entry]) != 0).all()


def test_recording_stops_at_the_most_records(directory: Path) -> None:
    done = run_guest(directory, ",out=max.gpa,max=100000")
    assert done.returncode == bootsector.EXIT_CODE
    sequence = np.fromfile(directory / "max.gpa", RECORD)["sequence"]
    assert sorted(sequence.tolist()) == [*range(100000)]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("", "say where the records go: -plugin ...,out=FILE"),
        (",out=", "out=: not out=FILE"),
        (",out=x.gpa,filter=many", "filter=many: not out=FILE, filter=N"),
        (",out=x.gpa,filter=-1", "filter=-1: not"),
        (",out=x.gpa,max=18446744073709551616", "max=18446744073709551616: not"),
        (",out=x.gpa,other=1", "other=1: not"),
        (",out=nowhere/x.gpa", "nowhere/x.gpa: can't be written: No such file or directory"),
    ],
)
def test_wrong_arguments_end_qemu_with_a_reason(directory: Path, arguments: str, what: str) -> None:
    done = run_guest(directory, arguments)
    assert done.returncode == 1
    assert f"vmemu plugin: {what}" in done.stderr
    assert not (directory / "x.gpa").exists()


def test_a_full_disk_ends_the_recording_and_not_the_guest(directory: Path) -> None:
    done = run_guest(directory, ",out=/dev/full")
    assert done.returncode == bootsector.EXIT_CODE
    reason = "/dev/full: can't be written: No space left on device; no more is recorded"
    assert done.stderr.count(reason) == 1
    assert "/dev/full: 0 records" in done.stderr


# ---- what becomes of it ----


def test_the_recorded_guest_migrates_with_every_byte_right(recorded: Path, tmp_path: Path) -> None:
    trace = tmp_path / "guest.vmtrace"
    assert vmemu("trace", "convert", recorded, trace).returncode == 0
    opened = native.open(trace)
    assert [stream.id for stream in opened.streams] == [0, 1]
    pages = opened.pages
    rom = pages[pages >= RAM >> 12]
    start, end = (
        (int(rom.min()) << 12, (int(rom.max()) + 1) << 12) if len(rom) else (RAM, RAM + 4096)
    )
    (tmp_path / "guest.yaml").write_text(f"""\
name: boot-sector
seed: 3
blocks:
  - {{name: pc.ram, backing: anonymous, size: {RAM}, content: {{kind: seeded, zero_share: 0.2}}}}
  - {{name: pc.bios, backing: shared, size: {end - start}}}
guest:
  vcpus: 2
  trace:
    file: guest.vmtrace
    map: {{kind: regions, regions: ["0-{RAM}=pc.ram", "{start}-{end}=pc.bios"]}}
""")
    done = vmemu("run", tmp_path / "guest.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"completed: all {RAM + end - start:,} bytes right")


def test_a_fifo_takes_the_records_straight_into_a_trace(directory: Path, tmp_path: Path) -> None:
    os.mkfifo(directory / "guest.fifo")
    trace = tmp_path / "guest.vmtrace"
    command = [sys.executable, "-m", "vmemu", "trace", "convert", directory / "guest.fifo", trace]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as convert:
        done = run_guest(directory, ",out=guest.fifo,max=50000")
        said, _ = convert.communicate(timeout=TIMEOUT_S)
    assert (done.returncode, convert.returncode) == (bootsector.EXIT_CODE, 0)
    meta = native.open(trace).meta
    assert meta.counts.accesses + meta.counts.dropped.get("io", 0) == 50000
    assert f"{meta.counts.accesses:,} accesses" in said
