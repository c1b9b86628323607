"""Threads that live inside one long call of the C core, and the bell that tells their owner of
their end."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable

from vmemu.affinity import CpuSet, settle
from vmemu.errors import HostError
from vmemu.interrupts import SIGNALS


class Bell:
    """An eventfd that C and Python ring and one thread waits on."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def ring(self) -> None:
        """Wake whoever waits, now or next."""
        os.eventfd_write(self.fd, 1)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it was rung since the last wait; False when the time is over."""
        poll = select.poll()  # select() refuses descriptors from 1024 on
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            return False
        os.eventfd_read(self.fd)
        return True

    def close(self) -> None:
        """Close it; safe to do twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class CThread:
    """A thread that runs ``function`` once, on ``cpus`` if any are given, and then rings ``bell``.

    ``error`` is what the function raised, None when it ended well. The function is one call of the
    core, without the GIL; whoever starts it must know how it is ended, since a thread can't be
    killed.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[], object],
        bell: Bell,
        cpus: CpuSet | None = None,
    ) -> None:
        self.name = name
        self._cpus = cpus
        self.error: BaseException | None = None
        self.done = False
        self._function = function
        self._bell = bell
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        # Signals are for the main thread: one taken here would only cut a system call short.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            settle(self._cpus)
            self._function()
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._bell.ring()

    def start(self) -> None:
        """Start it. Raises HostError when the process may have no more threads."""
        try:
            self._thread.start()
        except RuntimeError as error:  # Python's word for pthread_create's EAGAIN
            raise HostError(
                f"thread {self.name} can't be started: {error}; raise what limits this process"
                " (ulimit -u, ulimit -v, pids.max of its control group)"
            ) from None

    @property
    def tid(self) -> int | None:
        """The kernel's number of the thread while it runs."""
        return None if self.done else self._thread.native_id

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; False when the time is over."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()
