"""Memory made of transparent hugepages on purpose, and how to tell that it is.

Advice is only that: the kernel gives none where its settings, a process's own switch
(``PR_SET_THP_DISABLE``) or fragmented memory are against it. Sources:
Documentation/admin-guide/mm/transhuge.rst, madvise(2), proc_pid_smaps(5).
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from vmemu import core
from vmemu.errors import CoreError, HostError
from vmemu.host import settings
from vmemu.privilege import as_root
from vmemu.ramblock import BASE_PAGE, Backing, RAMBlock
from vmemu.units import counted, format_size

SYSFS = Path("/sys/kernel/mm/transparent_hugepage")
_MADV_COLLAPSE = 25  # from Linux 6.1 on; whatever the settings in sysfs say
_TRIES = 5  # EAGAIN: somebody else has one of the pages just now
_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_HUGE = ("AnonHugePages:", "ShmemPmdMapped:")


def thp_size() -> int:
    """Bytes of a transparent hugepage, also where the kernel has none: what one entry of the second
    level of page tables covers, whose tables are a page of 8-byte entries."""
    try:
        return int((SYSFS / "hpage_pmd_size").read_text())
    except OSError:
        return BASE_PAGE * (BASE_PAGE // 8)


def make_huge(block: RAMBlock) -> str:
    """Have a populated block, advised with ``set_thp``, be transparent hugepages throughout; how
    they came, in words, empty when the kernel gave them by itself.

    Raises HostError when the kernel gives none, or not for all of it.
    """
    if huge_bytes(block) == block.size:
        return ""
    refused = collapse(block)
    # A collapsed page of a file is mapped as a whole by the next touch.
    core.call(core.lib.vm_probe_populate, block.address, block.size)
    huge = huge_bytes(block)
    if huge == block.size:
        return f"transparent hugepages made by MADV_COLLAPSE, as {_setting(block)}"
    size = thp_size()
    what = (
        f"the kernel gave {huge // size} of {counted(block.size // size, 'transparent hugepage')} "
        f"of {format_size(size)}: {_setting(block)}"
    )
    if refused is not None:
        what += f", MADV_COLLAPSE: {os.strerror(refused.errno)}"
    raise HostError(what, _remedy(block))


def collapse(block: RAMBlock) -> CoreError | None:
    """Why not, None when the kernel did it."""
    refused = None
    for _ in range(_TRIES):
        try:
            core.call(core.lib.vm_advise, block.address, block.size, _MADV_COLLAPSE)
        except CoreError as error:
            refused = error
            if error.errno == errno.EAGAIN:
                continue
            return refused
        else:
            return None
    return refused


def huge_bytes(block: RAMBlock) -> int:
    """How much of the block is mapped as transparent hugepages."""
    here, found = False, 0
    with Path("/proc/self/smaps").open(errors="replace") as lines:
        for line in lines:
            if match := _RANGE.match(line):
                if here:
                    break
                here = int(match[1], 16) <= block.address < int(match[2], 16)
            elif here and line.startswith(_HUGE):
                found += int(line.split()[1]) << 10
    return min(found, block.size)


def _file_of(block: RAMBlock) -> Path:
    """The setting that memory of its backing follows: that of the size, from Linux 6.8 on, unless
    it inherits."""
    name = "enabled" if block.backing is Backing.ANONYMOUS else "shmem_enabled"
    of_size = SYSFS / f"hugepages-{thp_size() >> 10}kB" / name
    return SYSFS / name if chosen(of_size) in ("", "inherit") else of_size


def chosen(setting: Path) -> str:
    """The word in brackets of a setting; empty when it can't be read."""
    try:
        return settings.chosen(setting.read_text()) or ""
    except OSError:
        return ""


def _setting(block: RAMBlock) -> str:
    if switched_off():
        return "this process has them switched off (PR_SET_THP_DISABLE)"
    file = _file_of(block)
    return f"{file} is {chosen(file) or 'not known'}"


def switched_off() -> bool:
    """Whether this process has them switched off (``PR_SET_THP_DISABLE``)."""
    return "\nTHP_enabled:\t0\n" in Path("/proc/self/status").read_text(errors="replace")


def _remedy(block: RAMBlock) -> str:
    file = _file_of(block)
    if switched_off() or chosen(file) not in ("never", "deny"):
        return ""
    return as_root(f"echo {'madvise' if file.name == 'enabled' else 'advise'} > {file}")
