"""Files of /proc and /sys, read so that one that is absent or forbidden is a note, no exception."""

from __future__ import annotations

import errno
import grp
import os
import pwd
from pathlib import Path

from vmemu import privilege
from vmemu.host.document import Unknown

ASK_AS_ROOT = 'sudo "$(command -v vmemu)" doctor'
"""Not by its name alone: sudo looks in directories of its own, and no virtual environment."""


class HostFiles:
    """The host's files below ``root``; what could not be found out is gathered in ``unknown``.

    Paths are absolute ones of the host. ``what`` says in a few words what is looked for.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.unknown: list[Unknown] = []

    def text(self, path: str, what: str) -> str | None:
        """What a file says that every host has; None, and noted, when it can't be read."""
        return self._read(path, what, must=True)

    def optional(self, path: str, what: str) -> str | None:
        """The same of a file that need not be there: its absence is no note."""
        return self._read(path, what, must=False)

    def number(self, path: str, what: str, *, must: bool = True) -> int | None:
        """The number that a file holds; None when it can't be read, or holds something else."""
        text = self._read(path, what, must)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            self.note(what, f"{path} says {text.strip()[:40]!r}, which is no number")
            return None

    def names(self, path: str, what: str) -> list[str]:
        """What is in a directory, sorted; nothing when it is not there or can't be read."""
        try:
            return sorted(os.listdir(self._at(path)))
        except OSError as error:
            self._note_error(path, what, error, must=False)
            return []

    def link(self, path: str) -> str:
        """What a symbolic link says; empty when it can't be read."""
        try:
            return os.readlink(self._at(path))
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Whether there is something of that name."""
        return self._at(path).exists()

    def ownership(self, path: str) -> tuple[str, str]:
        """(mode in octal, owner:group) of a file; question marks when it can't be told."""
        try:
            status = self._at(path).stat()
        except OSError:
            return "?", "?"
        return f"{status.st_mode & 0o7777:04o}", owner(status)

    def note(self, what: str, why: str, remedy: str = "") -> None:
        """Something could not be found out."""
        found = Unknown(what=what, why=why, remedy=remedy)
        if found not in self.unknown:
            self.unknown.append(found)

    def note_error(self, what: str, why: str, error: OSError) -> None:
        """The same because of ``error``, which root may not meet."""
        denied = error.errno in (errno.EACCES, errno.EPERM) and not privilege.is_root()
        self.note(what, why, ASK_AS_ROOT if denied else "")

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _read(self, path: str, what: str, must: bool) -> str | None:
        try:
            return os.fsdecode(self._at(path).read_bytes())
        except OSError as error:
            self._note_error(path, what, error, must)
            return None

    def _note_error(self, path: str, what: str, error: OSError, must: bool) -> None:
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
        if gone and (top := self._not_mounted(path)):
            # Absence says nothing of the host then, and one note is enough.
            kind = _KERNEL_OWN[top][0]
            mount = privilege.as_root(f"mount -t {kind} {kind} /{top}")
            self.note(f"all that /{top} tells", f"no {kind} is mounted on /{top}", mount)
        elif must or not gone:
            self.note_error(what, f"{path}: {error.strerror}", error)

    def _not_mounted(self, path: str) -> str:
        """The directory of the kernel's own that ``path`` lies in, if nothing is mounted there."""
        top = path.split("/")[1]
        known = _KERNEL_OWN.get(top)
        return top if known and not self.exists(f"/{top}/{known[1]}") else ""


def owner(status: os.stat_result) -> str:
    """``user:group`` by name, by number where there is none."""
    try:
        user = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        user = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return f"{user}:{group}"


ALL_OF_SYS = "all that /sys tells"
"""What is unknown where no sysfs is mounted."""
COLLAPSE = "whether small pages can be made hugepages"
"""What is unknown where that could not be tried."""
_KERNEL_OWN = {"proc": ("proc", "self"), "sys": ("sysfs", "kernel")}
"""The file systems in which the kernel tells of itself, each with a name that it always has."""
