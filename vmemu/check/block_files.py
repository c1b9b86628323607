"""Rules on the files of blocks: what they lie on, whether there is room, whether they can be made.

What lies below a directory is known of this host alone; of a recorded one only its mounts are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from vmemu import blockplace, hugepages
from vmemu.blockplace import MEMFD, BlockFile, Space, path_setting
from vmemu.check.case import BlockOf, Case, End, Finding
from vmemu.check.codes import Code
from vmemu.errors import Advice
from vmemu.host.document import Mount
from vmemu.inputfile import denied
from vmemu.pagefit import Refusal

_KERNELS_OWN = {"/proc": "proc", "/sys": "sysfs"}
"""What a document of a host leaves out, as nobody makes a file there."""


def rules(case: Case) -> Iterator[Finding]:
    """All of this file; only the destination makes files."""
    end = case.destination
    fitting: dict[str, list[BlockOf]] = {}
    for of in case.blocks:
        if of.block.path is None:
            continue
        file = _file(of)
        mount = _mount_of(end, file.path)
        wrong = _no_file(case, of, mount) or _wrong_place(case, of, mount)
        if wrong is None and mount is not None:
            fitting.setdefault(mount.path, []).append(of)
            wrong = _cant_be_made(case, of, mount)
        if wrong is not None:
            yield wrong
    for path, blocks in fitting.items():
        mount = _mount_at(end, path)
        if mount is not None:
            yield from _full(case, mount, blocks)


def _file(of: BlockOf) -> BlockFile:
    block = of.block
    return BlockFile(str(block.path), block.name, of.hugetlb, block.page_size, block.size)


def _mount_of(end: End, path: str) -> Mount | None:
    """What holds the file ``path``, asked of the kernel where it is this one's."""
    if end.here:
        kind, place = hugepages.filesystem_of(path)
        return _mount_at(end, place) or (Mount(path=place, type=kind) if place else None)
    own = [Mount(path=at, type=kind) for at, kind in _KERNELS_OWN.items()]
    # Of two on one directory the later one: a sort keeps their order.
    every = sorted([*own, *end.host.mounts], key=lambda mount: len(mount.path))
    return next((mount for mount in reversed(every) if _is_below(path, mount.path)), None)


def _mount_at(end: End, place: str) -> Mount | None:
    """Of two mounts on one directory the later one."""
    return next((one for one in reversed(end.host.mounts) if one.path == place), None)


def _is_below(path: str, place: str) -> bool:
    return path.startswith(place.rstrip("/") + "/")


# ---- the file system ----


def _no_file(case: Case, of: BlockOf, mount: Mount | None) -> Finding | None:
    """A directory has the name that the file is to have."""
    end, file = case.destination, _file(of)
    if not (os.path.isdir(file.path) if end.here else _mount_at(end, file.path)):
        return None
    inside = _mount_of(end, os.path.join(file.path, "x"))
    fits = inside is not None and _suits(inside, of)
    if end.here:
        refusal = blockplace.in_place_of_directory(file, fits)
    else:
        place = path_setting(file.path, file.block) if fits else _recorded_place(end, of)
        refusal = Refusal(blockplace.no_file(file, end.called), place)
    return case.of_block(of.number, "path", Code.PATH_DIRECTORY, *refusal)


def _suits(mount: Mount, of: BlockOf) -> bool:
    return mount.type == _file(of).wanted and (
        not of.hugetlb or mount.page_size in (None, of.block.page_size)
    )


def _wrong_place(case: Case, of: BlockOf, mount: Mount | None) -> Finding | None:
    end, file = case.destination, _file(of)
    if mount is None or mount.type != file.wanted:
        lies = (mount.type, mount.path) if mount else ("", "")
        what = blockplace.wrong_file_system(file, end.called, *lies)
        refusal = _in_another_place(end, of, what)
        return case.of_block(of.number, "path", Code.PATH_FILESYSTEM, *refusal)
    if not _suits(mount, of):
        what = blockplace.wrong_page_size(file, end.called, mount.path, mount.page_size or 0)
        refusal = _in_another_place(end, of, what)
        return case.of_block(of.number, "path", Code.PATH_PAGE_SIZE, *refusal)
    return None


def _in_another_place(end: End, of: BlockOf, what: str) -> Refusal:
    """A place that would do is looked for in a recorded host's document; on this host a run would
    name the same."""
    if end.here:
        return blockplace.in_another_place(_file(of), what)
    return Refusal(what, _recorded_place(end, of))


def _recorded_place(end: End, of: BlockOf) -> str:
    mount = next((mount for mount in end.host.mounts if _takes(mount, of)), None)
    return _file(of).within(mount.path) if mount else MEMFD


def _takes(mount: Mount, of: BlockOf) -> bool:
    """/dev/shm is there for this, other tmpfs are not."""
    fits = mount.free is None or mount.free >= of.block.size
    if not (mount.writable and fits):
        return False
    if of.hugetlb:
        return mount.type == "hugetlbfs" and mount.page_size == of.block.page_size
    return mount.type == "tmpfs" and mount.path == "/dev/shm"


# ---- the file itself ----


def _cant_be_made(case: Case, of: BlockOf, mount: Mount) -> Finding | None:
    end, file = case.destination, _file(of)
    if not end.here:
        if mount.writable:
            return None
        what = f"{mount.path} may not be written to on {end.called}"
        remedy = _recorded_place(end, of)
        return case.of_block(of.number, "path", Code.PATH_NOT_WRITABLE, what, remedy)
    code, refusal = _refusal_here(end, file)
    return case.of_block(of.number, "path", code, *refusal) if refusal else None


def _refusal_here(end: End, file: BlockFile) -> tuple[Code, Refusal | None]:
    """What a run would meet when it makes the file."""
    try:
        os.stat(file.directory)
    except PermissionError:
        closed, remedy = denied(file.directory)
        what = f"{file.path}: {closed} on {end.called}"
        return Code.PATH_NOT_WRITABLE, Refusal(what, Advice(remedy))
    except OSError:
        return Code.PATH_MISSING, blockplace.no_directory(file, end.called)
    if os.path.lexists(file.path):
        return Code.PATH_EXISTS, blockplace.taken(file, end.called)
    if not os.access(file.directory, os.W_OK | os.X_OK):
        return Code.PATH_NOT_WRITABLE, blockplace.denied(file, end.called)
    return Code.PATH_MISSING, None


# ---- room ----


def _full(case: Case, mount: Mount, blocks: list[BlockOf]) -> Iterator[Finding]:
    """A mount may be smaller than the machine's memory, and it has to hold all of its blocks."""
    wanted = sum(of.block.size for of in blocks)
    if mount.free is None or mount.size is None or mount.free >= wanted:
        return
    space = Space(mount.path, mount.free, mount.size)
    names = [of.block.name for of in blocks]
    what = blockplace.full(names, wanted, case.destination.called, space)
    for of in blocks:
        refusal = _more_room(case.destination, of, wanted, space, what)
        yield case.of_block(of.number, "path", Code.PATH_FULL, *refusal)


def _more_room(end: End, of: BlockOf, wanted: int, space: Space, what: str) -> Refusal:
    """hugetlbfs can't be resized."""
    if of.hugetlb:
        return _in_another_place(end, of, what)
    if wanted > end.host.memory.available:
        return Refusal(what, Advice("use a smaller size"))
    return Refusal(what, blockplace.more_room(wanted, space, end.as_root))
