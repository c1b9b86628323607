"""Objects that hold descriptors, sent to a child that runs already.

multiprocessing takes descriptors along only with the start of a child. Here they go over a socket
beside the object (SCM_RIGHTS); both ends have their own then.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from vmemu.errors import HostError

_AT_ONCE = 200
"""Descriptors a message; the kernel takes 253 (SCM_MAX_FD)."""


class _Travelling(threading.local):
    fds: list[int] | None = None


_travelling = _Travelling()


class Descriptor:
    """Stands for a descriptor in the state of an object that is sent; what arrives is its number
    there, to be closed by whoever has it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        fds = _travelling.fds
        if fds is None:
            raise TypeError("a descriptor is only sent by vmemu.handover")
        fds.append(self._fd)
        return _arrived, (len(fds) - 1,)


def _arrived(index: int) -> int:
    assert _travelling.fds is not None
    return _travelling.fds[index]


def send(end: Connection, what: object) -> None:
    """Send an object over a duplex pipe, and wait until it is taken. Raises OSError when nobody is
    there any more."""
    end.send_bytes(begin(end, what))


def begin(end: Connection, what: object) -> bytes:
    """Send what comes before the object, its descriptors too, for which there is always room: they
    may be closed then. The object as bytes, which are to be sent next. Raises OSError."""
    fds: list[int] = []
    _travelling.fds = fds
    try:
        data = ForkingPickler.dumps(what)
    finally:
        _travelling.fds = None
    end.send(len(fds))
    with socket.socket(fileno=os.dup(end.fileno())) as way:
        for first in range(0, len(fds), _AT_ONCE):
            socket.send_fds(way, [b"\0"], fds[first : first + _AT_ONCE])
    return bytes(data)


def receive(end: Connection) -> Any:
    """The object that the other end sends. Raises EOFError when it closes instead, HostError when
    this process may not have so many files open."""
    count = end.recv()
    fds: list[int] = []
    with socket.socket(fileno=os.dup(end.fileno())) as way:
        for _ in range(0, count, _AT_ONCE):
            got = socket.recv_fds(way, 1, _AT_ONCE, socket.MSG_CMSG_CLOEXEC)
            if not got[0]:
                raise EOFError
            fds += got[1]
    data = end.recv_bytes()
    if len(fds) < count:
        raise HostError(f"of {count} files that were handed over {len(fds)} could be opened")
    _travelling.fds = fds
    try:
        return pickle.loads(data)
    finally:
        _travelling.fds = None
