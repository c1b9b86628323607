"""Reader of the traces of DRAMsim3 and DRAMSim2: physical addresses of the simulated machine.

``_core/text/dramsim.c`` says what the lines look like. Their cycles are clock cycles of the
simulator, whose length only its configuration tells, so they are no times.
"""

from __future__ import annotations

import re

from vmemu.traces.opening import ByteStream
from vmemu.traces.text import TextReader, whole_lines

_SNIFF_SHARE = 0.9

_LINE = re.compile(
    rb"\s*(?:0[xX])?[0-9a-fA-F]{1,16}[ \t]+"
    rb"(?:(?:READ|WRITE|IFETCH|BOFF|P_(?:FETCH|INT_ACK|(?:MEM|LOCK|IO)_(?:RD|WR)))"
    rb"(?:[ \t]+[0-9]+(?:[ \t]+[0-9]+B)?)?|read|write(?:[ \t]+[0-9a-fA-F]+)?)\s*"
)
_FETCH = re.compile(rb"[ \t](?:P_|I)FETCH[ \t\r\n]")
_SIZE = re.compile(rb"[ \t][0-9]+[ \t]+[0-9]+B\s*$", re.MULTILINE)


class Dramsim3Reader(TextReader):
    """One stream: a memory controller sees no threads."""

    format = "dramsim3"
    title = "DRAMsim3 trace"
    address_kind = "guest-physical"
    missing: tuple[str, ...] = ("times", "threads", "sizes", "modifies", "instruction_fetches")
    c_format = "VM_TEXT_DRAMSIM"
    drop_reasons = ("io",)

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        head = self._head()
        told = {"sizes": _SIZE.search(head), "instruction_fetches": _FETCH.search(head)}
        self.missing = tuple(key for key in self.missing if not told.get(key))

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        lines = whole_lines(head)
        matching = sum(1 for line in lines if _LINE.fullmatch(line))
        return matching > 0 and matching >= _SNIFF_SHARE * len(lines)
