"""The command that is recorded: whether it exists, how it ended, and what Ctrl-C does meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

from vmemu.errors import InputError
from vmemu.interrupts import SIGNALS

PATIENCE_S = 5.0
"""How long a command that was told to end may take before it is killed."""


def check_command(command: Sequence[str]) -> None:
    """Raises ``InputError`` unless the command's program is there and may be run."""
    program = command[0]
    if shutil.which(program) is None:
        if os.path.isfile(program) and os.sep in program:
            raise InputError(f"{program}: may not be executed: chmod +x {program}")
        raise InputError(f"{program}: no such command")


def how_it_ended(status: int) -> str:
    """In words; ``status`` as of ``Popen.returncode``; empty when all went well."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"was ended by {name}"
    return f"failed with exit code {status}" if status else ""


@contextmanager
def fifo(path: Path) -> Iterator[int]:
    """A new FIFO, open for both directions: neither opening nor writing waits for anybody."""
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class Running:
    """A tool with the command in it, and the signals that are meant for them.

    Used as a context manager it never leaves the process behind. While the process runs, SIGINT,
    SIGTERM and SIGHUP are passed on to it and don't end vmemu, so that what was recorded is kept;
    when it has ended, a first one is noted and a second one interrupts vmemu. A signal that is
    ignored stays so.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self.notes: list[str] = []
        """What people should know of the recording."""
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def start(self, arguments: Sequence[str], *, executable: Path | None = None) -> int:
        """Starts it with standard input, output and error of this process; its process id.

        ``executable``: the program, if not the first of the arguments. Raises ``InputError``, and
        ``KeyboardInterrupt`` if there was a signal before.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        try:
            self._process = subprocess.Popen(arguments, executable=executable)
        except OSError as error:
            raise InputError(f"{arguments[0]}: can't be started: {error.strerror}") from None
        if self.interrupted:
            self._process.send_signal(signal.SIGINT)
        return self._process.pid

    def wait(self) -> int:
        """Until it has ended; how, as ``Popen.returncode``."""
        assert self._process is not None
        return self._process.wait()

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._end()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _end(self) -> None:
        """Nobody reads what a process writes that is still there: it is of no use any more."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.interrupted = self.interrupted, True
        process = self._process
        if process is None:
            return
        if process.poll() is not None:
            if again:
                raise KeyboardInterrupt
        elif number != signal.SIGINT or not _terminal_is_ours():
            process.send_signal(number)


def _terminal_is_ours() -> bool:
    """Whether Ctrl-C of the terminal reaches this process, and with it all that it has started:
    to pass the signal on would give it to them twice, which many take as "at once"."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
