"""Reader of the working-set trace that REAP's record phase writes, in vHive and in FaaSnap.

``_core/text/reap.c`` says what the lines look like: pages of the guest's memory file, in the order
of the first touch after the guest was restored.
"""

from __future__ import annotations

import re

from vmemu.traces.text import TextReader, whole_lines

_LEAST_LINES = 2
_LINE = re.compile(rb"(?:0|[1-9a-f][0-9a-f]{0,12}000)((?:,[0-9]{1,20}){2})?\r?")


class ReapReader(TextReader):
    """One stream: which vCPU touched a page, and when, is not recorded."""

    format = "reap"
    title = "REAP working-set trace"
    address_kind = "guest-physical"
    missing: tuple[str, ...] = (
        "times",
        "threads",
        "sizes",
        "writes",
        "repeats",
        "instruction_fetches",
    )
    c_format = "VM_TEXT_REAP"

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        # There is no header, so it is told by all lines being whole pages in Go's hex. Decimal
        # thousands look the same; so one line must be a number that is none in decimal, or zero,
        # which is where the first fault of a restored guest is.
        lines = whole_lines(head)
        matches = [_LINE.fullmatch(line) for line in lines]
        return (
            len(lines) >= _LEAST_LINES
            and all(matches)
            and len({match[1] is None for match in matches if match}) == 1
            and (lines[0][:1] == b"0" or any(re.match(rb"[0-9]*[a-f]", line) for line in lines))
        )
