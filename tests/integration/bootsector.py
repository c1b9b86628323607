"""A guest of 512 bytes: the machine code of a boot sector whose accesses are known.

The first vCPU touches 16 pages, then an access straddles two; it starts the second vCPU, both store
as fast as they can, and the first one ends QEMU while the second is still storing.
"""

from __future__ import annotations

EXIT_CODE = 0x15 << 1 | 1
"""What QEMU ends with: isa-debug-exit makes it of the byte that the guest writes."""

PAGES = range(0x10000, 0x20000, 0x1000)
"""Addresses of the pages that are touched first, each in the same way."""
ON_EACH_PAGE = ((0, "store", 2), (5, "load", 1), (8, "load", 2), (8, "store", 2), (16, "store", 4))
"""Offset, kind, and bytes; the two at 8 are one instruction, ``inc word``."""
STRADDLING = 0x20FFF
"""Address of a store of 2 bytes, of which the second lies on the next page."""

FIRST_SEGMENT, SECOND_SEGMENT = 0x40000, 0x50000
"""64 KiB each, which one vCPU fills with 2-byte stores from the first address to the last."""
FIRST_ROUNDS = 16

_ORIGIN = 0x7C00
_CODE_COLUMNS = 31

_TOUCH_PAGES = """
    FA                          cli
    FC                          cld
    31 C0                       xor  ax, ax
    8E D8                       mov  ds, ax
    BB 00 10                    mov  bx, 0x1000
    B9 10 00                    mov  cx, 16
    8E C3                 page: mov  es, bx
    26 A3 00 00                 mov  [es:0], ax
    26 A0 05 00                 mov  al, [es:5]
    26 FF 06 08 00              inc  word [es:8]
    26 66 A3 10 00              mov  [es:16], eax
    81 C3 00 01                 add  bx, 0x100
    E2 E6                       loop page
    BB 00 20                    mov  bx, 0x2000
    8E C3                       mov  es, bx
    26 A3 FF 0F                 mov  [es:0xfff], ax
"""

# The local APIC lies at 0xfee00000, out of reach of real mode: a segment that was loaded in
# protected mode keeps its limit of 4 GiB.
_START_SECOND_VCPU = """
    31 C0                       xor  ax, ax
    8E C0                       mov  es, ax
    BE {second}                 mov  si, second
    BF 00 80                    mov  di, 0x8000
    B9 {second_length}          mov  cx, length of second
    F3 A4                       rep  movsb
    B8 00 50                    mov  ax, 0x5000
    8E C0                       mov  es, ax
    26 C6 06 FF FF 00           mov  byte [es:0xffff], 0
    0F 01 16 {gdt_pointer}      lgdt [gdt_pointer]
    0F 20 C0                    mov  eax, cr0
    0C 01                       or   al, 1
    0F 22 C0                    mov  cr0, eax
    BB 08 00                    mov  bx, 8
    8E E3                       mov  fs, bx
    24 FE                       and  al, 0xfe
    0F 22 C0                    mov  cr0, eax
    64 67 66 C7 05 00 03 E0 FE  mov  dword [fs:0xfee00300],
    00 45 0C 00                      0xc4500    INIT to all others
    64 67 66 C7 05 00 03 E0 FE  mov  dword [fs:0xfee00300],
    08 46 0C 00                      0xc4608    they start at 0x8000
    26 80 3E FF FF 00     wait: cmp  byte [es:0xffff], 0
    74 F8                       je   wait
"""

_STORE_AND_END = """
    B8 00 40                    mov  ax, 0x4000
    8E C0                       mov  es, ax
    BB 10 00                    mov  bx, 16
    31 FF                 fill: xor  di, di
    B9 00 80                    mov  cx, 0x8000
    F3 AB                       rep  stosw
    4B                          dec  bx
    75 F6                       jnz  fill
    BA 01 05                    mov  dx, 0x501
    B0 15                       mov  al, 0x15
    EE                          out  dx, al
    F4                          hlt
    EB FD                       jmp  hlt
"""

_SECOND_VCPU = """
    FC                          cld
    B8 00 50                    mov  ax, 0x5000
    8E C0                       mov  es, ax
    31 FF                       xor  di, di
    AB                    more: stosw
    EB FD                       jmp  more
"""

_GDT = bytes(8) + bytes.fromhex("FF FF 00 00 00 92 CF 00")  # data, from 0 on, 4 GiB


def _assemble(listing: str, **words: int) -> bytes:
    """The bytes in the first columns of a listing; ``{name}`` is a 16-bit word."""
    code = b""
    for line in listing.splitlines():
        for column in line[4:_CODE_COLUMNS].split():
            if column.endswith(":"):
                break
            word = words.get(column.strip("{}"))
            code += bytes.fromhex(column) if word is None else word.to_bytes(2, "little")
    return code


def boot_sector() -> bytes:
    second = _assemble(_SECOND_VCPU)
    places = dict.fromkeys(("second", "second_length", "gdt_pointer"), 0)
    code = b""
    for _ in range(2):  # the second time all places are known
        code = b"".join(
            _assemble(part, **places) for part in (_TOUCH_PAGES, _START_SECOND_VCPU, _STORE_AND_END)
        )
        at = _ORIGIN + len(code)
        places = {
            "second": at,
            "second_length": len(second),
            "gdt_pointer": at + len(second) + len(_GDT),
        }
    gdt = _ORIGIN + len(code) + len(second)
    pointer = (len(_GDT) - 1).to_bytes(2, "little") + gdt.to_bytes(4, "little")
    return (code + second + _GDT + pointer).ljust(510, b"\0") + b"\x55\xaa"
