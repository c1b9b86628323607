"""The rules of `vmemu check` on made-up hosts: the same for this host and recorded ones, and
nothing of the host that checks gets in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from checking import Judging, codes, guest, huge, only, ram, reasons, scenario, shared, the
from recorded_hosts import DISK, FEATURES, GIB, KIB, MIB, SHM, host, limits, memory, pool

from vmemu import privilege
from vmemu.check.codes import Code
from vmemu.check.judge import judge
from vmemu.errors import ConfigError
from vmemu.host.document import (
    Collapsing,
    Kernel,
    Mount,
    Proof,
    Thp,
    Userfault,
    Way,
)
from vmemu.needed import OF_BACKING, OF_EVERY_BLOCK
from vmemu.ramblock import Backing
from vmemu.userfault import Feature

pytestmark = pytest.mark.usefixtures("somewhere_else")


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


def test_machines_of_both_ends_agree(judged: Judging) -> None:
    arm = Kernel(release="6.18", machine="aarch64", base_page_size=4096)
    report = judged(ram(), shared(), source=host(kernel=arm, hostname="arm1"))
    reason = only(Code.MACHINE, report)
    assert "the source arm1 is aarch64 and the destination node7 is x86_64" in reason["message"]
    assert report.verdict == reason["verdict"] == "incompatible"
    assert reason["remedy"] == "use two hosts of one machine"


def test_another_machine_with_other_pages_is_told_both(judged: Judging) -> None:
    arm = Kernel(release="6.18", machine="aarch64", base_page_size=64 * KIB)
    report = judged(ram(), source=host(kernel=arm))
    assert codes(report) == {Code.MACHINE, Code.BASE_PAGE_DIFFERS}


def test_a_host_of_no_name_is_called_by_its_role(judged: Judging) -> None:
    report = judged(huge(path="/srv/x"), source=host(), on=host(hostname=""))
    assert "on the destination, not on hugetlbfs" in only(Code.PATH_FILESYSTEM, report)["message"]
    report = judged(huge(path="/srv/x"), source=host())
    assert "on the destination node7, not on" in only(Code.PATH_FILESYSTEM, report)["message"]


def test_base_pages_of_both_ends_agree(judged: Judging) -> None:
    reason = only(Code.BASE_PAGE_DIFFERS, judged(ram(), source=host(base=64 * KIB)))
    assert "64KiB" in reason["message"] and "4KiB" in reason["message"]


def test_hugepages_that_nobody_names_agree_on_both_ends(judged: Judging) -> None:
    theirs = host(pools=(pool(64 * KIB), pool(2 * MIB)))
    reason = only(Code.PAGE_SIZE_DIFFERS, judged(huge(), source=theirs))
    assert "64KiB on the source node7 and 2MiB on the destination" in reason["message"]
    assert reason["remedy"] == "page_size: 2MiB"
    assert judged(huge(page_size="2MiB"), source=theirs).verdict == "ok"


def test_remedies_of_a_block_do_not_contradict_each_other(judged: Judging) -> None:
    report = judged(huge("34MiB", page_size="16MiB"))
    assert codes(report) == {Code.MISALIGNED, Code.PAGE_SIZE_ABSENT}
    assert {reason["remedy"] for reason in reasons(report)} == {"page_size: 2MiB"}
    theirs = host(pools=(pool(64 * KIB), pool(2 * MIB)))
    report = judged(huge("66MiB"), source=host(), on=host(pools=(pool(4 * MIB), pool(2 * MIB))))
    assert report.verdict == "ok"
    # Each end has what the other has not: neither is a remedy.
    ends = {"source": host(pools=(pool(2 * MIB),)), "on": host(pools=(pool(512 * MIB),))}
    report = judged(huge("1GiB", page_size="1GiB"), **ends)
    remedies = {
        the(Code.PAGE_SIZE_ABSENT, report)["remedy"],
        the(Code.GIGANTIC_PAGES, report)["remedy"],
    }
    assert remedies == {
        "use 'backing: anonymous' or 'backing: shared', without page_size",
        "",
    }
    reason = the(Code.PAGE_SIZE_DIFFERS, judged(huge("1GiB"), **ends))
    assert reason["remedy"].startswith("use 'backing: anonymous'")
    report = judged(huge("1GiB", page_size="1GiB"), on=host(pools=(pool(GIB), pool(512 * MIB))))
    assert the(Code.GIGANTIC_PAGES, report)["remedy"] == "page_size: 512MiB"
    assert the(Code.PAGE_SIZE_DIFFERS, judged(huge(), source=theirs))["remedy"] == "page_size: 2MiB"


def test_a_scenario_from_a_pipe_is_read_once_for_both_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, scenario(tmp_path, huge()).read_bytes())
    os.close(writing)
    theirs = host(pools=(pool(64 * KIB), pool(2 * MIB)))
    try:
        report = judge(f"/dev/fd/{reading}", source=theirs, destination=host())
    finally:
        os.close(reading)
    only(Code.PAGE_SIZE_DIFFERS, report)


def test_hugepages_that_the_source_has_not(judged: Judging) -> None:
    with_both = host(pools=(pool(), pool(GIB, 1)))
    report = judged(huge("1GiB", page_size="1GiB"), on=with_both, source=host())
    reason = the(Code.PAGE_SIZE_ABSENT, report)
    assert "the source node7 has no hugepages of 1GiB (it has: 2MiB)" in reason["message"]
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
    """The source's image lies in the same memory as the pages."""
    on = host(pools=(pool(total=0),), memory=memory(available=64 * MIB, room=64 * MIB))
    report = judged(huge("64MiB"), on=on)
    reason = the(Code.POOL_SMALL, report)
    assert reason["message"].endswith(
        "it lacks 64MiB, the run takes 80MiB of other memory, and 64MiB of memory are free"
    )
    assert reason["remedy"] == (
        "use a size of at most 24MiB, or free memory, then: sysctl vm.nr_hugepages=32"
    )
    assert only(Code.POOL_SMALL, judged(huge("24MiB"), on=on))["remedy"].startswith("sysctl ")
    assert "26MiB" in the(Code.POOL_SMALL, judged(huge("26MiB"), on=on))["message"]


def test_a_pool_and_its_image_that_no_memory_holds_will_never_be(judged: Judging) -> None:
    on = host(pools=(pool(total=0),), memory=memory(GIB))
    reason = the(Code.POOL_NEVER, judged(huge("600MiB"), on=on))
    assert "the run takes 616MiB of other memory with them, and there are 1GiB" in reason["message"]
    assert reason["remedy"] == "use a size of at most 504MiB"
    assert "sysctl" not in reason["remedy"]
    # The source has the image where the hosts are two.
    there = only(Code.POOL_SMALL, judged(huge("600MiB"), on=on, source=host()))
    assert there["remedy"] == "sysctl vm.nr_hugepages=300"
    zeros = judged(huge("600MiB", content={"zero_share": 1.0}), on=on)
    assert the(Code.POOL_SMALL, zeros)["remedy"] == "sysctl vm.nr_hugepages=300"


def test_pools_of_two_sizes_grow_in_the_same_memory(judged: Judging) -> None:
    on = host(pools=(pool(total=0), pool(GIB, 0)), memory=memory(16 * GIB, available=2 * GIB))
    blocks = [huge("1GiB", page_size="1GiB"), huge("512MiB", name="small", page_size="2MiB")]
    report = judged(*blocks, on=on, source=host())
    assert the(Code.POOL_SMALL, report)["remedy"].startswith("echo 1 > ")
    report = judged(huge("1GiB", page_size="1GiB", name="b"), huge("2GiB", page_size="2MiB"), on=on)
    assert "then: sysctl" in report.blocks[1].reasons[0].remedy


def test_pages_that_others_hold_are_only_waited_for_where_no_memory_is_free(
    judged: Judging,
) -> None:
    on = host(pools=(pool(free=0),), memory=memory(available=8 * MIB))
    assert only(Code.POOL_TAKEN, judged(huge(), on=on))["remedy"].startswith("wait until others")


def test_the_pool_of_another_size_is_resized_in_sysfs(judged: Judging) -> None:
    on = host(pools=(pool(), pool(GIB, 0)))
    report = judged(huge("1GiB", page_size="1GiB"), on=on)
    assert the(Code.POOL_SMALL, report)["remedy"] == (
        "echo 1 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
    )


def test_control_groups_may_grant_fewer_hugepages(judged: Judging) -> None:
    on = host(pools=(pool(cgroup_room=2 * MIB),))
    reason = only(Code.POOL_LIMITED, judged(huge("4MiB"), on=on))
    assert reason["message"].startswith("block huge takes 4MiB of 2MiB hugepages, and control ")
    assert "grant 2MiB" in reason["message"]
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


def test_a_directory_on_a_recorded_host_is_told_without_the_places_of_this_one(
    judged: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmemu.blockplace.in_another_place", lambda *_: pytest.fail("of this one"))
    reason = only(Code.PATH_DIRECTORY, judged(shared(path="/dev/shm")))
    assert reason["remedy"] == "path: /dev/shm/vram"
    on = host(mounts=(DISK, SHM, huge_mount(type="tmpfs")))
    reason = only(Code.PATH_DIRECTORY, judged(huge(path="/mnt/huge"), on=on))
    assert reason["message"].endswith(", and a block needs a file")
    assert reason["remedy"] == "leave path out, for a memfd"


@pytest.mark.parametrize("first", [True, False])
def test_nobody_knows_who_types_a_command_on_a_recorded_host(
    judged: Judging, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    monkeypatch.setattr(privilege, "is_root", lambda: False)
    monkeypatch.setattr(privilege, "of_the_machine", lambda: first)
    full = SHM.model_copy(update={"free": 64 * KIB})
    on = host(mounts=(DISK, full), limits=limits(64 * KIB, 128 * KIB), pools=(pool(total=0),))
    blocks = (ram(), shared(path="/dev/shm/vram"), huge())
    remedies = {
        reason["remedy"].partition(" ")[0]
        for reason in reasons(judged(*blocks, on=on, memory={"lock": True}))
        if reason["remedy"]
    }
    assert remedies == {"mount", "prlimit", "sysctl"}


# ---- features and proofs ----


def test_userfaultfd_that_can_not_be_opened(judged: Judging) -> None:
    way = Way(how="syscall", works=False, why="EPERM by seccomp", remedy="docker run --x")
    reason = only(Code.USERFAULTFD, judged(ram(), shared(), on=host(how=None, ways=(way,))))
    assert "on the destination node7: syscall: EPERM by seccomp" in reason["message"]
    assert reason["remedy"] == "docker run --x"


def test_user_mode_only_is_degraded(judged: Judging) -> None:
    report = judged(ram(), on=host(how="user_mode_only"))
    assert only(Code.USER_MODE_ONLY, report)["verdict"] == report.verdict == "degraded"


def test_features_that_are_refused_are_not_there(judged: Judging) -> None:
    userfault = Userfault(how="syscall", ways=(), features=FEATURES, refused=("MISSING_SHMEM",))
    report = judged(ram(), shared(), on=host().model_copy(update={"userfault": userfault}))
    assert only(Code.FEATURE, report)["message"].startswith(
        "userfaultfd of the destination node7 lacks"
    )
    assert [block.verdict for block in report.blocks] == ["ok", "incompatible"]


@pytest.mark.parametrize(
    ("backing", "feature"), [(b, f) for b, needed in OF_BACKING.items() for f in needed]
)
def test_each_feature_that_a_run_needs_is_judged(
    judged: Judging, backing: Backing, feature: Feature
) -> None:
    there = tuple(name for name in FEATURES if name != feature.name)
    userfault = Userfault(how="syscall", ways=(), features=there, refused=())
    blocks = ram(), shared(), huge()
    report = judged(*blocks, on=host().model_copy(update={"userfault": userfault}))
    words = f"{feature.name}, which {backing.value} memory needs"
    assert words in the(Code.FEATURE, report.document())["message"]


def test_shared_memory_that_can_not_be_the_image_is_copied(judged: Judging) -> None:
    channel = {"kind": "shm"}
    report = judged(ram(), shared(), on=host(), channel=channel)
    assert only(Code.FEATURE, report)["message"] == (
        "userfaultfd of the destination node7 lacks UFFD_FEATURE_MINOR_SHMEM: channel shm copies"
        " the pages of this block"
    )
    assert [block.verdict for block in report.blocks] == ["ok", "degraded"]
    able = host(features=(*FEATURES, "MINOR_SHMEM"))
    assert judged(ram(), shared(), on=able, channel=channel).verdict == "ok"
    assert judged(ram(), on=host(), channel=channel).verdict == "ok"


@pytest.mark.parametrize("feature", OF_EVERY_BLOCK)
def test_what_every_block_needs_is_of_the_whole(judged: Judging, feature: Feature) -> None:
    there = tuple(name for name in FEATURES if name != feature.name)
    userfault = Userfault(how="syscall", ways=(), features=there, refused=())
    report = judged(ram(), on=host().model_copy(update={"userfault": userfault}))
    assert [reason.code for reason in report.reasons] == [Code.FEATURE]


def test_delivery_by_the_vcpu_needs_the_signal(judged: Judging) -> None:
    without = Userfault(how="syscall", ways=(), features=FEATURES, refused=())
    there = without.model_copy(update={"features": (*FEATURES, "SIGBUS")})
    sigbus = {"postcopy": {"delivery": "sigbus"}}
    on = host().model_copy(update={"userfault": without})
    found = only(Code.FEATURE, judged(ram(), on=on, migration=sigbus))
    assert found["message"].endswith("UFFD_FEATURE_SIGBUS, which 'delivery: sigbus' needs")
    assert found["remedy"] == "migration: {postcopy: {delivery: thread}}"
    assert judged(ram(), on=on).verdict == "ok"
    on = host().model_copy(update={"userfault": there})
    assert judged(ram(), on=on, migration=sigbus).verdict == "ok"


@pytest.mark.parametrize(("works", "code"), [(False, Code.PROOF), (None, Code.UNPROVEN)])
def test_proofs_of_a_recorded_host_count(judged: Judging, works: bool | None, code: Code) -> None:
    proof = Proof(
        backing="shared", page_size=4096, fault="missing", works=works, why="EINVAL", remedy="do x"
    )
    report = judged(ram(), shared(), on=host(proofs=(*host().proofs, proof)))
    reason = only(code, report)
    assert "EINVAL" in reason["message"] and reason["remedy"] == "do x"
    assert report.verdict == ("unknown" if works is None else "incompatible")
    for other in ({"thp": True}, {"fault": "minor"}, {"page_size": 64 * KIB}, {"works": True}):
        on = host(proofs=(*host().proofs, proof.model_copy(update=other)))
        assert judged(ram(), shared(), on=on).verdict == "ok"


def test_write_protection_at_the_source_is_what_tracking_needs(judged: Judging) -> None:
    proof = Proof(
        backing="anonymous", page_size=4096, fault="write_protect", works=False, why="ENOTTY"
    )
    migration = {"flip_at": "50%", "precopy": {"dirty_tracking": "kernel"}}
    report = judged(ram(), source=host(proofs=(proof,)), migration=migration)
    assert "ENOTTY" in only(Code.DIRTY_TRACKING, report)["message"]
    without = host(proofs=tuple(p for p in host().proofs if p.fault == "missing"))
    assert judged(ram(), on=without, source=host(), migration=migration).verdict == "ok"


@pytest.mark.parametrize("tried", [False, True])
def test_tracking_that_nobody_has_tried_is_unknown_where_there_is_nothing_else(
    judged: Judging, tried: bool
) -> None:
    failed = Proof(
        backing="anonymous", page_size=4096, fault="write_protect", works=None, why="no memory"
    )
    source = host(proofs=(failed,) if tried else ())
    for tracking, verdict in (("kernel", "unknown"), ("auto", "ok"), ("replay", "ok")):
        migration = {"flip_at": "50%", "precopy": {"dirty_tracking": tracking}}
        report = judged(ram(), source=source, migration=migration)
        assert report.verdict == verdict
        if tracking == "kernel":
            reason = only(Code.UNPROVEN, report)
            assert ("no memory" if tried else "its document has no proof") in reason["message"]
            assert reason["remedy"] == "migration: {precopy: {dirty_tracking: auto}}"


def test_blocks_that_stay_in_small_pages_are_degraded(judged: Judging) -> None:
    small, huge_pages = (
        ram("4MiB", collapse="on_complete"),
        Thp(enabled="madvise", shmem_enabled="never", page_size=2 * MIB),
    )
    failed = Proof(
        backing="anonymous",
        page_size=2 * MIB,
        thp=True,
        fault="write_protect",
        works=False,
        why="MADV_COLLAPSE: Invalid argument",
    )
    for parts, said in (
        ({}, "no transparent hugepages"),
        ({"thp": huge_pages.model_copy(update={"page_size": 512 * MIB})}, "512MiB, not 2MiB"),
        ({"thp": huge_pages, "proofs": (*host().proofs, failed)}, "Invalid argument"),
    ):
        reason = only(Code.COLLAPSE, judged(small, on=host(**parts)))
        assert said in reason["message"]
        assert (reason["verdict"], reason["remedy"]) == ("degraded", "collapse: never")
    assert judged(small, on=host(thp=huge_pages)).verdict == "ok"
    of_shared = (*host().proofs, failed.model_copy(update={"backing": "shared"}))
    assert judged(small, on=host(thp=huge_pages, proofs=of_shared)).verdict == "ok"
    assert judged(ram("4MiB"), on=host()).verdict == "ok"
    # What was tried there says more than the settings and other proofs.
    holes = Collapsing(backing="anonymous", works=False, why="this kernel fills pages")
    tried = judged(small, on=host(thp=huge_pages, collapse=(holes,)))
    assert "this kernel fills pages" in only(Code.COLLAPSE, tried)["message"]


def test_what_a_document_has_no_proof_of_is_unknown(judged: Judging) -> None:
    report = judged(ram(), huge(), shared(), on=host(proofs=()))
    assert codes(report) == {Code.UNPROVEN, Code.MIXED_PAGE_SIZES}
    assert [block.verdict for block in report.blocks] == ["unknown"] * 3
    assert the(Code.UNPROVEN, report)["remedy"] == "vmemu doctor --json FILE"


# ---- locked memory ----


def test_limits_on_locked_memory_of_a_recorded_host(judged: Judging) -> None:
    lock = {"memory": {"lock": True}}
    report = judged(ram(), huge(), on=host(limits=limits(64 * KIB, 128 * KIB)), **lock)
    reason = the(Code.MEMLOCK, report)
    assert "256KiB: 64KiB is what the process may lock on the destination" in reason["message"]
    assert reason["remedy"] == "prlimit --pid $$ --memlock=262144"
    fixed = limits(64 * KIB, 128 * KIB).model_copy(update={"raisable": False})
    reason = the(Code.MEMLOCK, judged(ram(), on=host(limits=fixed), **lock))
    assert "not even root may raise it here" in reason["message"] and reason["remedy"] == ""
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


def test_traces_are_not_laid_on_what_no_memory_holds(judged: Judging) -> None:
    only(Code.MEMORY_NEVER, judged(ram("40TiB"), migration={"flip_at": 40}))


def test_a_trace_may_be_too_large_for_who_only_checks(
    judged: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("vmemu.plan.make_workload", fails)
    assert only(Code.TRACE, judged(ram(), migration={"flip_at": 40}))["verdict"] == "unknown"


def test_names_that_are_no_plain_words_are_quoted(judged: Judging) -> None:
    on = host(pools=(pool(total=0),))
    blocks = [huge(name=name) for name in ("a b", "$(x)", "pc.ram")]
    message = the(Code.POOL_SMALL, judged(*blocks, on=on))["message"]
    assert message.startswith("blocks 'a b', '$(x)', pc.ram need 6 hugepages")


def test_the_worst_reason_comes_first(judged: Judging) -> None:
    migration = {"postcopy": {"preempt": False}}
    report = judged(huge(), on=host(pools=(pool(total=0),)), migration=migration)
    assert [r.verdict for r in report.blocks[0].reasons] == ["incompatible", "degraded"]


# ---- documentation ----


def test_every_code_has_its_row_and_no_other_has_one() -> None:
    page = (Path(__file__).parents[3] / "docs/check.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \|.*\|.*\|.*\|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(Code)
