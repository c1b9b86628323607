"""userfaultfd: open it whichever way this host allows, negotiate features, register memory, place
pages."""

from __future__ import annotations

import enum
import errno
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from vmemu import core
from vmemu.errors import CoreError, HostError
from vmemu.privilege import as_root


class Feature(enum.IntFlag):
    """Feature bits of ``UFFDIO_API``, named as in ioctl_userfaultfd(2) without
    ``UFFD_FEATURE_``."""

    PAGEFAULT_FLAG_WP = 1 << 0
    EVENT_FORK = 1 << 1
    EVENT_REMAP = 1 << 2
    EVENT_REMOVE = 1 << 3
    MISSING_HUGETLBFS = 1 << 4
    MISSING_SHMEM = 1 << 5
    EVENT_UNMAP = 1 << 6
    SIGBUS = 1 << 7
    THREAD_ID = 1 << 8
    MINOR_HUGETLBFS = 1 << 9
    MINOR_SHMEM = 1 << 10
    EXACT_ADDRESS = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED = 1 << 13
    POISON = 1 << 14
    WP_ASYNC = 1 << 15
    MOVE = 1 << 16


NO_FEATURES = Feature(0)


class Ioctl(enum.IntFlag):
    """What ``UFFDIO_REGISTER`` says can be done on a range: bit N is the ioctl with number N."""

    WAKE = 1 << 0x02
    COPY = 1 << 0x03
    ZEROPAGE = 1 << 0x04
    MOVE = 1 << 0x05
    WRITEPROTECT = 1 << 0x06
    CONTINUE = 1 << 0x07
    POISON = 1 << 0x08


class How(enum.IntEnum):
    """The ways to open userfaultfd, in the order in which they are tried."""

    SYSCALL = 0
    DEVICE = 1
    USER_MODE_ONLY = 2

    @property
    def label(self) -> str:
        """For people and result files."""
        return ("userfaultfd(2)", "/dev/userfaultfd", "userfaultfd(2), user-mode faults only")[self]


MODE_MISSING = 1 << 0
"""Register mode: a touch of a page that is not there is a fault."""
MODE_WP = 1 << 1
"""Register mode: a write to a page that is write-protected is a fault."""
MODE_MINOR = 1 << 2
"""Register mode: a touch of a page that the file has, and this mapping has not, is a fault."""


def feature_names(bits: int) -> list[str]:
    """The names of the known bits, then the unknown ones as ``bitN``."""
    names = [str(feature.name) for feature in Feature if bits & feature]
    unknown = bits & ~sum(Feature)
    return names + [f"bit{n}" for n in range(64) if unknown >> n & 1]


class OpeningKills(CoreError):
    """A seccomp filter kills whoever opens userfaultfd this way; ``signal`` is its number."""

    def __init__(self, number: int) -> None:
        self.signal = number
        self.why = f"a seccomp filter kills who asks ({signal.Signals(number).name})"
        super().__init__("userfaultfd", 0, detail=self.why)


def open_descriptor(how: How) -> int:
    """A descriptor without its handshake; the caller closes it. Raises CoreError, and where opening
    would kill the process OpeningKills."""
    if _is_filtered():
        number = core.call(core.lib.vm_uffd_open_kills, int(how))
        if number:
            raise OpeningKills(number)
    return core.call(core.lib.vm_uffd_open, int(how))


class Answer(NamedTuple):
    """Of the kernel to a handshake, as bits: all features that it announces, and the ioctls of
    the descriptor."""

    features: int
    ioctls: int


def handshake(fd: int, features: int = 0) -> Answer:
    """Ask for features; a descriptor takes part in one handshake in its life. Raises CoreError."""
    asked, ioctls = core.ffi.new("uint64_t *", features), core.ffi.new("uint64_t *")
    core.call(core.lib.vm_uffd_api, fd, asked, ioctls)
    return Answer(int(asked[0]), int(ioctls[0]))


def ask(how: How, features: int = 0) -> Answer:
    """A handshake on a descriptor of its own. Raises as ``open_descriptor``."""
    fd = open_descriptor(how)
    try:
        return handshake(fd, features)
    finally:
        os.close(fd)


def _is_filtered() -> bool:
    """Whether a seccomp filter sees the system calls of this thread."""
    try:
        return "\nSeccomp:\t2\n" in Path("/proc/thread-self/status").read_text()
    except OSError:
        return True  # trying in a child first costs little


def _open_first() -> tuple[int, How]:
    """The first way that works. HostError tells why each of them fails."""
    refused = []
    for how in How:
        try:
            return open_descriptor(how), how
        except CoreError as error:
            refused.append((how, error))
    if all(error.errno == errno.ENOSYS for how, error in refused if how is not How.DEVICE):
        raise HostError("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")
    reasons = "; ".join(f"{how.label}: {_why(error)}" for how, error in refused)
    raise HostError(
        f"userfaultfd can't be opened here ({reasons})",
        "vmemu doctor, which says why" if _is_filtered() else as_root(_SYSCTL),
    )


_SYSCTL = "sysctl vm.unprivileged_userfaultfd=1"


def _why(error: CoreError) -> str:
    return error.why if isinstance(error, OpeningKills) else os.strerror(error.errno)


class Userfaultfd:
    """One userfaultfd after its handshake.

    ``wanted`` features are asked for where the kernel has them; ``features`` tells which ones it
    granted, so that the caller decides what it can't do without. Raises HostError when none of the
    ways to open it works. Close it, or use it as a context manager.
    """

    def __init__(self, wanted: Feature = NO_FEATURES) -> None:
        # The handshake can be made once a descriptor, and refuses unknown bits: ask one for all it
        # has first.
        probe, self.how = _open_first()
        try:
            self.available = Feature(handshake(probe).features)
        finally:
            os.close(probe)
        self.features = wanted & self.available
        self.fd = open_descriptor(self.how)
        try:
            handshake(self.fd, int(self.features))
        except CoreError:
            self.close()
            raise

    def require(self, features: Iterable[Feature]) -> None:
        """Raise HostError unless all of the features were granted."""
        missing = [str(feature.name) for feature in features if not feature & self.features]
        if missing:
            names = ", ".join(f"UFFD_FEATURE_{name}" for name in missing)
            raise HostError(f"userfaultfd of this kernel lacks {names}")

    def register(self, start: int, length: int, mode: int = MODE_MISSING) -> Ioctl:
        """Register [start, start + length), whole pages; what can be done on it. Raises
        CoreError."""
        ioctls = core.ffi.new("uint64_t *")
        core.call(core.lib.vm_uffd_register, self.fd, start, length, mode, ioctls)
        return Ioctl(ioctls[0])

    def unregister(self, start: int, length: int) -> None:
        """Unregister; whoever waits in the range goes on with a fresh page of the kernel. Raises
        CoreError."""
        core.call(core.lib.vm_uffd_unregister, self.fd, start, length)

    def write_protect(self, start: int, length: int) -> None:
        """Write-protect whole pages of memory registered with ``MODE_WP``. Raises CoreError."""
        core.call(core.lib.vm_uffd_protect, self.fd, start, length, True)

    def wake(self, start: int, length: int) -> None:
        """Let all who wait in the range touch it again. Raises CoreError."""
        core.call(core.lib.vm_uffd_wake, self.fd, start, length)

    def copy(self, destination: int, source: Any, length: int, page_size: int) -> bool:
        """Place ``length`` bytes of ``source`` (bytes or a C pointer) and wake who waits for them.

        Pages that are there already are left alone. False when the mapping is gone. Raises
        CoreError.
        """
        if isinstance(source, (bytes, bytearray, memoryview)):
            source = core.ffi.from_buffer(source)
        stats = core.ffi.new("struct vm_place_stats *")
        arguments = (self.fd, destination, source, length, page_size, stats)
        return core.call(core.lib.vm_uffd_copy, *arguments) == 0

    def zeropage(self, destination: int, length: int, page_size: int) -> bool:
        """Place zeros; not for hugetlb. False when the mapping is gone. Raises CoreError."""
        stats = core.ffi.new("struct vm_place_stats *")
        arguments = (self.fd, destination, length, page_size, stats)
        return core.call(core.lib.vm_uffd_zeropage, *arguments) == 0

    def map_there(self, destination: int, length: int, page_size: int) -> bool:
        """Map pages of shared memory that the page cache has, zeros where it has none, and wake who
        waits for them. False when the mapping is gone. Raises CoreError."""
        stats = core.ffi.new("struct vm_place_stats *")
        arguments = (self.fd, destination, length, page_size, stats)
        return core.call(core.lib.vm_uffd_map_there, *arguments) == 0

    def close(self) -> None:
        """Close it; whoever still waits goes on. Closing twice is safe."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Userfaultfd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
