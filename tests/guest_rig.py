"""A vCPU with lanes of a test's choice on real memory that has all its pages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vmemu import core
from vmemu.content import ContentSpec, ExpectedContent, fill_entry
from vmemu.cthread import Bell
from vmemu.guest_worker import NO_END, Guest, GuestWorker
from vmemu.protocol import BlockEntry
from vmemu.source_precopy import image_blocks
from vmemu.synthetic import identity_map
from vmemu.workload import ASAP, Lane, Pace, Workload

PAGE = 4096
PAGES = 8
SEED = 5
BLOCK = BlockEntry("ram", PAGES * PAGE, PAGE)


@dataclass
class Rig:
    """A vCPU with these lanes; ``beside``: those of another one, on the pages of the first lane."""

    lanes: list[Lane]
    pace: Pace = ASAP
    beside: list[Lane] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = core.owned(core.lib.vm_source_create(1), core.lib.vm_source_destroy)
        core.call(core.lib.vm_source_set, self.source, 0, b"ram", BLOCK.size, 12)
        content = core.ffi.new("struct vm_content *")
        fill_entry(content, SEED, "ram", 12, 0.3)
        core.lib.vm_content_fill(content, self.source.image[0].data, BLOCK.size)
        self.table = image_blocks(self.source, (BLOCK,))
        self.ram = self.table.table()
        core.lib.vm_ram_mark_received(core.ffi.addressof(self.ram.block, 0), 0, PAGES)
        block, offset = identity_map((BLOCK,))
        # Each lane's pages are of a dictionary of its own, so that it is known by them.
        self.workload = Workload(
            np.tile(block, len(self.lanes) or 1),
            np.tile(offset, len(self.lanes) or 1),
            [
                [replace(lane, first_page=n * PAGES) for n, lane in enumerate(self.lanes)],
                *([self.beside] if self.beside else []),
            ],
            self.pace,
        )
        self.expected = ExpectedContent(SEED, list(self.table), [ContentSpec(zero_share=0.3)])
        self.bell = Bell()

    def guest(self, *, image: bool = True, **flags: bool) -> Guest:
        """``flags`` are those of ``Guest``."""
        flags = {"check_reads": True, "keep_marks": True} | flags
        guest = Guest(self.workload, self.table, self.ram, self.expected, **flags)
        if not image:  # as that of a guest with more pages than one of what is expected is made for
            guest.shared.expected = core.ffi.NULL
        return guest

    def worker(
        self, guest: Guest, begin: int = 0, end: int = NO_END, *, vcpu: int = 0
    ) -> GuestWorker:
        self.slots = (core.ffi.new("uint32_t *"), core.ffi.new("uint64_t *"))
        return GuestWorker(guest, vcpu, self.bell, slots=self.slots, begin=begin, end=end)

    def memory(self) -> np.ndarray[Any, Any]:
        """The bytes of the block, where the guest has them."""
        return np.frombuffer(core.ffi.buffer(self.source.image[0].data, BLOCK.size), np.uint8)

    def listed(self, begin: int = 0, count: int | None = None) -> np.ndarray[Any, Any]:
        """The accesses from one on: a row of place, kind and size, and time for each."""
        worker = self.worker(self.guest(), begin, begin)
        count = self.workload.accesses + 10 if count is None else count
        where, times = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
        what = np.zeros(count, np.uint8)
        pointers = (
            core.ffi.from_buffer("uint64_t[]", where),
            core.ffi.from_buffer("uint8_t[]", what),
            core.ffi.from_buffer("uint64_t[]", times),
        )
        done = core.call(core.lib.vm_vcpu_list, worker.figures, *pointers, count)
        return np.stack([where, what.astype(np.uint64), times], axis=1)[:done]

    def close(self) -> None:
        self.bell.close()
