"""The floor of the benchmarks: each path moves its pages, and finds what is wrong with them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from accesses import write_trace
from context import Context
from frame import Failed

LAYOUTS = ("qemu", "one", "sigbus", "shm", "inline")


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Context:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    return Context(tmp_path_factory.mktemp("floor"))


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize("spread", [(), ("--spread",)], ids=["inherited", "spread"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_page_is_a_fault(floor: Context, layout: str, spread: tuple[str, ...]) -> None:
    said = floor.floor(floor.all_cpus, "fault", layout, "--pages", 100, *spread)
    assert said["faults"] == 100
    assert 0 < said["p50_ns"] <= said["p99_ns"] < said["total_ns"]


@pytest.mark.usefixtures("hugetlb")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hugepages(floor: Context, layout: str) -> None:
    assert floor.floor(floor.all_cpus, "fault", layout, "--pages", 4, "--huge")["faults"] == 4


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize("kind", ["pipe", "continue"])
def test_bulk_ends_with_a_run_that_is_no_whole_one(floor: Context, kind: str) -> None:
    size = (3 << 20) + 4096
    assert floor.floor(floor.all_cpus, "bulk", kind, "--bytes", size)["bytes"] == size


@pytest.mark.parametrize("checked", [(), ("--checked",)], ids=["plain", "checked"])
def test_resident_accesses(floor: Context, tmp_path: Path, checked: tuple[str, ...]) -> None:
    trace = write_trace(tmp_path / "some.vmtrace", 100_000)
    assert floor.floor(floor.all_cpus, "resident", trace, *checked)["accesses"] == 100_000


@pytest.mark.usefixtures("userfault")
def test_a_source_that_sends_something_else_is_found(floor: Context, tmp_path: Path) -> None:
    """The same programs, but that the source's bytes are others than those that are looked for."""
    changed = tmp_path / "floor"
    shutil.copytree(Path(__file__).parents[2] / "benchmarks" / "floor", changed)
    util = changed / "util.c"
    text = util.read_text()
    assert "memory[i] = mix(i + 1);" in text
    util.write_text(text.replace("memory[i] = mix(i + 1);", "memory[i] = mix(i + 2);"))
    program = floor.compiled("wrong-floor", sorted(changed.glob("*.c")))
    for words in (["fault", "one", "--pages", "10"], ["bulk", "pipe", "--bytes", "8192"]):
        with pytest.raises(Failed, match="is wrong"):
            floor.run([program, *words], floor.all_cpus)


@pytest.mark.parametrize(
    "words",
    [["fault", "two"], ["bulk", "tape"], ["walk", "one"], ["fault"], ["fault", "one", "-x"]],
)
def test_what_there_is_not_is_refused(floor: Context, words: list[str]) -> None:
    with pytest.raises(Failed, match="ended with 2"):
        floor.floor(floor.all_cpus, *words)


@pytest.mark.usefixtures("userfault")
def test_nothing_is_left_of_one_that_is_killed(floor: Context) -> None:
    """Its source ends with it, so the pipe that both have as their output comes to its end."""
    floor.floor(floor.all_cpus, "fault", "one", "--pages", 1)
    read, write = os.pipe()
    with os.fdopen(read) as said:
        process = subprocess.Popen(
            [floor.directory / "floor", "fault", "one", "--pages", str(1 << 16)], stdout=write
        )
        os.close(write)
        while not has_child(process.pid):
            assert process.poll() is None, "it was done before it had a source"
        process.kill()
        process.wait()
        assert said.read() == ""


def has_child(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())
