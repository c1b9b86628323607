"""The order in which the guest will touch its pages: what it does is known before it does it.

The C core goes through its accesses once, without touching memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.guest_worker import NO_END, lanes_to_c, pace_to_c
from vmemu.protocol import BlockEntry
from vmemu.workload import Workload


def recorded_order(
    workload: Workload, blocks: Sequence[BlockEntry], begins: Sequence[int]
) -> NDArray[np.uint64]:
    """The host pages that the vCPUs touch from access ``begins[i]`` of their shares on, each once.

    A page is ``block << VM_CURSOR_SHIFT | page`` (uint64). The vCPUs' orders are merged: by time at
    the pace of a recording, else as if all made their accesses at one rate.
    """
    guest = core.ffi.new("struct vm_guest *")
    pace = pace_to_c(workload.pace)
    guest.pages, guest.pace = len(workload.block), pace
    touched = [_first_touches(guest, workload, i, begin) for i, begin in enumerate(begins)]
    pages = np.concatenate([pages for pages, _ in touched])
    order = np.argsort(np.concatenate([at for _, at in touched]), kind="stable")
    places = _places(workload, blocks)[pages[order]]
    places = places[workload.block[pages[order]] >= 0]
    _, first = np.unique(places, return_index=True)
    listed: NDArray[np.uint64] = places[np.sort(first)]
    return listed


def _first_touches(
    guest: Any, workload: Workload, index: int, begin: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Pages of the dictionary, and when a vCPU touches them first."""
    vcpu = core.ffi.new("struct vm_vcpu *")
    lanes, keep = lanes_to_c(workload.vcpus[index])
    vcpu.guest, vcpu.lane, vcpu.lanes = guest, lanes, len(lanes)
    vcpu.begin, vcpu.end = begin, NO_END
    page, at = (np.empty(guest.pages, np.uint64) for _ in range(2))
    into = [core.ffi.from_buffer("uint64_t[]", array) for array in (page, at)]
    count = core.call(core.lib.vm_first_touches, vcpu, *into)
    del keep  # what the lanes point to has lived until here
    return page[:count].copy(), at[:count].copy()


def _places(workload: Workload, blocks: Sequence[BlockEntry]) -> NDArray[np.uint64]:
    """Where each page of the dictionary lies; of one outside of all blocks it says nothing."""
    shifts = np.array([block.page_size.bit_length() - 1 for block in blocks], np.uint64)
    block = np.maximum(workload.block, 0).astype(np.uint64)
    places: NDArray[np.uint64] = block << np.uint64(core.lib.VM_CURSOR_SHIFT)
    places |= workload.offset >> shifts[block]
    return places
