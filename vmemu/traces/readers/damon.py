"""Reader of DAMON's tracepoints as text: of ``perf script``, of ``trace-cmd report``, or of damo.

``_core/text/damon.c`` says what the lines look like, and :mod:`vmemu.traces.regions` what a region
stands for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu.core import lib
from vmemu.traces.opening import ByteStream
from vmemu.traces.reader import Chunk
from vmemu.traces.regions import MISSING, RegionTouches, StreamNumbers, address_kind_of
from vmemu.traces.text import TextReader

_REGION_LINE = re.compile(
    rb" [0-9]+\.[0-9]{6,9}: +(?:damon:)?(?:damon_aggregated|damon_region_aggregated|"
    rb"damos_before_apply): +(?:[a-z]+_(?:id|idx)=[0-9]+ )+nr_regions=[0-9]+ [0-9]+-[0-9]+: "
)


class DamonReader(TextReader):
    """One stream a monitoring target, which is a process or all physical memory."""

    format = "damon"
    title = "DAMON tracepoints as text"
    address_kind = "unknown"
    missing: tuple[str, ...] = MISSING
    c_format = "VM_TEXT_DAMON"
    drop_reasons = ("other_event",)

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        self._touches = RegionTouches(stream.name)
        self._targets = StreamNumbers()

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        return _REGION_LINE.search(head) is not None

    def _take_counts(self, state: Any) -> None:
        super()._take_counts(state)
        self.address_kind = address_kind_of(int(state.memory[lib.VM_DAMON_HIGHEST]))

    def _chunks(
        self,
        streams: NDArray[np.uint32],
        addresses: NDArray[np.uint64],
        kinds: NDArray[np.uint8],
        sizes: NDArray[np.uint16],
        times: NDArray[np.uint64] | None,
    ) -> Iterator[Chunk]:
        """Each region is two entries: start and time, end and target."""
        assert times is not None
        starts, ends, moments, targets = addresses[0::2], addresses[1::2], times[0::2], times[1::2]
        for target in np.unique(targets):
            own = targets == target
            stream = self._targets.of(int(target))
            yield from self._touches.chunks(stream, starts[own], ends[own], moments[own])
