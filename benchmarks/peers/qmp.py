"""QEMU's monitor protocol: commands and their answers, and the events between them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

from frame import Failed

Event = dict[str, Any]

_LIMIT_S = 60.0


class Qmp:
    """One end of a socket of which QEMU has the other.

    Everything raises ``Failed`` when QEMU refuses, is gone, or says nothing for a minute.
    """

    def __init__(self, end: socket.socket, name: str) -> None:
        end.settimeout(_LIMIT_S)
        self._socket = end
        self._lines = end.makefile("rb")
        self._name = name
        self._events: list[Event] = []
        try:
            self._next()  # its greeting
            self.command("qmp_capabilities")
        except Failed:
            self.close()
            raise

    def command(self, name: str, **arguments: object) -> Any:
        """What QEMU returns; ``_`` in names of arguments is ``-``."""
        said = {
            "execute": name,
            "arguments": {k.replace("_", "-"): v for k, v in arguments.items()},
        }
        try:
            self._socket.sendall(json.dumps(said).encode() + b"\n")
        except OSError as error:
            raise Failed(f"{self._name}: {name}: {error.strerror}") from None
        while True:
            answer = self._next()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failed(f"{self._name}: {name}: {answer['error']['desc']}")
            self._events.append(answer)

    def wait_for(self, name: str, wanted: Callable[[Event], bool]) -> tuple[Event, float]:
        """The data of the first such event that nobody has waited for yet, and when it was, in
        seconds, as QEMU tells."""
        deadline = time.monotonic() + _LIMIT_S
        while True:
            for at, event in enumerate(self._events):
                if event.get("event") == name and wanted(event["data"]):
                    del self._events[at]
                    when = event["timestamp"]
                    return event["data"], when["seconds"] + when["microseconds"] / 1e6
            if time.monotonic() > deadline:
                raise Failed(f"{self._name}: no {name} after {_LIMIT_S:.0f} s")
            self._events.append(self._next())

    def close(self) -> None:
        """Safe to call twice."""
        self._lines.close()
        self._socket.close()

    def _next(self) -> Event:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise Failed(f"{self._name}: nothing said for {_LIMIT_S:.0f} s ({error})") from None
        if not line:
            raise Failed(f"{self._name} is gone")
        said: Event = json.loads(line)
        return said
