"""What a process may have open and may write at most, against what a run takes of it.

It is laid against the destination's process, which has most: a client and the source have a
channel and the memory of one block, or none.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vmemu.config import Scenario
from vmemu.errors import CoreError, HostError
from vmemu.host.files import HostFiles
from vmemu.host.identity import identify
from vmemu.host.raising import raised
from vmemu.host.settings import bounds
from vmemu.pagefit import HERE
from vmemu.privilege import as_root
from vmemu.units import counted, format_size

STANDARD = 3
"""Descriptors that every process has open: its standard streams."""
_OF_EVERY_RUN = 16
"""The bell, the status, userfaultfd and the pipes to the source, what it is told through, and what
starting a process takes while all these are there."""
_OF_A_SECOND_CHANNEL = 2
_OF_A_VCPU_BY_ITSELF = 4
"""Both ends of its two pipes, until the source has its own."""
_OF_A_CLIENT = 5
"""Its socket, two pipes of the process, its userfaultfd, and what is mapped of it."""
_OF_EVENTS = 2
"""A log of each side."""


class Beyond(NamedTuple):
    """A limit that a run would meet: ``code`` is that of a check, ``field`` what of the scenario
    takes most of it."""

    code: str
    what: str
    remedy: str
    field: str


class Granted(NamedTuple):
    """Limits of a process; None is without one. ``used`` are descriptors that it has open already,
    ``raisable`` whether root may raise a hard limit, else ``container`` is what set it; ``wrapped``
    makes of a command what is typed there to run it as root."""

    files: int | None
    files_hard: int | None
    size: int | None
    size_hard: int | None
    used: int = STANDARD
    raisable: bool = True
    container: str = ""
    wrapped: Callable[[str], str] = as_root

    def raised(self, name: str, wanted: int | None, hard: int | None) -> tuple[str, str]:
        """What is to be said of a limit that has to be ``wanted``, and the command for it."""
        return raised(
            name,
            wanted,
            hard,
            raisable=self.raisable,
            container=self.container,
            wrapped=self.wrapped,
        )


def granted_here() -> Granted:
    """Those of this process, and of all that it starts."""
    identity = identify(HostFiles())
    files, files_hard = bounds(resource.RLIMIT_NOFILE)
    size, size_hard = bounds(resource.RLIMIT_FSIZE)
    return Granted(
        files=files,
        files_hard=files_hard,
        size=size,
        size_hard=size_hard,
        used=_open_files(files or 0),
        raisable=identity.raises_limits,
        container=identity.container,
    )


def _open_files(most: int) -> int:
    """``most`` where not even a directory can be opened any more."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1  # but for that of the list itself
    except OSError:
        return most


def files_needed(scenario: Scenario, *, events: bool = False) -> int:
    """Descriptors that a run has open at one time at most, beside those that were open before;
    ``events`` says whether it writes an event log. How many it is with clients depends on which of
    them come up while others are started."""
    blocks = sum(block.backing != "anonymous" for block in scenario.blocks)
    urgent = _OF_A_SECOND_CHANNEL if scenario.migration.postcopy.preempt else 0
    logs = _OF_EVENTS if events else 0
    images = len(scenario.blocks) if scenario.channel.kind == "shm" else 0
    pools = any(block.backing == "hugetlbfs" for block in scenario.blocks)  # a reservation
    own = scenario.migration.postcopy.delivery == "sigbus"
    vcpus = _OF_A_VCPU_BY_ITSELF * scenario.guest.vcpus if own else 0
    clients = _OF_A_CLIENT * len(scenario.clients)
    return _OF_EVERY_RUN + urgent + vcpus + logs + pools + blocks + images + clients


def largest_file(scenario: Scenario) -> int:
    """Bytes of the largest block that is a file, if only one without a name, or whose image is."""
    every = scenario.channel.kind == "shm"
    sizes = (b.size for b in scenario.blocks if every or b.backing != "anonymous")
    return max(sizes, default=0)


def beyond(
    scenario: Scenario, granted: Granted, where: str = HERE, *, events: bool = False
) -> list[Beyond]:
    """Every limit that a run would meet on the host that is called ``where``."""
    found = []
    files = files_needed(scenario, events=events) + granted.used
    if granted.files is not None and files > granted.files:
        what = (
            f"the run has {counted(files, 'file')} open at one time, and"
            f" {granted.files} is what a process may have on {where} (RLIMIT_NOFILE)"
        )
        limit = ("nofile", files, granted.files_hard)
        field = "clients" if len(scenario.clients) > len(scenario.blocks) else "blocks"
        found.append(_beyond("open_files", what, limit, field, granted))
    size = largest_file(scenario)
    if granted.size is not None and size > granted.size:
        what = (
            f"the largest block that is a file, if only a memfd, has {format_size(size)}, and"
            f" {format_size(granted.size)} is what a process may make a file on {where}"
            " (RLIMIT_FSIZE)"
        )
        limit = ("fsize", size, granted.size_hard)
        found.append(_beyond("file_size", what, limit, "blocks", granted))
    return found


def _beyond(
    code: str, what: str, limit: tuple[str, int, int | None], field: str, granted: Granted
) -> Beyond:
    words, remedy = granted.raised(*limit)
    return Beyond(code, what + words, remedy, field)


def require(scenario: Scenario, *, events: bool = False) -> None:
    """Raise HostError for a limit of this process that the run would meet, before it begins."""
    for limit in beyond(scenario, granted_here(), events=events):
        raise HostError(limit.what, limit.remedy).at(scenario.place_of(limit.field))


def is_met(error: BaseException | None) -> bool:
    """Whether a system call has failed because of such a limit."""
    limits = (errno.EMFILE, errno.ENFILE, errno.EFBIG)
    return isinstance(error, OSError | CoreError) and error.errno in limits


@contextmanager
def named() -> Iterator[None]:
    """Raise HostError with the limit that is met after all, in the place of an error that says
    nothing of it. Around what gives everything back: to look it up takes files too."""
    try:
        yield
    except (OSError, CoreError) as error:
        refused = refusal(error)
        if refused is None:
            raise
        raise refused from None
    except HostError as error:
        refused = None if error.remedy else refusal(error.__cause__)
        if refused is None:
            raise
        what = f"{error.what}; {refused.what}"
        raise HostError(what, refused.remedy).at(error.place) from error.__cause__


def refusal(error: BaseException | None) -> HostError | None:
    """What such an error of a system call means, which says nothing of a limit by itself; None for
    any other."""
    if not is_met(error):
        return None
    assert isinstance(error, OSError | CoreError)
    if error.errno == errno.ENFILE:
        what = f"{HERE} has as many files open as it may ({error})"
        return HostError(what, as_root("sysctl fs.file-max=1000000"))
    granted = granted_here()
    name, hard = "nofile", granted.files_hard
    what = f"this process has as many files open as it may, {granted.files} (RLIMIT_NOFILE)"
    wanted: int | None = _ENOUGH_FILES
    if error.errno == errno.EFBIG:
        name, hard, wanted = "fsize", granted.size_hard, None
        what = f"a file is larger than this process may make one ({error}; RLIMIT_FSIZE)"
    words, remedy = granted.raised(name, wanted, hard)
    return HostError(what + words, remedy)


_ENOUGH_FILES = 1024
