"""What raises a limit of a process, and who may."""

from __future__ import annotations

from collections.abc import Callable

from vmemu.host.containers import with_limit
from vmemu.host.files import HostFiles
from vmemu.host.identity import identify
from vmemu.privilege import as_root, beyond, raise_limit

NOT_HERE = (
    "; not even root may raise it here, without CAP_SYS_RESOURCE: it is up to what starts this "
    "session"
)


def raised(
    name: str,
    wanted: int | None,
    hard: int | None,
    *,
    raisable: bool,
    container: str,
    wrapped: Callable[[str], str] = as_root,
) -> tuple[str, str]:
    """What is to be said of a limit that has to be ``wanted``, if anything, and the command that
    raises it: empty where there is none. ``name`` is that of prlimit(1); ``raisable`` whether root
    may raise a hard limit at all, and ``container`` around it, which may be told of another;
    ``wrapped`` makes of a command what is typed to run it as root."""
    if not beyond(wanted, hard) or raisable:
        return "", raise_limit(name, wanted, hard, wrapped)
    remedy = with_limit(container, name, wanted)
    return ("" if remedy else NOT_HERE), remedy


def raised_here(name: str, wanted: int | None, hard: int | None) -> tuple[str, str]:
    """The same for this process."""
    identity = identify(HostFiles())
    raisable, container = identity.raises_limits, identity.container
    return raised(name, wanted, hard, raisable=raisable, container=container)
