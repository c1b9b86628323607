"""Where the machine has its CPUs: node, package, core."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

SYSFS = Path("/sys/devices/system")


class CpuPlace(NamedTuple):
    """A CPU's NUMA node, its package, the first CPU of its core, and its number: in the order of
    these, what is near stays together."""

    node: int
    package: int
    core: int
    cpu: int


def place(cpu: int) -> CpuPlace:
    """Where a CPU is; node and package are 0 where /sys says nothing, and its core its own."""
    directory = SYSFS / f"cpu/cpu{cpu}"
    node = min((int(found.name[4:]) for found in directory.glob("node[0-9]*")), default=0)
    package = _first_number(directory / "topology/physical_package_id")
    core = _first_number(directory / "topology/thread_siblings_list", cpu)
    return CpuPlace(node, package, core, cpu)


def _first_number(file: Path, otherwise: int = 0) -> int:
    try:
        found = re.match(r"\d+", file.read_text())
    except OSError:
        return otherwise
    return int(found[0]) if found else otherwise
