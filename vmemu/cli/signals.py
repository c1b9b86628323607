"""What SIGINT, SIGTERM and SIGHUP do to a verb: all three interrupt it.

Before a verb has anything to give back, the process ends at once: an exception in the middle of an
import would be taken for that import's failure. A verb that leaves something behind while it works
says ``strike`` first; from then on they raise KeyboardInterrupt. A signal that is ignored stays so:
it is how a shell keeps Ctrl-C from its background jobs, and how nohup works.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside, a signal ends the process; behind it, all is as before."""
    before = _handle_with(_end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def strike() -> None:
    """From here on a signal raises KeyboardInterrupt."""
    _handle_with(_raise)


def _handle_with(handler: Callable[[int, object], None]) -> dict[signal.Signals, Any]:
    """The handlers of before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        number: signal.signal(number, handler)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }


def _end(number: int, frame: object) -> None:
    os.write(2, b"vmemu: interrupted\n")
    os._exit(EXIT_INTERRUPTED)


def _raise(number: int, frame: object) -> None:
    raise KeyboardInterrupt(f"interrupted by {signal.Signals(number).name}")
