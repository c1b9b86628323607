"""Reader of the text of valgrind's lackey: ``valgrind --tool=lackey --trace-mem=yes COMMAND``.

``_core/text/lackey.c`` says what the lines look like.
"""

from __future__ import annotations

import re

from vmemu.traces.text import TextReader, whole_lines

_SNIFF_SHARE = 2

_ACCESS_LINE = re.compile(rb"(?:I | [LSM]) [0-9a-fA-F]{1,16},[0-9]{1,4}\r?")
_OWN_LINE = re.compile(rb"(==|--|\*\*)(?:[0-9:.]+ )?[0-9]+\1")


class LackeyReader(TextReader):
    """One stream: lackey does not tell threads apart."""

    format = "lackey"
    title = "valgrind lackey text"
    address_kind = "virtual"
    missing = ("times", "threads")
    c_format = "VM_TEXT_LACKEY"

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        lines = whole_lines(head)
        if any(b"== Lackey, an example Valgrind tool" in line for line in lines[:100]):
            return True
        others = [line for line in lines if not _OWN_LINE.match(line)]
        accesses = sum(1 for line in others if _ACCESS_LINE.fullmatch(line))
        return accesses > 0 and accesses * _SNIFF_SHARE >= len(others)
