"""Standard streams that are closed or can't be written; figures, there or in a file."""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, TextIO

CANT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Errors of writing to a stream; EPIPE, as whoever read it has gone, is none of them."""


def open_missing() -> None:
    """Opens the standard streams that are closed, so that no file of ours gets their numbers.

    Standard output is one that can't be written: whoever prints there is told so. Nothing can be
    said on a standard error that is closed, so that one takes all.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = _writer(1)
    if sys.stderr is None:
        sys.stderr = _writer(2)


def _writer(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def write_json(document: dict[str, Any], file: str) -> None:
    """Figures for programs, to a file, whole or not at all, or to standard output for ``-``."""
    from vmemu.results import document as documents

    documents.write(document, file)


def refuse_one_place(*outputs: tuple[str, str | None]) -> None:
    """Raise InputError when two of (option, file) would be written to the same place, the one over
    the other or in the middle of it."""
    taken: dict[str, str] = {}
    for option, file in outputs:
        place = os.devnull if file is None else os.path.realpath(file)
        if place in taken and place != os.devnull:
            from vmemu.errors import InputError

            shown = "standard output" if file == "-" else file
            what = f"{shown}: {taken[place]} and {option} can't both be there"
            raise InputError(f"{what}; name another for one")
        taken[place] = option
