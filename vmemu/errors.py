"""The errors that vmemu raises on purpose; everything else is a bug.

::

    VmemuError                 the root; ``exit_code`` is what every verb ends with
    ├── InputError        (2)  the input is wrong: usage, scenario, trace
    │   ├── ConfigError        a scenario; carries every problem found, not only the first
    │   └── TraceError         a recording or a native trace
    ├── OutputError       (1)  an output can't be written to its end: the disk is full
    ├── HostError         (3)  this host can't; says which command mends it
    │   └── HugepageShortage   the pool is too small now; another run may give pages back
    └── MigrationError    (1)  the migration started and did not complete
        ├── ProtocolError      the peer said something that it may not say
        ├── PeerGone           the other process closed its channel, or died
        ├── StateError         a step asked for in a state that does not allow it
        └── CoreError          a system call of the C core failed where it must not
            └── PageRefused    the kernel gave no memory for a page; says which command mends it
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self


class Advice(str):
    """A remedy in words, where no command mends it: ``use smaller blocks``."""


class Setting(Advice):
    """A remedy that is written into the scenario: ``path: /dev/shm/ram``."""


def mending(remedy: str) -> str:
    """The part of a message that says what mends it; a remedy that is a mere text is a command."""
    if isinstance(remedy, Setting):
        return f"use '{remedy}'"
    return remedy if isinstance(remedy, Advice) else f"mend it with: {remedy}"


class VmemuError(Exception):
    """Root of all errors raised on purpose.

    An error about a RAM block names it in ``block``, and in ``key`` what of the block is to blame
    (``path``, ``size``), or without a block what of the scenario; both may be empty. ``place`` says
    where that stands in the scenario; whoever knows the scenario adds it, and the message then
    begins with it.
    """

    exit_code = 1
    kind = "error"
    block = ""
    key = ""
    place = ""

    def about(self, block: str, key: str = "") -> Self:
        """This error, of that block and key of it."""
        self.block, self.key = block, key
        return self

    def at(self, place: str) -> Self:
        """This error at ``place``, as ``Scenario.place_of`` gives it; a place that it has stays."""
        self.place = self.place or place
        return self

    def locate(self, place_of_block: Callable[[str, str], str]) -> None:
        """Add where the block and the key stand, as ``place_of_block`` says of their names."""
        if self.block or self.key:
            self.at(place_of_block(self.block, self.key))

    def __str__(self) -> str:
        message = super().__str__()
        return f"{self.place}: {message}" if self.place else message


class InputError(VmemuError):
    """The input is wrong and nothing was touched."""

    exit_code = 2
    kind = "input"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a scenario: where it stands, what it is, what would do.

    ``line`` and ``column`` count from 1; 0 means that no place in the file is to blame. ``code`` is
    that of ``vmemu.check.codes`` where the scenario can be read and only does not fit together or
    to the host; empty where it is none.
    """

    file: str
    line: int
    column: int
    field: str
    what: str
    remedy: str
    code: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        field = f" {self.field}:" if self.field else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{place}:{field} {self.what}{remedy}"


class ConfigError(InputError):
    """A scenario is wrong; ``problems`` lists everything that is, in the order of the file."""

    kind = "config"

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.file, p.line, p.column))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class TraceError(InputError):
    """A recording or a native trace can't be read, or says what it can't mean; ``remedy`` is what
    would do, if that is known."""

    kind = "trace"

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}" if remedy else what)


class OutputError(VmemuError):
    """An output could not be written to its end, such as on a full disk; nothing of it is left."""

    kind = "output"


class HostError(VmemuError):
    """This host can't do what was asked; ``remedy`` is the command that mends it, if there is
    one, or ``Advice``."""

    exit_code = 3
    kind = "host"

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {mending(remedy)}" if remedy else what)


class HugepageShortage(HostError):
    """The pool of hugepages can't serve a reservation now. ``waiting_helps`` is whether others may
    give back enough; ``waited`` is what is to be said of the time that was waited for it, or of how
    to wait, empty for nothing."""

    kind = "hugepages"
    waiting_helps = False
    waited = ""

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        waited = f"; {self.waited}" if self.waited else ""
        remedy = f"; {mending(self.remedy)}" if self.remedy else ""
        return f"{place}{self.what}{waited}{remedy}"


class MigrationError(VmemuError):
    """The migration started and did not complete."""

    kind = "migration"


class ProtocolError(MigrationError):
    """The peer broke the protocol."""

    kind = "protocol"


class PeerGone(MigrationError):
    """The other process closed its channel, or died, before its part was done."""

    kind = "peer_gone"


class StateError(MigrationError):
    """A step was asked for in a state that does not allow it; nothing was changed."""

    kind = "state"


class CoreError(MigrationError):
    """A system call in the C core failed: ``operation``, ``errno``, the ``address`` it was about,
    and words beyond that in ``detail``."""

    kind = "core"

    def __init__(self, operation: str, errno: int, address: int = 0, detail: str = "") -> None:
        self.operation = operation
        self.errno = errno
        self.address = address
        self.detail = detail
        reason = f"{os.strerror(errno)} (errno {errno})" if errno else ""
        place = f" at {address:#x}" if address else ""
        parts = [part for part in (reason, detail) if part]
        super().__init__(f"{operation}{place}: {'; '.join(parts) or 'failed'}")


class PageRefused(CoreError):
    """The kernel gave no memory for a page in the middle of a run; ``remedy`` is the command that
    makes room, if there is one."""

    kind = "memory"

    def __init__(self, error: CoreError, what: str, remedy: str = "") -> None:
        super().__init__(error.operation, error.errno, error.address, error.detail)
        said = f"{what} ({error.operation}: {os.strerror(error.errno)})"
        self.remedy = remedy
        self.args = (f"{said}; mend it with: {remedy}" if remedy else said,)
