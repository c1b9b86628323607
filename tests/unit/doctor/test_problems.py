"""What a host's document is found to lack, in which order, and what mends it."""

from __future__ import annotations

from typing import Any

import pytest
from hosts import EVERY_FEATURE, FULL, GIB, MIB, WAYS, good_host

from vmemu.doctor.problems import problems
from vmemu.host.document import Cpus, Limits, Memory, Mount, Pool, Problem, Proof, Userfault, Way

HUGETLBFS = Mount(path="/dev/hugepages", type="hugetlbfs", page_size=2 * MIB, mode="1777")
NO_SYSCALL = Way(how="syscall", works=False, why="it is 0", remedy="sysctl it=1")


def found(**changes: Any) -> dict[str, Problem]:
    return {problem.code: problem for problem in problems(good_host(**changes))}


def limits(**fields: Any) -> Limits:
    given = {"memlock_soft": None, "memlock_hard": None, "ipc_lock": False, "pipe_max_size": MIB}
    return Limits(**(given | fields))


def test_a_good_host_has_no_problem() -> None:
    assert problems(good_host(pools=(FULL,), mounts=(HUGETLBFS,))) == ()


def test_without_a_way_to_open_it_every_reason_is_told_and_the_first_remedy() -> None:
    device = Way(how="device", works=False, why="it is not there")
    userfault = Userfault(how=None, ways=(device, NO_SYSCALL))
    one = found(userfault=userfault, proofs=())["userfaultfd"]
    assert (one.severity, one.remedy) == ("error", "sysctl it=1")
    assert "/dev/userfaultfd: it is not there; userfaultfd(2): it is 0" in one.what


def test_faults_of_user_mode_alone_are_less_than_all() -> None:
    ways = (NO_SYSCALL, *WAYS[1:])
    userfault = Userfault(how="user_mode_only", ways=ways, features=EVERY_FEATURE)
    one = found(userfault=userfault)["user_mode_only"]
    assert (one.severity, one.remedy) == ("warning", "sysctl it=1")


@pytest.mark.parametrize("kept", ["features", "refused"])
def test_a_feature_that_post_copy_needs(kept: str) -> None:
    without = tuple(name for name in EVERY_FEATURE if name not in ("MISSING_SHMEM", "MOVE"))
    parts = {"features": without} if kept == "features" else {"features": EVERY_FEATURE}
    refused = () if kept == "features" else ("MISSING_SHMEM",)
    userfault = Userfault(how="syscall", ways=WAYS, refused=refused, **parts)
    what = found(userfault=userfault)["feature"].what
    says = "lacks" if kept == "features" else "refuses"
    assert what.startswith(f"this kernel {says} UFFD_FEATURE_MISSING_SHMEM")
    assert ": post-copy of shared memory" in what


def test_a_missing_fault_that_fails_is_worst_for_ordinary_memory() -> None:
    def proof(backing: Any, fault: Any, works: bool | None, page_size: int = 4096) -> Proof:
        return Proof(backing=backing, page_size=page_size, fault=fault, works=works, why="so")

    proofs = (
        proof("shared", "missing", False),
        proof("anonymous", "missing", False),
        proof("anonymous", "minor", False),
        proof("hugetlbfs", "missing", None, 2 * MIB),
    )
    told = problems(good_host(proofs=proofs))
    assert [(one.code, one.severity) for one in told] == [
        ("missing", "error"),
        ("missing", "warning"),
    ]
    assert "anonymous memory of 4KiB pages can't be served: so" in told[0].what


def test_an_empty_pool_is_filled_by_the_sysctl_of_its_size() -> None:
    pools = tuple(
        Pool(page_size=size, total=0, free=0, reserved=0, surplus=0) for size in (2 * MIB, GIB)
    )
    first, second = problems(good_host(pools=pools))
    assert (first.code, first.remedy) == ("pool_empty", "sysctl vm.nr_hugepages=64")
    directory = "/sys/kernel/mm/hugepages/hugepages-1048576kB"
    assert (second.code, second.remedy) == ("pool_empty", f"echo 1 > {directory}/nr_hugepages")
    assert "at boot: hugepagesz=1G hugepages=1" in second.what
    # Most hosts have pages of one size only.
    assert (first.severity, second.severity) == ("warning", "note")


def test_a_pool_may_be_made_when_it_is_needed() -> None:
    assert found(pools=(FULL.model_copy(update={"total": 0, "free": 0, "overcommit": 4}),)) == {}


def test_free_pages_that_are_promised_are_not_free() -> None:
    taken = FULL.model_copy(update={"free": 3, "reserved": 3})
    one = found(pools=(taken,), mounts=(HUGETLBFS,))["pool_taken"]
    assert one.what == "no page of 2MiB is free: 8 in all, 3 free, 3 of these reserved"
    assert one.remedy == "sysctl vm.nr_hugepages=12"


def test_a_control_group_may_grant_no_hugepage() -> None:
    pool = FULL.model_copy(update={"cgroup_room": MIB, "cgroup_remedy": "echo max > it"})
    assert found(pools=(pool,), mounts=(HUGETLBFS,))["pool_cgroup"].remedy == "echo max > it"


def test_a_mount_is_only_for_blocks_with_a_path() -> None:
    one = found(pools=(FULL,))["mount"]
    assert one.severity == "note"
    where = "/dev/hugepages-2M"
    assert one.remedy == f"mkdir -p {where} && mount -t hugetlbfs -o pagesize=2048K none {where}"
    taken = Mount(path=where, type="hugetlbfs", page_size=GIB)
    assert found(pools=(FULL,), mounts=(taken,))["mount"].remedy.endswith(f"none {where}-2")


def test_a_mount_that_is_roots_alone() -> None:
    update = {"writable": False, "mode": "0755", "owner": "root:root", "path": "/huge pages"}
    one = found(pools=(FULL,), mounts=(HUGETLBFS.model_copy(update=update),))["mount_access"]
    assert one.what == "nothing can be made in /huge pages: it is of root:root with mode 0755"
    assert one.remedy == "chmod 1777 '/huge pages'"


def test_little_room_is_told_with_what_limits_it() -> None:
    tight = Memory(
        total=GIB, available=GIB, room=64 * MIB, limited_by="a/memory.max", remedy="echo max > it"
    )
    one = found(memory=tight)["memory"]
    assert one.what == "new memory may take 64MiB only, limited by a/memory.max"
    assert one.remedy == "echo max > it"


@pytest.mark.parametrize(
    ("soft", "hard", "remedy"),
    [
        (8 * MIB, None, "ulimit -S -l unlimited"),
        (8 * MIB, 64 * MIB, "prlimit --pid $$ --memlock=unlimited"),
    ],
)
def test_a_limit_on_locked_memory(soft: int, hard: int | None, remedy: str) -> None:
    one = found(limits=limits(memlock_soft=soft, memlock_hard=hard))["memlock"]
    assert (one.severity, one.remedy) == ("note", remedy)


def test_what_is_the_machines_is_set_outside_of_a_container() -> None:
    inside = Userfault(how="syscall", ways=WAYS, features=EVERY_FEATURE, container="docker")
    empty = FULL.model_copy(update={"total": 0, "free": 0})
    told = found(userfault=inside, pools=(empty,), limits=limits(pipe_max_size=65536))
    assert told["pool_empty"].remedy == "sudo sysctl vm.nr_hugepages=64  # on the host"
    assert told["pipe_max_size"].remedy == "sudo sysctl fs.pipe-max-size=1048576  # on the host"


def test_a_hard_limit_that_not_even_root_may_raise_is_that_of_the_container() -> None:
    low = limits(memlock_soft=MIB, memlock_hard=MIB, raisable=False)
    one = found(limits=low)["memlock"]
    assert (one.what.endswith("what starts this session"), one.remedy) == (True, "")
    inside = Userfault(how="syscall", ways=WAYS, features=EVERY_FEATURE, container="docker")
    one = found(limits=low, userfault=inside)["memlock"]
    assert one.remedy == "docker run --ulimit memlock=-1"
    soft = limits(memlock_soft=0, memlock_hard=None, raisable=False)
    assert found(limits=soft)["memlock"].remedy == "ulimit -S -l unlimited"


def test_who_is_not_root_is_told_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmemu.privilege.is_root", lambda: False)
    empty = FULL.model_copy(update={"total": 0, "free": 0})
    told = found(pools=(empty,), limits=limits(pipe_max_size=65536))
    assert told["pool_empty"].remedy == "sudo sysctl vm.nr_hugepages=64"
    assert told["pipe_max_size"].remedy == "sudo sysctl fs.pipe-max-size=1048576"
    # In what root alone may write to they would meet the next problem.
    options = "pagesize=2048K,mode=1777"
    assert f"-o {options} none" in found(pools=(FULL,))["mount"].remedy


def test_who_may_lock_without_limit_has_none() -> None:
    assert found(limits=limits(memlock_soft=0, memlock_hard=0, ipc_lock=True)) == {}


def test_small_pipes_few_files_and_slow_wake_ups_are_notes() -> None:
    slow = Cpus(online=2, allowed=(1, 3), wakeup_same_ns=5000, wakeup_other_ns=61_234)
    told = found(limits=limits(pipe_max_size=65536, open_files=64), cpus=slow)
    assert told["pipe_max_size"].remedy == "sysctl fs.pipe-max-size=1048576"
    assert told["open_files"].remedy == "ulimit -S -n 256"
    few = limits(open_files=64, open_files_hard=128)
    assert found(limits=few)["open_files"].remedy == "prlimit --pid $$ --nofile=256"
    assert "takes 61.2us" in told["wakeup"].what
    assert told["wakeup"].remedy == ""  # a run sees to it itself
    assert {one.severity for one in told.values()} == {"note"}


def test_errors_come_before_warnings_before_notes() -> None:
    empty = FULL.model_copy(update={"total": 0, "free": 0})
    slow = Cpus(online=2, allowed=(0,), wakeup_other_ns=61_234)
    gone = Userfault(how=None, ways=(NO_SYSCALL,))
    told = problems(good_host(cpus=slow, pools=(empty,), userfault=gone, proofs=()))
    assert [one.severity for one in told] == ["error", "warning", "note"]
