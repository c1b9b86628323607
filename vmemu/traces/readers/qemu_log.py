"""Reader of QEMU's log trace backend: the page faults of a post-copy destination.

``_core/text/qemulog.c`` says what the lines look like. Of the two events that tell of one fault the
request counts if the head of the log has any, else the one that comes first; those of the other
kind are counted as dropped. Logs of vmemu in the same text are read too.
"""

from __future__ import annotations

import re
from typing import Any

from vmemu.core import lib
from vmemu.eventtable import kinds
from vmemu.traces.opening import ByteStream
from vmemu.traces.readers import qemu_faults
from vmemu.traces.text import TextReader, whole_lines

_STAMP = rb"(?:[0-9]{1,10}@[0-9]{1,10}\.[0-9]{6}:|[0-9-]{10}T[0-9:]{8}(?:\.[0-9]{1,6})?Z )"
_STAMPED = re.compile(rb"^" + _STAMP + rb"(?:.*[ :])?[a-zA-Z][a-zA-Z0-9]*_[a-zA-Z0-9_]*(?: |\r?$)")
_PROGRAM = rb"[A-Za-z0-9_.+-]+(?:: )?\([0-9]+:[^)\n]*\): "
_EVENT = re.compile(rb"(?:" + _PROGRAM + rb")?([a-z][a-z0-9]*_[a-zA-Z0-9_]+)(?: |\r?$)")
_OF_INTEREST = re.compile(
    rb"^(%s)?(?:[^\n]*[ :])?(%s) "
    % (_STAMP, "|".join((qemu_faults.REQUEST, *qemu_faults.BEGINS)).encode()),
    re.MULTILINE,
)
_PERF_TIME = re.compile(rb" [0-9]+\.[0-9]{6,9}: ")
_SNIFF_SHARE = 2
_SNIFF_LINES = 20


class QemuLogReader(TextReader):
    """A stream a thread that faulted, or a vCPU where only blocktime was logged."""

    format = "qemu-log"
    title = "QEMU log of trace events"
    address_kind = "ram-block"
    missing = qemu_faults.missing(times=False, threads=False)
    c_format = "VM_TEXT_QEMU_LOG"
    drop_reasons = (qemu_faults.DROPPED_TWICE, qemu_faults.DROPPED_SHARED)

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        head = self._head()
        faults = [(bool(stamp), name.decode()) for stamp, name in _OF_INTEREST.findall(head)]
        first = next((line for line in head.split(b"\n") if _names_event(line)), b"")
        self._timed = faults[0][0] if faults else _STAMPED.match(first) is not None
        self._requests = any(name == qemu_faults.REQUEST for _, name in faults)
        self.missing = qemu_faults.missing(times=self._timed, threads=True)

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        lines = whole_lines(head)
        stamped = sum(1 for line in lines if _STAMPED.match(line))
        if stamped and stamped * _SNIFF_SHARE >= len(lines):
            return True
        found = [match[1] for line in lines if (match := _EVENT.match(line))]
        if len(found) * _SNIFF_SHARE < len(lines):
            return False
        # Without time stamps a line is an identifier and a text: it takes a name that is known, or
        # all lines so, and none with a time as perf has it behind the name of a program.
        known = {*kinds(), *qemu_faults.BEGINS}
        if any(name.decode() in known for name in found):
            return True
        alike = len(found) == len(lines) >= _SNIFF_LINES and len(set(found)) > 1
        return alike and not any(map(_PERF_TIME.search, lines))

    def _begin(self, state: Any) -> None:
        state.memory[lib.VM_QEMU_LOG_TIMED] = self._timed
        if self._requests:
            state.memory[lib.VM_QEMU_LOG_USED] = lib.VM_QEMU_LOG_REQUESTS

    def _finish(self, state: Any) -> None:
        used = state.memory[lib.VM_QEMU_LOG_USED]
        if not used or (used == lib.VM_QEMU_LOG_REQUESTS and not state.blocks):
            raise qemu_faults.no_faults(self.stream.name)
        threads = state.memory[lib.VM_QEMU_LOG_THREADS] > 0
        self.missing = qemu_faults.missing(times=self._timed, threads=threads)
        if used == lib.VM_QEMU_LOG_BEGINS:
            self.address_kind = "virtual"
        super()._finish(state)


def _names_event(line: bytes) -> bool:
    return _STAMPED.match(line) is not None or _EVENT.match(line) is not None
