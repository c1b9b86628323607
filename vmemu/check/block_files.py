"""Rules on the files of blocks: what they lie on, whether there is room, whether they can be made.

What lies below a directory is known of this host alone; of a recorded one only its mounts are.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from vmemu import hugepages
from vmemu.check.case import BlockOf, Case, End, Finding, names
from vmemu.check.codes import Code
from vmemu.host.document import Mount
from vmemu.units import format_size

_MEMFD = "leave path out, for a memfd"


def rules(case: Case) -> Iterator[Finding]:
    """All of this file; only the destination makes files."""
    end = case.destination
    fitting: dict[str, list[BlockOf]] = {}
    for of in case.blocks:
        if of.block.path is None:
            continue
        mount = _mount_of(end, _directory(end, of))
        wrong = _wrong_place(case, of, mount)
        if wrong is None and mount is not None:
            fitting.setdefault(mount.path, []).append(of)
            wrong = _cant_be_made(case, of, mount)
        if wrong is not None:
            yield wrong
    for path, blocks in fitting.items():
        mount = _mount_of(end, path)
        if mount is not None:
            yield from _full(case, mount, blocks)


def _directory(end: End, of: BlockOf) -> str:
    path = os.path.dirname(str(of.block.path))
    return os.path.realpath(path) if end.here else path


def _name(of: BlockOf) -> str:
    return os.path.basename(str(of.block.path))


def _mount_of(end: End, path: str) -> Mount | None:
    """What holds ``path``: of two mounts on one directory the later one."""
    best: Mount | None = None
    for mount in end.host.mounts:
        inside = path == mount.path or path.startswith(mount.path.rstrip("/") + "/")
        if inside and (best is None or len(mount.path) >= len(best.path)):
            best = mount
    return best


# ---- the file system ----


def _wrong_place(case: Case, of: BlockOf, mount: Mount | None) -> Finding | None:
    wanted = "hugetlbfs" if of.hugetlb else "tmpfs"
    end, size = case.destination, format_size(of.block.page_size)
    if mount is None or mount.type != wanted:
        lies = f"{mount.type} ({mount.path})" if mount else "nothing that is known"
        what = (
            f"{of.block.path} lies on {lies} on {end.called}, not on {wanted}:"
            f" userfaultfd has no faults of {size} pages there"
        )
        return case.of_block(
            of.number,
            "path",
            Code.PATH_FILESYSTEM,
            what,
            _another_place(end, of, True),
        )
    if of.hugetlb and mount.page_size not in (None, of.block.page_size):
        has = format_size(mount.page_size or 0)
        what = f"{mount.path} on {end.called} holds pages of {has}, and the block wants {size}"
        remedy = _another_place(end, of, False)
        return case.of_block(of.number, "path", Code.PATH_PAGE_SIZE, what, remedy)
    return None


def _another_place(end: End, of: BlockOf, mountable: bool) -> str:
    """A command that makes the path right, else another path, else none."""
    directory = _directory(end, of)
    if of.hugetlb and mountable and end.here and hugepages.free_to_mount_on(directory):
        return hugepages.mount_on_command(directory, of.block.page_size)
    mount = next((m for m in _best_first(end) if _takes(m, of)), None)
    return f"path: {mount.path.rstrip('/')}/{_name(of)}" if mount else _MEMFD


def _best_first(end: End) -> list[Mount]:
    """/dev/shm is there for this, other tmpfs are not."""
    return sorted(end.host.mounts, key=lambda mount: mount.path != "/dev/shm")


def _takes(mount: Mount, of: BlockOf) -> bool:
    fits = mount.free is None or mount.free >= of.block.size
    if not (mount.writable and fits):
        return False
    if of.hugetlb:
        return mount.type == "hugetlbfs" and mount.page_size == of.block.page_size
    return mount.type == "tmpfs" and mount.path == "/dev/shm"


# ---- the file itself ----


def _cant_be_made(case: Case, of: BlockOf, mount: Mount) -> Finding | None:
    end, path = case.destination, str(of.block.path)
    directory = _directory(end, of)
    if end.here and not os.path.isdir(directory):
        what = f"{path}: there is no directory {directory} on {end.called}"
        remedy = f"mkdir -p {shlex.quote(directory)}"
        return case.of_block(of.number, "path", Code.PATH_MISSING, what, remedy)
    if end.here and os.path.lexists(path):
        what = f"{path} exists already on {end.called} and may be somebody's"
        remedy = f"name another path, or {_MEMFD}"
        return case.of_block(of.number, "path", Code.PATH_EXISTS, what, remedy)
    writable = os.access(directory, os.W_OK | os.X_OK) if end.here else mount.writable
    if not writable:
        what = f"{directory if end.here else mount.path} may not be written to on {end.called}"
        remedy = _another_place(end, of, False)
        return case.of_block(of.number, "path", Code.PATH_NOT_WRITABLE, what, remedy)
    return None


# ---- room ----


def _full(case: Case, mount: Mount, blocks: list[BlockOf]) -> Iterator[Finding]:
    """A mount may be smaller than the machine's memory, and it has to hold all of its blocks."""
    wanted = sum(of.block.size for of in blocks)
    if mount.free is None or mount.size is None or mount.free >= wanted:
        return
    verb = "needs" if len(blocks) == 1 else "need"
    what = (
        f"{names(blocks)} {verb} {format_size(wanted)}, and {mount.path} on"
        f" {case.destination.called} has {format_size(mount.free, digits=3)} free of"
        f" {format_size(mount.size, digits=3)}"
    )
    for of in blocks:
        remedy = _more_room(case.destination, mount, of, wanted)
        yield case.of_block(of.number, "path", Code.PATH_FULL, what, remedy)


def _more_room(end: End, mount: Mount, of: BlockOf, wanted: int) -> str:
    """hugetlbfs can't be resized."""
    if mount.type == "hugetlbfs" or mount.size is None or mount.free is None:
        return _another_place(end, of, False)
    if wanted > end.host.memory.available:
        return "use a smaller size"
    size = mount.size - mount.free + wanted
    return f"mount -o remount,size={size} {shlex.quote(mount.path)}"
