"""Locked memory, which post-copy can't have: unlocked before it, locked again after it.

A lock brings every page in and keeps it, so no page of locked memory is ever missing, and the
kernel refuses to discard one (EINVAL of madvise(2)). QEMU unlocks in
``postcopy_ram_supported_by_host`` and locks again in ``postcopy_ram_incoming_cleanup``; not to get
the lock back is a warning, as the guest runs by then. Sources: mlock(2), madvise(2).
"""

from __future__ import annotations

import errno
import mmap
import re
import resource
from collections.abc import Sequence
from pathlib import Path

from vmemu import core
from vmemu.errors import Advice, CoreError, HostError, mending
from vmemu.host.raising import raised_here
from vmemu.ramblock import RAMBlock
from vmemu.units import format_size

BALLOON_LOCKED = (
    "a balloon can't give back memory that is locked, and this process locks all its new memory"
    " (mlockall with MCL_FUTURE)"
)
UNLOCK = Advice("call munlockall() in the process, as vmemu.memlock.MemoryLock.unlock() does")

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def locked_bytes() -> int:
    """Bytes that this process has locked (``VmLck`` of proc_pid_status(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmLck:"):
            return int(line.split()[1]) << 10
    return 0


def locks_new_memory() -> bool:
    """Whether the process locks whatever it maps (``mlockall(MCL_FUTURE)``).

    The kernel tells nobody, so a page is mapped and looked at.
    """
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if error.errno == errno.EAGAIN:  # the limit on locked memory is reached
            return True
        raise
    with page:
        address = core.ffi.from_buffer(page)
        try:
            start = int(core.ffi.cast("uintptr_t", address))
            return bool(_locked_ranges(start, start + 1)) if locked_bytes() else False
        finally:
            core.ffi.release(address)


def _locked_ranges(low: int = 0, high: int = 1 << 64) -> list[tuple[int, int]]:
    """[start, end) of each locked mapping that meets [low, high)."""
    found, here = [], (0, 0)
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if match := _MAPPING.match(line):
            here = int(match[1], 16), int(match[2], 16)
        elif line.startswith("VmFlags:") and "lo" in line.split()[1:]:
            found.append(here)
    return [(start, end) for start, end in found if start < high and end > low]


def _why(blocks: Sequence[RAMBlock], error: CoreError) -> tuple[str, str]:
    """(what happened, remedy) for blocks that could not be locked."""
    names = ", ".join(block.name for block in blocks)
    what = f"block{'s' if len(blocks) > 1 else ''} {names}"
    return _why_not(what, error, sum(block.size for block in blocks))


def _why_not(what: str, error: CoreError, wanted: int) -> tuple[str, str]:
    """(what happened, remedy) for ``wanted`` bytes more that could not be locked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    reason = f"{what} can't be locked in memory ({format_size(wanted)}): {error}"
    need = locked_bytes() + wanted
    short = soft != resource.RLIM_INFINITY and need > soft
    if error.errno not in (errno.EPERM, errno.ENOMEM, errno.EAGAIN) or not short:
        return reason, ""
    reason += f"; this process may lock {format_size(soft)} (RLIMIT_MEMLOCK)"
    most = None if hard == resource.RLIM_INFINITY else hard
    words, remedy = raised_here("memlock", need, most)
    return reason + words, remedy


class MemoryLock:
    """The locks on a VM's blocks, around post-copy: ``lock``, ``unlock``, post-copy, ``relock``.

    Hugepages are left out: they are never swapped. What is locked is asked of the kernel, so memory
    that the embedding program has locked, with mlockall(2) too, is taken care of all the same.
    """

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        self._blocks = blocks
        self._again: list[RAMBlock] = []
        self._all_again = False

    def require_balloon(self) -> None:
        """Raise HostError where ``relock`` will lock what a balloon is to give back."""
        if self._all_again and any(not block.hugetlb for block in self._blocks):
            raise HostError(BALLOON_LOCKED, UNLOCK)

    @property
    def _lockable(self) -> list[RAMBlock]:
        return [block for block in self._blocks if block.address and not block.hugetlb]

    def lock(self) -> None:
        """Lock all mapped blocks, or none: this brings every page in.

        Raises HostError with the limit and what raises it. Not while a block is registered with
        userfaultfd: the call would wait for its pages.
        """
        tried: list[RAMBlock] = []
        try:
            for block in self._lockable:
                tried.append(block)
                core.call(core.lib.vm_mlock, block.address, block.size)
        except CoreError as error:
            # The one that failed too: the kernel marks a range before it brings its pages in.
            for block in tried:
                core.call(core.lib.vm_munlock, block.address, block.size)
            raise HostError(*_why(self._lockable, error)) from error

    def unlock(self) -> None:
        """Unlock whatever of the blocks is locked, and remember it for ``relock``; where the
        process locks all new memory, unlock the whole process, as QEMU does.

        Before discarding, and before the host is asked whether post-copy works. Raises CoreError.
        """
        locked = _locked_ranges() if locked_bytes() else []
        for block in self._lockable:
            end = block.address + block.size
            if any(low < end and high > block.address for low, high in locked):
                core.call(core.lib.vm_munlock, block.address, block.size)
                self._remember(block)
        if locks_new_memory():
            core.call(core.lib.vm_munlockall)
            self._all_again = True

    def _remember(self, block: RAMBlock) -> None:
        if block not in self._again:
            self._again.append(block)

    def relock(self) -> list[str]:
        """Lock again what ``unlock`` unlocked; a warning for each thing that could not be.

        When all pages are there and nothing is registered any more: locking waits for missing
        pages. Once done it does nothing more, so that calling it twice is safe.
        """
        again, self._again = [block for block in self._again if block.address], []
        failed = [(block, error) for block in again if (error := _lock_again(block))]
        warnings = []
        if failed:
            # One for all of them: a limit that is right for the first only fails at the next.
            warnings.append(_warning(*_why([block for block, _ in failed], failed[0][1])))
        if self._all_again:
            self._all_again = False
            warnings += _lock_all_again()
        return warnings


def _lock_again(block: RAMBlock) -> CoreError | None:
    try:
        core.call(core.lib.vm_mlock, block.address, block.size)
    except CoreError as error:
        return error
    return None


def _lock_all_again() -> list[str]:
    try:
        core.call(core.lib.vm_mlockall)
    except CoreError as error:
        return [_warning(*_why_not("the process", error, _mapped_bytes()))]
    return []


def _warning(reason: str, remedy: str) -> str:
    remedy = f"; {mending(remedy)}" if remedy else ""
    return f"memory was locked before post-copy and is not any more: {reason}{remedy}"


def _mapped_bytes() -> int:
    """Bytes of address space of the process: what mlockall(2) counts against the limit."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
