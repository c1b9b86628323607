"""System calls that a seccomp filter denies to this process from then on, as a container does: for
programs that a test starts."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence

_IOCTL = {"x86_64": 16, "aarch64": 29}
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of classic BPF: LD|W|ABS, JMP|JEQ|K, RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _SECOND_ARGUMENT = 0, 24  # places in struct seccomp_data


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def deny_ioctl(request: int, with_errno: int = errno.EPERM) -> None:
    """Every ioctl with that request fails from now on."""
    steps = [
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 3, _IOCTL[platform.machine()]),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_JUMP_EQUAL, 0, 1, request),
        (_RETURN, 0, 0, _ERRNO | with_errno),
        (_RETURN, 0, 0, _ALLOW),
    ]
    install(steps)


def install(steps: Sequence[tuple[int, int, int, int]]) -> None:
    """From now on, and in what is executed, calls go through this program of classic BPF."""
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
