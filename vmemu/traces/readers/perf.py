"""Reader of the text of ``perf script``: page faults of processes, or of a guest under KVM.

``_core/text/perf.c`` says what the lines look like. A fault is a first touch of a page since the
kernel last took it away, so this is no load, but what a migration has to bring.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vmemu.core import lib
from vmemu.errors import TraceError
from vmemu.traces.reader import Chunk
from vmemu.traces.text import TextReader, whole_lines

_EVENT = re.compile(
    rb"(?:^|[ \t])(?:software/)?"
    rb"(?:(?:page-|minor-|major-)?faults|exceptions:page_fault_(?:user|kernel)|kvm:kvm_page_fault)"
    rb"(?:[:/][a-zA-Z]*)?:(?:[ \t]|$)"
)
_FIELDS = re.compile(rb"[0-9]+\.[0-9]{6,9}:(?:[ \t]+[0-9]+)?$|[0-9](?:[ \t]+\[[0-9]+\])?$|^$")

_MAGICS = (b"PERFILE2", b"PERFFILE", b"2ELIFREP")
"""Of perf.data; the last is the first on a machine of the other byte order."""

_FULL_FIELDS = "comm,pid,tid,time,period,event,addr,ip,sym,dso"
_RECORD = "perf record -e page-faults -c 1 -d COMMAND"
_SCRIPT = f"perf script -F {_FULL_FIELDS} > faults.txt"


class PerfReader(TextReader):
    """One stream a thread. What is missing depends on the events and fields that were printed."""

    format = "perf"
    title = "perf script text"
    address_kind = "virtual"
    missing: tuple[str, ...] = ("sizes", "writes", "repeats", "instruction_fetches")
    c_format = "VM_TEXT_PERF"
    drop_reasons = ("kernel_address", "other_event", "no_address")

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return head.startswith(_MAGICS) or any(map(_is_fault, whole_lines(head)))

    def chunks(self) -> Iterator[Chunk]:
        if self.stream.head(8).startswith(_MAGICS):
            raise TraceError(
                f"{self.stream.name}: perf's own perf.data, which only perf reads",
                f"print it and give its text: perf script -i {self.stream.name}"
                f" > faults.txt, with -F {_FULL_FIELDS} for page-faults events",
            )
        return super().chunks()

    def _take_counts(self, state: Any) -> None:
        super()._take_counts(state)
        if "no_address" in self.tally.dropped and not state.memory[lib.VM_PERF_ADDRESSES]:
            raise TraceError(
                f"{self.stream.name}: perf script printed no addresses: what was touched is not"
                " in it",
                f"record with {_RECORD}, and print with {_SCRIPT} (tracepoints: with the field"
                " trace)",
            )
        if fields := int(state.memory[lib.VM_PERF_FIELDS]):
            self._learn(fields, int(state.memory[lib.VM_PERF_FAMILY]), state)

    def _learn(self, fields: int, family: int, state: Any) -> None:
        """Says what the events and the fields of the first fault leave open."""
        self.address_kind = "guest-physical" if family == lib.VM_PERF_KVM else "virtual"
        absent = {
            "times": not fields & lib.VM_PERF_HAS_TIME,
            "threads": not fields & lib.VM_PERF_HAS_THREAD,
            "sizes": True,
            "writes": family not in (lib.VM_PERF_EXCEPTIONS, lib.VM_PERF_KVM),
            "repeats": True,
            "every_access": state.memory[lib.VM_PERF_PERIOD] > 1,
            "instruction_fetches": True,
        }
        self.missing = tuple(key for key, is_absent in absent.items() if is_absent)


def _is_fault(line: bytes) -> bool:
    """Whether a line is a sample of a page fault, not only one that names the event."""
    return any(
        _FIELDS.search(line[: event.start()].rstrip()) is not None
        for event in _EVENT.finditer(line)
    )
