"""The scenarios that a command line means: files, globs and directories."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

from vmemu.errors import InputError
from vmemu.inputfile import denied
from vmemu.units import printable

SUFFIXES = (".yaml", ".yml")


def scenarios(given: Iterable[str]) -> list[str]:
    """The files that ``given`` names, each once, in that order.

    A directory stands for all ``*.yaml`` and ``*.yml`` below it, a glob for the files that it
    matches (``**`` for any directories), sorted; neither for what is hidden. What is no glob and
    not there is kept, for who reads it to say so. Raises InputError for a directory that has none
    or can't be read, and for a glob that matches none.
    """
    found: dict[tuple[str, str], str] = {}
    for path in given:
        for file in _files(path):
            found.setdefault(_identity(file), file)
    return list(found.values())


def _identity(file: str) -> tuple[str, str]:
    """The same for all names of a scenario; relative paths in it start where a link to it is."""
    return os.path.realpath(os.path.dirname(file) or "."), os.path.realpath(file)


def _files(path: str) -> list[str]:
    if os.path.isdir(path):
        return _below(path)
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    matched = sorted(one for one in glob.glob(path, recursive=True) if not os.path.isdir(one))
    if not matched:
        _require_open(path)
        what = f"{printable(path, 300)}: no file matches"
        raise InputError(f"{what}; name a scenario, a directory of them, or another pattern")
    return matched


def _require_open(pattern: str) -> None:
    """A pattern passes over what may not be read, and would say that it matches nothing."""
    steps = pattern.split("/")
    fixed = next(n for n, step in enumerate(steps) if glob.has_magic(step))
    begin = "/".join(steps[:fixed]) or ("/" if pattern.startswith("/") else ".")
    try:
        os.listdir(begin)
    except PermissionError as error:
        _unreadable(error)
    except OSError:
        return  # there is nothing to match


def _below(directory: str) -> list[str]:
    found = []
    for place, directories, names in os.walk(directory, onerror=_unreadable):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        found += [
            os.path.join(place, name)
            for name in names
            if name.endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        what = f"{printable(directory, 300)}: no scenario is below this directory"
        raise InputError(f"{what}; name one that has *.yaml or *.yml")
    return sorted(file.removeprefix("./") for file in found)


def _unreadable(error: OSError) -> None:
    place = str(error.filename)
    if isinstance(error, PermissionError):
        what, remedy = denied(place)
    else:
        what, remedy = f"the directory can't be read: {error.strerror}", "name another"
    raise InputError(f"{printable(place, 300)}: {what}; {remedy}") from None
