"""When Ctrl-C may strike.

Python raises KeyboardInterrupt between any two steps of the main thread: also between taking a
resource and noting that it was taken, or in the middle of giving one back. So a run lets it strike
only where it waits, and keeps it until then everywhere else.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """A context in which SIGINT, SIGTERM and SIGHUP strike only inside ``allowed``.

    What they do then is what they did before; a signal that was ignored, or that ends the process
    without Python, stays as it is. Outside the main thread, where no signal ever strikes, it does
    nothing.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._kept: tuple[int, FrameType | None] | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """A signal that was kept and not taken strikes now."""
        self._allowed = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._strike()

    def take(self) -> bool:
        """Whether a signal was kept; from now on it is as if it had struck."""
        taken, self._kept = self._kept is not None, None
        return taken

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Signals strike inside; one that was kept strikes now."""
        self._allowed = True
        try:
            self._strike()
            yield
        finally:
            self._allowed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._kept = number, frame
        if self._allowed:
            self._strike()

    def _strike(self) -> None:
        if self._kept is None:
            return
        (number, frame), self._kept = self._kept, None
        # If it raises, the run is on its way out, wherever this was: nothing more may strike there.
        allowed, self._allowed = self._allowed, False
        self._before[number](number, frame)
        self._allowed = allowed
