"""Lossless collapse: accesses that can't fault are left out.

Where only faults matter, an access counts when it is the first of its stream on a page, or the
first that writes it: everything else finds the page there, and as writable as it has to be. What is
kept stays in its order, so a replay faults on the same pages, reads and writes, in the same order.
"""

from __future__ import annotations

from vmemu.traces.pageset import GROUPS, PageSet
from vmemu.traces.reader import Chunk

DROPPED = "repeats"
"""What accesses left out are called in ``dropped``, and what the trace then can't say."""


class Collapse:
    """Leaves out repeats, chunk by chunk. Memory is bounded by the pages that each stream touches;
    ``groups`` as in ``PageSet``."""

    def __init__(self, groups: int = GROUPS) -> None:
        self._seen = PageSet(groups)
        self._numbers: dict[int, int] = {}
        self.dropped = 0
        """Accesses left out so far."""

    def __call__(self, chunk: Chunk) -> Chunk:
        """The chunk without repeats; perhaps empty. Raises ``TraceError``."""
        stream, addresses, kinds, sizes, times = chunk
        number = self._numbers.setdefault(stream, len(self._numbers))
        keep = self._seen.mark_firsts(number, addresses, sizes, kinds)
        kept = int(keep.sum())
        self.dropped += len(keep) - kept
        if kept == len(keep):
            return chunk
        return Chunk(
            stream,
            addresses[keep],
            kinds[keep],
            sizes[keep],
            None if times is None else times[keep],
        )
