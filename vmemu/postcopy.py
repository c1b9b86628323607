"""The incoming side of post-copy: what QEMU's migration/postcopy-ram.c does at the destination.

::

    NONE ─ advise ▶ ADVISE ─ discard ▶ DISCARD ─ listen ▶ LISTENING ─ run ▶ RUNNING ─ end ▶ END
                      └──────────── listen ─────────────────▲                 ▲ pause, resume ▼
                                any of them ─ end ▶ END                       └─── PAUSED ────┘

Advise compares what both ends believe about the blocks and empties all memory. Pre-copy then fills
some of it. Discard forgets what the source has written since it was sent. Listen counts what is
left as received, registers all memory with userfaultfd and starts the fault thread: from here on a
touch of a missing page is answered. Run starts the listen thread, which places what the source
sends. End gives everything back in QEMU's order and may be called in any state, twice too.

A step in a state that does not allow it raises StateError, which names both, and changes nothing.
A step that fails otherwise leaves the state as it was.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.affinity import Places
from vmemu.balloon import BalloonInhibitor
from vmemu.channel import ChannelEnds, send, try_send
from vmemu.cleanup import run_all
from vmemu.collapse import Collapse
from vmemu.cthread import Bell, CThread
from vmemu.delivery import Deliveries, Slots
from vmemu.errors import MigrationError, PeerGone, ProtocolError, StateError
from vmemu.events import EventBlock, EventLog
from vmemu.incoming_threads import Client, IncomingThreads
from vmemu.manager import MemoryManager
from vmemu.memlock import MemoryLock
from vmemu.needed import needed_features, wanted_features
from vmemu.protocol import BlockEntry, Header, Message, Summary
from vmemu.ramblock import BASE_PAGE, RAMBlock, RAMList
from vmemu.units import counted, format_size
from vmemu.userfault import Feature, Userfaultfd


class PostcopyState(enum.Enum):
    """Where the incoming migration is."""

    NONE = "none"
    ADVISE = "advise"
    DISCARD = "discard"
    LISTENING = "listening"
    RUNNING = "running"
    PAUSED = "paused"
    END = "end"


@dataclass
class Discards:
    """What the source had us forget: DISCARD commands, ranges in them, bytes in these."""

    commands: int = 0
    ranges: int = 0
    bytes: int = 0


class IncomingPostcopy:
    """The destination of one migration.

    ``memory`` is mapped before ``listen``; ``vcpus`` is how many threads of the guest will announce
    themselves. ``bell`` rings when the last page is placed and when one of the two threads ends.
    ``places`` has the CPUs of the threads.
    """

    def __init__(
        self,
        memory: MemoryManager,
        ends: ChannelEnds,
        vcpus: int,
        bell: Bell,
        *,
        fault_threads: int = 1,
        prefetch: bool = False,
        memlock: MemoryLock | None = None,
        inhibitor: BalloonInhibitor | None = None,
        events: EventLog | None = None,
        places: Places | None = None,
    ) -> None:
        self.state = PostcopyState.NONE
        self.memory = memory
        self.uffd: Userfaultfd | None = None
        self.ram: Any = None
        self._ends = ends
        self._bell = bell
        self._threads = IncomingThreads(
            ends,
            vcpus,
            bell,
            fault_threads=fault_threads,
            prefetch=prefetch,
            events=events,
            places=places,
        )
        self.collapse = Collapse(memory.blocks)
        self.discards = Discards()
        self._events = events
        self.warnings: list[str] = memory.images.warnings if memory.images is not None else []
        self._memlock = memlock
        self._inhibitor = inhibitor or BalloonInhibitor()
        self._inhibited = False
        self._tried_to_listen = False
        self.states: list[tuple[PostcopyState, int]] = []

    @property
    def blocks(self) -> RAMList:
        """The destination's blocks."""
        return self.memory.blocks

    def _enter(self, state: PostcopyState) -> None:
        """Go to a state; ``states`` remembers when (CLOCK_MONOTONIC, ns)."""
        if state is not self.state:
            self.state = state
            self.states.append((state, time.monotonic_ns()))

    def _note(self, name: str, **args: int | str) -> None:
        """An event for the log, under QEMU's name for it."""
        if self._events is not None:
            self._events.note(name, **args)

    def _expect(self, step: str, *allowed: PostcopyState) -> None:
        if self.state not in allowed:
            names = " or ".join(state.value for state in allowed)
            raise StateError(
                f"{step} needs state {names}, and the migration is in state {self.state.value}"
            )

    # ---- the way there ----

    def advise(self, theirs: Summary, before: Callable[[], object] | None = None) -> None:
        """Compare the source's blocks with ours, empty all memory, tell the source to go on, but
        not ``before`` that is done: what takes long would count as downtime later.

        Raises MigrationError naming all that differ, and what ``before`` raises.
        """
        self._expect("advise", PostcopyState.NONE)
        ours = Summary([BlockEntry(b.name, b.size, b.page_size) for b in self.blocks], BASE_PAGE)
        differences = ours.differences(theirs)
        if differences:
            raise MigrationError("source and destination differ: " + "; ".join(differences))
        if self._events is not None:
            self._events.describe(
                [EventBlock(b.name, b.address, b.size, b.page_size) for b in self.blocks]
            )
        self._note("loadvm_postcopy_handle_advise")
        self._prepare_memory()
        self.collapse.prepare()
        for block in self.blocks:
            block.forget()
            self._note("postcopy_init_range", block=block.name, length=block.size)
        self.ram = self.blocks.table()
        if self.memory.images is not None:
            self.memory.images.attach(self.ram)
        self._threads.attach(self.ram)
        if before is not None:
            before()
        with contextlib.suppress(PeerGone):  # if it has failed, what it says next tells why
            send(self._ends.return_path, Message.ADVISE, ours.pack())
        self._enter(PostcopyState.ADVISE)

    def _prepare_memory(self) -> None:
        """Locked memory can't be emptied, and from here on no page may be given back: one that
        pre-copy had brought would be missing while it counts as received."""
        if not self._inhibited:  # an advise that failed may come again
            self._inhibitor.inhibit()
            self._inhibited = True
        if self._memlock is not None:
            self._memlock.unlock()

    def _allow_ballooning(self) -> None:
        if self._inhibited:
            self._inhibited = False
            self._inhibitor.release()

    def _lock_again(self) -> None:
        """A lock that can't be had again is a warning: the guest runs on without it."""
        if self._memlock is not None:
            self.warnings += self._memlock.relock()

    def receive_precopy(self) -> CThread:
        """Start the thread that takes pre-copied pages; it ends at the flip. See ``control``."""
        self._expect("receive_precopy", PostcopyState.ADVISE)
        return self._threads.receive_precopy()

    @property
    def control(self) -> Header:
        """The header that ended pre-copy; its payload has not been read."""
        c = self.figures.control
        return Header(c.type, c.flags, c.block, c.offset, c.pages, c.length)

    def discard(self, name: str, ranges: list[tuple[int, int]]) -> None:
        """Forget ranges (offset, length) of a block, in bytes.

        Raises ProtocolError for a block that does not exist, a range outside it or one that is no
        whole number of its host pages: then nothing is forgotten. Raises CoreError.
        """
        self._expect("discard", PostcopyState.ADVISE, PostcopyState.DISCARD)
        index = self._find(name)
        block = self.blocks[index]
        for offset, length in ranges:
            _check_discard(block, offset, length)
        if self.state is PostcopyState.ADVISE:
            self._prepare_discard()
        self._note("loadvm_postcopy_ram_handle_discard_header", block=name, len=16 * len(ranges))
        for offset, length in ranges:
            self._note("ram_discard_range", block=name, start=offset, length=length)
            block.forget(offset, length)
            core.lib.vm_precopy_forget(self.ram, index, offset, length)
        self.discards.commands += 1
        self.discards.ranges += len(ranges)
        self.discards.bytes += sum(length for _, length in ranges)
        self._enter(PostcopyState.DISCARD)

    def _find(self, name: str) -> int:
        for index, block in enumerate(self.blocks):
            if block.name == name:
                return index
        raise ProtocolError(f"the source discards ranges of block {name!r}, which does not exist")

    def _prepare_discard(self) -> None:
        """No transparent hugepage may fill a hole with pages that are missing."""
        for block in self.blocks:
            block.set_thp(False)
            self._note("postcopy_nhp_range", block=block.name, length=block.size)

    def listen(self, clients: Sequence[Client] = ()) -> None:
        """Register all memory and start the fault thread, which answers for ``clients`` as well.

        Raises ProtocolError when pre-copy left a host page in part, HostError, CoreError; ``end``
        gives back what was taken, and nothing else can follow.
        """
        self._expect("listen", PostcopyState.ADVISE, PostcopyState.DISCARD)
        if self._tried_to_listen:  # what it took and counted would be taken and counted twice
            raise StateError(
                f"listen failed before, in state {self.state.value}: only end can follow"
            )
        self._tried_to_listen = True
        self._note("loadvm_postcopy_handle_listen", step="enter")
        if self.state is PostcopyState.ADVISE:
            self._prepare_discard()
        self._settle()
        self._note("loadvm_postcopy_handle_listen", step="after discard")
        core.lib.vm_image_map_hugepages(self.ram)
        needed = needed_features(list(self.blocks), self._threads.deliveries.kind)
        self.uffd = Userfaultfd(wanted_features() | Feature(sum(needed)))
        self.uffd.require(needed)
        self.memory.register(self.uffd)
        self.collapse.allow()
        self._threads.answer_faults(self.uffd.fd, clients)
        self._note("loadvm_postcopy_handle_listen", step="after uffd")
        self._enter(PostcopyState.LISTENING)

    def _settle(self) -> None:
        for index, block in enumerate(self.blocks):
            partial = core.lib.vm_precopy_settle(self.ram, index)
            if partial:
                raise ProtocolError(
                    f"block {block.name}: {counted(partial, 'page')} of"
                    f" {format_size(block.page_size)} pre-copied in part and not discarded"
                )
        core.lib.vm_image_release_received(self.ram)

    def run(self) -> None:
        """Place what the source sends from now on; the guest may touch its memory."""
        self._expect("run", PostcopyState.LISTENING)
        self._note("loadvm_postcopy_handle_run")
        self._threads.listen(self.blocks)
        collapsing = self.collapse.start(self.figures, self._bell)
        if collapsing is not None:
            self._threads.add(collapsing)
        self._enter(PostcopyState.RUNNING)

    def pause(self) -> None:
        """The source is lost: vCPUs that fault wait, until it is found again or ``end``."""
        self._expect("pause", PostcopyState.RUNNING)
        self._note("postcopy_pause_incoming")
        self._enter(PostcopyState.PAUSED)

    def resume(self) -> None:
        """The source is found again."""
        self._expect("resume", PostcopyState.PAUSED)
        self._note("postcopy_pause_incoming_continued")
        self._enter(PostcopyState.RUNNING)

    def request_push(self) -> None:
        """Ask for the background push. Only before the guest runs or after: the fault thread owns
        the return path while there can be faults, and remembers which block it has named last."""
        self._expect("request_push", PostcopyState.LISTENING, PostcopyState.RUNNING)
        send(self._ends.return_path, Message.PUSH)

    # ---- while it runs ----

    @property
    def running(self) -> bool:
        """Whether the guest runs here and the source is there."""
        return self.state is PostcopyState.RUNNING

    @property
    def tids(self) -> list[int]:
        """Its threads that run, as the kernel numbers them."""
        return self._threads.tids

    @property
    def complete(self) -> bool:
        """Whether every page of every block is placed."""
        return self._threads.complete

    @property
    def settled(self) -> bool:
        """Whether that is so, and what was to become hugepages has."""
        return self.complete and self.collapse.done

    def check(self) -> None:
        """Raise what ended one of the threads before its time.

        When the source ends, all channels do, and only the main one may say why: that thread is
        heard first, and gets a moment to have its say.
        """
        self._threads.check()

    def vcpu_slots(self, index: int) -> Slots:
        """What vCPU ``index`` has here, once memory is registered."""
        return self._threads.vcpu_slots(index)

    @property
    def deliveries(self) -> Deliveries:
        """What the vCPUs serve themselves with."""
        return self._threads.deliveries

    @property
    def figures(self) -> Any:
        """The C core's ``struct vm_incoming``: statistics of the threads."""
        return self._threads.shared

    def requested_pages(self) -> NDArray[np.void]:
        """The way of each page that was asked for: a copy, of ``blocktime.STAGE_DTYPE``.

        Only after the threads have ended.
        """
        return self._threads.requested_pages()

    # ---- the way back ----

    def release(self) -> None:
        """Let go of every thread that waits for a page: it goes on with zeros, so it must be told
        to stop first."""
        self.memory.let_go()
        self.deliveries.let_go()

    def end(self, failed: bool = False) -> None:
        """Give everything but the mappings back. Safe in any state and after any failure; once is
        enough.

        QEMU's order: hugepages back on, unregister, the fault thread told to quit and joined,
        descriptors closed, the return path shut.
        """
        if self.state is PostcopyState.END:
            return
        if not failed and self.complete:
            self._threads.hear_out()
        self._enter(PostcopyState.END)
        self._note("postcopy_ram_incoming_cleanup_entry")
        steps: list[Callable[[], object]] = [
            self._thp_on,
            self.memory.unregister,
            self._threads.stop,
            self._close_collapse,
            partial(self._note, "postcopy_ram_incoming_cleanup_join"),
            self._close_uffd,
            partial(self._note, "postcopy_ram_incoming_cleanup_closeuf"),
            self._threads.forget_clients,
            self._allow_ballooning,
            self._lock_again,
            lambda: self._close(failed),
            partial(self._note, "postcopy_ram_incoming_cleanup_exit"),
        ]
        run_all(steps)

    def _thp_on(self) -> None:
        for block in self.memory.blocks:
            if block.address:
                block.set_thp(True)

    @property
    def stuck(self) -> bool:
        """Whether a thread did not end when it was told to: what it uses must stay."""
        return self._threads.stuck

    def _close_collapse(self) -> None:
        """Before a balloon may take hugepages apart."""
        if not self.stuck:
            self.collapse.close()
            self.warnings += self.collapse.warnings

    def _close_uffd(self) -> None:
        """Not while a thread might still use it: a number closed now can be somebody else's file in
        a moment."""
        if self.uffd is not None and not self.stuck:
            self.uffd.close()

    def _close(self, failed: bool) -> None:
        """Shut the return path, saying whether there was an error, and close all channels."""
        if self.stuck:
            return
        # Closing says the same; and this end must not wait for a source that does not read.
        try_send(self._ends.return_path, Message.SHUT, pages=int(failed))
        self._ends.close()
        self._threads.close()


def _check_discard(block: RAMBlock, offset: int, length: int) -> None:
    where = f"block {block.name}: a discard of {offset:#x}+{length:#x}"
    if length == 0 or offset % block.page_size or length % block.page_size:
        raise ProtocolError(
            f"{where} is no whole number of pages of {format_size(block.page_size)}"
        )
    if offset + length > block.size:
        raise ProtocolError(f"{where} lies outside its {block.size:#x} bytes")
