"""Commands that need root, as whoever is told them has to type them.

One rule for every remedy: root is told the command itself, everybody else the same behind sudo.
Root of a user namespace of its own, as in rootless containers, is somebody else: what is the
machine's is changed on the host.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

_SHELL = frozenset("|&;<>")
"""With one of these sudo would run only the first part, or the shell open the file, not root."""


def is_root() -> bool:
    """Whether this process is root's, of the machine."""
    return os.geteuid() == 0 and of_the_machine()


def of_the_machine() -> bool:
    """Whether this process is in the user namespace that the machine begins with, whose number is
    fixed (include/uapi/linux/nsfs.h)."""
    try:
        return os.readlink("/proc/self/ns/user") == f"user:[{0xEFFFFFFD}]"
    except OSError:
        return True


def as_root(command: str) -> str:
    """The command that runs ``command`` as root."""
    if is_root():
        return command
    return _sudo(command) if of_the_machine() else on_the_host(command)


def on_the_host(command: str) -> str:
    """The same for what no container may do; root in here may be nobody there."""
    return f"{_sudo(command)}  # on the host"


def _sudo(command: str) -> str:
    """``$$`` stays the process of the shell that is typed in."""
    return f"sudo sh -c {shlex.quote(command)}" if _SHELL & set(command) else f"sudo {command}"


def raise_limit(
    name: str, wanted: int | None, hard: int | None, wrapped: Callable[[str], str] = as_root
) -> str:
    """The command that raises a limit of the shell to ``wanted``, in its ``hard`` limit or beyond;
    None is without a limit. ``name`` is that of prlimit(1), one of ``_ULIMIT``; what root has to
    type is ``wrapped`` as its host wants it."""
    if beyond(wanted, hard):
        return wrapped(f"prlimit --pid $$ --{name}={'unlimited' if wanted is None else wanted}")
    option, unit = _ULIMIT[name]
    return f"ulimit -S {option} {'unlimited' if wanted is None else -(-wanted // unit)}"


def beyond(wanted: int | None, hard: int | None) -> bool:
    """Whether only root may raise a limit to ``wanted``."""
    return hard is not None and (wanted is None or wanted > hard)


_ULIMIT = {
    "memlock": ("-l", 1024),
    "nofile": ("-n", 1),
    "as": ("-v", 1024),
    "data": ("-d", 1024),
    "fsize": ("-f", 512),  # of POSIX; bash has 1024 and takes it for more
}
"""The option of the shell's ulimit, and the unit that it counts in."""
