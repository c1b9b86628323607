"""How an output comes to its place: whole or not at all, over nothing that is not ours."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmemu.errors import OutputError, TraceError, VmemuError
from vmemu.traces.native.meta import META_NAME
from vmemu.traces.native.tarball import looks_like_tar
from vmemu.traces.opening import open_stream

_WRONG_PLACE = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def cant_write(path: Path, error: OSError) -> VmemuError:
    """What to raise when ``path`` can't be written: ``TraceError`` when the place that was named is
    to blame, ``OutputError`` when it went wrong on the way, as on a full disk."""
    message = f"{path}: can't be written: {error.strerror or error}"
    if error.errno in _WRONG_PLACE:
        return TraceError(message)
    return OutputError(f"{message}; nothing of it was kept")


@dataclass(frozen=True)
class Kind:
    """Of outputs: what it is called, and whether something that is there is one."""

    title: str
    is_one: Callable[[Path], bool]


def is_native(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` looks like a native trace, packed or not; it may still be damaged."""
    path = Path(path)
    if path.is_dir():
        return (path / META_NAME).is_file()
    if not path.is_file():
        return False
    with open_stream(path) as stream:
        return looks_like_tar(stream.head(512))


NATIVE = Kind("native trace", is_native)


def hidden_sibling(path: Path) -> Path:
    """A new hidden name next to ``path``, for what is not finished."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"


def refuse_to_take(path: Path, kind: Kind, *, replace: bool, name: Path | None = None) -> None:
    """Raises ``TraceError`` unless an output may have the name ``path``.

    It may if nothing is there, or an empty file, and with ``replace`` if what is there is of its
    ``kind``. ``name``: what errors call it, if not ``path``.
    """
    name = name or path
    if not os.path.lexists(path) or (path.is_file() and path.stat().st_size == 0):
        return
    if not kind.is_one(path):
        raise TraceError(f"{name}: exists and is no {kind.title}, so it is not replaced")
    if not replace:
        raise _taken(name)


def _taken(path: Path) -> TraceError:
    return TraceError(f"{path}: exists already", "name another, or replace it with --force")


def _remove(old: Path) -> None:
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def move_into_place(finished: Path, path: Path, kind: Kind, *, replace: bool) -> None:
    """Renames what is finished to ``path``; what is there makes room for it if it may.

    What is there is looked at again, as it may have come while the output was made: ``TraceError``
    unless ``refuse_to_take`` would let it go, and it is as it was. Raises ``OSError``, too.
    """
    with contextlib.suppress(FileExistsError):
        _rename_without_replacing(finished, path)
        return
    refuse_to_take(path, kind, replace=replace)
    if finished.is_file() and path.is_file() and replace:
        finished.replace(path)  # whoever reads it sees the old one or the new one
        return
    old = hidden_sibling(path)
    path.rename(old)
    try:
        refuse_to_take(old, kind, replace=replace, name=path)
    except TraceError as error:
        if not _put_back(old, path):
            raise TraceError(f"{error}; what was there is kept as {old}") from None
        raise
    try:
        _rename_without_replacing(finished, path)
    except FileExistsError:  # yet another came; it is as good as the one that made room for it
        _remove(old)
        raise _taken(path) from None
    except BaseException:
        _put_back(old, path)
        raise
    _remove(old)


def _put_back(old: Path, path: Path) -> bool:
    """Whether what was moved away for nothing has its name again, which another may have taken."""
    try:
        _rename_without_replacing(old, path)
    except OSError:
        return False
    return True


def _rename_without_replacing(old: Path, new: Path) -> None:
    """Raises ``FileExistsError``, too, unless ``new`` is free or an empty directory."""
    if old.is_dir() and not old.is_symlink():
        try:
            old.rename(new)  # a directory replaces none that holds anything, and no file
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            raise
        return
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # Such a file system has no better way: whoever comes between these two is replaced.
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        old.rename(new)
    else:
        old.unlink()
