"""What the tests of several files share."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from vmemu.config import Scenario, SyntheticTrace
from vmemu.jobs import stuck
from vmemu.protocol import BlockEntry
from vmemu.ramblock import BASE_PAGE, Backing, RAMBlock
from vmemu.synthetic import SyntheticShare
from vmemu.synthetic_plan import synthetic_recipe
from vmemu.workload import Workload

MIB = 1 << 20
HUGE = 2 * MIB


# ---- blocks and scenarios ----


def anonymous(name: str = "ram", pages: int = 16) -> RAMBlock:
    return RAMBlock(name, Backing.ANONYMOUS, pages * BASE_PAGE, BASE_PAGE)


def shared(name: str = "vram", pages: int = 16, path: str | None = None) -> RAMBlock:
    return RAMBlock(name, Backing.SHARED, pages * BASE_PAGE, BASE_PAGE, path)


def huge(name: str = "huge", pages: int = 2, path: str | None = None) -> RAMBlock:
    return RAMBlock(name, Backing.HUGETLBFS, pages * HUGE, HUGE, path)


def block_of(backing: str, pages: int = 16) -> RAMBlock:
    """A block of any backing; two hugepages are enough for every test."""
    makers = {"anonymous": anonymous, "shared": shared, "hugetlbfs": huge}
    return makers[backing](pages=min(pages, 2) if backing == "hugetlbfs" else pages)


def scenario(blocks: list[dict[str, Any]] | None = None, **sections: Any) -> Scenario:
    """A small scenario; ``sections`` replace those of the same name."""
    data: dict[str, Any] = {
        "name": "test",
        "blocks": blocks or [{"name": "ram", "backing": "anonymous", "size": "1MiB"}],
        "guest": {"vcpus": 2, "trace": synthetic("uniform", accesses=2000, write_share=0.4)},
        "on_unavailable": {"wait": "60s"},
    }
    return Scenario.model_validate(data | sections)


def synthetic(kind: str, **fields: Any) -> dict[str, Any]:
    return {"synthetic": {"kind": kind, **fields}}


# ---- waiting ----

PATIENCE_S = 60.0
"""What comes in milliseconds may take that long on a machine that does much else."""


def await_true(wanted: Callable[[], object]) -> None:
    """Wait for what others will do; it comes, or they are stuck."""
    deadline = time.monotonic() + PATIENCE_S
    while not wanted():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


def accesses_of(pid: int) -> int:
    """Accesses that the run in that process has made so far; 0 before it has a guest."""
    found = stuck.look(pid)
    return found.figures["accesses"] if found else 0


# ---- what is left behind ----


@dataclass(frozen=True)
class Footprint:
    """What this process holds that a migration must give back."""

    descriptors: frozenset[str]
    children: frozenset[int]
    threads: frozenset[str]
    mappings: frozenset[str]

    @classmethod
    def now(cls) -> Footprint:
        return cls(
            descriptors=frozenset(_descriptors()),
            children=frozenset(_children()),
            threads=frozenset(thread.name for thread in threading.enumerate()),
            mappings=frozenset(_guest_mappings()),
        )

    def left_by(self, later: Footprint) -> dict[str, set[Any]]:
        """What ``later`` holds and this one did not; empty when nothing was left behind."""
        pairs = {name: getattr(later, name) - getattr(self, name) for name in vars(self)}
        return {name: set(extra) for name, extra in pairs.items() if extra}


def _descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that listed the directory
            found.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


def _children() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry))
    return found


def _guest_mappings() -> list[str]:
    """Mappings that only blocks have: memfds of ours, hugepages, registered, or told of THP."""
    found, current = [], ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            current = line
        # Not "nh": the stacks of threads have it too. The heap may be "hg" by numpy's advice.
        elif "[heap]" in current:
            continue
        elif line.startswith("VmFlags:") and (
            {"um", "uw", "ht", "hg"} & set(line.split()[1:]) or "memfd:vmemu-" in current
        ):
            found.append(current)
    return found


def mapped_at(address: int) -> bool:
    """Whether a mapping of this process begins at the address."""
    start = f"{address:x}-"
    return any(line.startswith(start) for line in Path("/proc/self/maps").read_text().splitlines())


def vm_flags(address: int) -> set[str]:
    """The VmFlags, as in proc(5), of the mapping that the address lies in: neighbours whose flags
    have become the same are one mapping."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif here and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError(f"nothing is mapped at {address:#x}")


def workload_of(
    blocks: Sequence[RAMBlock | BlockEntry], vcpus: int, seed: int, **fields: Any
) -> Workload:
    """Synthetic accesses on the blocks, as a scenario with these fields would have them."""
    made = SyntheticTrace.model_validate({"synthetic": fields}).synthetic
    return synthetic_recipe(made, vcpus, seed, blocks).make(blocks)


def shares_of(work: Workload) -> list[SyntheticShare]:
    """The share of each vCPU of a workload of one synthetic trace."""
    return [lane.work for (lane,) in work.vcpus]


def sizes_of(work: Workload) -> NDArray[np.uint16]:
    """The table of access sizes of a workload of one trace."""
    return work.vcpus[0][0].sizes


# ---- what the host lacks ----


def missing(resource: str, reason: str) -> NoReturn:
    """Skip the test for want of a resource, or fail it where ``VMEMU_REQUIRE`` names that one."""
    required = os.environ.get("VMEMU_REQUIRE", "").replace(",", " ").split()
    if resource in required:
        pytest.fail(f"VMEMU_REQUIRE has {resource}, and: {reason}")
    pytest.skip(reason)
