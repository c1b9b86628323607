"""The rules of `vmemu check` on made-up hosts: the same for this host and recorded ones, and
nothing of the host that checks gets in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checking import codes, guest, huge, ram, reasons, scenario, shared, the

from vmemu._config import judging
from vmemu.check.codes import Code
from vmemu.check.judge import judge
from vmemu.check.verdict import ScenarioReport
from vmemu.errors import ConfigError
from vmemu.host.document import (
    Cpus,
    HostDocument,
    Kernel,
    Limits,
    Memory,
    Mount,
    Pool,
    Proof,
    Thp,
    Userfault,
    Way,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FEATURES = ("THREAD_ID", "MISSING_HUGETLBFS", "MISSING_SHMEM", "WP_ASYNC", "WP_UNPOPULATED")
SHM = Mount(path="/dev/shm", type="tmpfs", page_size=4096, size=GIB, free=GIB)
DISK = Mount(path="/", type="ext4")


@pytest.fixture(autouse=True)
def _somewhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that checks is asked for nothing."""

    def asked() -> int:
        raise AssertionError("the page size of the host that checks was asked for")

    monkeypatch.setattr(judging, "base_page_size", asked)
    monkeypatch.setattr(judging, "smallest_hugepage_size", asked)


def pool(page_size: int = 2 * MIB, total: int = 64, **figures: Any) -> Pool:
    return Pool(
        **{"page_size": page_size, "total": total, "free": total, "reserved": 0, "surplus": 0}
        | figures
    )


def memory(total: int = 16 * GIB, **figures: Any) -> Memory:
    return Memory(**{"total": total, "available": total, "room": total} | figures)


def limits(soft: int | None = None, hard: int | None = None) -> Limits:
    return Limits(memlock_soft=soft, memlock_hard=hard, ipc_lock=False, pipe_max_size=None)


def host(base: int = 4096, how: Any = "syscall", **parts: Any) -> HostDocument:
    """A host that has everything, but for ``parts``."""
    features = parts.pop("features", FEATURES)
    userfault = Userfault(how=how, ways=parts.pop("ways", ()), features=features)
    return HostDocument(
        **{
            "vmemu": "0",
            "recorded_at": "2026-01-01T00:00:00+00:00",
            "hostname": "node7",
            "kernel": Kernel(release="6.18", machine="x86_64", base_page_size=base),
            "userfault": userfault,
            "pools": (pool(),),
            "default_hugepage_size": 2 * MIB,
            "mounts": (DISK, SHM),
            "memory": memory(),
            "limits": limits(),
            "thp": Thp(enabled=None, shmem_enabled=None),
            "cpus": Cpus(online=2, allowed=(0, 1)),
        }
        | parts
    )


Judging = Callable[..., ScenarioReport]


@pytest.fixture
def judged(tmp_path: Path) -> Judging:
    """Judges blocks between two hosts, or within one."""

    def judging(
        *blocks: Any,
        on: HostDocument | None = None,
        source: HostDocument | None = None,
        **sections: Any,
    ) -> ScenarioReport:
        destination = on or host()
        path = scenario(tmp_path, *blocks, **sections)
        return judge(path, source=source or destination, destination=destination)

    return judging


def only(code: Code, report: ScenarioReport) -> dict[str, Any]:
    """The reason that is there, and no other."""
    assert codes(report) == {code}, reasons(report)
    return the(code, report)


def test_a_host_that_has_everything(judged: Judging) -> None:
    assert judged(ram(), shared(), source=host()).verdict == "ok"
    assert judged(huge(), source=host()).verdict == "ok"


# ---- pages and both ends ----


def test_pages_are_those_of_the_host_in_question(judged: Judging) -> None:
    big = host(base=64 * KIB, pools=(pool(512 * MIB, 4), pool(32 * MIB, 8)))
    report = judged(ram("128KiB"), shared("64KiB"), huge("64MiB"), on=big)
    assert [block.page_size for block in report.blocks] == [64 * KIB, 64 * KIB, 32 * MIB]
    only(Code.MIXED_PAGE_SIZES, report)
    reason = only(Code.MISALIGNED, judged(ram("68KiB"), on=big))
    assert reason["remedy"] == "use 64KiB or 128KiB"
    reason = only(Code.PAGE_SIZE_IMPOSSIBLE, judged(ram(page_size="4KiB"), on=big))
    assert reason["remedy"].startswith("leave page_size out (64KiB here)")
    assert judged(ram(), on=big, guest=guest(target_page_size="64KiB")).verdict == "ok"


def test_base_pages_of_both_ends_agree(judged: Judging) -> None:
    reason = only(Code.BASE_PAGE_DIFFERS, judged(ram(), source=host(base=64 * KIB)))
    assert "64KiB" in reason["message"] and "4KiB" in reason["message"]


def test_hugepages_that_nobody_names_agree_on_both_ends(judged: Judging) -> None:
    theirs = host(pools=(pool(64 * KIB), pool(2 * MIB)))
    reason = only(Code.PAGE_SIZE_DIFFERS, judged(huge(), source=theirs))
    assert "64KiB on the source, node7, and 2MiB on the destination" in reason["message"]
    assert reason["remedy"] == "page_size: 2MiB"
    assert judged(huge(page_size="2MiB"), source=theirs).verdict == "ok"


def test_hugepages_that_the_source_has_not(judged: Judging) -> None:
    with_both = host(pools=(pool(), pool(GIB, 1)))
    report = judged(huge("1GiB", page_size="1GiB"), on=with_both, source=host())
    reason = the(Code.PAGE_SIZE_ABSENT, report)
    assert "the source, node7, has no hugepages of 1GiB (it has: 2MiB)" in reason["message"]
    assert reason["remedy"] == "page_size: 2MiB"


def test_a_source_needs_no_pool_but_memory(judged: Judging) -> None:
    poor = host(
        pools=(pool(total=0),),
        memory=memory(room=8 * MIB, limited_by="x/memory.max", remedy="echo"),
    )
    reason = only(Code.MEMORY, judged(huge("4MiB"), source=poor))
    assert "the source needs 20MiB" in reason["message"]
    assert "8MiB are free, limited by x/memory.max" in reason["message"]
    assert reason["remedy"] == "echo"


def test_a_destination_needs_no_memory_for_hugepages(judged: Judging) -> None:
    assert judged(huge("64MiB"), on=host(memory=memory(room=30 * MIB)), source=host()).verdict in {
        "ok",
        "unknown",
    }
    report = judged(ram("64MiB"), on=host(memory=memory(room=30 * MIB)), source=host())
    assert "the destination needs 64MiB" in only(Code.MEMORY, report)["message"]


def test_a_target_page_bigger_than_the_source_has(judged: Judging) -> None:
    both = {"on": host(base=64 * KIB), "source": host(base=16 * KIB)}
    report = judged(ram(), **both, guest=guest(target_page_size="64KiB"))
    assert codes(report) == {Code.TARGET_PAGE, Code.BASE_PAGE_DIFFERS}
    assert the(Code.TARGET_PAGE, report)["remedy"] == "guest: {target_page_size: 16KiB}"


def test_target_pages_are_powers_of_two(judged: Judging) -> None:
    for size in ("2KiB", "128KiB", "12KiB", "0"):
        with pytest.raises(ConfigError, match="is no page size of a guest; use 4KiB"):
            judged(ram(), guest=guest(target_page_size=size))


# ---- pools ----


@pytest.mark.parametrize(
    ("figures", "code", "remedy"),
    [
        ({"total": 1, "free": 1}, Code.POOL_SMALL, "sysctl vm.nr_hugepages=2"),
        ({"free": 3, "reserved": 2}, Code.POOL_TAKEN, "sysctl vm.nr_hugepages=65"),
        ({"free": 0}, Code.POOL_TAKEN, "sysctl vm.nr_hugepages=66"),
        ({"total": 0, "free": 0, "overcommit": 1}, Code.POOL_SMALL, "sysctl vm.nr_hugepages=2"),
        (
            {"total": 2, "free": 0, "surplus": 2, "overcommit": 2},
            Code.POOL_TAKEN,
            "sysctl vm.nr_hugepages=4",
        ),
    ],
)
def test_pools_that_can_not_give_two_pages(
    judged: Judging, figures: dict[str, int], code: Code, remedy: str
) -> None:
    assert only(code, judged(huge(), on=host(pools=(pool(**figures),))))["remedy"] == remedy


@pytest.mark.parametrize(
    "figures",
    [
        {"total": 2, "free": 2},
        {"total": 0, "free": 0, "overcommit": 2},
        {"total": 3, "free": 1, "surplus": 1, "overcommit": 2},
    ],
)
def test_pools_that_give_two_pages(judged: Judging, figures: dict[str, int]) -> None:
    assert judged(huge(), on=host(pools=(pool(**figures),))).verdict == "ok"


def test_a_pool_that_memory_can_not_fill_now(judged: Judging) -> None:
    little = memory(available=8 * MIB)
    on = host(pools=(pool(total=0),), memory=little)
    reason = only(Code.POOL_SMALL, judged(huge("16MiB"), on=on))
    assert "it lacks 16MiB, and 8MiB of memory are free" in reason["message"]
    assert reason["remedy"] == (
        "use a size of at most 8MiB, or free memory: sysctl vm.nr_hugepages=8"
    )


def test_the_pool_of_another_size_is_resized_in_sysfs(judged: Judging) -> None:
    on = host(pools=(pool(), pool(GIB, 0)))
    report = judged(huge("1GiB", page_size="1GiB"), on=on)
    assert the(Code.POOL_SMALL, report)["remedy"] == (
        "echo 1 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
    )


def test_control_groups_may_grant_fewer_hugepages(judged: Judging) -> None:
    on = host(pools=(pool(cgroup_room=2 * MIB),))
    reason = only(Code.POOL_LIMITED, judged(huge("4MiB"), on=on))
    assert "take 4MiB of 2MiB hugepages" in reason["message"] and "grant 2MiB" in reason["message"]
    assert judged(huge("2MiB"), on=on).verdict == "ok"


# ---- files of blocks ----


def huge_mount(**keys: Any) -> Mount:
    return Mount(**{"path": "/mnt/huge", "type": "hugetlbfs", "page_size": 2 * MIB} | keys)


@pytest.mark.parametrize(
    ("mount", "code"),
    [
        (huge_mount(type="tmpfs"), Code.PATH_FILESYSTEM),
        (huge_mount(path="/mnt/other"), Code.PATH_FILESYSTEM),
        (huge_mount(page_size=GIB), Code.PATH_PAGE_SIZE),
        (huge_mount(writable=False), Code.PATH_NOT_WRITABLE),
        (huge_mount(size=8 * MIB, free=2 * MIB), Code.PATH_FULL),
    ],
)
def test_places_of_hugepages_on_a_recorded_host(judged: Judging, mount: Mount, code: Code) -> None:
    block = huge(path="/mnt/huge/deep/ram")
    reason = only(code, judged(block, on=host(mounts=(DISK, SHM, mount))))
    elsewhere = mount.path == "/mnt/other"
    assert reason["remedy"] == (
        "path: /mnt/other/ram" if elsewhere else "leave path out, for a memfd"
    )
    assert judged(block, on=host(mounts=(DISK, SHM, mount, huge_mount()))).verdict == "ok"


def test_places_of_shared_memory_on_a_recorded_host(judged: Judging) -> None:
    assert judged(shared(path="/dev/shm/vram")).verdict == "ok"
    reason = only(Code.PATH_FILESYSTEM, judged(shared(path="/var/vram")))
    assert "lies on ext4 (/)" in reason["message"] and reason["remedy"] == "path: /dev/shm/vram"
    full = host(mounts=(DISK, SHM.model_copy(update={"free": 64 * KIB})))
    reason = only(Code.PATH_FULL, judged(shared(path="/dev/shm/vram"), on=full))
    assert reason["remedy"] == f"mount -o remount,size={GIB + 192 * KIB} /dev/shm"


# ---- features and proofs ----


def test_userfaultfd_that_can_not_be_opened(judged: Judging) -> None:
    way = Way(how="syscall", works=False, why="EPERM by seccomp", remedy="docker run --x")
    reason = only(Code.USERFAULTFD, judged(ram(), shared(), on=host(how=None, ways=(way,))))
    assert "(syscall: EPERM by seccomp)" in reason["message"]
    assert reason["remedy"] == "docker run --x"


def test_user_mode_only_is_degraded(judged: Judging) -> None:
    report = judged(ram(), on=host(how="user_mode_only"))
    assert only(Code.USER_MODE_ONLY, report)["verdict"] == report.verdict == "degraded"


def test_features_that_are_refused_are_not_there(judged: Judging) -> None:
    userfault = Userfault(how="syscall", ways=(), features=FEATURES, refused=("MISSING_SHMEM",))
    report = judged(ram(), shared(), on=host().model_copy(update={"userfault": userfault}))
    assert only(Code.FEATURE, report)["message"].startswith("userfaultfd of the destination, node7")
    assert [block.verdict for block in report.blocks] == ["ok", "incompatible"]


@pytest.mark.parametrize(("works", "code"), [(False, Code.PROOF), (None, Code.UNPROVEN)])
def test_proofs_of_a_recorded_host_count(judged: Judging, works: bool | None, code: Code) -> None:
    proof = Proof(
        backing="shared", page_size=4096, fault="missing", works=works, why="EINVAL", remedy="do x"
    )
    report = judged(ram(), shared(), on=host(proofs=(proof,)))
    reason = only(code, report)
    assert "EINVAL" in reason["message"] and reason["remedy"] == "do x"
    assert report.verdict == ("unknown" if works is None else "incompatible")
    for other in ({"thp": True}, {"fault": "minor"}, {"page_size": 64 * KIB}, {"works": True}):
        on = host(proofs=(proof.model_copy(update=other),))
        assert judged(ram(), shared(), on=on).verdict == "ok"


def test_write_protection_at_the_source_is_what_tracking_needs(judged: Judging) -> None:
    proof = Proof(
        backing="anonymous", page_size=4096, fault="write_protect", works=False, why="ENOTTY"
    )
    migration = {"flip_at": "50%", "precopy": {"dirty_tracking": "kernel"}}
    report = judged(ram(), source=host(proofs=(proof,)), migration=migration)
    assert "ENOTTY" in only(Code.DIRTY_TRACKING, report)["message"]
    assert (
        judged(ram(), on=host(proofs=(proof,)), source=host(), migration=migration).verdict == "ok"
    )


# ---- locked memory ----


def test_limits_on_locked_memory_of_a_recorded_host(judged: Judging) -> None:
    lock = {"memory": {"lock": True}}
    report = judged(ram(), huge(), on=host(limits=limits(64 * KIB, 128 * KIB)), **lock)
    reason = the(Code.MEMLOCK, report)
    assert "256KiB: 64KiB is what the process may lock on the destination" in reason["message"]
    assert reason["remedy"] == "sudo prlimit --pid $$ --memlock=262144"
    reason = the(Code.MEMLOCK, judged(ram(), on=host(limits=limits(64 * KIB)), **lock))
    assert reason["remedy"] == "ulimit -S -l 256"
    assert judged(ram(), on=host(limits=limits(256 * KIB)), **lock).verdict == "ok"


# ---- what the configuration finds ----


def test_what_is_no_scenario_is_refused_whatever_else_does_not_fit(
    judged: Judging, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        judged(ram("5000"), unknown=1)
    assert [problem.code for problem in caught.value.problems] == ["misaligned", ""]
    (tmp_path / "list.yaml").write_text(json.dumps([1]))
    with pytest.raises(ConfigError):
        judge(tmp_path / "list.yaml", source=host(), destination=host())


def test_the_rest_is_judged_beside_what_does_not_fit(judged: Judging) -> None:
    report = judged(ram("5000"), huge(name="h"), on=host(pools=(pool(total=0),)))
    assert {Code.MISALIGNED, Code.POOL_SMALL} <= codes(report)


@pytest.mark.parametrize(
    ("size", "sections", "remedy"),
    [
        ("1MiB", {"limits": {"stall": "1s"}}, "limits: {stall: 2s}"),
        ("1MiB", {"source": {"startup_timeout": "1ms"}}, "source: {startup_timeout: 2s}"),
        ("8176MiB", {}, "source: {startup_timeout: 34s}"),
    ],
)
def test_short_limits_in_time_are_unknown(
    tmp_path: Path, size: str, sections: dict[str, Any], remedy: str
) -> None:
    there = host(memory=memory(64 * GIB))

    def judged(sections: dict[str, Any]) -> ScenarioReport:
        path = scenario(tmp_path, ram(size), **sections)
        return judge(path, source=there, destination=there)

    found = only(Code.TIME_LIMIT, judged(sections))
    assert (found["verdict"], found["remedy"]) == ("unknown", remedy)
    longer = {"limits": {"stall": "2s"}, "source": {"startup_timeout": "34s"}}
    assert judged(longer).verdict == "ok"


def test_traces_are_not_laid_on_what_no_memory_holds(judged: Judging) -> None:
    only(Code.MEMORY_NEVER, judged(ram("40TiB"), migration={"flip_at": 40}))


def test_a_trace_may_be_too_large_for_who_only_checks(
    judged: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("vmemu.plan.make_workload", fails)
    assert only(Code.TRACE, judged(ram(), migration={"flip_at": 40}))["verdict"] == "unknown"


def test_the_worst_reason_comes_first(judged: Judging) -> None:
    migration = {"postcopy": {"preempt": False}}
    report = judged(huge(), on=host(pools=(pool(total=0),)), migration=migration)
    assert [r.verdict for r in report.blocks[0].reasons] == ["incompatible", "degraded"]


# ---- documentation ----


def test_every_code_has_its_row_and_no_other_has_one() -> None:
    page = (Path(__file__).parents[2] / "docs/check.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \|.*\|.*\|.*\|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(Code)
