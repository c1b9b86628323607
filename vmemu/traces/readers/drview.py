"""Reader of what DynamoRIO prints of a drmemtrace with ``-tool view``.

``_core/text/drview.c`` says what the lines look like. Times are as in the trace itself: an access
has that of the last timestamp before it.
"""

from __future__ import annotations

import re

from vmemu.traces.opening import ByteStream
from vmemu.traces.text import TextReader, whole_lines

_SNIFF_SHARE = 2

_BEGIN = rb" *(?:(?:[0-9]+ +)?[0-9]+: +(?:W[0-9]+\.)?T?[0-9]+|T[0-9]+) +"
_ENTRY_LINE = re.compile(
    _BEGIN + rb"(?:<marker: |<thread |0x[0-9a-f]{8,16}  |[a-zA-Z][-\w]* +[0-9]+ byte\(s\) @ 0x).*"
)
_ACCESS_LINE = re.compile(_BEGIN + rb"(?:read|write) +[0-9]+ byte\(s\) @ 0x", re.MULTILINE)
_TIMESTAMP = b"<marker: timestamp "
_HEADING = re.compile(rb"Output format:\r?\n<.*<record details>\r?\n")


class DrviewReader(TextReader):
    """One stream a thread."""

    format = "drmemtrace-view"
    title = "DynamoRIO view text"
    address_kind = "virtual"
    missing = ("exact_times", "modifies")
    c_format = "VM_TEXT_DRVIEW"
    drop_reasons = ("kernel",)

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        head = self._head()
        first = _ACCESS_LINE.search(head)
        if _TIMESTAMP not in (head[: first.start()] if first else head):
            self.missing = ("times", "modifies")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        if _HEADING.search(head):
            return True
        lines = [line for line in whole_lines(head) if line.strip(b"-\r ")]
        entries = sum(1 for line in lines if _ENTRY_LINE.match(line))
        return entries > 0 and entries * _SNIFF_SHARE >= len(lines)
