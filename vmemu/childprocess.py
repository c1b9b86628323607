"""Processes that a migration starts: by spawn, never by fork, which would copy threads' locks and
registered memory.

A child ignores Ctrl-C, as its owner decides when it is over, and ends by itself when its owner has
ended, however that came about.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vmemu.errors import Advice, HostError
from vmemu.units import printable

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess


LAST_STEPS_S = 0.5
"""How long a child may take to end by itself once its owner has closed."""
_NOT_EXECUTED = 255
"""What spawn's fork ends with when there is no executing the interpreter; it says no more."""
_ANOTHER = Advice(
    "run vmemu with an interpreter that can be executed, or name one with"
    " multiprocessing.set_executable"
)
_OF_PROGRAMS = (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP)
"""What execve(2) says of the program; all else is about this process or the machine."""
_NO_ROOM = {
    errno.EAGAIN: Advice(
        "raise what limits this user's processes (ulimit -u, pids.max), or end some"
    ),
    errno.ENOMEM: Advice("free memory, or raise what limits that of this process (ulimit -v)"),
}
_TERMINALS = (signal.SIGINT, signal.SIGHUP)


class ChildProcess:
    """A child as its owner sees it; ``what`` it is called in messages (``the source process``)."""

    def __init__(
        self, what: str, name: str, target: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        from multiprocessing import get_context

        self.what = what
        self.process: BaseProcess = get_context("spawn").Process(
            target=target, args=arguments, name=name, daemon=True
        )
        self._exitcode: int | None = None
        self._closed = False

    def start(self) -> None:
        """Start it. The caller closes its own copies of the child's descriptors afterwards.

        Raises HostError in a process that may have no children, without an interpreter, and where
        there is no room for one more process; OSError where there is none for its descriptors.
        """
        from multiprocessing import current_process

        if current_process().daemon:
            raise HostError(
                f"{self.what} can't be started: this process is a daemon of multiprocessing, such "
                "as a worker of its Pool, and may have no children; concurrent.futures has others"
            )
        program = interpreter()
        # access(2) knows nothing of capabilities, so its no is a reason to try and no more.
        doubtful = not os.access(program, os.X_OK) or os.path.isdir(program)
        try:
            if doubtful and (why := why_not_executed(program)):
                raise HostError(f"{self.what} can't be started: {why}", _ANOTHER)
            with _without_main(), _without_interrupts():
                self.process.start()
        except OSError as error:
            advice = _NO_ROOM.get(error.errno or 0)
            if advice is None:
                raise
            raise HostError(f"{self.what} can't be started: {error.strerror}", advice) from None

    @property
    def pid(self) -> int | None:
        """Its number, until it was waited for: then it may be another's."""
        return None if self._closed else self.process.pid

    def describe_end(self) -> str:
        """How it ended, in words; empty while it runs."""
        if not self._closed:
            self._exitcode = self.process.exitcode
        code = self._exitcode
        if code is None:
            return ""
        if code < 0:
            return f"{self.what} was killed by {signal_name(-code)}"
        why = _why_perhaps_not(interpreter()) if code == _NOT_EXECUTED else ""
        return f"{self.what} ended with exit code {code}{why and f' ({why})'}"

    def stop(self, patience_s: float) -> None:
        """Wait for its end, then kill it. Safe to call twice and before it was started."""
        if self._closed or self.process.pid is None:
            return
        self.process.join(patience_s)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self._exitcode = self.process.exitcode
        self._closed = True
        self.process.close()  # it has descriptors, and they would wait for the garbage collector


def interpreter() -> str:
    """The program that children run; empty where this process does not know its own."""
    from multiprocessing.spawn import get_executable

    return os.fsdecode(get_executable() or "")


def why_not_executed(program: str) -> str:
    """Why it can't be executed, found out by doing it; empty when it can. Raises OSError where that
    could not be found out, as nothing could be executed."""
    if not program:
        return "this process does not know its interpreter, as sys.executable is empty"
    import subprocess

    try:
        with subprocess.Popen(
            [os.path.abspath(program), "-c", ""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as tried:
            tried.kill()
    except OSError as error:
        if error.errno not in _OF_PROGRAMS:
            raise
        return f"{printable(program, 300)} can't be executed: {error.strerror}"
    return ""


def _why_perhaps_not(program: str) -> str:
    try:
        return why_not_executed(program)
    except OSError as error:
        asked = f"whether {printable(program, 300)} can be executed could not be tried"
        return f"{asked}: {error.strerror}"


def signal_name(number: int) -> str:
    """A signal as people know it."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last
        return f"signal {number}"


_main_lock = threading.Lock()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide ``__main__`` from spawn, which would run the caller's script again in the child.

    Nothing that a child needs lives there, and a caller's script need not guard itself against
    being imported.
    """
    with _main_lock:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start children with a terminal's signals blocked: Ctrl-C and a hangup go to them too, and
    would strike before they can ignore them."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # spawn starts it, and would unblock SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the child ----


def live_with(owner: int) -> None:
    """Ignore Ctrl-C and a hangup, and end when the other end of the descriptor ``owner`` closes,
    whatever this process is doing then."""
    for number in _TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()


def _end_with(owner: int) -> None:
    poll = select.poll()
    poll.register(owner, 0)  # POLLHUP is always told
    poll.poll()
    time.sleep(
        LAST_STEPS_S
    )  # the owner also closes at the end of all, and then we end by ourselves
    os._exit(0)
