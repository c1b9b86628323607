"""What the arguments of QEMU's trace events are, as a binary trace has to be told.

QEMU declares an event in a line of a file ``trace-events``, and installs all of them as
``trace-events-all``::

    postcopy_ram_fault_thread_request(uint64_t hostaddr, const char *ramblock, size_t offset) "..."
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from vmemu.errors import TraceError
from vmemu.traces.opening import open_stream
from vmemu.traces.readers import qemu_faults


class Argument(NamedTuple):
    name: str
    is_text: bool


Declarations = dict[str, tuple[tuple[Argument, ...], ...]]
"""By event: what its arguments may be, tried in this order."""


def arguments(*names: str) -> tuple[Argument, ...]:
    """Those of one of the events that are known here."""
    return tuple(Argument(name, name in ("ramblock", "sharer", "rb")) for name in names)


KNOWN: Declarations = {
    qemu_faults.REQUEST: (
        arguments("hostaddr", "ramblock", "offset", "pid"),
        arguments("hostaddr", "ramblock", "offset"),
    ),
    qemu_faults.BEGINS[0]: (arguments("addr", "dd", "time", "cpu", "received"),),
    qemu_faults.BEGINS[1]: (arguments("addr", "time", "cpu", "exists"),),
    qemu_faults.SHARED: (arguments("sharer", "rb", "rb_offset"),),
}
"""Of QEMU 2.5 to 11."""

_LONGEST_FILE = 1 << 26
_DECLARATION = re.compile(r"(?:[a-z-]+\s+)*([A-Za-z_][A-Za-z0-9_]*)\s*\(([^)]*)\)")
_NEEDED = {
    qemu_faults.REQUEST: arguments("ramblock", "offset"),
    **dict.fromkeys(qemu_faults.BEGINS, arguments("addr", "cpu")),
}


def read_declarations(path: str | os.PathLike[str]) -> Declarations:
    """The events of a ``trace-events-all``, in its order. Raises ``TraceError``."""
    with open_stream(path) as stream:
        text = stream.read(_LONGEST_FILE).decode(errors="replace")
        declarations: Declarations = {}
        for line in text.splitlines():
            match = _DECLARATION.match(line)
            if match:
                declarations[match[1]] = (_declared_arguments(match[2]),)
        if not declarations:
            raise TraceError(f"{stream.name}: declares no trace events of QEMU")
        for event in _NEEDED.keys() & declarations.keys():
            for needed in _NEEDED[event]:
                if needed not in declarations[event][0]:
                    kind = "text" if needed.is_text else "number"
                    raise TraceError(
                        f"{stream.name}: {event} has no {kind} {needed.name!r} there,"
                        " as QEMU's has: its records can't be read"
                    )
    return declarations


def _declared_arguments(text: str) -> tuple[Argument, ...]:
    declared = [" ".join(one.replace("*", " * ").split()) for one in text.split(",")]
    return tuple(
        Argument(one.rpartition(" ")[2], re.match(r"(const )?char \* \w+$", one) is not None)
        for one in declared
        if one != "void"
    )
