"""Ballooning: pages that the guest gives back to the host, and the inhibitor that post-copy needs.

A page given back while post-copy runs would be missing again, and the source, which has sent it,
would be asked for it once more. So QEMU inhibits ballooning from listen to the end
(``postcopy_balloon_inhibit``, ``ram_block_discard_disable``); here :class:`BalloonInhibitor` does.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, Self

from vmemu import core
from vmemu.cthread import Bell, CThread
from vmemu.errors import StateError

RETRY_S = 0.001
"""The least time between two tries to give the same page back, seconds."""


class BallooningInhibited(StateError):
    """Pages can't be given back now; nothing was changed."""


class Discardable(Protocol):
    """What a balloon needs of a RAM block; :class:`vmemu.ramblock.RAMBlock` is one."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    def discard(self, offset: int, length: int) -> None: ...


class BalloonInhibitor:
    """Counts who must not be disturbed; ballooning is refused while anybody is counted.

    A context manager, too. All methods may be called from any thread.
    """

    def __init__(self) -> None:
        self._idle = threading.Condition()
        self._inhibitors = 0
        self._in_flight = 0

    @property
    def active(self) -> bool:
        """Whether ballooning is refused now."""
        return self._inhibitors > 0

    def inhibit(self) -> None:
        """Refuse ballooning from now on. Returns when the discards that had begun are done."""
        with self._idle:
            self._inhibitors += 1
            try:
                self._idle.wait_for(lambda: self._in_flight == 0)
            except BaseException:  # Ctrl-C: who never got the promise must not hold it
                self._inhibitors -= 1
                raise

    def release(self) -> None:
        """Take one ``inhibit`` back. Raises StateError when there is none."""
        with self._idle:
            if self._inhibitors == 0:
                raise StateError("ballooning is released, and nobody inhibits it")
            self._inhibitors -= 1

    @contextmanager
    def discarding(self) -> Iterator[None]:
        """Around a discard. Raises BallooningInhibited instead of beginning one."""
        with self._idle:
            if self._inhibitors:
                raise BallooningInhibited(
                    "pages can't be given back while post-copy runs; the balloon works again "
                    "after its end"
                )
            self._in_flight += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()

    def __enter__(self) -> Self:
        self.inhibit()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class BalloonFigures:
    """What a balloon did: calls that were done and refused, bytes given back (a page given back
    twice counts twice)."""

    done: int
    refused: int
    bytes_given_back: int


class Balloon:
    """Gives pages of blocks back to the host; they read as zeros until somebody writes them.

    ``page_maps`` has a bytearray for each block, a byte for each of its host pages: 1 when the page
    was given back. The byte is set before the page goes, so that whoever sees zeros finds it set;
    whoever finds it set may still see what was there before.
    """

    def __init__(self, blocks: Sequence[Discardable], inhibitor: BalloonInhibitor) -> None:
        self.blocks = blocks
        self.page_maps = tuple(bytearray(block.size // block.page_size) for block in blocks)
        self._inhibitor = inhibitor
        self._lock = threading.Lock()
        self._done = 0
        self._refused = 0
        self._bytes = 0

    def inflate(self, block: int, offset: int, length: int) -> None:
        """Give [offset, offset + length) bytes of block number ``block`` back, whole host pages.

        Raises BallooningInhibited (counted), ValueError for a range that is not whole pages of the
        block, and what its ``discard`` raises: CoreError for locked memory, HugepageShortage when
        another process took the hugepage before it was reserved again. After the latter two the
        range counts as given back, as nobody knows what it holds.
        """
        self._check_range(block, offset, length)
        try:
            with self._inhibitor.discarding():
                self._mark(block, offset, length, 1)
                self.blocks[block].discard(offset, length)
        except BallooningInhibited:
            with self._lock:
                self._refused += 1
            raise
        with self._lock:
            self._done += 1
            self._bytes += length

    def _check_range(self, block: int, offset: int, length: int) -> None:
        one = self.blocks[block]
        crooked = offset % one.page_size or length % one.page_size
        if crooked or not 0 <= offset < offset + length <= one.size:
            raise ValueError(f"block {one.name}: {offset:#x}+{length:#x} is not whole pages of it")

    def _mark(self, block: int, offset: int, length: int, value: int) -> None:
        shift = self.blocks[block].page_size.bit_length() - 1
        first, count = offset >> shift, length >> shift
        # In place and of the same length: whoever holds a pointer to the map keeps it.
        memoryview(self.page_maps[block])[first : first + count] = bytes([value]) * count

    def forget(self) -> None:
        """Nothing counts as given back any more: memory was filled anew, as by a migration."""
        for index, block in enumerate(self.blocks):
            self._mark(index, 0, block.size, 0)

    def given_back(self) -> list[tuple[int, int, int]]:
        """What was given back since the last ``forget``: (block number, offset, length) in bytes,
        in order, neighbours joined."""
        return [
            (index, first * block.page_size, count * block.page_size)
            for index, block in enumerate(self.blocks)
            for first, count in _runs(self.page_maps[index])
        ]

    @property
    def figures(self) -> BalloonFigures:
        """What it did up to now."""
        with self._lock:
            return BalloonFigures(self._done, self._refused, self._bytes)


def _runs(page_map: bytearray) -> Iterator[tuple[int, int]]:
    """(first, count) of each run of pages that are set."""
    start = page_map.find(1)
    while start >= 0:
        end = page_map.find(0, start)
        end = len(page_map) if end < 0 else end
        yield start, end - start
        start = page_map.find(1, end)


class BalloonWorker:
    """A thread that gives host pages back one by one, in an order that the seed alone decides.

    ``rate`` is in pages a second, ``limit`` how many pages to give back in all (None: every page
    once). ``eligible`` tells by (block number, page number) which pages may go, such as those that
    the guest never touches. A page that is refused is tried again at the next beat, so the n-th
    page given back is the same in every run. ``bell`` rings at its end; ``error`` is what ended it
    before its time.
    """

    def __init__(
        self,
        balloon: Balloon,
        seed: int,
        rate: float,
        bell: Bell,
        *,
        limit: int | None = None,
        eligible: Callable[[int, int], bool] | None = None,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"a balloon gives back more than {rate} pages a second")
        self._balloon = balloon
        self._order = _page_order(balloon, seed, eligible or (lambda block, page: True))
        self._limit = limit
        self._beat_s = 1 / rate
        self._stop = threading.Event()
        self.thread = CThread("balloon", self._run, bell)

    @property
    def error(self) -> BaseException | None:
        """What ended it before its time, None when nothing did."""
        return self.thread.error

    def start(self) -> None:
        """Start it."""
        self.thread.start()

    def stop(self) -> None:
        """End it after the page that it is at; safe to call twice."""
        self._stop.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; False when the time is over."""
        return self.thread.join(timeout_s)

    def _run(self) -> None:
        for number, (block, page) in enumerate(self._order):
            if number == self._limit or not self._give_back(block, page):
                return

    def _give_back(self, block: int, page: int) -> bool:
        """Give one page back, whenever that is allowed; False when told to stop before."""
        size = self._balloon.blocks[block].page_size
        beat_s = self._beat_s
        while not self._stop.wait(beat_s):
            try:
                self._balloon.inflate(block, page * size, size)
            except BallooningInhibited:
                beat_s = max(self._beat_s, RETRY_S)  # at a high rate this would spin
                continue
            return True
        return False


def _page_order(
    balloon: Balloon, seed: int, eligible: Callable[[int, int], bool]
) -> Iterator[tuple[int, int]]:
    """(block number, page number) of every eligible host page, once, shuffled by the seed.

    The permutation of the guest's synthetic accesses: it needs no list of all pages.
    """
    ends = list(accumulate(len(page_map) for page_map in balloon.page_maps))
    total = ends[-1] if ends else 0
    for number in range(total):
        at = core.lib.vm_permute(number, total, seed & (1 << 64) - 1)
        block = bisect_right(ends, at)
        page = at - (ends[block - 1] if block else 0)
        if eligible(block, page):
            yield block, page
