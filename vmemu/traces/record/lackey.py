"""Recording with valgrind's lackey: every access of the program, read while the program runs.

The text has some 20 bytes an instruction, so it goes through a FIFO and never to a disk. valgrind
opens the FIFO itself: a descriptor that it was given would be open in the program too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmemu.errors import HostError
from vmemu.traces.opening import ByteStream
from vmemu.traces.record.command import Running

PACKAGE = "valgrind"

_PIPE_BYTES = 1 << 20
_GATHERING_MS = 5


class Lackey:
    """Records every load and store in user mode."""

    title = "valgrind lackey"
    not_in_it = "what the kernel did for the command, and the processes that it started"

    @contextmanager
    def recording(
        self, command: Sequence[str], running: Running, directory: Path
    ) -> Iterator[ByteStream]:
        """Runs the command; the stream is lackey's text, and ends when the command has ended.

        ``directory``: an empty one, for what is needed meanwhile.
        """
        fifo = directory / "accesses"
        os.mkfifo(fifo, 0o600)
        # Not blocking, so that it is open at once, also if valgrind never opens its side.
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0):
            with contextlib.suppress(OSError):  # an ordinary user may have too many pipes for that
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            pid = running.start([*_valgrind(fifo), *command])
            with _Fifo(fd, pid) as raw:
                yield ByteStream(Path(command[0]).name, raw)


def find() -> Lackey:
    """Raises ``HostError`` when valgrind is not installed."""
    if shutil.which("valgrind") is None:
        raise HostError("valgrind is not installed", f"apt-get install {PACKAGE}")
    return Lackey()


def _valgrind(fifo: Path) -> list[str]:
    return [
        "valgrind",
        "--tool=lackey",
        "--trace-mem=yes",
        # A forked child has the same addresses and other memory behind them.
        "--child-silent-after-fork=yes",
        "--vgdb=no",
        f"--log-file={fifo}",
        "--",
    ]


class _Fifo:
    """What a process writes to a FIFO. It ends when the process has: a child that was forked and
    goes on may hold the FIFO open for ever."""

    def __init__(self, fd: int, pid: int) -> None:
        self._fd = fd
        self._process = os.pidfd_open(pid)
        self._ended = select.poll()
        self._ended.register(self._process, select.POLLIN)
        self._anything = select.poll()
        self._anything.register(self._process, select.POLLIN)
        self._anything.register(fd, select.POLLIN)

    def read1(self, size: int, /) -> bytes:
        """Whatever is there, up to ``size`` bytes, but at least one unless this is the end."""
        while True:
            self._anything.poll()
            # valgrind writes each line by itself: a reader that took them as they come would be
            # woken millions of times.
            ended = bool(self._ended.poll(_GATHERING_MS))
            part = self._read(size)
            if part or ended:  # whoever has ended had written all before
                return part

    def _read(self, size: int) -> bytes:
        try:
            return os.read(self._fd, size)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        if self._process >= 0:
            os.close(self._process)
            self._process = -1

    def __enter__(self) -> _Fifo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
