"""The check of the host on real memory: it passes where post-copy works, and leaves nothing."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import HUGE, Footprint, anonymous, huge, mapped_at, shared

from vmemu import core, hugepages
from vmemu.errors import HugepageShortage
from vmemu.hostcheck import Code, PostcopyShortage, postcopy_supported, require_postcopy
from vmemu.manager import MemoryManager
from vmemu.ramblock import Backing, RAMBlock
from vmemu.userfault import Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault")
CALLS = ("vm_uffd_", "vm_map", "vm_unmap", "vm_advise", "vm_punch_hole")


class Saboteur:
    """The C core, whose ``at``-th system call fails or is interrupted; all calls are noted.

    ``mapped`` are the addresses that were mapped at any time.
    """

    def __init__(self, real: Any, at: int = -1, error: BaseException | int = 0) -> None:
        self._real = real
        self._at = at
        self._error = error
        self.calls: list[str] = []
        self.mapped: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if not name.startswith(CALLS):
            return real

        def function(*arguments: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 == self._at:
                return self._fail(name, arguments[-1])
            result = real(*arguments)
            if name == "vm_map":
                self.mapped.add(arguments[-2][0])
            return result

        return function

    def _fail(self, name: str, error: Any) -> int:
        if isinstance(self._error, BaseException):
            raise self._error
        error.operation, error.errnum = name.encode(), self._error
        return -1


def sabotaged(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Saboteur:
    saboteur = Saboteur(core.lib, **options)
    monkeypatch.setattr(core, "lib", saboteur)
    return saboteur


def calls_of(blocks: list[RAMBlock]) -> list[str]:
    """The system calls of a check that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        saboteur = sabotaged(patch)
        assert postcopy_supported(blocks) == []
        return saboteur.calls


def test_anonymous_and_shared_memory_migrate_here_and_nothing_is_left():
    before = Footprint.now()
    require_postcopy([anonymous("a"), shared("s"), anonymous("b"), shared("t")])
    assert before.left_by(Footprint.now()) == {}


@pytest.mark.usefixtures("hugetlb", "pool_lock")
def test_all_three_backings_migrate_here_and_nothing_is_left():
    before = Footprint.now()
    require_postcopy([anonymous(), shared(), huge("h"), huge("i", pages=3)], wait_s=60)
    assert before.left_by(Footprint.now()) == {}


@pytest.mark.usefixtures("hugetlb", "pool_lock")
def test_what_was_checked_can_be_mapped_and_registered_afterwards():
    memory = MemoryManager([anonymous(), shared(), huge()], wait_s=60)
    require_postcopy(memory.blocks, wait_s=60)
    with memory:
        memory.map()
        with Userfaultfd(Feature.THREAD_ID) as uffd:
            memory.register(uffd)
            memory.unregister()


def test_the_order_is_register_place_unregister_for_each_kind_of_memory():
    proof = ["vm_map", "vm_uffd_register", "vm_uffd_copy", "vm_uffd_unregister", "vm_unmap"]
    calls = calls_of([anonymous(), shared(), anonymous("b")])
    assert [call for call in calls if call not in ("vm_uffd_open", "vm_uffd_api")] == proof * 2


def test_the_largest_pages_are_placed_too():
    """The kernel has no second gigantic page to copy to: what is placed must be mapped before."""
    size = 1 << 30
    if size not in hugepages.page_sizes() or hugepages.pool(size).available < 1:
        pytest.skip("no hugepage of 1 GiB is free")
    assert postcopy_supported([RAMBlock("giga", Backing.HUGETLBFS, size, size)]) == []


# ---- nothing is left on any way out ----


def check_that_each_failure_leaves_nothing(blocks: list[RAMBlock]) -> None:
    for at, name in enumerate(calls_of(blocks)):
        before = Footprint.now()
        with pytest.MonkeyPatch.context() as patch:
            saboteur = sabotaged(patch, at=at, error=errno.EIO)
            if name == "vm_unmap":
                continue  # what the kernel does not take back can't be given back
            found = postcopy_supported(blocks)
        assert before.left_by(Footprint.now()) == {}, (at, name)
        assert not [address for address in saboteur.mapped if mapped_at(address)], (at, name)
        # A way to open that fails is no problem while there is another.
        assert found or name == "vm_uffd_open", (at, name)


def test_a_failure_at_any_step_is_told_and_leaves_nothing():
    check_that_each_failure_leaves_nothing([anonymous(), shared()])


def test_a_failure_at_any_step_with_hugepages_leaves_nothing(pool_alone):
    pool_alone.resize(2)
    check_that_each_failure_leaves_nothing([huge()])


def test_an_interruption_while_a_page_is_proven_leaves_nothing(monkeypatch):
    blocks = [anonymous(), shared()]
    steps = ("vm_map", "vm_uffd_register", "vm_uffd_copy", "vm_uffd_unregister")
    for at, name in enumerate(calls_of(blocks)):
        if name not in steps:
            continue
        before = Footprint.now()
        with pytest.MonkeyPatch.context() as patch:
            saboteur = sabotaged(patch, at=at, error=KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                postcopy_supported(blocks)
        assert before.left_by(Footprint.now()) == {}, (at, name)
        assert not [address for address in saboteur.mapped if mapped_at(address)], (at, name)


# ---- pools ----


def test_an_empty_pool_is_told_with_a_remedy_that_really_mends_it(pool_alone):
    pool_alone.resize(0)
    before = Footprint.now()
    blocks = [anonymous(), huge("h", pages=2), huge("i", pages=3)]
    (problem,) = postcopy_supported(blocks)
    assert (problem.code, problem.blocks) == (Code.HUGEPAGES, ("h", "i"))
    assert "needs 5 hugepages of 2MiB" in problem.what and "0 in all" in problem.what
    assert before.left_by(Footprint.now()) == {}
    subprocess.run(problem.remedy, shell=True, check=True, capture_output=True)
    require_postcopy(blocks)
    with MemoryManager(blocks) as memory:
        memory.map()


def test_a_pool_that_is_taken_is_waited_for(pool_alone):
    pool_alone.resize(2)
    taken = huge(pages=2)
    taken.map()
    try:
        with pytest.raises(PostcopyShortage) as caught:
            require_postcopy([huge("mine", pages=1)])
        assert isinstance(caught.value, HugepageShortage)
        require_postcopy([huge("mine", pages=1)], wait_s=60, pause=lambda seconds: taken.unmap())
    finally:
        taken.unmap()


@pytest.mark.usefixtures("hugetlb", "pool_lock")
def test_a_size_that_the_host_lacks_is_told_beside_the_rest(monkeypatch):
    odd = huge("odd")
    odd.page_size = odd.size = 8 * HUGE
    found = postcopy_supported([anonymous(), odd, shared("w", path="/proc/w")])
    assert [(p.code, p.blocks) for p in found] == [(Code.MAP, ("odd",)), (Code.MAP, ("w",))]
    assert found[0].what.startswith("block odd: this host has no hugepages of 16MiB")


# ---- locked memory ----

LOCKED = """
import json, sys
from support import anonymous, huge, shared
from vmemu import core, hugepages
from vmemu.errors import CoreError
from vmemu.hostcheck import postcopy_supported
from vmemu.memlock import MemoryLock, locks_new_memory
try:
    core.call(core.lib.vm_mlockall)
except CoreError as error:
    print(json.dumps(str(error)))
    sys.exit()
blocks = [anonymous(), shared()] + ([huge()] if "huge" in sys.argv else [])
found = [[p.code for p in postcopy_supported(blocks)]]
lock = MemoryLock(blocks)
lock.unlock()
found.append([p.code for p in postcopy_supported(blocks)])
warnings = lock.relock()
print(json.dumps([*found, warnings, locks_new_memory()]))
"""


def test_a_process_that_locks_all_its_memory_is_told_and_can_unlock_it(pool_alone):
    pool_alone.resize(2)
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", LOCKED, "huge"]
    done = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    if isinstance(result, str):
        pytest.skip(f"this process may not lock its memory: {result}")
    assert result == [["locked"], [], [], True]
