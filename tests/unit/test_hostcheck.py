"""What the check of the host says when the kernel lacks something: userfaultfd is made up here."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from support import HUGE, Footprint, anonymous, huge, shared

from vmemu import core, hostcheck, hugepages
from vmemu.errors import CoreError, HostError, HugepageShortage
from vmemu.hostcheck import (
    Code,
    HostProblem,
    PostcopyUnsupported,
    postcopy_supported,
    require_postcopy,
)
from vmemu.needed import needed_features, needed_ioctls
from vmemu.ramblock import RAMBlock
from vmemu.userfault import Feature, Ioctl

API_IOCTLS = 1 << 0 | 1 << 1 | 1 << 0x3F
RANGE_IOCTLS = int(Ioctl.WAKE | Ioctl.COPY | Ioctl.ZEROPAGE)


class FakeKernel:
    """The C core with a userfaultfd of its own; ``errors`` has the errno of each call that fails.

    ``spoil`` is what a placed page begins with instead, ``mapped`` the addresses that are mapped.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        self.features = int(sum(Feature))
        self.api_ioctls = API_IOCTLS
        self.range_ioctls = RANGE_IOCTLS
        self.errors: dict[str, int] = {}
        self.spoil = b""
        self.copied = 0
        self.mapped: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        stand_in = getattr(self._real, name)
        if not callable(stand_in):
            return stand_in
        if f"_{name}" in vars(FakeKernel):
            stand_in = getattr(self, f"_{name}")

        def function(*arguments: Any) -> Any:
            if name not in self.errors:
                return stand_in(*arguments)
            arguments[-1].operation = {"vm_uffd_api": b"UFFDIO_API"}.get(name, name.encode())
            arguments[-1].errnum = self.errors[name]
            return -1

        return function

    def _vm_map(self, *arguments: Any) -> int:
        done: int = self._real.vm_map(*arguments)
        self.mapped.add(arguments[-2][0])
        return done

    def _vm_unmap(self, address: int, length: int, error: Any) -> int:
        self.mapped.discard(address)
        done: int = self._real.vm_unmap(address, length, error)
        return done

    def _vm_uffd_open(self, how: int, error: Any) -> int:
        return os.eventfd(0)

    def _vm_uffd_api(self, fd: int, features: Any, ioctls: Any, error: Any) -> int:
        features[0], ioctls[0] = self.features, self.api_ioctls
        return 0

    def _vm_uffd_register(self, *arguments: Any) -> int:
        arguments[-2][0] = self.range_ioctls
        return 0

    def _vm_uffd_copy(self, fd: int, to: int, data: Any, size: int, *rest: Any) -> int:
        self._real.vm_ram_write(to, data, size)
        self._real.vm_ram_write(to, self.spoil, len(self.spoil))
        return self.copied

    def _vm_uffd_unregister(self, *arguments: Any) -> int:
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel(core.lib)
    monkeypatch.setattr(core, "lib", fake)
    return fake


def problems_of(*blocks: RAMBlock) -> list[HostProblem]:
    """What the check finds; it must leave nothing behind."""
    before = Footprint.now()
    found = postcopy_supported(blocks)
    assert before.left_by(Footprint.now()) == {}
    assert core.lib.mapped == set()
    assert [block.address for block in blocks] == [0] * len(blocks)
    return found


def codes(*blocks: RAMBlock) -> list[Code]:
    return [problem.code for problem in problems_of(*blocks)]


def test_nothing_is_wrong_where_all_is_there(kernel):
    assert problems_of(anonymous("a"), anonymous("b"), shared()) == []
    require_postcopy([anonymous(), shared()])


def test_no_blocks_are_checked_too(kernel):
    assert problems_of() == []
    kernel.api_ioctls = 0
    assert codes() == [Code.API_IOCTLS]


def test_one_page_of_each_kind_is_mapped_however_many_blocks_there_are(kernel, monkeypatch):
    sizes = []
    real = RAMBlock.map
    monkeypatch.setattr(
        RAMBlock, "map", lambda b: sizes.append((b.backing.value, b.size)) or real(b)
    )
    assert problems_of(anonymous("a"), shared("s"), anonymous("b"), shared("t")) == []
    assert sizes == [("anonymous", 4096), ("shared", 4096)]


# ---- what the handshake says ----


@pytest.mark.parametrize(
    ("ioctls", "words"),
    [
        (API_IOCTLS & ~1, "no UFFDIO_REGISTER"),
        (API_IOCTLS & ~2, "no UFFDIO_UNREGISTER"),
        (0, "no UFFDIO_REGISTER and no UFFDIO_UNREGISTER"),
    ],
)
def test_an_answer_without_register_or_unregister_is_told(kernel, ioctls, words):
    kernel.api_ioctls = ioctls
    (problem,) = problems_of(anonymous())
    assert problem.code is Code.API_IOCTLS
    assert problem.what.endswith(words)


def test_a_kernel_without_shared_memory_faults_names_the_blocks_that_need_them(kernel):
    kernel.features &= ~int(Feature.MISSING_SHMEM)
    (problem,) = problems_of(anonymous(), shared("s"), shared("t"))
    assert (problem.code, problem.blocks) == (Code.FEATURE, ("s", "t"))
    assert "UFFD_FEATURE_MISSING_SHMEM, needed by blocks s, t" in problem.what
    assert problems_of(anonymous()) == []


def test_a_kernel_that_names_no_thread_is_told_once_for_all_blocks(kernel):
    kernel.features &= ~int(Feature.THREAD_ID)
    (problem,) = problems_of(anonymous(), shared())
    assert (problem.code, problem.blocks) == (Code.FEATURE, ())
    assert problem.what.endswith("lacks UFFD_FEATURE_THREAD_ID")


def test_a_kernel_without_the_signal_is_told_to_whom_it_matters(kernel):
    kernel.features &= ~int(Feature.SIGBUS)
    assert problems_of(anonymous()) == []
    (problem,) = postcopy_supported([anonymous()], delivery="sigbus")
    assert (problem.code, problem.blocks) == (Code.FEATURE, ())
    assert problem.what.endswith("lacks UFFD_FEATURE_SIGBUS")
    assert (problem.remedy, problem.key) == (
        "use 'delivery: thread'",
        "migration.postcopy.delivery",
    )


def test_each_feature_is_asked_for_by_those_who_need_it():
    blocks = [anonymous(), huge("h"), shared("s"), huge("i")]
    assert needed_features(blocks) == {
        Feature.THREAD_ID: (),
        Feature.MISSING_HUGETLBFS: ("h", "i"),
        Feature.MISSING_SHMEM: ("s",),
    }
    assert needed_features([anonymous()]) == {Feature.THREAD_ID: ()}
    by_itself = needed_features([anonymous()], "sigbus")
    assert by_itself == {Feature.THREAD_ID: (), Feature.SIGBUS: ()}
    assert needed_ioctls(huge()) == Ioctl.COPY | Ioctl.WAKE
    assert needed_ioctls(shared()) == Ioctl.COPY | Ioctl.WAKE | Ioctl.ZEROPAGE


def test_a_failed_handshake_is_told_and_the_pages_are_still_mapped(kernel, monkeypatch):
    kernel.errors["vm_uffd_api"] = errno.EINVAL
    bad = shared("bad", path="/dev/shm/no/such/directory/x")
    found = problems_of(anonymous(), bad)
    assert [problem.code for problem in found] == [Code.HANDSHAKE, Code.MAP]
    assert "UFFDIO_API" in found[0].what


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSYS, "no userfaultfd"), (errno.EPERM, "can't be opened")]
)
def test_a_userfaultfd_that_does_not_open_is_told(kernel, number, words):
    kernel.errors["vm_uffd_open"] = number
    (problem,) = problems_of(anonymous(), shared())
    assert problem.code is Code.OPEN
    assert words in problem.what
    assert ("sysctl" in problem.remedy) == (number == errno.EPERM)


def test_a_target_page_above_the_host_page_is_told(kernel):
    (problem,) = postcopy_supported([anonymous()], target_page_size=16384)
    assert problem.code is Code.TARGET_PAGE
    assert "16KiB" in problem.what and "4KiB" in problem.what
    assert postcopy_supported([anonymous()], target_page_size=1024) == []


# ---- what doing it says ----


@pytest.mark.parametrize(
    ("call", "number", "code"),
    [
        ("vm_map", errno.ENOMEM, Code.MAP),
        ("vm_uffd_register", errno.EINVAL, Code.REGISTER),
        ("vm_uffd_copy", errno.EFAULT, Code.PLACE),
        ("vm_uffd_unregister", errno.EINVAL, Code.UNREGISTER),
    ],
)
def test_each_step_that_fails_is_told_for_each_kind_of_memory(kernel, call, number, code):
    kernel.errors[call] = number
    found = problems_of(anonymous("a"), anonymous("b"), shared("s"))
    assert [(problem.code, problem.blocks) for problem in found] == [
        (code, ("a", "b")),
        (code, ("s",)),
    ]
    assert os.strerror(number) in found[0].what


@pytest.mark.parametrize("name", ["COPY", "WAKE", "ZEROPAGE"])
def test_memory_that_can_not_be_served_is_told(kernel, name):
    kernel.range_ioctls &= ~int(Ioctl[name])
    (problem,) = problems_of(shared("s"))
    assert (problem.code, problem.blocks) == (Code.RANGE_IOCTLS, ("s",))
    assert problem.what == f"block s: no UFFDIO_{name} on shared memory here"


def test_a_page_that_was_placed_nowhere_is_told(kernel):
    kernel.copied = 1
    (problem,) = problems_of(anonymous("a"))
    assert problem.code is Code.PLACE
    assert "the mapping is gone" in problem.what


def test_a_page_that_reads_otherwise_is_told(kernel):
    kernel.spoil = b"x"
    assert [(p.code, p.blocks) for p in problems_of(anonymous("a"))] == [(Code.READ, ("a",))]


def test_an_unmapping_that_fails_still_closes_every_descriptor(kernel):
    kernel.errors["vm_unmap"] = errno.EINVAL
    before = Footprint.now()
    with pytest.raises(CoreError, match="vm_unmap"):
        postcopy_supported([shared(), anonymous()])
    assert before.left_by(Footprint.now()).get("descriptors") is None
    del kernel.errors["vm_unmap"]
    for address in list(kernel.mapped):
        core.call(core.lib.vm_unmap, address, 4096)


def test_a_file_is_proven_where_it_will_lie(kernel, tmp_path):
    taken = tmp_path / "taken"
    taken.touch()
    wrong = shared("w", path="/proc/x")
    found = problems_of(shared("s"), wrong, shared("fine", path=f"/dev/shm/vmemu-{os.getpid()}"))
    assert [(problem.code, problem.blocks) for problem in found] == [(Code.MAP, ("w",))]
    assert "not on tmpfs" in found[0].what and found[0].remedy == "path: /dev/shm/x"
    assert not os.path.exists(f"/dev/shm/vmemu-{os.getpid()}")


def test_a_file_that_exists_is_told_and_left_alone(kernel):
    path = f"/dev/shm/vmemu-test-taken-{os.getpid()}"
    with open(path, "x"):
        pass
    try:
        (problem,) = problems_of(shared("s", path=path))
        assert problem.code is Code.MAP
        assert "exists already" in problem.what
        assert os.path.exists(path)
    finally:
        os.unlink(path)


def test_a_process_that_locks_all_new_memory_is_told_so_and_nothing_is_registered(
    kernel, monkeypatch
):
    monkeypatch.setattr(hostcheck, "locks_new_memory", lambda: True)
    kernel.errors["vm_uffd_register"] = errno.EINVAL
    assert codes(anonymous(), shared()) == [Code.LOCKED]


def test_mapped_blocks_are_refused(kernel):
    block = anonymous("a")
    block.map()
    try:
        with pytest.raises(ValueError, match="blocks are mapped already: a"):
            postcopy_supported([block])
    finally:
        block.unmap()


# ---- hugepages that are short ----


@pytest.fixture
def short_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """A pool that gives nothing to any mapping; an entry for each time that it was asked."""
    monkeypatch.setattr(hugepages, "SYSFS", tmp_path)  # nobody stands in line for it
    asked = []

    def refuse(block: RAMBlock) -> None:
        asked.append(block.size)
        raise hugepages.shortage(f"block {block.name}", block.page_size, block.pages)

    real = RAMBlock.map
    monkeypatch.setattr(hugepages, "pool", lambda size: hugepages.Pool(size, 4, 1, 1, 0))
    monkeypatch.setattr(hugepages, "resize_command", lambda size, pages: f"pool {pages}")
    monkeypatch.setattr(RAMBlock, "map", lambda b: refuse(b) if b.hugetlb else real(b))
    return asked


def test_a_short_pool_is_told_once_with_its_figures_and_what_all_blocks_need(kernel, short_pool):
    blocks = [huge("h", pages=3), huge("i", pages=2), huge("f", path="/dev/hugepages/f")]
    (problem,) = problems_of(anonymous(), *blocks)
    assert (problem.code, problem.blocks) == (Code.HUGEPAGES, ("h", "i", "f"))
    assert "the VM (blocks h, i, f) needs 7 hugepages of 2MiB" in problem.what
    assert "4 in all, 1 free, 1 of these reserved" in problem.what
    assert problem.remedy == "pool 11"
    assert short_pool == [HUGE, HUGE]


def test_a_shortage_alone_is_waited_for_and_is_a_shortage_in_the_end(kernel, short_pool):
    with pytest.raises(HugepageShortage, match="block huge needs 2 hugepages") as caught:
        require_postcopy([huge()])
    assert isinstance(caught.value, PostcopyUnsupported)
    assert caught.value.remedy == "pool 6"
    assert caught.value.kind == "hugepages"
    pauses: list[float] = []

    def give_up(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        require_postcopy([huge()], wait_s=3600, pause=give_up)
    assert len(short_pool) == 2  # the pool's figures say that asking once more is in vain


def test_nobody_waits_when_waiting_can_not_help(kernel, short_pool):
    kernel.range_ioctls = 0
    with pytest.raises(PostcopyUnsupported) as caught:
        require_postcopy([huge(), anonymous()], wait_s=3600, pause=pytest.fail)
    assert not isinstance(caught.value, HugepageShortage)
    assert [p.code for p in caught.value.problems] == [Code.RANGE_IOCTLS, Code.HUGEPAGES]


# ---- the error ----


def test_one_error_tells_all_that_is_wrong(kernel):
    kernel.features &= ~int(Feature.MISSING_SHMEM)
    kernel.range_ioctls &= ~int(Ioctl.COPY)
    with pytest.raises(HostError) as caught:
        require_postcopy([anonymous("a"), shared("s"), shared("w", path="/proc/x")])
    text = str(caught.value)
    assert text.startswith("post-copy does not work here, for 3 reasons:\n")
    for words in ("UFFD_FEATURE_MISSING_SHMEM", "block a: no UFFDIO_COPY", "/proc/x lies on proc"):
        assert words in text
    assert caught.value.exit_code == 3
    assert caught.value.remedy == ""


def test_a_single_problem_is_the_error_itself(kernel):
    kernel.errors["vm_uffd_open"] = errno.EPERM
    with pytest.raises(PostcopyUnsupported, match="mend it with: sysctl") as caught:
        require_postcopy([anonymous()])
    assert caught.value.remedy.startswith("sysctl ")
    assert str(caught.value) == str(caught.value.problems[0])


def test_a_problem_is_frozen_and_says_what_mends_it():
    problem = HostProblem(Code.MAP, "no room", "make room", ("a",))
    assert str(problem) == "no room; mend it with: make room"
    assert str(HostProblem(Code.MAP, "no room")) == "no room"
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.what = "other"  # type: ignore[misc]
    assert {problem, problem} == {problem}
    assert dataclasses.asdict(problem)["code"] == "map"
