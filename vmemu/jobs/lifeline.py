"""A run that ends when its owner does, however that ends: SIGKILL, a crash, the OOM killer.

The owner holds the write end of a pipe on which nothing is ever written, the run the read end. The
kernel tells the run of the other end's closing by a signal (``O_ASYNC``), and that signal is
SIGKILL, for the whole process group. So no thread of the run has to notice: one that waits for a
page may hold the GIL. ``PR_SET_PDEATHSIG`` would strike as soon as the *thread* ends that has
started the run.
"""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import os
import select
import signal
import stat
import weakref
from typing import ClassVar

STACKS_SIGNAL = signal.SIGUSR2
"""Has a run with an owner write the Python stacks of all its threads to its standard error."""
_F_SETSIG = 10
"""Missing from the module fcntl before Python 3.13."""


class Lifeline:
    """The owner's end; ``theirs`` is to be inherited by the run, and closed here then."""

    _all: ClassVar[weakref.WeakSet[Lifeline]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.theirs, self._ours = os.pipe2(os.O_CLOEXEC)
        self._all.add(self)

    def handed_over(self) -> None:
        """The run has its end. Safe to call twice."""
        fd, self.theirs = self.theirs, -1
        _close(fd)

    def cut(self) -> None:
        """End the run and all it has started. Safe to call twice."""
        self.handed_over()
        fd, self._ours = self._ours, -1
        _close(fd)

    @classmethod
    def let_go_of_all(cls) -> None:
        """In a child of the owner by fork: it is nobody's owner, and may live longer."""
        for one in list(cls._all):
            fd, one._ours = one._ours, -1
            _close(fd)


os.register_at_fork(after_in_child=Lifeline.let_go_of_all)


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def live_under(fd: int) -> None:
    """In the run: live no longer than whoever has the other end, and tell stacks on its demand and
    after a crash. Of a run that leads a process group, nothing in it lives longer.

    Raises OSError when ``fd`` is no pipe.
    """
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):  # nothing is told of /dev/null, and no error
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    # Written by the signal's handler itself, which needs no GIL.
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
    os.set_inheritable(fd, False)
    alone = os.getpgrp() != os.getpid()  # started by somebody else: its group is not ours to end
    all_of_us = os.getpid() if alone else -os.getpid()
    fcntl.fcntl(fd, fcntl.F_SETOWN, all_of_us)
    fcntl.fcntl(fd, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP is always told
    if poll.poll(0):  # it came before the kernel knew what to do then
        os.kill(all_of_us, signal.SIGKILL)
