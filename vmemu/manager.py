"""MemoryManager: maps the blocks of a VM, registers them with userfaultfd, gives everything
back."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from vmemu import core, hugepages, reservation
from vmemu.cleanup import run_all
from vmemu.errors import CoreError, HostError, HugepageShortage
from vmemu.images import Images, SharedImage
from vmemu.needed import needed_ioctls, register_mode
from vmemu.pagefit import NOTHING_BESIDE, Beside, called
from vmemu.ramblock import RAMBlock, RAMList
from vmemu.userfault import Userfaultfd


class MemoryManager:
    """Owns the mappings of a VM. A context manager: whatever happens inside, nothing stays mapped.

    ``wait_s`` is how long ``map`` waits for hugepages that others hold, ``pause`` what sleeps,
    ``beside`` what of other memory the run takes with its hugepages. ``images`` are those of the
    source, where both ends have them mapped.
    """

    def __init__(
        self,
        blocks: Sequence[RAMBlock],
        wait_s: float = 0.0,
        pause: Callable[[float], None] = time.sleep,
        beside: Beside = NOTHING_BESIDE,
        images: Images | None = None,
    ) -> None:
        self.blocks = RAMList(blocks)
        self.wait_s = wait_s
        self._pause = pause
        self._beside = beside
        self.images = images
        self._registered: list[tuple[Userfaultfd, RAMBlock]] = []
        self._tenancy = reservation.Tenancy()

    def map(self, prove: Callable[[], None] | None = None) -> None:
        """Map every block or none. Raises HugepageShortage when the wait is over, HostError,
        InputError.

        ``prove`` is called first, in the same moment: nobody else takes hugepages between it and
        the mapping. What it raises is raised, a HugepageShortage is waited for.
        All or none is what keeps two runs from waiting for each other, each with half of the pool
        in its hands.
        """

        def attempt() -> None:
            if prove is not None:
                prove()
            self._map_all()

        reservation.take(hugepages.pages_of(self.blocks), attempt, self.wait_s, self._pause)

    def _map_all(self) -> None:
        try:
            self._check_mounts()
            # The scarce ones first: a shortage shows before anything else was done.
            for block in sorted(self.blocks, key=lambda block: not block.hugetlb):
                block.map()
            if self.images is not None:
                self.images.make()
        except HugepageShortage:
            self.unmap()
            raise self._shortage(block.page_size) from None
        except BaseException:
            self.unmap()
            raise
        self.blocks.index_addresses()
        self._tenancy.begin(block.page_size for block in self.blocks if block.hugetlb)

    @property
    def shared_images(self) -> tuple[SharedImage, ...]:
        """What the source has to know of its images; nothing where it has them for itself."""
        return self.images.handed_over() if self.images is not None else ()

    def _check_mounts(self) -> None:
        """Blocks that share a mount must fit there together: each alone may."""
        mounts: dict[int, list[RAMBlock]] = {}
        for block in self.blocks:
            if block.path is not None:
                with suppress(OSError):  # what is wrong with the path is told by mapping it
                    device = os.stat(os.path.dirname(block.path)).st_dev
                    mounts.setdefault(device, []).append(block)
        for blocks in mounts.values():
            if len(blocks) > 1:
                blocks[0].require_room(blocks)

    def _shortage(self, page_size: int) -> HugepageShortage:
        """For all blocks together: a remedy for the first of them would only lead to the next."""
        wanting = [block for block in self.blocks if block.hugetlb and block.page_size == page_size]
        who = called([block.name for block in wanting])
        who = who if len(wanting) == 1 else f"the VM ({who})"
        pages = sum(block.pages for block in wanting)
        short = hugepages.shortage(who, page_size, pages, self._beside, blocks=len(wanting))
        return short.about(wanting[0].name, "size")

    def register(self, uffd: Userfaultfd) -> None:
        """Register every block for missing faults and check what can be done on it.

        Raises HostError when a block can't be served; the blocks registered so far are unregistered
        by ``unregister``, which is safe to call in any state.
        """
        for block in self.blocks:
            try:
                ioctls = uffd.register(block.address, block.size, register_mode(block))
            except CoreError as error:
                raise _register_error(block, error) from error
            self._registered.append((uffd, block))
            missing = needed_ioctls(block) & ~ioctls
            if missing:
                names = ", ".join(f"UFFDIO_{ioctl.name}" for ioctl in missing)
                raise HostError(
                    f"block {block.name}: no {names} on {block.backing.value} memory here"
                ).about(block.name, "backing")

    def unregister(self) -> None:
        """Unregister all blocks: whoever waits for a page goes on with a fresh one. Safe to call
        twice. One that fails does not keep the others registered."""
        registered, self._registered = self._registered, []
        run_all(partial(uffd.unregister, b.address, b.size) for uffd, b in registered)

    def let_go(self) -> None:
        """Let whoever waits for a page go on with zeros, and unregister all blocks; safe to call
        twice. What is registered is no more what it was: the guest's memory is given up."""
        registered, self._registered = self._registered, []
        run_all(partial(_let_go, uffd, block) for uffd, block in registered)

    def unmap(self) -> None:
        """Give all memory back; safe to call twice."""
        run_all(
            [
                *(block.unmap for block in self.blocks),
                *([self.images.close] if self.images is not None else []),
                self.blocks.index_addresses,
                self._tenancy.end,
            ]
        )

    def __enter__(self) -> MemoryManager:
        return self

    def __exit__(self, *_: object) -> None:
        run_all([self.unregister, self.unmap])


def _let_go(uffd: Userfaultfd, block: RAMBlock) -> None:
    # Unregistered alone, they would take pages of the block: a SIGBUS where its tmpfs is full.
    try:
        core.call(core.lib.vm_cover, block.address, block.size)
    except CoreError:
        uffd.unregister(block.address, block.size)
    else:
        uffd.wake(block.address, block.size)


def _register_error(block: RAMBlock, error: CoreError) -> HostError:
    if error.errno == errno.EINVAL:
        why = (
            f"userfaultfd does not take {block.backing.value} memory of this kernel or file system"
        )
    else:
        why = str(error)
    return HostError(f"block {block.name} can't be registered: {why}").about(block.name, "backing")
