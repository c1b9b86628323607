"""Delivery by the vCPUs themselves: each fetches the page that it misses, on channels of its own.

With ``UFFD_FEATURE_SIGBUS`` a touch of a missing page is a SIGBUS in the thread that made it, which
stands for hypervisors whose vCPU exits on such a page and serves it before it goes on. The C core
does it (``_core/delivery.c``); here is the life of what it needs.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

from vmemu import core
from vmemu.channel import VcpuEnds

_TICK_S = 0.005


class Slots(NamedTuple):
    """Of one vCPU, as C pointers: where it writes its thread id, where its faults are counted, and
    with what it serves itself, a ``struct vm_delivery *``; None where others do."""

    tid: Any
    seen: Any
    delivery: Any = None


class Deliveries:
    """What the vCPUs serve themselves with, one a vCPU; none where fault threads do it.

    ``incoming`` is the C core's ``struct vm_incoming`` that they belong to.
    """

    def __init__(self, ends: Sequence[VcpuEnds], incoming: Any) -> None:
        self._ends = ends
        self._incoming = incoming
        # Not ffi.gc, which forgets how long an array is.
        self._table = core.ffi.new("struct vm_delivery[]", len(ends))
        weakref.finalize(self, _release, self._table)
        self._open = 0

    def __bool__(self) -> bool:
        return bool(self._ends)

    @property
    def kind(self) -> str:
        """As the scenario's ``delivery``."""
        return "sigbus" if self else "thread"

    def open(self) -> None:
        """Before any vCPU runs. Raises CoreError; ``close`` gives back what was opened."""
        opened = core.lib.vm_delivery_open
        for index, ends in enumerate(self._ends):
            descriptors = (ends.pages.fileno(), ends.return_path.fileno())
            core.call(opened, self._table + index, self._incoming, index, *descriptors)
            self._open += 1
        self._incoming.delivery = self._table
        self._incoming.deliveries = self._open

    def slot(self, index: int) -> Any:
        """That of one vCPU, a ``struct vm_delivery *`` that lives as long as this."""
        return self._table + index

    @property
    def failed(self) -> bool:
        """Whether a vCPU could not get its page."""
        return any(one.failed for one in self._table)

    def check(self) -> None:
        """Raise why a vCPU could not get its page: CoreError, ProtocolError, PeerGone."""
        for one in self._table:
            if one.failed:
                core.raise_error(one.error)

    def let_go(self) -> None:
        """Have every vCPU that waits for a page touch its memory once more. That must not be
        registered any longer."""
        if self._open:
            core.lib.vm_deliveries_let_go(self._incoming)

    def close(self, patience_s: float) -> list[str]:
        """Give it back once the vCPUs have ended; safe to do twice. The names of those that run on,
        for which everything stays as it is."""
        deadline = time.monotonic() + patience_s
        while (running := self._running()) and time.monotonic() < deadline:
            time.sleep(_TICK_S)
        if running:
            return [f"vcpu{index}" for index in running]
        self._incoming.deliveries = 0
        for index in range(self._open):
            core.lib.vm_delivery_close(self._table + index)
        self._open = 0
        return []

    def _running(self) -> list[int]:
        return [index for index in range(self._open) if self._incoming.vcpu_tid[index]]

    @property
    def placed(self) -> list[Any]:
        """What placing pages has met on the way: a ``struct vm_place_stats`` each."""
        return [one.placed for one in self._table]

    @property
    def stages(self) -> list[Any]:
        """The way of the pages that each has asked for: a ``struct vm_stages`` each."""
        return [one.stages for one in self._table]


def _release(table: Any) -> None:
    for one in table:
        core.lib.vm_stages_release(core.ffi.addressof(one, "stages"))
