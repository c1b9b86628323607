"""Channel ``shm``: the source's image of each block lies in memory that both ends have mapped.

The destination makes that memory before the source starts, and seals its size, so that a source
that dies or goes wild can't shrink it under who reads it. A message then only says which pages may
be taken.

* *Shared memory* is the image itself. The destination's mapping is registered for minor faults as
  well, so a page that is there and was not announced is as missing as any; to place it the kernel
  only has to map it (UFFDIO_CONTINUE).
* *Anonymous memory and hugepages* are copied (UFFDIO_COPY) from a memfd of ordinary pages, which
  the destination maps for reading.

Where the kernel has no minor faults for shared memory, that is copied as well.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from vmemu import core
from vmemu.cleanup import run_all
from vmemu.errors import CoreError, HostError
from vmemu.handover import Descriptor
from vmemu.ramblock import Backing, RAMBlock, seal_size
from vmemu.userfault import Feature, Userfaultfd

NOT_IN_PLACE = (
    "this kernel has no minor faults for shared memory (UFFD_FEATURE_MINOR_SHMEM):"
    " channel shm copies the pages of shared blocks"
)


@functools.cache
def in_place_works() -> bool:
    """Whether shared memory can be the image itself. False as well where userfaultfd can't be
    opened: that is told by who needs it."""
    try:
        with Userfaultfd(Feature.MINOR_SHMEM) as uffd:
            return Feature.MINOR_SHMEM in uffd.features
    except (HostError, CoreError):
        return False


class SharedImage:
    """A descriptor of a block's image. May be handed over to another process, where it is that
    process's to close. ``in_place``: the memory is that of the block."""

    def __init__(self, fd: int, in_place: bool) -> None:
        self.fd = fd
        self.in_place = in_place

    def close(self) -> None:
        """Close the descriptor; safe to do twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __getstate__(self) -> dict[str, Any]:
        return {"in_place": self.in_place, "fd": Descriptor(self.fd)}


class Images:
    """The images of a VM's blocks at the destination; ``release``: what was copied is freed."""

    def __init__(self, blocks: Sequence[RAMBlock], *, release: bool = False) -> None:
        self._blocks = blocks
        self._release = release
        self._shared: list[SharedImage] = []
        self._mapped: list[tuple[int, int]] = []

    @property
    def warnings(self) -> list[str]:
        """What does not go as well as it could."""
        copied = any(b.backing is Backing.SHARED and not b.in_image for b in self._blocks)
        return [NOT_IN_PLACE] if copied else []

    def make(self) -> None:
        """Make and map them, once the blocks are mapped. Raises HostError; ``close`` gives back
        what was made."""
        for block in self._blocks:
            try:
                fd = _share(block) if block.in_image else _create(block)
                self._shared.append(SharedImage(fd, block.in_image))
                self._mapped.append((0 if block.in_image else _map(fd, block.size), block.size))
            except (OSError, CoreError) as error:
                why = os.strerror(error.errno or 0)
                what = f"block {block.name}: its image can't be shared: {why}"
                raise HostError(what).about(block.name, "path" if block.path else "size") from error

    def handed_over(self) -> tuple[SharedImage, ...]:
        """What the source needs of them, in the order of the blocks."""
        return tuple(self._shared)

    def attach(self, ram: Any) -> None:
        """Have the C core's ``struct vm_ram`` of the blocks take pages from the images."""
        for index, (image, (address, _)) in enumerate(zip(self._shared, self._mapped, strict=True)):
            block = ram.block[index]
            block.in_image = image.in_place
            block.image, block.image_fd = address, image.fd
            block.release_image = self._release and not image.in_place

    def close(self) -> None:
        """Give them back; safe to do twice. No thread may place pages any more."""
        mapped, self._mapped = self._mapped, []
        shared, self._shared = self._shared, []
        run_all(
            [
                *(functools.partial(_unmap, *one) for one in mapped),
                *(image.close for image in shared),
            ]
        )


def _share(block: RAMBlock) -> int:
    """A tmpfs may be full, and then the source would end by SIGBUS as it makes its image: what lies
    on one gets its pages now, all of which the destination needs in the end."""
    fd = block.share()
    if block.path is not None:
        try:
            os.posix_fallocate(fd, 0, block.size)
        except OSError:
            os.close(fd)
            raise
    return fd


def _create(block: RAMBlock) -> int:
    """A descriptor of memory of ordinary pages, whatever the block has."""
    name = f"vmemu-image-{block.name[:50]}"
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, block.size)
        seal_size(fd)
    except OSError:
        os.close(fd)
        raise
    return fd


def _map(fd: int, size: int) -> int:
    address = core.ffi.new("uint64_t *")
    core.call(core.lib.vm_image_map, fd, size, address)
    return int(address[0])


def _unmap(address: int, size: int) -> None:
    if address:
        core.call(core.lib.vm_unmap, address, size)
