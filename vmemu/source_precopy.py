"""Pre-copy at the source: rounds of dirty pages while the guest runs here, then the flip.

The guest's vCPUs are threads of the source process that replay the first part of their shares on
its image. What they write is dirty; a round sends what is dirty. At the flip they stop, dirtiness
is rounded to whole host pages, and what the destination must forget is told in one batch with
LISTEN and RUN.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmemu import core, dirty
from vmemu.channel import pack, send
from vmemu.cthread import Bell
from vmemu.protocol import MAX_DISCARDS_PER_COMMAND, BlockEntry, Message, pack_discard

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from vmemu.affinity import Places
    from vmemu.content import ContentSpec
    from vmemu.guest_worker import Guest, GuestWorker
    from vmemu.recipe import Recipe

Note = Callable[..., None]
"""Logs an event: its name, and its arguments by name."""
TARGET_PAGE = 4096
ALIVE_S = 0.1
"""How often the source says that it is alive while it sends nothing else."""


@dataclass(frozen=True)
class PrecopySpec:
    """How much is sent before the flip.

    At most ``rounds`` rounds, at ``bandwidth`` bytes a second (0: unlimited), cut off after
    ``max_time_ns`` (0: never). ``converged``: flip
    as soon as what is dirty could be sent within ``max_downtime_ns``.
    """

    rounds: int = 0
    bandwidth: int = 0
    max_downtime_ns: int = 300_000_000
    converged: bool = False
    max_time_ns: int = 0


@dataclass(frozen=True)
class SourceGuestSpec:
    """The part of the guest's life that happens at the source.

    vCPU i replays ``ends[i]`` accesses of its share, or what of them it gets done in
    ``after_ns``.
    ``dirty_tracking`` is ``auto``, ``kernel`` or ``replay``.
    """

    recipe: Recipe
    ends: tuple[int, ...]
    after_ns: int | None
    check_reads: bool
    dirty_tracking: str = "auto"


class SourceGuest:
    """The vCPUs on the source's image."""

    def __init__(
        self,
        spec: SourceGuestSpec,
        source: Any,
        seed: int,
        blocks: tuple[BlockEntry, ...],
        contents: tuple[ContentSpec, ...],
        *,
        places: Places,
    ) -> None:
        from vmemu.content import ExpectedContent
        from vmemu.guest_worker import Guest, GuestWorker

        self._bell = Bell()
        images = [source.image[index] for index in range(len(blocks))]
        kernel, self.tracking = dirty.start_kernel(images, spec.dirty_tracking)
        table = image_blocks(source, blocks)
        ram = table.table()
        for index, block in enumerate(table):
            core.lib.vm_ram_mark_received(core.ffi.addressof(ram.block, index), 0, block.pages)
        self._guest: Guest = Guest(
            spec.recipe.make(blocks),
            table,
            ram,
            ExpectedContent(seed, list(table), contents),
            check_reads=spec.check_reads,
            keep_marks=False,
            track_writes=kernel is None,
        )
        self.tracker: dirty.DirtyTracker = kernel or dirty.ReplayTracker(source, self._guest)
        vcpus = len(spec.ends)
        self._tids = core.ffi.new("uint32_t[]", vcpus)
        self._seen = core.ffi.new("uint64_t[]", vcpus)
        self.workers: list[GuestWorker] = [
            GuestWorker(
                self._guest,
                index,
                self._bell,
                slots=(self._tids + index, self._seen + index),
                end=end,
                cpus=places.of("source_vcpus", index),
            )
            for index, end in enumerate(spec.ends)
        ]

    def start(self) -> None:
        """Let the vCPUs run."""
        for worker in self.workers:
            worker.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every vCPU is where it flips; False when the time is over."""
        return all(worker.join(timeout_s) for worker in self.workers)

    @property
    def done(self) -> bool:
        """Whether every vCPU is where it flips, or has failed."""
        return all(worker.done for worker in self.workers)

    def stop(self) -> None:
        """Stop the vCPUs where they are. Raises what ended one before its time."""
        for worker in self.workers:
            worker.stop()
        self.wait()
        for worker in self.workers:
            if worker.error is not None:
                raise worker.error


def image_blocks(source: Any, blocks: tuple[BlockEntry, ...]) -> Any:
    """The source's images as a RAMList that is mapped where they are."""
    from vmemu.ramblock import Backing, RAMBlock, RAMList

    made = []
    for index, entry in enumerate(blocks):
        block = RAMBlock(entry.name, Backing.ANONYMOUS, entry.size, entry.page_size)
        block.address = int(core.ffi.cast("uintptr_t", source.image[index].data))
        made.append(block)
    return RAMList(made)


class Precopy:
    """Runs the rounds and the flip; ``package`` is what then goes to the destination."""

    def __init__(
        self,
        source: Any,
        blocks: tuple[BlockEntry, ...],
        spec: PrecopySpec,
        *,
        guest: SourceGuest | None,
        after_ns: int | None,
        main: Connection,
        note: Note,
    ) -> None:
        self._note = note
        self._source = source
        self._main = main
        self._blocks = blocks
        self._spec = spec
        self._guest = guest
        self._after_ns = after_ns
        self._flip = threading.Event()

    def run(self) -> None:
        """Rounds until they are over or the time of the flip has come, then stop the guest."""
        self._source.limiter.bytes_per_second = self._spec.bandwidth
        self._note("migrate_set_state", new_state="active")
        timers = []
        if self._spec.max_time_ns:
            timers.append(threading.Timer(self._spec.max_time_ns / 1e9, self._end_rounds))
        if self._guest is not None:
            self._guest.start()
            if self._after_ns is not None:
                timers.append(threading.Timer(self._after_ns / 1e9, self._flip_now))
        for timer in timers:
            timer.start()
        try:
            self._rounds()
            while not self._flip_reached():
                self._say_alive()
        finally:
            for timer in timers:
                timer.cancel()
            if self._guest is not None:
                self._guest.stop()
        self.stopped_ns = time.monotonic_ns()

    def _flip_reached(self) -> bool:
        if self._guest is None or self._source.stop:
            return True
        if self._after_ns is not None:
            # A guest that has done all it does would be waited for in vain.
            return self._flip.wait(ALIVE_S) or self._guest.done
        return self._guest.wait(ALIVE_S)

    def _say_alive(self) -> None:
        """The destination waits for the guest; that it hears nothing must mean that we are gone."""
        send(self._main, Message.ROUND, pages=self._source.rounds)

    def _end_rounds(self) -> None:
        self._source.flip = 1

    def _flip_now(self) -> None:
        self._end_rounds()
        self._flip.set()

    def _rounds(self) -> None:
        for number in range(self._spec.rounds):
            if self._source.flip or self._source.stop:
                return
            self._harvest()
            if number and self._spec.converged and self._converged():
                return
            core.call(core.lib.vm_source_round, self._source)

    def _harvest(self) -> None:
        if self._guest is not None:
            self._guest.tracker.harvest()

    def _converged(self) -> bool:
        """Whether the rest would be sent within the downtime that is allowed."""
        rate = self._spec.bandwidth or (4 << 30)
        return self._dirty() * TARGET_PAGE / rate * 1e9 <= self._spec.max_downtime_ns

    def _dirty(self) -> int:
        blocks = range(len(self._blocks))
        return sum(core.lib.vm_source_dirty(self._source, index) for index in blocks)

    def package(self) -> bytes:
        """FLIP, all DISCARDs, LISTEN and RUN as one batch."""
        self._harvest()
        self._note("migrate_set_state", new_state="postcopy-active")
        self._note("postcopy_start")
        messages = [pack(Message.FLIP, self._flip_payload())]
        for index, block in enumerate(self._blocks):
            core.lib.vm_source_canonicalise(self._source, index)
            messages += self._discards(index, block)
        self._note("ram_postcopy_send_discard_bitmap")
        messages += [pack(Message.LISTEN), pack(Message.RUN)]
        return b"".join(messages)

    def _discards(self, index: int, block: BlockEntry) -> list[bytes]:
        """What the destination must forget of one block: at most 12 ranges a command."""
        ranges = []
        first = core.ffi.new("uint64_t *")
        while pages := core.lib.vm_source_dirty_run(self._source, index, first):
            ranges.append((first[0] * block.page_size, pages * block.page_size))
            first[0] += pages
        step = MAX_DISCARDS_PER_COMMAND
        commands = [ranges[at : at + step] for at in range(0, len(ranges), step)]
        for some in commands:
            self._note_command(block.name, some)
        count = len(commands)
        self._note(
            "postcopy_discard_send_finish", block=block.name, words=len(ranges), commands=count
        )
        return [pack(Message.DISCARD, pack_discard(block.name, some)) for some in commands]

    def _note_command(self, name: str, ranges: list[tuple[int, int]]) -> None:
        for offset, length in ranges:
            start, pages = offset // TARGET_PAGE, length // TARGET_PAGE
            self._note("postcopy_discard_send_range", block=name, start=start, length=pages)
        self._note("qemu_savevm_send_postcopy_ram_discard", block=name, len=len(ranges))

    def _flip_payload(self) -> bytes:
        """Where the vCPUs are, and what they have found: the state that moves with the guest."""
        workers = self._guest.workers if self._guest is not None else []
        return json.dumps(
            {
                "stopped_ns": self.stopped_ns,
                "rounds": self._source.rounds,
                "precopy_pages": self._source.pages_precopied,
                "precopy_bytes": self._source.bytes_precopied,
                "dirty_tracking": self._tracking(),
                "vcpus": [vcpu_state(worker) for worker in workers],
                "mismatches": [
                    [m.block, m.offset, m.expected, m.found]
                    for worker in workers
                    for m in worker.mismatches()
                ],
            }
        ).encode()

    def _tracking(self) -> dict[str, str] | None:
        """How dirty pages were found; None when no guest wrote any."""
        return asdict(self._guest.tracking) if self._guest is not None else None


VCPU_FIGURES = (
    "accesses",
    "reads",
    "writes",
    "dropped",
    "reads_checked",
    "reads_wrong",
    "paced",
    "lag_mean_ns",
    "lag_max_ns",
    "lag_end_ns",
)


def vcpu_state(worker: GuestWorker) -> dict[str, int]:
    """Position and counters of a vCPU."""
    names = ("position", *VCPU_FIGURES)
    return {name: int(getattr(worker.figures, name)) for name in names}
