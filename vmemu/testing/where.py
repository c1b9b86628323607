"""Where in a test something was called, in words: what fails there has no traceback of its own."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_OUTSIDE = ("_pytest", "pluggy", "threading", "concurrent")
_OURS = "vmemu.testing"
MOST = 4
"""Lines that are told: the test's own, and the last ones below it."""


def calling(start: Path) -> tuple[str, ...]:
    """The lines that led from the test to a fixture of ours: ``file:line in function``, the test's
    own first, the last with its source. Files are told as seen from ``start``."""
    frames = list(_frames())
    if not frames:
        return ()
    told = [f"{_place(frame, start)} in {frame.f_code.co_name}" for frame in reversed(frames)]
    last = frames[0]
    source = linecache.getline(last.f_code.co_filename, last.f_lineno).strip()
    told[-1] += f": {source}" if source else ""
    return tuple(told if len(told) <= MOST else [told[0], *told[1 - MOST :]])


def caller() -> tuple[str, int] | None:
    """File and line that called a fixture of ours."""
    return next(((frame.f_code.co_filename, frame.f_lineno) for frame in _frames()), None)


def line(start: Path) -> str:
    """The line that called a fixture of ours, as the beginning of a message: ``file:line: ``."""
    return next((f"{_place(frame, start)}: " for frame in _frames()), "")


def _frames() -> Iterator[FrameType]:
    """From the caller of this package to the test, which pytest has called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _module(frame).startswith(_OURS):
        frame = frame.f_back
    while frame is not None and _module(frame).partition(".")[0] not in _OUTSIDE:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _place(frame: FrameType, start: Path) -> str:
    path = Path(frame.f_code.co_filename)
    shown = path.relative_to(start) if path.is_relative_to(start) else path
    return f"{shown}:{frame.f_lineno}"
