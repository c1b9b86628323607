"""A run that does not fit in memory is refused with figures before anything is mapped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import MIB, Footprint, scenario, synthetic

from vmemu.errors import HostError
from vmemu.host.room import memory_room
from vmemu.hostcheck import Code, PostcopyUnsupported
from vmemu.meminfo import meminfo
from vmemu.memoryneed import PROCESS, memory_needed
from vmemu.migration import Migration

TESTS = Path(__file__).parents[1]
WORKLOAD = synthetic("uniform", accesses=2000)


def blocks(*sizes_mib: int, **fields: Any) -> list[dict[str, Any]]:
    common = {"backing": "anonymous"} | fields
    return [{"name": f"b{i}", "size": f"{mib}MiB"} | common for i, mib in enumerate(sizes_mib)]


# ---- what is needed ----


def test_the_source_has_all_in_ordinary_memory_and_the_destination_what_is_no_hugepage():
    need = memory_needed(
        scenario(
            [
                {"name": "a", "backing": "anonymous", "size": "8MiB"},
                {"name": "s", "backing": "shared", "size": "4MiB"},
                {"name": "h", "backing": "hugetlbfs", "page_size": "2MiB", "size": "6MiB"},
                {"name": "i", "backing": "hugetlbfs", "page_size": "2MiB", "size": "2MiB"},
            ]
        )
    )
    assert need.source == 20 * MIB + PROCESS
    assert need.destination == 12 * MIB
    assert need.together == need.source + need.destination
    assert need.hugepages == {2 * MIB: 4}
    assert (need.source_mapped, need.committed) == (20 * MIB, 32 * MIB)
    assert need.destination_mapped > need.source_mapped  # and stacks of threads


def test_zeros_cost_nothing_in_anonymous_memory_and_a_page_each_in_shared():
    content = {"kind": "seeded", "zero_share": 0.75}
    anonymous = memory_needed(scenario(blocks(8, content=content)))
    shared = memory_needed(scenario(blocks(8, content=content, backing="shared")))
    assert anonymous.source == shared.source == 2 * MIB + PROCESS
    assert (anonymous.destination, shared.destination) == (2 * MIB, 8 * MIB)
    assert anonymous.extra >= 6 * MIB  # they may be written


def test_an_image_that_is_the_blocks_memory_counts_once():
    content = {"kind": "seeded", "zero_share": 0.75}
    anonymous = {"name": "a", "backing": "anonymous", "size": "4MiB"}
    made = [*blocks(8, content=content, backing="shared"), anonymous]
    pipe, shm = scenario(made), scenario(made, channel={"kind": "shm"})
    once, twice = (memory_needed(shm, in_place=known) for known in (True, False))
    assert memory_needed(pipe, in_place=True) == memory_needed(pipe)
    assert twice.together == once.together + 2 * MIB == 18 * MIB + PROCESS
    assert once.source == twice.source == 6 * MIB + PROCESS
    # What is copied from is mapped beside the blocks.
    assert once.destination_mapped == memory_needed(pipe).destination_mapped + 4 * MIB
    assert twice.destination_mapped == once.destination_mapped + 8 * MIB


def test_a_file_is_in_the_image_and_in_what_it_is_compared_with(tmp_path: Path):
    file = tmp_path / "dump"
    with file.open("wb") as dump:
        dump.write(os.urandom(3 * MIB))
        dump.truncate(6 * MIB)  # the rest is a hole: read at the source, and zeros
    made = blocks(8, content={"kind": "file", "path": str(file)})
    need = memory_needed(scenario(made))
    assert need.source == 6 * MIB + PROCESS
    assert 9 * MIB <= need.destination < 10 * MIB
    flips = memory_needed(scenario(made, migration={"flip_at": "50%"}))
    assert flips.source == need.source + 6 * MIB


def test_blocks_of_zeros_alone_that_are_too_large_to_plan_on_are_refused_before_it():
    """They take no memory but the table of their pages, for which a run was killed."""
    content = {"kind": "seeded", "zero_share": 1.0}
    huge = {"backing": "hugetlbfs", "page_size": "2MiB"}
    made = scenario([{"name": "a", "size": "64TiB", "content": content} | huge])
    assert memory_needed(made).together == PROCESS
    with pytest.raises(HostError) as caught:
        Migration(made).run()
    table = "a table of all pages of 64TiB takes 256GiB of memory on this host, and "
    assert table in caught.value.what


def test_clients_are_processes_that_compare_too():
    client = {"name": "c", "block": "b0", "trace": WORKLOAD}
    shared = blocks(8, backing="shared")
    with_one = memory_needed(scenario(shared, clients=[client]))
    assert with_one.destination == memory_needed(scenario(shared)).destination + PROCESS


@pytest.mark.parametrize(("rounds", "freed"), [(0, True), (1, False)])
def test_a_source_that_frees_what_it_has_sent_makes_room(rounds: int, freed: bool):
    migration = {"precopy": {"rounds": rounds}, "postcopy": {"release_ram": True}}
    need = memory_needed(scenario(blocks(8), migration=migration))
    both = need.source + need.destination
    assert need.together == (need.source if freed else both)


# ---- refused ----


def refused(made: Any) -> PostcopyUnsupported:
    before = Footprint.now()
    with pytest.raises(PostcopyUnsupported) as caught:
        Migration(made).run()
    left = before.left_by(Footprint.now())
    left.pop("mappings", None)  # numpy's arrays of so large a guest, which the error still knows
    assert left == {}
    assert [problem.code for problem in caught.value.problems] == [Code.MEMORY]
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize("backing", ["anonymous", "shared"])
def test_blocks_that_fit_alone_and_not_together_are_refused(backing: str):
    third = memory_room().size // 3 // MIB
    error = refused(scenario(blocks(third, third, backing=backing)))
    assert "of memory on this host (source " in str(error)
    assert "; use smaller blocks" in str(error)


@pytest.mark.usefixtures("userfault")
def test_images_of_hugepages_are_ordinary_memory_at_the_source():
    """Refused for memory and for the pool, in one error."""
    size = (meminfo("MemTotal:") * 2) // (2 * MIB) * 2
    made = scenario(blocks(size, backing="hugetlbfs", page_size="2MiB"), on_unavailable="fail")
    with pytest.raises(HostError) as caught:
        Migration(made).run()
    assert isinstance(caught.value, PostcopyUnsupported)
    assert Code.MEMORY in [problem.code for problem in caught.value.problems]


@pytest.mark.usefixtures("userfault")
def test_a_run_that_may_be_skipped_is_skipped():
    third = memory_room().size // 3 // MIB
    run = Migration(scenario(blocks(third, third), on_unavailable="skip")).run()
    assert run.status == "skipped"
    assert "use smaller blocks" in str(run.error)


RUN = """
import json, os, resource, sys
from support import scenario
from vmemu.errors import HostError
from vmemu.migration import Migration

size = int(sys.argv[1])
made = scenario([{"name": "ram", "backing": "anonymous", "size": f"{size}MiB"}])
if len(sys.argv) > 2:
    name, value = sys.argv[2].split("=")
    resource.setrlimit(getattr(resource, name), (int(value), resource.RLIM_INFINITY))
try:
    print(json.dumps([Migration(made).run().status, ""]))
except HostError as error:
    print(json.dumps(["refused", str(error)]))
"""


def run_elsewhere(*arguments: str, before: Callable[[], None] | None = None) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        preexec_fn=before,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: list[str] = json.loads(done.stdout)
    return result


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize(("name", "option"), [("RLIMIT_AS", "-v"), ("RLIMIT_DATA", "-d")])
def test_a_limit_of_the_process_is_told_with_what_lifts_it(name: str, option: str):
    status, text = run_elsewhere("1000", f"{name}={1 << 30}")
    assert status == "refused"
    assert f"{name} of this process" in text
    assert f"mend it with: ulimit -S {option} unlimited" in text
    assert run_elsewhere("16", f"{name}={1 << 30}") == ["completed", ""]


@pytest.mark.usefixtures("userfault")
def test_a_run_that_its_control_group_would_kill_is_refused(memory_limit: Path):
    def join() -> None:
        memory_limit.with_name("cgroup.procs").write_text("0")

    status, text = run_elsewhere("96", before=join)
    assert status == "refused"
    assert str(memory_limit) in text
    assert "mend it with: echo " in text
    assert run_elsewhere("8", before=join) == ["completed", ""]
    subprocess.run(text.partition("mend it with: ")[2], shell=True, check=True)
    assert run_elsewhere("96", before=join) == ["completed", ""]
