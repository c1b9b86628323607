"""Reader of the text of QEMU's TCG plugin execlog: ``-plugin libexeclog.so -d plugin -D FILE``.

``_core/text/execlog.c`` says what the lines look like. In system emulation the addresses of
accesses are guest-physical, and those of instructions virtual: these are counted, and left out.
"""

from __future__ import annotations

import re
from typing import Any

from vmemu.core import lib
from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream
from vmemu.traces.text import TextReader, whole_lines

_LINE = re.compile(rb'[0-9]{1,10}, 0x[0-9a-f]{1,16}, 0x[0-9a-f]{1,16}, ".*"(?:,.*)?\r?')
_ACCESS = re.compile(rb", (?:load|store), 0x[0-9a-f]+(, (?!(?:load|store), |[^,\n]* -> )[^\n])?")
_SNIFF_SHARE = 2


class ExeclogReader(TextReader):
    """One stream a vCPU."""

    format = "qemu-execlog"
    title = "QEMU execlog text"
    address_kind = "virtual"
    missing: tuple[str, ...] = ("times", "sizes", "modifies")
    c_format = "VM_TEXT_EXECLOG"
    drop_reasons = ("io", "no_guest_physical_address")

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        accesses = [bool(name) for name in _ACCESS.findall(self._head())]
        self._space = 0
        if accesses:
            self._space = lib.VM_EXECLOG_PHYSICAL if any(accesses) else lib.VM_EXECLOG_VIRTUAL
        self._left_out_fetches = fetches and self._space == lib.VM_EXECLOG_PHYSICAL
        self.fetches = fetches and not self._left_out_fetches
        self._name_space()

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        lines = whole_lines(head)
        good = sum(1 for line in lines if _LINE.fullmatch(line))
        return good > 0 and good * _SNIFF_SHARE >= len(lines)

    def _begin(self, state: Any) -> None:
        state.memory[lib.VM_EXECLOG_SPACE] = self._space

    def _finish(self, state: Any) -> None:
        self._space = state.memory[lib.VM_EXECLOG_SPACE]
        self._name_space()
        if self.fetches and self._space == lib.VM_EXECLOG_PHYSICAL:
            raise TraceError(
                f"{self.stream.name}: instructions have virtual addresses here, accesses"
                " guest-physical ones: convert it without --fetches"
            )
        if self._left_out_fetches:
            self.tally.drop("fetches_at_virtual_addresses", self.tally.instruction_fetches)

    def _name_space(self) -> None:
        physical = self._space == lib.VM_EXECLOG_PHYSICAL
        self.address_kind = "guest-physical" if physical else "virtual"
        self.missing = (*type(self).missing, "rom_places") if physical else type(self).missing
