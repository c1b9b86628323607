"""A collapsed trace faults as the whole one does, on real recordings and real userfaultfd."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import scenario

from vmemu import eventfile as events
from vmemu.migration import Migration
from vmemu.results import document
from vmemu.traces import native
from vmemu.traces.convert import convert

pytestmark = pytest.mark.usefixtures("userfault")

ROOT = Path(__file__).parents[2]
LACKEY = ROOT / "tests/data/lackey-sort-excerpt.txt.zst"
SORT = ROOT / "configs/traces/sort.vmtrace.zst"
GPA = ROOT / "tests/data/gpa-boot-excerpt.bin.zst"

REQUEST = "postcopy_ram_fault_thread_request"


def faults_of(trace: Path, log: Path, *, vcpus: int, threads: int) -> list[int]:
    """Offsets of the faults in their order; every byte was checked at the end."""
    block = {
        "name": "ram",
        "backing": "anonymous",
        "size": f"{native.open(trace).meta.pages * 4}KiB",
    }
    wanted = scenario(
        [block],
        guest={"vcpus": vcpus, "trace": {"file": str(trace), "map": {"kind": "compact"}}},
        migration={"postcopy": {"push": False, "preempt": True, "fault_threads": threads}},
    )
    run = Migration(wanted, events=str(log)).run()
    result = document.build(run)
    assert (result["status"], result["verify"]["ok"]) == ("completed", True)
    return [int(event.args["offset"]) for event in events.read(str(log)) if event.name == REQUEST]


def collapsed(recording: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The trace as it is, and without repeats."""
    whole, less = tmp_path / "whole.vmtrace", tmp_path / "less.vmtrace"
    convert(recording, whole)
    convert(recording, less, collapse=True)
    assert native.open(less).accesses < native.open(whole).accesses / 2
    return whole, less


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("recording", [LACKEY, SORT], ids=["excerpt", "sort"])
def test_same_faults_in_the_same_order(recording: Path, threads: int, tmp_path: Path) -> None:
    one, other = (
        faults_of(trace, tmp_path / "events.jsonl", vcpus=1, threads=threads)
        for trace in collapsed(recording, tmp_path)
    )
    assert one == other
    assert len(one) == len(set(one)) == native.open(tmp_path / "whole.vmtrace").meta.pages


def test_several_vcpus_fault_on_the_same_pages(tmp_path: Path) -> None:
    one, other = (
        faults_of(trace, tmp_path / "events.jsonl", vcpus=2, threads=1)
        for trace in collapsed(GPA, tmp_path)
    )
    assert set(one) == set(other)
