"""How much memory there is for new mappings, of made-up hosts."""

from __future__ import annotations

import resource

import pytest

from vmemu.host import cgroups
from vmemu.host.files import HostFiles
from vmemu.host.identity import Identity
from vmemu.host.memory import memory
from vmemu.meminfo import figures as meminfo_figures

MIB, GIB = 1 << 20, 1 << 30
ROOT = Identity(("CAP_SYS_ADMIN",), True, "disabled", "")
USER = Identity((), True, "disabled", "")

MEMINFO = """\
MemTotal:       16777216 kB
MemFree:         1048576 kB
MemAvailable:    8388608 kB
SwapFree:              0 kB
CommitLimit:     9437184 kB
Committed_AS:    6291456 kB
HugePages_Total:      32
Hugepagesize:       2048 kB
"""
BASE = {
    "/proc/meminfo": MEMINFO,
    "/proc/sys/vm/overcommit_memory": "0\n",
    "/proc/self/statm": "25600 5000 3000 1 0 12800 0\n",
}
V2_MOUNT = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
UNIFIED = "/sys/fs/cgroup"


def group(path: str, **files: object) -> dict[str, str]:
    return {f"{path}/{name.replace('__', '.')}": f"{text}\n" for name, text in files.items()}


def v2(own: str, **more: str) -> dict[str, str]:
    return BASE | {"/proc/self/cgroup": f"0::{own}\n", "/proc/self/mountinfo": V2_MOUNT} | more


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: unlimited)


def test_meminfo_is_bytes_and_counts_of_pages_are_none() -> None:
    figures = meminfo_figures(MEMINFO)
    assert figures["MemAvailable"] == 8 * GIB
    assert figures["Hugepagesize"] == 2 * MIB
    assert "HugePages_Total" not in figures


def test_without_any_limit_room_is_what_is_available(tree) -> None:
    files = tree(BASE)
    found = memory(files, USER)
    assert (found.total, found.available, found.room) == (16 * GIB, 8 * GIB, 8 * GIB)
    assert (found.limited_by, found.remedy, found.cgroup_limit) == ("", "", None)
    assert files.unknown == []


def test_free_swap_is_room(tree) -> None:
    swap = MEMINFO.replace("SwapFree:              0", "SwapFree:        2097152")
    assert memory(tree(BASE | {"/proc/meminfo": swap}), USER).room == 10 * GIB


def test_the_tightest_group_on_the_way_up_is_the_limit(tree) -> None:
    own, parent = f"{UNIFIED}/ci/job", f"{UNIFIED}/ci"
    files = tree(
        v2("/ci/job")
        | group(own, memory__max="max", memory__current=100 * MIB)
        | group(
            parent,
            memory__max=1 * GIB,
            memory__current=800 * MIB,
            memory__stat=f"anon {500 * MIB}\ninactive_file {200 * MIB}\nactive_file {50 * MIB}",
        )
    )
    found = memory(files, USER)
    assert found.room == 1 * GIB - 800 * MIB + 250 * MIB
    assert (found.limited_by, found.remedy) == (
        f"{parent}/memory.max",
        f"echo max > {parent}/memory.max",
    )
    assert (found.cgroup_limit, found.cgroup_used) == (1 * GIB, 550 * MIB)
    assert files.unknown == []


def test_a_group_may_swap_no_more_than_its_own_limit(tree) -> None:
    swap = MEMINFO.replace("SwapFree:              0", "SwapFree:        2097152")
    limits = group(
        f"{UNIFIED}/job",
        memory__max=1 * GIB,
        memory__current=1 * GIB,
        memory__swap__max=512 * MIB,
        memory__swap__current=500 * MIB,
    )
    files = tree(v2("/job") | limits | {"/proc/meminfo": swap})
    assert memory(files, USER).room == 12 * MIB


def test_version_1_knows_no_word_for_unlimited(tree) -> None:
    own, parent = "/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a"
    files = tree(
        BASE
        | {"/proc/self/cgroup": "5:devices:/x\n4:memory:/a/b\n0::/\n"}
        | {"/proc/self/mountinfo": V1_MOUNT}
        | group(own, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=5)
        | group(
            parent,
            memory__limit_in_bytes=2 * GIB,
            memory__usage_in_bytes=1 * GIB,
            memory__stat=f"inactive_file 7\ntotal_inactive_file {512 * MIB}",
        )
    )
    found = memory(files, USER)
    assert found.room == 1 * GIB + 512 * MIB
    assert found.remedy == f"echo -1 > {parent}/memory.limit_in_bytes"


def test_version_1_may_count_swap_in_a_limit_of_its_own(tree) -> None:
    swap = MEMINFO.replace("SwapFree:              0", "SwapFree:        2097152")
    own = "/sys/fs/cgroup/memory/a"
    files = tree(
        BASE
        | {"/proc/meminfo": swap, "/proc/self/cgroup": "4:cpu,memory:/a\n"}
        | {"/proc/self/mountinfo": V1_MOUNT}
        | group(own, memory__limit_in_bytes=1 * GIB, memory__usage_in_bytes=512 * MIB)
        | group(
            own,
            memory__memsw__limit_in_bytes=1 * GIB,
            memory__memsw__usage_in_bytes=768 * MIB,
        )
    )
    assert memory(files, USER).room == 256 * MIB


@pytest.mark.parametrize(("mount", "own"), [("/docker/a1", "/docker/a1"), ("/", "/../../outside")])
def test_a_container_may_see_its_own_group_alone(tree, mount: str, own: str) -> None:
    files = tree(
        v2(own)
        | {"/proc/self/mountinfo": V2_MOUNT.replace("0:27 /", f"0:27 {mount}")}
        | group(UNIFIED, memory__max=64 * MIB, memory__current=0)
    )
    assert memory(files, USER).room == 64 * MIB


def test_with_strict_overcommit_the_commit_limit_counts_and_keeps_something_back(tree) -> None:
    strict = BASE | {
        "/proc/sys/vm/overcommit_memory": "2\n",
        "/proc/sys/vm/admin_reserve_kbytes": "8192\n",
        "/proc/sys/vm/user_reserve_kbytes": "131072\n",
    }
    page = resource.getpagesize()
    for_user = 3 * GIB - 8 * MIB - 25600 * page // 32
    found = memory(tree(strict), USER)
    assert (found.room, found.overcommit) == (for_user, 2)
    assert found.remedy == "sysctl vm.overcommit_memory=0"
    assert "commit limit" in found.limited_by
    assert memory(tree({}), ROOT).room == for_user + 8 * MIB


@pytest.mark.parametrize(
    ("which", "used", "remedy"),
    [
        ("RLIMIT_AS", 25600, "ulimit -S -v unlimited"),
        ("RLIMIT_DATA", 12800, "ulimit -S -d unlimited"),
    ],
)
def test_the_limits_of_this_process_count(
    tree, monkeypatch: pytest.MonkeyPatch, which: str, used: int, remedy: str
) -> None:
    limited = getattr(resource, which)
    infinity = resource.RLIM_INFINITY
    monkeypatch.setattr(
        resource, "getrlimit", lambda w: (1 * GIB if w == limited else infinity, infinity)
    )
    found = memory(tree(BASE), USER)
    assert found.room == 1 * GIB - used * resource.getpagesize()
    assert (found.limited_by, found.remedy) == (f"{which} of this process", remedy)


def test_a_limit_that_is_passed_leaves_nothing_and_not_less(tree) -> None:
    limits = group(f"{UNIFIED}/job", memory__max=MIB, memory__current=3 * MIB)
    assert memory(tree(v2("/job") | limits), USER).room == 0


def test_without_proc_there_are_still_figures_and_one_note(tmp_path) -> None:
    files = HostFiles(tmp_path)
    found = memory(files, USER)
    assert found.total >= found.available > 0
    (note,) = files.unknown
    assert (note.what, note.remedy) == ("all that /proc tells", "mount -t proc proc /proc")


def test_groups_limit_hugepages_in_use_and_promised(tree) -> None:
    own, parent = f"{UNIFIED}/ci/job", f"{UNIFIED}/ci"
    files = tree(
        v2("/ci/job")
        | group(own, hugetlb__2MB__max=64 * MIB, hugetlb__2MB__current=4 * MIB)
        | group(parent, hugetlb__2MB__rsvd__max=32 * MIB, hugetlb__2MB__rsvd__current=30 * MIB)
    )
    tightest = cgroups.hugetlb_tightest(files, 2 * MIB)
    assert tightest is not None
    assert tightest.rest == 2 * MIB
    assert tightest.remedy == f"echo max > {parent}/hugetlb.2MB.rsvd.max"
    assert cgroups.hugetlb_tightest(files, 1 * GIB) is None
