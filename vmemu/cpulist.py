"""Lists of CPUs as the kernel and its tools write them: ``0-3,8``."""

from __future__ import annotations

import re
from collections.abc import Collection

from vmemu.units import UnitError, printable

LAST_CPU = 8191
"""The highest number that any kernel is built for (NR_CPUS)."""


def parse_cpus(text: str) -> frozenset[int]:
    """The CPUs in ``0-3,8``. Raises UnitError for text that is no such list, or an empty one."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if match is None:
            raise UnitError(f"'{printable(text)}' is no list of CPUs", "write one such as 0-3,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UnitError(f"{first}-{last} holds no CPU", f"write {last}-{first}")
        if last > LAST_CPU:
            raise UnitError(f"no machine has a CPU {last}", f"use CPUs from 0 to {LAST_CPU}")
        found.update(range(first, last + 1))
    return frozenset(found)


def format_cpus(cpus: Collection[int]) -> str:
    """``0-3,8``; empty for none."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
