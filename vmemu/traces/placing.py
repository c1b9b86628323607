"""How an output comes to its place: whole or not at all, over nothing that is not ours."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

from vmemu.errors import OutputError, TraceError, VmemuError
from vmemu.traces.meta import META_NAME
from vmemu.traces.opening import open_stream
from vmemu.traces.tarball import looks_like_tar

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


def cant_write(path: Path, error: OSError) -> VmemuError:
    """What to raise when ``path`` can't be written: ``TraceError`` when the place that was named is
    to blame, ``OutputError`` when it went wrong on the way, as on a full disk."""
    message = f"{path}: can't be written: {error.strerror or error}"
    if error.errno in _WRONG_PLACE:
        return TraceError(message)
    return OutputError(f"{message}; nothing of it was kept")


def is_native(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` looks like a native trace, packed or not; it may still be damaged."""
    path = Path(path)
    if path.is_dir():
        return (path / META_NAME).is_file()
    if not path.is_file():
        return False
    with open_stream(path) as stream:
        return looks_like_tar(stream.head(512))


def hidden_sibling(path: Path) -> Path:
    """A new hidden name next to ``path``, for what is not finished."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"


def refuse_to_replace(path: Path) -> None:
    """Raises ``TraceError`` if ``path`` exists and is not a trace of ours."""
    if path.is_symlink() or path.exists():
        empty = path.is_file() and path.stat().st_size == 0
        if not empty and not is_native(path):
            raise TraceError(f"{path}: exists and is no native trace, so it is not replaced")


def move_into_place(finished: Path, path: Path) -> None:
    """Renames a finished directory to ``path``; a trace that is there makes room and is removed."""
    if not path.exists():
        finished.rename(path)
        return
    old = hidden_sibling(path)
    path.rename(old)
    try:
        finished.rename(path)
    except OSError:
        old.rename(path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()
