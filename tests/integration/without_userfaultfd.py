"""Runs a command under a seccomp filter that refuses userfaultfd(2): ``... ACTION COMMAND``.

ACTION is EPERM, ENOSYS, TRAP or KILL.
"""

from __future__ import annotations

import errno
import os
import platform
import sys

import seccomp

NUMBERS = {"x86_64": 323, "aarch64": 282}

_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW = 0x7FFF0000
_ACTIONS = {
    "EPERM": 0x00050000 | errno.EPERM,
    "ENOSYS": 0x00050000 | errno.ENOSYS,
    "TRAP": 0x00030000,
    "KILL": 0x80000000,
}


def refuse(action: int) -> None:
    """The number of the call is the first word of what a filter sees."""
    steps = (
        (_LOAD, 0, 0, 0),
        (_JUMP_EQUAL, 0, 1, NUMBERS[platform.machine()]),
        (_RETURN, 0, 0, action),
        (_RETURN, 0, 0, _ALLOW),
    )
    seccomp.install(steps)


if __name__ == "__main__":
    refuse(_ACTIONS[sys.argv[1]])
    os.execvp(sys.argv[2], sys.argv[2:])
