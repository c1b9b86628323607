"""Files that somebody names as an input, opened so that nobody waits for one in vain.

Any name may turn out to be a pipe: ``/dev/stdin`` and ``<(...)`` of a shell are. To open one blocks
until somebody writes to it, which may be never, and a device may have no end.
"""

from __future__ import annotations

import errno
import io
import os
import select
import shlex
import stat
from typing import TYPE_CHECKING

from vmemu.units import printable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

WRITER_PATIENCE_S = 2.0
"""How long a pipe may have nobody who writes to it: a shell starts both ends at about one time."""

_NO_FILES = (
    (stat.S_ISDIR, errno.EISDIR, os.strerror(errno.EISDIR)),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, no file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device, no file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device, no file"),
)


def open_input(path: str | os.PathLike[str]) -> io.BufferedReader:
    """The bytes of a file, or of a pipe until its writers close it.

    Raises OSError, also for a socket, a device and a directory; a read of it raises OSError for a
    pipe to which nobody writes. ValueError for a name that can't be one.
    """
    _require_file(os.stat(path), path)  # not even opened: that alone makes some devices act
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        _require_file(status, path)
        if stat.S_ISFIFO(status.st_mode):
            return io.BufferedReader(_Pipe(fd))
        os.set_blocking(fd, True)
        return open(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _require_file(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    for is_one, number, words in _NO_FILES:
        if is_one(status.st_mode):
            raise OSError(number, words, os.fspath(path))


def denied(path: str) -> tuple[str, str]:
    """(what is closed to this user, what would do) of a file or directory that may not be read:
    itself, or a directory on the way to it."""
    closed, path = "", os.path.abspath(path)
    above = os.path.dirname(path)
    while above != os.path.dirname(above):  # the outermost that is closed hides the others
        if os.path.isdir(above) and not os.access(above, os.X_OK):
            closed = above
        above = os.path.dirname(above)
    what = f"permission to look into {printable(closed, 4096)} is denied"
    if not closed:
        closed, kind = path, "directory" if os.path.isdir(path) else "file"
        what = f"permission to read the {kind} is denied"
    if _is_ours(closed):
        return what, f"allow it: chmod u+rX {shlex.quote(printable(closed, 4096))}"
    return what, "ask its owner to allow it, or use another user or a copy"


def _is_ours(path: str) -> bool:
    try:
        return os.stat(path).st_uid == os.geteuid()
    except OSError:  # gone meanwhile
        return False


class _Pipe(io.RawIOBase):
    """The reading end of a pipe; its descriptor does not block."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._has_writer = False

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        waited = False
        while True:
            try:
                count = os.readv(self._fd, [buffer])
            except BlockingIOError:  # somebody has it open for writing, and takes his time
                self._has_writer = True
                self._wait(None)
                continue
            if count or self._has_writer:
                self._has_writer = True
                return count
            # Nobody has it open. Whether somebody had, who wrote nothing, the kernel tells at once.
            if not waited and self._wait(WRITER_PATIENCE_S) & select.POLLHUP:
                return 0
            if waited:
                raise OSError(errno.EPIPE, "it is a pipe to which nobody writes")
            waited = True

    def _wait(self, seconds: float | None) -> int:
        """What there is for a reader: select's bits; 0 when the time is over."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        events = poll.poll(None if seconds is None else seconds * 1000)
        return events[0][1] if events else 0

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()
