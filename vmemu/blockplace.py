"""Where the file of a block may lie on this host: what is said of a place that will not do, and
another one that will.

The words are the same before a run, also of recorded hosts, and when a run comes to it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmemu import hugepages
from vmemu.errors import Advice, Setting
from vmemu.mounts import KERNELS_OWN
from vmemu.pagefit import HERE, Refusal, called
from vmemu.privilege import as_root
from vmemu.units import format_size

MEMFD = Advice("leave path out, for a memfd")
_PLAIN = re.compile(r"[\w./+@%=-]+( [\w./+@%=-]+)*")
"""What needs no quotes in YAML behind a key, of what a path may be."""


class BlockFile(NamedTuple):
    """The file that a block asks for, and what for."""

    path: str
    block: str
    hugetlb: bool
    page_size: int
    size: int

    @property
    def directory(self) -> str:
        """What it lies in."""
        return os.path.dirname(self.path)

    @property
    def wanted(self) -> str:
        """The kind of file system that userfaultfd has faults on."""
        return "hugetlbfs" if self.hugetlb else "tmpfs"

    def within(self, directory: str) -> Setting:
        """The same file in another directory."""
        return path_setting(directory, os.path.basename(self.path) or self.block)


def path_setting(directory: str, name: str) -> Setting:
    """The line of a scenario that names such a file."""
    path = os.path.join(directory, name.replace("/", "_"))
    if not _PLAIN.fullmatch(path):
        path = "'" + path.replace("'", "''") + "'"
    return Setting(f"path: {path}")


# ---- what is said ----


def wrong_file_system(file: BlockFile, where: str, kind: str, mount: str) -> str:
    """Of a file that lies on ``kind``, mounted on ``mount``; empty for one nobody knows of."""
    lies = f"{kind} ({mount})" if kind else "nothing that is known"
    return (
        f"{file.path} lies on {lies} on {where}, not on {file.wanted}: userfaultfd has no faults of"
        f" {format_size(file.page_size)} pages there"
    )


def wrong_page_size(file: BlockFile, where: str, mount: str, has: int) -> str:
    """Of a hugetlbfs of another page size."""
    wants = format_size(file.page_size)
    return f"{mount} on {where} holds pages of {format_size(has)}, and the block wants {wants}"


def no_directory(file: BlockFile, where: str) -> Refusal:
    """Of a file whose directory is not there."""
    what = f"{file.path}: there is no directory {file.directory} on {where}"
    command = f"mkdir -p {shlex.quote(file.directory)}"
    return Refusal(
        what, command if where != HERE or _may_make(file.directory) else as_root(command)
    )


def _may_make(directory: str) -> bool:
    above = os.path.realpath(directory)
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    return os.access(above, os.W_OK | os.X_OK)


class Space(NamedTuple):
    """What a mount has, bytes."""

    mount: str
    free: int
    size: int


def full(names: Sequence[str], wanted: int, where: str, space: Space) -> str:
    """Of a mount that has not the ``wanted`` bytes which those blocks need together."""
    verb = "needs" if len(names) == 1 else "need"
    return (
        f"{called(names)} {verb} {format_size(wanted)}, and {space.mount} on {where} has"
        f" {format_size(space.free, digits=3)} free of {format_size(space.size, digits=3)}"
    )


def more_room(wanted: int, space: Space, wrapped: Callable[[str], str] = as_root) -> str:
    """The command that lets a tmpfs have ``wanted`` bytes for new files, ``wrapped`` as its host
    has root type it."""
    size = space.size - space.free + wanted
    return wrapped(f"mount -o remount,size={size} {shlex.quote(space.mount)}")


def taken(file: BlockFile, where: str) -> Refusal:
    """Of a file that is there."""
    what = f"{file.path} exists already on {where} and may be somebody's"
    return Refusal(what, Advice(f"name another path, or {MEMFD}"))


def no_file(file: BlockFile, where: str) -> str:
    """Of a directory in the place of a file."""
    return f"{file.path} is a directory on {where}, and a block needs a file"


def in_place_of_directory(file: BlockFile, fits: bool) -> Refusal:
    """The same of this host, with a place that would do; ``fits`` says that a file could lie in the
    directory."""
    what = no_file(file, HERE)
    if fits:
        return Refusal(what, path_setting(file.path, file.block))
    inside = file._replace(path=os.path.join(file.path, file.block.replace("/", "_")))
    return in_another_place(inside, what)


def denied(file: BlockFile, where: str) -> Refusal:
    """Of a directory of this host in which this user may not make a file."""
    what = f"{file.directory} may not be written to on {where}"
    if not file.hugetlb:
        return Refusal(what, file.within("/dev/shm"))
    # A directory of one's own inside: the mount itself is everybody's.
    own = os.path.join(hugepages.filesystem_of(file.path)[1], f"vmemu-{os.geteuid()}")
    command = as_root(f"install -d -m 700 -o {os.geteuid()} {shlex.quote(own)}")
    return Refusal(f"{what}; make a directory and use '{file.within(own)}'", command)


# ---- another place ----


def in_another_place(file: BlockFile, what: str) -> Refusal:
    """``what`` is wrong with the path, and a place of this host that would do: one that is there if
    possible, else the command that makes one, and never over what is there."""
    if not file.hugetlb:
        return Refusal(what, file.within("/dev/shm"))
    mount = hugepages.mount_for(file.page_size, file.size)
    if mount:
        return Refusal(what, file.within(mount))
    if _can_be_made(file.directory):
        return Refusal(what, hugepages.mount_on_command(file.directory, file.page_size))
    command, mount = hugepages.mount_command(file.page_size)
    return Refusal(f"{what}; mount one and use '{file.within(mount)}'", command)


def _can_be_made(directory: str) -> bool:
    """Whether it is not there, so that a mount on it hides nothing, and could be."""
    above = os.path.realpath(directory)
    if os.path.lexists(above):
        return False
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    kind, mount = hugepages.filesystem_of(os.path.join(above, "x"))
    makes = kind not in KERNELS_OWN and not os.statvfs(above).f_flag & os.ST_RDONLY
    return bool(mount) and makes and os.path.isdir(above)
