"""Which pages the guest writes at the source: the kernel says it where it can, else the replay.

Either way the dirty bits of the images are set, one a target page (4 KiB), and both ways set the
same ones. The kernel's costs the guest one fault a page and round; the replay's a look at a bitmap
with every write, and it sees only what the replay writes.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vmemu import core
from vmemu.errors import CoreError, HostError
from vmemu.userfault import MODE_WP, Feature, Userfaultfd

if TYPE_CHECKING:
    from vmemu.guest_worker import Guest

PAGEMAP = "/proc/self/pagemap"
NEEDED = (Feature.WP_ASYNC, Feature.WP_UNPOPULATED)
PAGE = 4096


@dataclass(frozen=True)
class Tracking:
    """How dirty pages were found, ``kernel`` or ``replay``, and why that way."""

    method: str
    reason: str


class DirtyTracker(Protocol):
    """Sets the dirty bits of the source's images."""

    def start(self) -> None:
        """Forget what was written so far. Before the guest runs. Raises HostError, CoreError."""

    def harvest(self) -> None:
        """Set the bits of what was written since the last harvest, or the start.

        A write that is made meanwhile is in this harvest or in the next; a page whose bit is set
        has its content when this returns. Raises CoreError.
        """

    def close(self) -> None:
        """Track no longer; safe to do twice."""


class ReplayTracker:
    """The guest's ``written`` bitmap, which the replay loop keeps."""

    def __init__(self, source: Any, guest: Guest) -> None:
        self._source = source
        self._guest = guest
        assert guest.written is not None

    def start(self) -> None:
        """Nothing was written: the bitmap is new."""

    def harvest(self) -> None:
        """Take the bitmap's bits."""
        guest = self._guest
        pages = len(guest.workload.block)
        core.lib.vm_source_harvest(self._source, pages, *guest.place, guest.shared.written)

    def close(self) -> None:
        """Nothing is held."""


class KernelTracker:
    """Asynchronous write protection by userfaultfd, read with PAGEMAP_SCAN.

    ``images`` are of ``struct vm_image``; they had ``only_small_pages`` before they were filled.
    """

    def __init__(self, images: Sequence[Any]) -> None:
        self._images = images
        self._uffd: Userfaultfd | None = None
        self._pagemap = -1

    def start(self) -> None:
        """Protect the images, after a proof on other memory. Raises HostError, CoreError: nothing
        is held then."""
        try:
            self._open()
            self._prove()
            for image in self._images:
                self._protect(_address(image), image.size)
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._uffd = Userfaultfd(Feature.WP_ASYNC | Feature.WP_UNPOPULATED)
        self._uffd.require(NEEDED)
        try:
            self._pagemap = os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{PAGEMAP} can't be opened: {error.strerror}") from None

    def _prove(self) -> None:
        """A kernel that tells a write to nobody would cost the guest its data."""
        address = core.ffi.new("uint64_t *")
        core.call(core.lib.vm_map, PAGE, -1, PAGE, address)
        try:
            self._protect(address[0], PAGE)
            found = [self._written(address[0])]
            core.lib.vm_ram_write(address[0], b"x", 1)
            found += (self._written(address[0]) for _ in range(2))
        finally:
            core.call(core.lib.vm_unmap, address[0], PAGE)
        if found != [0, 1, 0]:
            told = ", ".join("written" if one else "not written" for one in found)
            raise HostError(
                f"this kernel reports writes wrongly: before, after a write, and then: {told}"
            )

    def _written(self, address: int) -> int:
        bits = core.ffi.new("uint64_t *")
        core.call(core.lib.vm_pagemap_harvest, self._pagemap, address, PAGE, bits)
        return int(bits[0])

    def _protect(self, address: int, length: int) -> None:
        assert self._uffd is not None
        self._uffd.register(address, length, MODE_WP)
        self._uffd.write_protect(address, length)

    def harvest(self) -> None:
        """Get what was written and protect it again, in one step a page."""
        for image in self._images:
            arguments = (self._pagemap, _address(image), image.size, image.dirty)
            core.call(core.lib.vm_pagemap_harvest, *arguments)

    def close(self) -> None:
        """Closing the userfaultfd takes all protection away."""
        pagemap, self._pagemap = self._pagemap, -1
        if pagemap >= 0:
            os.close(pagemap)
        if self._uffd is not None:
            self._uffd.close()


def _address(image: Any) -> int:
    return int(core.ffi.cast("uintptr_t", image.data))


def only_small_pages(image: Any) -> None:
    """Keep transparent hugepages out of an image, before it is filled: one would be written, or
    freed, as a whole."""
    try:
        core.call(core.lib.vm_advise, _address(image), image.size, mmap.MADV_NOHUGEPAGE)
    except CoreError as error:
        if error.errno != errno.EINVAL:  # a kernel without them
            raise


def start_kernel(images: Sequence[Any], wanted: str) -> tuple[KernelTracker | None, Tracking]:
    """The kernel's tracker, started, or None where the replay has to do it; and why.

    ``wanted`` is ``auto``, ``kernel`` or ``replay``. Raises HostError when it is ``kernel`` and the
    kernel can't.
    """
    if wanted == "replay":
        return None, Tracking("replay", "the scenario asks for it")
    tracker = KernelTracker(images)
    try:
        tracker.start()
    except (HostError, CoreError) as error:
        if wanted == "kernel":
            raise HostError(
                f"the kernel can't track dirty pages: {error}; "
                "use 'migration.precopy.dirty_tracking: auto'"
            ) from error
        return None, Tracking("replay", f"the kernel can't: {error}")
    reason = "the scenario asks for it" if wanted == "kernel" else "this kernel can"
    return tracker, Tracking("kernel", reason)
