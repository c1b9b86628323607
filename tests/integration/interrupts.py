"""Runs migrations that are interrupted, and says what each left behind; a program of its own, so
that a Ctrl-C gone astray hits nobody else.

    interrupts.py lines SHARE...   SIGINT before the line at that share (0 to 1) of all lines of
                                   vmemu that the main thread runs: any moment can be hit exactly
    interrupts.py times SECONDS... SIGINT after that time, wherever the run is then
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from support import Footprint, scenario, synthetic

import vmemu
from vmemu.migration import Migration

PACKAGE = str(Path(vmemu.__file__).parent)
FILE = f"/dev/shm/vmemu-interrupts-{os.getpid()}"


def migration() -> Migration:
    blocks = [
        {"name": "ram", "backing": "anonymous", "size": "256KiB"},
        {"name": "vram", "backing": "shared", "size": "64KiB", "path": FILE},
    ]
    trace = synthetic("uniform", accesses=500, write_share=0.4)
    return Migration(scenario(blocks, guest={"vcpus": 2, "trace": trace}))


class Lines:
    """Counts the lines of vmemu that the main thread runs, and interrupts before one of them."""

    def __init__(self, stop_at: int = -1) -> None:
        self.count = 0
        self._stop_at = stop_at

    def __enter__(self) -> Lines:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "line":
            self.count += 1
            if self.count == self._stop_at:
                signal.raise_signal(signal.SIGINT)
        return self._line


class Timer:
    """Interrupts after a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def outcome(interrupting: AbstractContextManager[Any]) -> dict[str, Any]:
    """How a run ended, and what it left behind."""
    one = migration()
    before = Footprint.now()
    try:
        with interrupting:
            status = one.run().status
    except KeyboardInterrupt:
        status = "raised"
    left = before.left_by(Footprint.now())
    return {
        "status": status,
        "left": {name: sorted(map(str, extra)) for name, extra in left.items()},
        "file": Path(FILE).exists(),
    }


def unraisable(what: sys.UnraisableHookArgs) -> None:
    """A Ctrl-C that strikes in a callback of Python's own, such as a weak reference's, is lost: the
    run then goes on to its end, which is judged like any other."""
    if not isinstance(what.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(what)


def main(kind: str, values: list[float]) -> None:
    sys.unraisablehook = unraisable
    resource_tracker.ensure_running()
    lines = Lines()
    assert outcome(lines)["status"] == "completed"
    for value in values:
        at = 1 + int(value * (lines.count - 1)) if kind == "lines" else value
        interrupting = Lines(int(at)) if kind == "lines" else Timer(at)
        print(json.dumps({"at": at} | outcome(interrupting)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [float(value) for value in sys.argv[2:]])
