"""The guest that QEMU migrates: a boot sector that fills memory, and then reads each of its pages.

It goes to 32-bit protected mode with flat segments, writes to every word its own address, and says
so by a byte on the debug console. A guest that touches waits then until it is at the destination:
there the console's port reads as another byte, which is no part of what migrates. It reads a word
of each page in a shuffled order, checks it, and keeps how many ticks of the TSC that took. At the
end it halts; ``pmemsave`` gets the ticks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

CONSOLE = 0xE9
AT_SOURCE, AT_DESTINATION = 0xE9, ord("D")
"""What the console's port reads as on either side (``readback`` of isa-debugcon)."""
FILLED, BEGUN, ENDED, WRONG = b"FBEX"
"""What the guest tells: a byte each. After the last one it has halted."""

TABLE = 8 << 20
"""Guest address of the ticks: those of the TSC at begin and end (u64), then a u32 a page."""
FIRST = 16 << 20
"""Guest address of what is filled and touched; below it are the table, the code and the BIOS."""
MOST_BYTES = 2 << 30
"""Of what is filled: all below the hole of PCI, and its table of ticks below ``FIRST``."""

_BYTE = re.compile(r"[0-9A-F]{2}|\{\w+\}")
_ORIGIN, _FLAT, _GDT = 0x7C00, 0x7C20, 0x7DD8
_DESCRIPTORS = "00 00 00 00 00 00 00 00  FF FF 00 00 00 9A CF 00  FF FF 00 00 00 92 CF 00"

_TO_PROTECTED_MODE = """
    FA                      cli
    31 C0                   xor  ax, ax
    8E D8                   mov  ds, ax
    E4 92                   in   al, 0x92
    0C 02                   or   al, 2              address line 20
    E6 92                   out  0x92, al
    0F 01 16 {gdt_pointer}  lgdt [gdt_pointer]
    0F 20 C0                mov  eax, cr0
    0C 01                   or   al, 1
    0F 22 C0                mov  cr0, eax
    EA {flat} 08 00         jmp  8:flat
"""

_FILL = """
    66 B8 10 00             mov  ax, 16
    8E D8                   mov  ds, ax
    8E C0                   mov  es, ax
    FC                      cld
    BF {first}              mov  edi, first
    B9 {words}              mov  ecx, words
    89 F8             fill: mov  eax, edi
    AB                      stosd
    E2 FB                   loop fill
    B0 46                   mov  al, 'F'
    E6 E9                   out  0xe9, al
"""

_HALT = """
    F4                halt: hlt
    EB FD                   jmp  halt
"""

# Between two looks at the console the vCPU leaves QEMU's main loop alone.
_WAIT_FOR_DESTINATION = """
    B9 00 00 08 00    wait: mov  ecx, 0x80000
    E2 FE             rest: loop rest
    E4 E9                   in   al, 0xe9
    3C 44                   cmp  al, 'D'
    75 F3                   jne  wait
"""

# The pages of the table come before anything is measured. No page of the table faults in between,
# and a fence keeps rdtsc from being executed before the read has come to its end.
_TOUCH = """
    BF {table}              mov  edi, table
    B9 {table_pages}        mov  ecx, table_pages
    83 0F 00          page: or   dword [edi], 0
    81 C7 00 10 00 00       add  edi, 4096
    E2 F5                   loop page
    BF {table}              mov  edi, table
    B0 42                   mov  al, 'B'
    E6 E9                   out  0xe9, al
    0F 31                   rdtsc
    AB                      stosd
    89 D0                   mov  eax, edx
    AB                      stosd
    83 C7 08                add  edi, 8
    B9 {pages}              mov  ecx, pages
    31 DB                   xor  ebx, ebx
    69 DB {multiplier}  next: imul ebx, ebx, multiplier
    81 C3 {increment}       add  ebx, increment
    81 E3 {mask}            and  ebx, pages - 1
    89 DE                   mov  esi, ebx
    C1 E6 {shift}           shl  esi, shift
    81 C6 {first}           add  esi, first
    0F 31                   rdtsc
    89 07                   mov  [edi], eax
    0F AE E8                lfence
    8B 2E                   mov  ebp, [esi]
    0F AE E8                lfence
    0F 31                   rdtsc
    2B 07                   sub  eax, [edi]
    AB                      stosd
    39 F5                   cmp  ebp, esi
    75 15                   jne  wrong
    E2 CC                   loop next
    0F 31                   rdtsc
    A3 {end}                mov  [table + 8], eax
    89 15 {end_high}        mov  [table + 12], edx
    B0 45                   mov  al, 'E'
    E6 E9                   out  0xe9, al
    EB 04                   jmp  halt
    B0 58            wrong: mov  al, 'X'
    E6 E9                   out  0xe9, al
"""

# x -> (x * multiplier + increment) mod 2^n visits each number once: the multiplier is 1 modulo 4,
# the increment is odd.
_MULTIPLIER, _INCREMENT = 1103515245, 12345


@dataclass(frozen=True)
class Guest:
    """What the guest does. ``pages``: a power of two, ``MOST_BYTES`` at most; else
    ValueError."""

    pages: int
    page_size: int = 4096
    touches: bool = True
    """It reads each page once at the destination; else it halts when the memory is full."""

    def __post_init__(self) -> None:
        if self.pages & (self.pages - 1) or self.filled > MOST_BYTES:
            raise ValueError(
                f"{self.pages} pages: no power of two, or more than {MOST_BYTES} bytes"
            )

    @property
    def filled(self) -> int:
        """Filled."""
        return self.pages * self.page_size

    @property
    def ram(self) -> int:
        """Bytes of RAM that QEMU gives it: whole pages of 2 MiB."""
        return FIRST + -(-self.filled // (2 << 20)) * (2 << 20)

    @property
    def table_bytes(self) -> int:
        return 16 + 4 * self.pages

    def boot_sector(self) -> bytes:
        """512 bytes."""
        words = {
            "first": FIRST,
            "words": self.filled // 4,
            "table": TABLE,
            "table_pages": -(-self.table_bytes // 4096),
            "end": TABLE + 8,
            "end_high": TABLE + 12,
            "pages": self.pages,
            "mask": self.pages - 1,
            "multiplier": _MULTIPLIER,
            "increment": _INCREMENT,
        }
        fields = {name: word.to_bytes(4, "little") for name, word in words.items()}
        fields["shift"] = bytes([self.page_size.bit_length() - 1])
        fields["flat"] = _FLAT.to_bytes(2, "little")
        fields["gdt_pointer"] = (_GDT + 24).to_bytes(2, "little")
        code = _assemble(_TO_PROTECTED_MODE, fields).ljust(_FLAT - _ORIGIN, b"\x90")
        parts = (_FILL, _WAIT_FOR_DESTINATION, _TOUCH, _HALT) if self.touches else (_FILL, _HALT)
        code += b"".join(_assemble(part, fields) for part in parts)
        assert len(code) <= _GDT - _ORIGIN
        table = bytes.fromhex(_DESCRIPTORS)
        pointer = (len(table) - 1).to_bytes(2, "little") + _GDT.to_bytes(4, "little")
        sector = code.ljust(_GDT - _ORIGIN, b"\0") + table + pointer
        return sector.ljust(510, b"\0") + b"\x55\xaa"


def read_ticks(table: bytes) -> tuple[NDArray[np.uint32], int]:
    """What ``pmemsave`` wrote of the table: ticks of each read, ticks from begin to end."""
    begun, ended = np.frombuffer(table, "<u8", 2).tolist()
    return np.frombuffer(table, "<u4", offset=16), ended - begun


def _assemble(listing: str, fields: dict[str, bytes]) -> bytes:
    """The bytes at the beginning of each line of a listing; ``{name}`` is a field."""
    code = b""
    for line in listing.splitlines():
        for column in takewhile(_BYTE.fullmatch, line.split()):
            name = column.strip("{}")
            code += bytes.fromhex(column) if name == column else fields[name]
    return code
