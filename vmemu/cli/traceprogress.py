"""How far a conversion is, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmemu.cli.progress import bar

if TYPE_CHECKING:
    from rich.progress import TaskID

    from vmemu.traces.progress import Report

_INTERVAL_S = 0.1


@contextmanager
def progress(show: bool) -> Iterator[Report]:
    """A bar on standard error for each thing that is done, gone when all is done; nothing if that
    is no terminal."""
    from vmemu.traces.progress import silent

    if not show or not sys.stderr.isatty():
        yield silent
        return
    bars = bar(detail=False)
    tasks: dict[str, TaskID] = {}
    drawn = 0.0

    def report(what: str, done: int, total: int | None) -> None:
        nonlocal drawn
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)
        if time.monotonic() > drawn + _INTERVAL_S:
            bars.refresh()
            drawn = time.monotonic()

    with bars:
        yield report
