"""What of a scenario may be varied on this host, asked of the host itself."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
from support import HUGE
from test_ordinary_user import as_ordinary_user

from vmemu import hugepages, reservation
from vmemu.config import load
from vmemu.reservation import Resizer
from vmemu.stress import base
from vmemu.stress.kinds import HostKinds
from vmemu.stress.loop import Loop, Plan
from vmemu.stress.variations import Variations

pytestmark = pytest.mark.usefixtures("userfault")

UNPRIVILEGED = """
import json, os, resource, tempfile
from pathlib import Path
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
from vmemu.stress.kinds import HostKinds
from vmemu.stress.loop import Loop, Plan
from vmemu.stress.variations import Variations
kinds = HostKinds.of_this_host()
with tempfile.TemporaryDirectory() as directory:
    os.chdir(directory)
    Path("small.yaml").write_text(
        "blocks: [{name: ram, backing: anonymous, size: 64KiB}]\\n"
        "guest: {trace: {synthetic: {kind: permutation}}}\\n"
    )
    Path("runs").mkdir()
    loop = Loop(Variations("small.yaml", 1, kinds), Plan(jobs=2, runs=4), Path("runs"))
    status = loop.run(lambda: None)
    left = os.listdir("runs")
failure = str(loop.tally.failure)
print(json.dumps([os.geteuid(), kinds.memory, kinds.lockable, status, left, failure]))
"""


def test_ordinary_memory_is_there_without_a_pool(pool_alone: Resizer) -> None:
    pool_alone.resize(0)
    kinds = HostKinds.of_this_host()
    assert {("anonymous", mmap.PAGESIZE), ("shared", mmap.PAGESIZE)} <= set(kinds.memory)
    assert ("hugetlbfs", HUGE) not in kinds.memory
    assert HUGE not in kinds.pools
    assert {"auto", "replay"} <= set(kinds.tracking)


def test_a_pool_counts_as_a_whole_even_while_others_have_it(pool_alone: Resizer) -> None:
    pool_alone.resize(3)
    free = HostKinds.of_this_host()
    with reservation.hold({HUGE: 3}):
        taken = HostKinds.of_this_host()
    assert free == taken
    assert ("hugetlbfs", HUGE) in free.memory
    assert free.pools[HUGE] == 3


def test_pages_that_may_be_made_when_they_are_needed_count(
    pool_alone: Resizer, tmp_path: Path
) -> None:
    overcommit = hugepages.directory(HUGE) / "nr_overcommit_hugepages"
    was = overcommit.read_text()
    pool_alone.resize(0)
    overcommit.write_text("4")
    try:
        kinds = HostKinds.of_this_host()
        assert kinds.pools[HUGE] == 4
        file = tmp_path / "huge.yaml"
        file.write_text(
            "blocks: [{name: huge, backing: hugetlbfs, page_size: 2MiB, size: 8MiB}]\n"
            "guest: {trace: {synthetic: {kind: permutation}}}\n"
        )
        base.require(load(file), kinds)
        (tmp_path / "runs").mkdir()
        loop = Loop(Variations(file, 1, kinds), Plan(jobs=1, runs=1), tmp_path / "runs")
        assert (loop.run(lambda: None), loop.tally.failure) == ("completed", None)
    finally:
        overcommit.write_text(was)


def test_a_capability_of_a_user_namespace_locks_no_more() -> None:
    if subprocess.run(["unshare", "-r", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this host lets nobody have a user namespace")
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))\n"
        "from vmemu.stress.kinds import _lockable; print(_lockable())"
    )
    asked = ["unshare", "-r", sys.executable, "-c", script]
    done = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "65536\n"


def test_an_ordinary_user_runs_variations_of_what_may_be_locked() -> None:
    uid, memory, lockable, status, left, failure = as_ordinary_user(UNPRIVILEGED)
    assert uid == 65534
    assert {"anonymous", "shared"} <= {backing for backing, _ in memory}
    assert lockable == 65536
    assert (status, left, failure) == ("completed", [], "None")
