"""Proofs that need no fault: which kinds there are, and those that this host can't try."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any, Self

import pytest
from support import HUGE, Footprint, anonymous, shared

from vmemu import core, hugepages, reservation, thp_memory
from vmemu.doctor import proofs
from vmemu.doctor.proofs import Kind, every_kind, prove
from vmemu.errors import Advice, CoreError, HostError, HugepageShortage
from vmemu.ramblock import BASE_PAGE, RAMBlock
from vmemu.userfault import Feature

GIB = 1 << 30
ALL = Feature(sum(Feature))
FAULTS = ("missing", "minor", "write_protect")


class FakeUffd:
    """A userfaultfd that opens everywhere and has some features; it serves nothing."""

    fd = -1

    def __init__(self, features: Feature = ALL) -> None:
        self.features = features

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host with hugepages of 2 MiB and 1 GiB, and transparent ones of 2 MiB."""
    monkeypatch.setattr(hugepages, "page_sizes", lambda: [HUGE, GIB])
    monkeypatch.setattr(thp_memory, "SYSFS", tmp_path)
    (tmp_path / "hpage_pmd_size").write_text(f"{HUGE}\n")


def opened_with(monkeypatch: pytest.MonkeyPatch, features: Feature) -> None:
    monkeypatch.setattr(proofs, "Userfaultfd", lambda _wanted: FakeUffd(features))


def refusing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_wanted: Feature) -> FakeUffd:
        raise error

    monkeypatch.setattr(proofs, "Userfaultfd", fail)


# ---- which kinds there are ----


def test_every_memory_is_tried_with_every_fault():
    memories = [
        ("anonymous", BASE_PAGE, False),
        ("anonymous", HUGE, True),
        ("shared", BASE_PAGE, False),
        ("shared", HUGE, True),
        ("hugetlbfs", HUGE, False),
        ("hugetlbfs", GIB, False),
    ]
    assert [(k.backing, k.page_size, k.thp, k.fault) for k in every_kind()] == [
        (*memory, fault) for memory in memories for fault in FAULTS
    ]


def test_a_kernel_without_hugepages_has_the_other_kinds(monkeypatch, tmp_path):
    monkeypatch.setattr(hugepages, "page_sizes", list)
    monkeypatch.setattr(thp_memory, "SYSFS", tmp_path / "none")
    kinds = every_kind()
    assert {kind.backing for kind in kinds} == {"anonymous", "shared"}
    assert thp_memory.thp_size() == BASE_PAGE * BASE_PAGE // 8
    opened_with(monkeypatch, Feature(0))
    thp = [kind for kind in kinds if kind.thp and (kind.backing, kind.fault) != NO_SUCH_FAULT]
    for proof in prove(thp):
        assert (proof.works, proof.why) == (False, "this kernel has no transparent hugepages")


NO_SUCH_FAULT = ("anonymous", "minor")


# ---- what no kernel has, and what this one has not ----


def test_anonymous_memory_has_no_minor_faults_anywhere(monkeypatch):
    refusing(monkeypatch, HostError("userfaultfd can't be opened here", "a command"))
    kinds = [k for k in every_kind() if (k.backing, k.fault) == NO_SUCH_FAULT]
    assert len(kinds) == 2
    for proof in prove(kinds):
        assert proof.works is False
        assert "page cache" in proof.why
        assert (proof.faults, proof.fault_ns, proof.remedy) == (0, None, "")


@pytest.mark.parametrize("error", [HostError("no userfaultfd", "a command"), None])
def test_without_userfaultfd_nothing_is_known_of_the_others(monkeypatch, error):
    refusing(monkeypatch, error or CoreError("UFFDIO_API", errno.EPERM))
    kinds = [k for k in every_kind() if (k.backing, k.fault) != NO_SUCH_FAULT]
    found = prove(kinds)
    assert [(p.backing, p.page_size, p.thp, p.fault) for p in found] == [
        (k.backing, k.page_size, k.thp, k.fault) for k in kinds
    ]
    assert {(p.works, p.why, p.remedy) for p in found} == {
        (None, "no userfaultfd", "a command")
        if error
        else (None, f"UFFDIO_API: {os.strerror(errno.EPERM)} (errno 1)", "")
    }


@pytest.mark.parametrize(
    ("feature", "lost"),
    [
        (Feature.MISSING_SHMEM, [("shared", "missing")]),
        (Feature.MISSING_HUGETLBFS, [("hugetlbfs", "missing")]),
        (Feature.MINOR_SHMEM, [("shared", "minor")]),
        (Feature.MINOR_HUGETLBFS, [("hugetlbfs", "minor")]),
        (
            Feature.PAGEFAULT_FLAG_WP,
            [(b, "write_protect") for b in ("anonymous", "shared", "hugetlbfs")],
        ),
        (Feature.WP_HUGETLBFS_SHMEM, [("shared", "write_protect"), ("hugetlbfs", "write_protect")]),
    ],
)
def test_a_feature_that_the_kernel_lacks_is_named(monkeypatch, feature, lost):
    opened_with(monkeypatch, ALL & ~feature)
    kinds = [k for k in every_kind() if feature in k.features]
    assert sorted({(k.backing, k.fault) for k in kinds}) == sorted(lost)
    for proof in prove(kinds):
        assert proof.works is False
        assert proof.why == f"this kernel lacks UFFD_FEATURE_{feature.name}"


def test_all_features_that_it_lacks_are_named(monkeypatch):
    opened_with(monkeypatch, Feature(0))
    (proof,) = prove([Kind("shared", BASE_PAGE, "write_protect")])
    assert proof.why == (
        "this kernel lacks UFFD_FEATURE_PAGEFAULT_FLAG_WP and UFFD_FEATURE_WP_HUGETLBFS_SHMEM"
    )


def test_every_feature_is_asked_for_that_a_kind_needs(monkeypatch):
    asked: list[Feature] = []

    def opened(wanted: Feature) -> FakeUffd:
        asked.append(wanted)
        return FakeUffd(Feature(0))

    monkeypatch.setattr(proofs, "Userfaultfd", opened)
    kinds = [kind for kind in every_kind() if kind.features]
    prove(kinds)
    assert len(asked) == 1
    assert all(feature in asked[0] for kind in kinds for feature in kind.features)
    # Those change what a fault is: the kernel answers it itself, or kills.
    assert not asked[0] & (Feature.WP_ASYNC | Feature.SIGBUS)


def test_a_size_of_another_host_does_not_work_here(monkeypatch):
    opened_with(monkeypatch, ALL)
    (proof,) = prove([Kind("hugetlbfs", 16 << 20, "missing")])
    assert (proof.works, proof.why) == (False, "this host has no hugepages of 16MiB")


def test_a_process_that_locks_new_memory_proves_nothing(monkeypatch):
    opened_with(monkeypatch, ALL)
    monkeypatch.setattr(proofs, "locks_new_memory", lambda: True)
    (proof,) = prove([Kind("anonymous", BASE_PAGE, "missing")])
    assert proof.works is None
    assert "mlockall with MCL_FUTURE" in proof.why


# ---- pools ----


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A host whose pool gives nothing; the sizes in pages that were asked for."""
    asked: list[int] = []
    monkeypatch.setattr(hugepages, "pool", lambda size: hugepages.Pool(size, 5, 2, 0, 0))

    def refuse(self: Any) -> None:
        asked.append(self.pages)
        raise HugepageShortage("too few", "a command")

    monkeypatch.setattr(proofs.RAMBlock, "map", refuse)
    return asked


def test_no_more_hugepages_are_asked_for_than_are_free_and_fewer_each_time(monkeypatch, short):
    opened_with(monkeypatch, ALL)
    (proof,) = prove([Kind("hugetlbfs", HUGE, "missing")])
    assert short == [2, 1]
    assert (proof.works, proof.why) == (None, "no free hugepage of 2MiB")
    assert proof.remedy == "a command"


def test_advice_is_no_command_of_a_proof(monkeypatch, short):
    def refuse(self: Any) -> None:
        raise HugepageShortage("too few", Advice("use smaller blocks"))

    monkeypatch.setattr(proofs.RAMBlock, "map", refuse)
    opened_with(monkeypatch, ALL)
    (proof,) = prove([Kind("hugetlbfs", HUGE, "missing")])
    assert proof.why == "no free hugepage of 2MiB; use smaller blocks"
    assert proof.remedy == ""


def test_a_caller_says_how_many_pages_at_most(monkeypatch, short):
    opened_with(monkeypatch, ALL)
    prove([Kind("hugetlbfs", HUGE, "missing")], most_pages=1)
    assert short == [1]


# ---- what the core answers ----


class FailingCore:
    """The core, in which one function fails with that errno."""

    def __init__(self, real: Any, name: str, with_errno: int, outcome: int = 0) -> None:
        self._real, self._name = real, name
        self._errno, self._outcome = with_errno, outcome
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == self._name else getattr(self._real, name)

    def _fail(self, *arguments: Any) -> int:
        self.calls += 1
        if self._name == "vm_probe":
            arguments[0].outcome = self._outcome
        arguments[-1].operation, arguments[-1].errnum = b"the call", self._errno
        arguments[-1].address = 0x1000
        return -1


def failing(monkeypatch: pytest.MonkeyPatch, *how: Any) -> FailingCore:
    opened_with(monkeypatch, ALL)
    fake = FailingCore(core.lib, *how)
    monkeypatch.setattr(core, "lib", fake)
    return fake


@pytest.mark.parametrize(
    ("outcome", "error", "works", "why"),
    [
        (
            "VM_PROBE_REFUSED",
            errno.EINVAL,
            False,
            "this kernel refuses to register it for write-protect faults",
        ),
        ("VM_PROBE_REFUSED", errno.EPERM, False, "the call: Operation not permitted (errno 1)"),
        ("VM_PROBE_FAILED", errno.ENOMEM, None, "the call: Cannot allocate memory (errno 12)"),
        ("VM_PROBE_WRONG_DATA", 0, False, "the call: failed"),
        ("VM_PROBE_OTHER_FAULT", 0, False, "the call: failed"),
    ],
)
def test_what_went_wrong_is_told(monkeypatch, outcome, error, works, why):
    before = Footprint.now()
    fake = failing(monkeypatch, "vm_probe", error, getattr(core.lib, outcome))
    (proof,) = prove([Kind("anonymous", BASE_PAGE, "write_protect")])
    assert (proof.works, proof.why) == (works, why)
    assert (proof.faults, proof.fault_ns, fake.calls) == (0, None, 1)
    assert before.left_by(Footprint.now()) == {}


def test_that_no_fault_came_is_believed_the_second_time(monkeypatch):
    fake = failing(monkeypatch, "vm_probe", 0, core.lib.VM_PROBE_SILENT)
    (proof,) = prove([Kind("anonymous", BASE_PAGE, "missing")])
    assert (proof.works, fake.calls) == (False, 2)


@pytest.mark.parametrize("error", [errno.EFAULT, errno.ENOMEM])
def test_a_hugepage_that_a_cgroup_withholds_says_nothing_about_the_kernel(monkeypatch, error):
    failing(monkeypatch, "vm_probe_populate", error)
    monkeypatch.setattr(hugepages, "pool", lambda size: hugepages.Pool(size, 5, 5, 0, 0))
    monkeypatch.setattr(proofs.RAMBlock, "map", lambda self: None)
    (proof,) = prove([Kind("hugetlbfs", HUGE, "write_protect")])
    assert proof.works is None
    assert "a cgroup's limit or a cpuset is against it" in proof.why


def test_memory_that_can_not_be_had_says_nothing_about_the_kernel(monkeypatch):
    failing(monkeypatch, "vm_map", errno.ENOMEM)
    (proof,) = prove([Kind("anonymous", BASE_PAGE, "missing")])
    assert proof.works is None
    assert "can't be mapped: Cannot allocate memory" in proof.why


# ---- transparent hugepages ----


@pytest.mark.parametrize(
    ("settings", "said", "remedy"),
    [
        ({"enabled": "always madvise [never]"}, "enabled is never", "echo madvise > {}/enabled"),
        ({"enabled": "always [madvise] never"}, "enabled is madvise", ""),
        (
            {
                "enabled": "[always] madvise never",
                "hugepages-2048kB/enabled": "always inherit madvise [never]",
            },
            "hugepages-2048kB/enabled is never",
            "echo madvise > {}/hugepages-2048kB/enabled",
        ),
        (
            {
                "enabled": "always madvise [never]",
                "hugepages-2048kB/enabled": "always [inherit] madvise never",
            },
            "enabled is never",
            "echo madvise > {}/enabled",
        ),
        ({}, "enabled is not known", ""),
    ],
)
def test_a_setting_that_keeps_hugepages_away_has_its_remedy(
    monkeypatch, tmp_path, settings, said, remedy
):
    for name, words in settings.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(words + "\n")
    error = refused_huge(monkeypatch, anonymous(pages=HUGE // BASE_PAGE))
    assert "the kernel gave 0 of 1 transparent hugepage of 2MiB: " in error.what
    assert f"{tmp_path}/{said}, MADV_COLLAPSE: Invalid argument" in error.what
    assert error.remedy == remedy.format(tmp_path)


def refused_huge(
    monkeypatch: pytest.MonkeyPatch, block: RAMBlock, with_errno: int = errno.EINVAL
) -> HostError:
    """What is said of memory that the kernel makes no hugepages of."""
    monkeypatch.setattr(thp_memory, "huge_bytes", lambda _block: 0)
    monkeypatch.setattr(core, "lib", FailingCore(core.lib, "vm_advise", with_errno))
    block.map()
    try:
        with pytest.raises(HostError) as caught:
            thp_memory.make_huge(block)
    finally:
        block.unmap()
    return caught.value


def test_shared_memory_follows_a_setting_of_its_own(monkeypatch, tmp_path):
    (tmp_path / "shmem_enabled").write_text("always within_size advise never [deny] force\n")
    error = refused_huge(monkeypatch, shared(pages=HUGE // BASE_PAGE))
    assert "shmem_enabled is deny" in error.what
    assert error.remedy == f"echo advise > {tmp_path}/shmem_enabled"


def test_a_collapse_that_meets_somebody_is_tried_again(monkeypatch):
    error = refused_huge(monkeypatch, anonymous(pages=HUGE // BASE_PAGE), errno.EAGAIN)
    assert "MADV_COLLAPSE: Resource temporarily unavailable" in error.what
    assert core.lib.calls == 5


def test_memory_of_small_pages_is_not_taken_for_huge():
    block = anonymous(pages=2 * HUGE // BASE_PAGE)
    block.map()
    try:
        block.set_thp(False)
        block.write(0, bytes(block.size))
        assert thp_memory.huge_bytes(block) == 0
    finally:
        block.unmap()


def test_a_process_that_has_them_switched_off_says_so():
    """By prctl(2); the thread's own process goes back to what it was."""
    libc, set_thp_disable = ctypes.CDLL(None), 41
    block = anonymous(pages=HUGE // BASE_PAGE)
    block.map()
    libc.prctl(set_thp_disable, 1, 0, 0, 0)
    try:
        block.set_thp(True)
        core.call(core.lib.vm_probe_populate, block.address, block.size)
        with pytest.raises(HostError, match="switched off") as caught:
            thp_memory.make_huge(block)
        assert caught.value.remedy == ""
    finally:
        libc.prctl(set_thp_disable, 0, 0, 0, 0)
        block.unmap()


def test_hugepages_are_tried_in_a_moment_of_their_own(monkeypatch):
    """Else a run that may not wait would find pages taken that are back at once."""
    held = []

    def none_left(block: RAMBlock) -> None:
        held.append((block.page_size, reservation._held.sizes))
        raise HugepageShortage("none")

    opened_with(monkeypatch, ALL)
    monkeypatch.setattr(RAMBlock, "map", none_left)
    monkeypatch.setattr(proofs._Trial, "_at_most", lambda trial: 1)
    prove([Kind("hugetlbfs", HUGE, "missing"), Kind("anonymous", BASE_PAGE, "missing")])
    assert held == [(HUGE, {HUGE}), (BASE_PAGE, set())]
