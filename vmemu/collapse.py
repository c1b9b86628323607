"""Blocks that come in small pages and end on transparent hugepages (``collapse: on_complete``).

Each region that is there throughout is made a hugepage by MADV_COLLAPSE (Linux 6.1), in a thread of
its own, while the rest still arrives: see ``collapse.h``. A host that can't do this completes the
run on small pages, and says so. Sources: madvise(2),
Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vmemu import core, thp_memory
from vmemu.cthread import Bell, CThread
from vmemu.errors import CoreError, VmemuError
from vmemu.ramblock import BASE_PAGE, THP_SIZE, Backing, RAMBlock
from vmemu.units import counted
from vmemu.userfault import Userfaultfd

_PAGEMAP = "/proc/self/pagemap"
_FOR_NOW = (errno.EAGAIN, errno.ENOMEM, errno.EBUSY)
"""What says nothing of the kernel: a page in use, no free hugepage, a control group's limit."""


@dataclass(frozen=True)
class Collapsed:
    """What became of one block. Sizes are bytes: ``possible`` is in whole regions of 2 MiB,
    ``collapsed`` of these were made hugepages, and ``mapped`` are what the kernel said at the end
    that it maps as hugepages, None where it can't say.

    ``failed`` are regions that stayed in small pages, by reason: ``again`` (their pages were in
    use), ``memory`` (no hugepage), ``busy`` (a control group's limit), ``refused``; ``why`` says it
    in words, and also why the host can't do it at all; empty when nothing is to be said.
    ``time_ns`` is that of all attempts, ``longest_ns`` of one.
    """

    possible: int
    collapsed: int = 0
    mapped: int | None = None
    failed: tuple[tuple[str, int], ...] = ()
    why: str = ""
    time_ns: int = 0
    longest_ns: int = 0


_REASONS = ("again", "memory", "busy", "refused")
_IN_WORDS = {
    "again": "their pages were in use",
    "memory": "no hugepage was free, and none could be made",
    "busy": "a control group's limit left no room for them",
    "refused": "the kernel refused",
}


class Collapse:
    """The thread that collapses complete regions, and what it came to.

    In this order: ``prepare``, registration, ``allow``, ``start``; ``close`` once the thread has
    ended.
    """

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        self.warnings: list[str] = []
        self._blocks = list(blocks)
        self._active = [index for index, block in enumerate(blocks) if block.collapse]
        self._figures = {index: Collapsed(_possible(blocks[index])) for index in self._active}
        self._table: Any = None
        self._keep: list[Any] = []
        self._thread: CThread | None = None

    def prepare(self) -> None:
        """Find out whether this host can; blocks with which it can't stay in small pages, with a
        warning. Registers memory of its own for a moment. Raises nothing."""
        asked: dict[tuple[Backing, str | None], str] = {}
        for index in list(self._active):
            block = self._blocks[index]
            kind = block.backing, block.path
            if kind not in asked:
                asked[kind] = why_not(*kind)
            if asked[kind]:
                self._active.remove(index)
                self._figures[index] = replace(self._figures[index], why=asked[kind])
                self.warnings.append(f"block {block.name} stays in small pages: {asked[kind]}")

    def allow(self) -> None:
        """Let the kernel make hugepages in these blocks; once they are registered it fills no hole
        with one, which ``prepare`` has proven. Raises CoreError."""
        for index in self._active:
            self._blocks[index].set_thp(True)

    def start(self, incoming: Any, bell: Bell) -> CThread | None:
        """Start the thread on the C core's ``struct vm_incoming``, whose ``quit_fd`` ends it; None
        when nothing is to be done. Raises HostError."""
        if not self._active:
            return None
        blocks = core.ffi.new("struct vm_collapse_block[]", len(self._active))
        for entry, index in zip(blocks, self._active, strict=True):
            block = self._blocks[index]
            entry.block = index
            entry.anonymous = block.backing is Backing.ANONYMOUS
            entry.regions = block.size // THP_SIZE
            state = core.ffi.new("uint8_t[]", entry.regions)
            entry.state = state
            self._keep.append(state)  # a structure does not own what its pointers point to
        table = core.ffi.new("struct vm_collapse *")
        table.incoming, table.count, table.block = incoming, len(self._active), blocks
        self._table = blocks
        self._keep += [table, incoming]
        self._thread = CThread(
            "collapse", lambda: core.call(core.lib.vm_collapse_loop, table), bell
        )
        self._thread.start()
        return self._thread

    @property
    def done(self) -> bool:
        """Whether nothing is left to be collapsed, or the thread has ended."""
        return self._thread is None or self._thread.done

    def close(self) -> None:
        """Ask the kernel what it maps as hugepages, and warn of what stayed small; the thread has
        ended, and the memory is still mapped."""
        if self._table is None:
            return
        for entry, index in zip(self._table, self._active, strict=True):
            block = self._blocks[index]
            every = [(name, int(entry.failed[i])) for i, name in enumerate(_REASONS)]
            failed = tuple((name, count) for name, count in every if count)
            self._figures[index] = replace(
                self._figures[index],
                collapsed=int(entry.collapsed) * THP_SIZE,
                mapped=huge_bytes(block),
                failed=failed,
                why=_in_words(failed),
                time_ns=int(entry.took_ns),
                longest_ns=int(entry.longest_ns),
            )
            if failed:
                what = f"block {block.name} stays in small pages in part: {_in_words(failed)}"
                self.warnings.append(what)
        self._table = None
        self._keep = []

    def figures(self, index: int) -> Collapsed | None:
        """Of block number ``index``; None for one that was not to be collapsed."""
        return self._figures.get(index)


def _possible(block: RAMBlock) -> int:
    return block.size // THP_SIZE * THP_SIZE


def _in_words(failed: Sequence[tuple[str, int]]) -> str:
    return "; ".join(f"{counted(count, 'region')}: {_IN_WORDS[name]}" for name, count in failed)


def huge_bytes(block: RAMBlock) -> int | None:
    """Bytes of a block that the kernel maps as hugepages; None where it can't say (before Linux
    6.7)."""
    found = core.ffi.new("uint64_t *")
    try:
        pagemap = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        core.call(core.lib.vm_pagemap_huge, pagemap, block.address, block.size, found)
    except CoreError:
        return None
    finally:
        os.close(pagemap)
    return int(found[0])


# ---- proof by doing ----


def why_not(backing: Backing, path: str | None = None) -> str:
    """Why regions of such memory can't be made hugepages here; empty when they can.

    One region is received but for a page, which must not be collapsed, and then collapsed whole. A
    lack of memory at this moment is no reason. Nothing is left behind.
    """
    if not thp_memory.SYSFS.is_dir():
        return "this kernel has no transparent hugepages"
    if thp_memory.switched_off():
        return "this process has transparent hugepages switched off (PR_SET_THP_DISABLE)"
    region = RAMBlock("proof", backing, THP_SIZE, BASE_PAGE, path)
    try:
        region.map()
        with Userfaultfd() as uffd:
            return _try_region(uffd, region)
    except VmemuError as error:
        return f"one region could not be tried: {error}"
    finally:
        region.unmap()


def _try_region(uffd: Userfaultfd, region: RAMBlock) -> str:
    region.set_thp(True)
    uffd.register(region.address, region.size)
    last = region.size - BASE_PAGE
    with mmap.mmap(-1, region.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as data:
        data[-BASE_PAGE:] = data[:BASE_PAGE] = b"\x5a" * BASE_PAGE
        pages = core.ffi.from_buffer(data)
        try:
            uffd.copy(region.address, pages, last, BASE_PAGE)
            if _collapse(region) == 0:
                return "this kernel fills pages that are missing when it makes a hugepage"
            uffd.copy(region.address + last, pages + last, BASE_PAGE, BASE_PAGE)
        finally:
            core.ffi.release(pages)
    # Of anonymous memory that is zeros the kernel sees holes; see collapse.c.
    core.call(core.lib.vm_probe_populate, region.address, region.size)
    refused = _collapse(region)
    if refused == 0 or refused in _FOR_NOW:
        return ""
    return (
        f"MADV_COLLAPSE (Linux 6.1) does not work on {region.backing.value} memory here:"
        f" {os.strerror(refused)}"
    )


def _collapse(region: RAMBlock) -> int:
    """0, or why not as an errno."""
    refused = thp_memory.collapse(region)
    return 0 if refused is None else refused.errno
