"""RAM blocks: the memory of the emulated VM as the destination maps it.

Nothing here hands out a view of the memory. A Python thread that touches a missing page through a
buffer holds the GIL while the kernel stops it, and nothing ends that; so reads and writes go
through the C core, without the GIL.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from vmemu import addressspace, blockplace, core, hugepages, reservation
from vmemu.blockplace import BlockFile, Space
from vmemu.errors import Advice, CoreError, HostError, InputError, VmemuError, mending
from vmemu.meminfo import meminfo
from vmemu.pagefit import HERE, another_page_size, called
from vmemu.privilege import as_root
from vmemu.units import format_size

BASE_PAGE = os.sysconf("SC_PAGESIZE")
THP_SIZE = 2 << 20
"""Where a transparent hugepage could begin; a mapping aligned to it can hold whole ones."""

_LARGEST_FILE = (1 << 63) - 1


class Backing(enum.Enum):
    """What holds a block's pages."""

    ANONYMOUS = "anonymous"
    HUGETLBFS = "hugetlbfs"
    SHARED = "shared"


@dataclass
class RAMBlock:
    """One block: ``name`` is QEMU's ``idstr``; ``size`` bytes are a whole number of ``page_size``
    host pages.

    ``path`` names a place on hugetlbfs or on a tmpfs such as /dev/shm where nothing is yet; without
    it shared and huge memory is a memfd. The file that is made there never has that name, so two
    runs can't meet on it; where the kernel has O_TMPFILE it has no name at all, and not even
    SIGKILL leaves it behind. ``in_image``: its memory is the source's image of it. ``collapse``:
    post-copy is to make hugepages of its small pages, as soon as they are all there. ``address`` is
    0 while the block is not mapped.
    """

    name: str
    backing: Backing
    size: int
    page_size: int
    path: str | None = None
    in_image: bool = False
    collapse: bool = False
    address: int = field(default=0, init=False)
    _fd: int = field(default=-1, init=False, repr=False)

    @property
    def pages(self) -> int:
        """Host pages."""
        return self.size // self.page_size

    @property
    def page_shift(self) -> int:
        """log2 of the host page size."""
        return self.page_size.bit_length() - 1

    @property
    def hugetlb(self) -> bool:
        """Whether the pages come from a hugepage pool."""
        return self.backing is Backing.HUGETLBFS

    def map(self) -> None:
        """Map the block, empty; hugepages are reserved now, so that a shortage is an error here and
        nowhere else.

        Raises HugepageShortage, HostError (this host can't), InputError (the path is taken, the
        size is no whole number of pages), ValueError (it is mapped already). Nothing is left behind
        by a failure.
        """
        if self.address:
            raise ValueError(f"block {self.name} is mapped already")
        self._check_size()
        if self.hugetlb:
            self._require_page_size()
        try:
            self._fd = self._open()
            if self._fd >= 0:
                os.ftruncate(self._fd, self.size)
                if self.in_image and self.path is None:  # a file on a tmpfs takes no seals
                    seal_size(self._fd)
            self._map_descriptor()
        except (CoreError, OSError) as error:
            self._close()
            raise self._map_error(error) from error

    def _check_size(self) -> None:
        size, page = format_size(self.size), format_size(self.page_size)
        if self.size <= 0 or self.size % self.page_size:
            what = f"{called([self.name])}: {size} is no whole number of pages of {page}"
            raise InputError(what).about(self.name, "size")
        if self.size > _LARGEST_FILE:
            what = f"{size} can't be mapped: no process addresses that much; use smaller blocks"
            raise self._host_error("size", what)

    def _require_page_size(self) -> None:
        try:
            hugepages.pool(self.page_size)
        except HostError as error:
            sizes = hugepages.page_sizes()
            remedy = another_page_size(self.size, self.page_size, sizes)
            raise self._host_error("page_size", error.what, remedy) from None

    def _map_descriptor(self) -> None:
        address = core.ffi.new("uint64_t *")
        # Smaller blocks can hold no transparent hugepage, and many of them share page tables so.
        alignment = THP_SIZE if self.size >= THP_SIZE > self.page_size else self.page_size
        core.call(core.lib.vm_map, self.size, self._fd, alignment, address)
        self.address = address[0]

    @property
    def device(self) -> int | None:
        """The file system that the block's file lies on, as ``st_dev``; None without a file."""
        return None if self._fd < 0 else os.fstat(self._fd).st_dev

    def space(self) -> tuple[int, int] | None:
        """(free, all) bytes of that file system; None without a file, or where it has no limit."""
        if self._fd < 0:
            return None
        space = os.fstatvfs(self._fd)
        if not space.f_blocks:
            return None
        return space.f_bavail * space.f_bsize, space.f_blocks * space.f_bsize

    def share(self) -> int:
        """A descriptor of the block's memory, for another process to ``attach``; the caller closes
        it. Raises ValueError for anonymous memory, which has none."""
        if self._fd < 0:
            raise ValueError(f"block {self.name} is no mapped memory that can be shared")
        return os.dup(self._fd)

    def attach(self, fd: int) -> None:
        """Map what another process shares as this block; the descriptor is the block's from now
        on. Raises HostError, ValueError (it is mapped already)."""
        if self.address:
            raise ValueError(f"block {self.name} is mapped already")
        self._fd = fd
        try:
            self._map_descriptor()
        except CoreError as error:
            self._close()
            raise self._map_error(error) from error

    def _map_error(self, error: CoreError | OSError) -> VmemuError:
        what = f"{format_size(self.size)} can't be mapped: {os.strerror(error.errno or 0)}"
        if error.errno == errno.ENOMEM and (limit := _mapping_limit(self.size)):
            return self._host_error("size", f"{what}; {limit[0]}", limit[1])
        if self.hugetlb and error.errno in (errno.ENOMEM, errno.ENOSPC):
            if self._mount_is_full():
                return self._no_room(hugepages.filesystem_of(self.path or "")[1])
            short = hugepages.shortage(called([self.name]), self.page_size, self.pages)
            return short.about(self.name, "size")
        if error.errno == errno.ENOMEM:
            what += f"; {_memory_advice()}"
        return self._host_error("size", what)

    def _mount_is_full(self) -> bool:
        """Whether the mount has no room for what the block's file lacks, and the pool would."""
        space = self.space()
        if space is None:
            return False
        lacking = self.size - os.fstat(self._fd).st_blocks * 512
        return space[0] < lacking <= hugepages.pool(self.page_size).obtainable * self.page_size

    def _no_room(self, mount: str) -> VmemuError:
        free, total = self.space() or (0, 0)
        return self._host_error(
            "path",
            f"{self.path} has lost pages to somebody who has filled {mount}:"
            f" {format_size(free, digits=3)} free of {format_size(total, digits=3)};"
            f" remove what lies there, or leave path out for a memfd",
        )

    def _host_error(self, key: str, what: str, remedy: str = "") -> HostError:
        return HostError(f"{called([self.name])}: {what}", remedy).about(self.name, key)

    def _open(self) -> int:
        """The descriptor of the memory, or -1 for anonymous memory."""
        if self.backing is Backing.ANONYMOUS:
            return -1
        if self.path is None:
            flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if self.in_image else 0)
            if self.hugetlb:
                flags |= os.MFD_HUGETLB | self.page_shift << os.MFD_HUGE_SHIFT
            # The kernel takes 249 bytes of name and shows it in /proc/PID/maps; it need not be
            # unique.
            return os.memfd_create("vmemu-" + self.name[:60], flags)
        file = self._file(self.path)
        self._check_filesystem(file)
        if os.path.lexists(self.path):
            said = blockplace.taken(file, HERE)
            what = f"{called([self.name])}: {said.what}; {mending(said.remedy)}"
            raise InputError(what).about(self.name, "path")
        try:
            return _nameless(os.path.dirname(self.path))
        except OSError as error:
            raise self._open_error(self.path, error) from None

    def _file(self, path: str) -> BlockFile:
        return BlockFile(path, self.name, self.hugetlb, self.page_size, self.size)

    def _open_error(self, path: str, error: OSError) -> HostError:
        file = self._file(path)
        if error.errno == errno.ENOENT:
            return self._host_error("path", *blockplace.no_directory(file, HERE))
        if error.errno in (errno.EACCES, errno.EPERM):
            return self._host_error("path", *blockplace.denied(file, HERE))
        return self._host_error("path", f"{path}: {error.strerror}")

    def _check_filesystem(self, file: BlockFile) -> None:
        if os.path.isdir(file.path):
            inside = hugepages.filesystem_of(os.path.join(file.path, "x"))[0]
            refusal = blockplace.in_place_of_directory(file, inside == file.wanted)
            raise self._host_error("path", *refusal)
        kind, mount = hugepages.filesystem_of(file.path)
        if kind != file.wanted:
            self._refuse_place(blockplace.wrong_file_system(file, HERE, kind, mount))
        if self.hugetlb and os.statvfs(mount).f_bsize != self.page_size:
            has = os.statvfs(mount).f_bsize
            self._refuse_place(blockplace.wrong_page_size(file, HERE, mount, has))
        self._check_room(mount, [self.name], self.size)

    def _refuse_place(self, what: str) -> NoReturn:
        """Of the path, with a place that would do."""
        assert self.path is not None
        refusal = blockplace.in_another_place(self._file(self.path), what)
        raise self._host_error("path", *refusal)

    def require_room(self, together: Sequence[RAMBlock]) -> None:
        """Raise HostError when the mount that this block's path lies on has no room for all of
        ``together``, which lie there too."""
        assert self.path is not None
        mount = hugepages.filesystem_of(self.path)[1]
        self._check_room(mount, [block.name for block in together], sum(b.size for b in together))

    def _check_room(self, mount: str, names: Sequence[str], size: int) -> None:
        """A mount may be smaller than the machine's memory, and a touch that finds it full is a
        SIGBUS."""
        space = os.statvfs(mount)
        total, free = space.f_blocks * space.f_bsize, space.f_bavail * space.f_bsize
        if not total or free >= size:
            return
        what = blockplace.full(names, size, HERE, Space(mount, free, total))
        if self.hugetlb:  # hugetlbfs can't be resized
            file = self._file(self.path or "")._replace(size=size)
            refusal = blockplace.in_another_place(file, what)
            raise HostError(*refusal).about(self.name, "path")
        if size > meminfo("MemAvailable:"):
            raise HostError(what, _memory_advice()).about(self.name, "size")
        enough = blockplace.more_room(size, Space(mount, free, total))
        raise HostError(what, enough).about(self.name, "path")

    def unmap(self) -> None:
        """Give everything back; safe to do twice."""
        address, self.address = self.address, 0
        try:
            if address:
                if not self.hugetlb:
                    core.lib.vm_empty(address, self.size)
                core.call(core.lib.vm_unmap, address, self.size)
        finally:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def discard(self, offset: int = 0, length: int | None = None) -> None:
        """Forget the pages in [offset, offset + length), whole host pages: the next touch finds
        them missing.

        Shared and huge memory lives in its file, so a hole is punched there; MADV_DONTNEED would
        only drop this mapping of it. Raises ValueError for a range that is not whole pages of this
        block, CoreError.
        """
        if not self.address:
            raise ValueError(f"block {self.name} is not mapped")
        length = self.size - offset if length is None else length
        if (
            offset % self.page_size
            or length % self.page_size
            or not 0 <= offset <= offset + length <= self.size
        ):
            raise ValueError(f"block {self.name}: {offset:#x}+{length:#x} is not whole pages of it")
        if length == 0:
            return
        if self._fd < 0:
            core.call(core.lib.vm_advise, self.address + offset, length, mmap.MADV_DONTNEED)
            return
        if not self.hugetlb:
            core.call(core.lib.vm_punch_hole, self._fd, offset, length)
            return
        with reservation.changing([self.page_size]):
            core.call(core.lib.vm_punch_hole, self._fd, offset, length)
            self._reserve_again()

    def forget(self, offset: int = 0, length: int | None = None) -> None:
        """Have the next touch of these pages be a fault, as ``discard``. What the source's image is
        stays, as it is the only one: it is taken out of this mapping alone."""
        if not self.in_image:
            self.discard(offset, length)
            return
        length = self.size - offset if length is None else length
        core.call(core.lib.vm_advise, self.address + offset, length, mmap.MADV_DONTNEED)

    def _reserve_again(self) -> None:
        """Punching a hole gives the reservation back with the pages; a second mapping of the file
        takes it anew. Somebody who knows nothing of our locks may have taken the pages, and gets a
        moment to give them back."""
        address = core.ffi.new("uint64_t *")
        deadline = time.monotonic() + reservation.PATIENCE_S
        while True:
            try:
                core.call(core.lib.vm_map, self.size, self._fd, self.page_size, address)
            except CoreError as error:
                if error.errno != errno.ENOMEM or time.monotonic() >= deadline:
                    raise self._map_error(error) from error
                time.sleep(0.01)
                continue
            core.call(core.lib.vm_unmap, address[0], self.size)
            return

    def set_thp(self, enabled: bool) -> None:
        """Allow or forbid transparent hugepages: one placed by the kernel would hide 511 pages that
        are missing.

        Hugetlb has none; a kernel without them says EINVAL, which is as good as off.
        """
        if self.hugetlb:
            return
        advice = mmap.MADV_HUGEPAGE if enabled else mmap.MADV_NOHUGEPAGE
        try:
            core.call(core.lib.vm_advise, self.address, self.size, advice)
        except CoreError as error:
            if error.errno != errno.EINVAL:
                raise

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the block. Waits, without the GIL, for pages that are missing. Raises ValueError
        outside it."""
        self._check_range(offset, length)
        buffer = core.ffi.new("uint8_t[]", length)
        core.lib.vm_ram_read(self.address + offset, buffer, length)
        return bytes(core.ffi.buffer(buffer))

    def write(self, offset: int, data: bytes) -> None:
        """Change bytes of the block; waits as ``read`` does. Raises ValueError outside it."""
        self._check_range(offset, len(data))
        core.lib.vm_ram_write(self.address + offset, core.ffi.from_buffer(data), len(data))

    def _check_range(self, offset: int, length: int) -> None:
        if not self.address:
            raise ValueError(f"block {self.name} is not mapped")
        if not 0 <= offset <= offset + length <= self.size:
            raise ValueError(
                f"block {self.name}: {offset:#x}+{length:#x} lies outside its {self.size:#x} bytes"
            )


_MAPPINGS = 3
"""The most that a block takes while it is mapped: in a hole of its own, to be aligned."""


def _mapping_limit(size: int) -> tuple[str, str] | None:
    """What keeps this process from mapping ``size`` bytes of whatever kind, in words, and the
    command that raises it, empty where there is none; None when nothing does."""
    limit = addressspace.limit()
    if limit is not None and size > limit.left:
        return f"{limit.what} leaves {format_size(limit.left, digits=3)}", limit.remedy
    maps, most = addressspace.maps_and_most()
    if maps + _MAPPINGS > most:
        return (
            f"this process has {maps:,} mappings, and vm.max_map_count allows {most:,}",
            as_root(f"sysctl vm.max_map_count={2 * most}"),
        )
    if not addressspace.is_addressable(size):
        return "the address space of a process has no room for it; use smaller blocks", ""
    return None


def _memory_advice() -> Advice:
    from vmemu.host.room import memory_advice  # who maps what there is has no need of it

    return memory_advice()


def seal_size(fd: int) -> None:
    """Keep the size of a memfd as it is for ever: shrunk by another process, reading it would be a
    SIGBUS."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def _nameless(directory: str) -> int:
    """A descriptor of a new file in the directory that has no name there."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # Of hugetlbfs before Linux 5.6, and of kernels that take O_TMPFILE for O_DIRECTORY. ENOENT
        # is theirs as well, and then the second try says so of a directory that is not there.
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
    name = os.path.join(directory, f".vmemu-{os.urandom(16).hex()}")
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(name)
    except OSError:
        os.close(fd)
        raise
    return fd


class RAMList(Sequence[RAMBlock]):
    """The blocks of a VM in the order of the scenario, found by name or address."""

    def __init__(self, blocks: Sequence[RAMBlock]) -> None:
        self._blocks = list(blocks)
        self._by_name = {block.name: block for block in blocks}
        self._mapped: list[RAMBlock] = []
        self._addresses: list[int] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: Any) -> Any:
        return self._blocks[index]

    def __iter__(self) -> Iterator[RAMBlock]:
        return iter(self._blocks)

    def named(self, name: str) -> RAMBlock:
        """The block of that name. Raises KeyError."""
        return self._by_name[name]

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self)

    def index_addresses(self) -> None:
        """Note where the blocks are mapped now; ``find`` answers from that."""
        self._mapped = sorted((b for b in self if b.address), key=lambda block: block.address)
        self._addresses = [block.address for block in self._mapped]

    def find(self, address: int) -> tuple[RAMBlock, int] | None:
        """(block, offset) of an address, in logarithmic time; None outside all blocks."""
        index = bisect_right(self._addresses, address) - 1
        if index < 0 or address - self._addresses[index] >= self._mapped[index].size:
            return None
        return self._mapped[index], address - self._addresses[index]

    def table(self) -> Any:
        """The C core's ``struct vm_ram`` of the mapped blocks, with empty bitmaps; freed with its
        last reference."""
        ram = core.owned(core.lib.vm_ram_create(len(self)), core.lib.vm_ram_destroy)
        for index, block in enumerate(self):
            arguments = (
                block.name.encode(),
                block.address,
                block.size,
                block.page_shift,
                block.hugetlb,
            )
            if core.lib.vm_ram_set(ram, index, *arguments) < 0:
                raise MemoryError("the C core found no memory for a bitmap")
        core.lib.vm_ram_seal(ram)
        return ram
