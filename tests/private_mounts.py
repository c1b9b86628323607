"""Mounts that nobody else sees, and that end with whoever made them, be it by SIGKILL."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def private_mounts() -> Iterator[None]:
    """Meanwhile the calling thread, and all that it starts, has mounts of its own, a copy of those
    that there were: what is mounted or unmounted is so for them alone. The kernel unmounts what is
    left when the last of them has gone. Raises PermissionError for who may not.
    """
    here = os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        _call("unshare", CLONE_NEWNS)
        _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        try:
            yield
        finally:
            # Threads that were started in between share root and working directory with this one,
            # and a thread that shares them can't change its namespace.
            _call("unshare", CLONE_FS)
            _call("setns", before, CLONE_NEWNS)
            os.chdir(here)  # which is the root after that
    finally:
        os.close(before)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
