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
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.affinity import CpuSet, Places
from vmemu.balloon import BalloonInhibitor
from vmemu.blocktime import STAGE_DTYPE
from vmemu.channel import ChannelEnds, send, try_send
from vmemu.cleanup import run_all
from vmemu.collapse import Collapse
from vmemu.cthread import Bell, CThread
from vmemu.delivery import Deliveries, Slots
from vmemu.errors import MigrationError, PeerGone, ProtocolError, StateError
from vmemu.events import EventBlock, EventLog, pointer
from vmemu.manager import MemoryManager
from vmemu.memlock import MemoryLock
from vmemu.needed import needed_features
from vmemu.protocol import BlockEntry, Header, Message, Summary
from vmemu.ramblock import BASE_PAGE, RAMBlock, RAMList
from vmemu.units import counted, format_size
from vmemu.userfault import Feature, Userfaultfd

LAST_WORDS_S = 0.5
"""How long the listen thread may take to read the source's last message: why it has ended, or that
all is sent."""
THREAD_PATIENCE_S = 5.0
"""How long a thread that was told to quit may take; it only has to leave one poll."""


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


@dataclass(frozen=True)
class Client:
    """Another process that has mapped block number ``block``, whole, from address ``base`` on, and
    has handed its userfaultfd over, which stays its owner's to close.

    ``vcpu_tid`` and ``vcpu_faults`` are C arrays as ``vcpu_slots`` has them, an entry for each of
    its threads, in memory that it has mapped too.
    """

    uffd: int
    block: int
    base: int
    size: int
    vcpu_tid: Any
    vcpu_faults: Any


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
        self._quit = Bell()
        self._incoming = core.ffi.gc(core.ffi.new("struct vm_incoming *"), _release)
        self._incoming.fault_threads = fault_threads
        self._vcpu_tid = core.ffi.new("uint32_t[]", vcpus)
        self._vcpu_faults = core.ffi.new("uint64_t[]", vcpus)
        self._vcpus = vcpus
        self._prefetch = prefetch
        self._walkers: list[Any] = []
        self.deliveries = Deliveries(ends.vcpus, self._incoming)
        self._threads: list[CThread] = []
        self._places = places or Places()
        self._stuck: list[str] = []
        self._clients: tuple[Any, list[Client]] | None = None
        self.collapse = Collapse(memory.blocks)
        self.discards = Discards()
        self._events = events
        self._incoming.log = pointer(events)
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
        differences = _differences(ours, theirs)
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
        self._fill_incoming()
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
        return self._start(
            "precopy", core.lib.vm_precopy_receive, cpus=self._places.of("precopy_in")
        )

    @property
    def control(self) -> Header:
        """The header that ended pre-copy; its payload has not been read."""
        c = self._incoming.control
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
        needed = needed_features(list(self.blocks), self.deliveries.kind)
        self.uffd = Userfaultfd(_wanted_features() | Feature(sum(needed)))
        self.uffd.require(needed)
        self.memory.register(self.uffd)
        self.collapse.allow()
        self._incoming.uffd = self.uffd.fd
        self._fill_clients(clients)
        self.deliveries.open()
        if self.deliveries and not clients:
            self._incoming.fault_threads = 0  # nobody's faults would ever be read
        core.lib.vm_image_show_clients(self._incoming)
        for index in range(self._incoming.fault_threads):
            cpus = self._places.of("fault", index)
            self._start(f"fault{index}", core.lib.vm_fault_loop, index, cpus=cpus)
        self._wait_for_fault_threads()
        self._note("loadvm_postcopy_handle_listen", step="after uffd")
        self._enter(PostcopyState.LISTENING)

    def _fill_clients(self, clients: Sequence[Client]) -> None:
        table = core.ffi.new("struct vm_client[]", len(clients))
        for entry, client in zip(table, clients, strict=True):
            for name in ("uffd", "block", "base", "size", "vcpu_tid", "vcpu_faults"):
                setattr(entry, name, getattr(client, name))
            entry.vcpus = len(client.vcpu_tid)
            entry.walker = self._followed(entry.vcpus)
        self._incoming.client = table
        self._incoming.clients = len(clients)
        self._clients = (table, list(clients))

    def _followed(self, vcpus: int) -> Any:
        """What the fault threads know of where so many vCPUs are going; NULL without prefetch."""
        if not self._prefetch:
            return core.ffi.NULL
        self._walkers.append(core.ffi.new("struct vm_walker[]", vcpus))
        return self._walkers[-1]

    def _forget_clients(self) -> None:
        """Their descriptors and their memory may go, unless a thread might still use them."""
        if not self._stuck:
            self._incoming.clients = 0
            self._clients = None

    def _wait_for_fault_threads(self) -> None:
        """Nobody may touch registered memory before somebody answers."""
        deadline = time.monotonic() + THREAD_PATIENCE_S
        while self._incoming.fault_running < self._incoming.fault_threads:
            self._bell.wait(0.1)
            self.check()
            if time.monotonic() > deadline:
                raise MigrationError("the fault threads do not start")

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
        cpus = self._places.of("listen")
        self._start("listen", core.lib.vm_listen_loop, cpus=cpus)
        if self._ends.urgent is not None and _two_listen(self.blocks):
            self._start("listen2", core.lib.vm_listen_beside, cpus=cpus)
        collapsing = self.collapse.start(self._incoming, self._bell)
        if collapsing is not None:
            self._threads.append(collapsing)
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
        return [tid for thread in self._threads if (tid := thread.tid) is not None]

    @property
    def complete(self) -> bool:
        """Whether every page of every block is placed."""
        return self.ram is not None and self.ram.pages_received == self.ram.pages_total

    @property
    def settled(self) -> bool:
        """Whether that is so, and what was to become hugepages has."""
        return self.complete and self.collapse.done

    def check(self) -> None:
        """Raise what ended one of the threads before its time.

        When the source ends, all channels do, and only the main one may say why: that thread is
        heard first, and gets a moment to have its say.
        """
        if self.deliveries.failed or any(thread.error is not None for thread in self._threads):
            listening = [thread for thread in self._threads if thread.name == "listen"]
            for thread in listening:
                thread.join(LAST_WORDS_S)
            for thread in (*listening, *self._threads):
                if thread.error is not None:
                    raise thread.error
            self.deliveries.check()
        self._check_promise()

    def _check_promise(self) -> None:
        """All is sent, says the source; on one channel nothing can be on its way any more."""
        listened = any(thread.name == "listen" and thread.done for thread in self._threads)
        if listened and not self.complete and self._ends.urgent is None:
            missing = self.ram.pages_total - self.ram.pages_received
            raise ProtocolError(
                f"the source says that all is sent, with {counted(missing, 'page')} missing"
            )

    def vcpu_slots(self, index: int) -> Slots:
        """What vCPU ``index`` has here, once memory is registered."""
        delivery = self.deliveries.slot(index) if self.deliveries else None
        return Slots(self._vcpu_tid + index, self._vcpu_faults + index, delivery)

    @property
    def figures(self) -> Any:
        """The C core's ``struct vm_incoming``: statistics of the threads."""
        return self._incoming

    def requested_pages(self) -> NDArray[np.void]:
        """The way of each page that was asked for: a copy, of ``blocktime.STAGE_DTYPE``.

        Only after the threads have ended.
        """
        parts = [np.empty(0, STAGE_DTYPE)]
        incoming = self._incoming
        for part in (incoming.stages_main, incoming.stages_urgent, *self.deliveries.stages):
            if part.count:
                buffer = core.ffi.buffer(part.record, part.count * STAGE_DTYPE.itemsize)
                parts.append(np.frombuffer(buffer, STAGE_DTYPE).copy())
        return np.concatenate(parts)

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
            self._hear_out()
        self._enter(PostcopyState.END)
        self._note("postcopy_ram_incoming_cleanup_entry")
        steps: list[Callable[[], object]] = [
            self._thp_on,
            self.memory.unregister,
            self._stop_threads,
            self._close_collapse,
            partial(self._note, "postcopy_ram_incoming_cleanup_join"),
            self._close_uffd,
            partial(self._note, "postcopy_ram_incoming_cleanup_closeuf"),
            self._forget_clients,
            self._allow_ballooning,
            self._lock_again,
            lambda: self._close(failed),
            partial(self._note, "postcopy_ram_incoming_cleanup_exit"),
        ]
        run_all(steps)

    def _hear_out(self) -> None:
        """As in QEMU the listen thread ends first, with the source's word that all is sent; one
        that does not come is not needed any more."""
        for thread in self._threads:
            if thread.name == "listen":
                thread.join(LAST_WORDS_S)

    def _thp_on(self) -> None:
        for block in self.memory.blocks:
            if block.address:
                block.set_thp(True)

    def _stop_threads(self) -> None:
        """Raises MigrationError when one does not end: then what it uses stays open."""
        self._quit.ring()
        self.deliveries.let_go()
        self._stuck = [
            thread.name for thread in self._threads if not thread.join(THREAD_PATIENCE_S)
        ]
        self._stuck += self.deliveries.close(THREAD_PATIENCE_S)
        if self._stuck:
            raise MigrationError(f"threads that do not end: {', '.join(self._stuck)}")

    @property
    def stuck(self) -> bool:
        """Whether a thread did not end when it was told to: what it uses must stay."""
        return bool(self._stuck)

    def _close_collapse(self) -> None:
        """Before a balloon may take hugepages apart."""
        if not self._stuck:
            self.collapse.close()
            self.warnings += self.collapse.warnings

    def _close_uffd(self) -> None:
        """Not while a thread might still use it: a number closed now can be somebody else's file in
        a moment."""
        if self.uffd is not None and not self._stuck:
            self.uffd.close()

    def _close(self, failed: bool) -> None:
        """Shut the return path, saying whether there was an error, and close all channels."""
        if self._stuck:
            return
        # Closing says the same; and this end must not wait for a source that does not read.
        try_send(self._ends.return_path, Message.SHUT, pages=int(failed))
        self._ends.close()
        self._quit.close()

    # ---- pieces ----

    def _fill_incoming(self) -> None:
        incoming = self._incoming
        incoming.ram = self.ram
        incoming.uffd = -1
        incoming.main_fd = self._ends.main.fileno()
        incoming.urgent_fd = self._ends.urgent_fd
        incoming.return_fd = self._ends.return_path.fileno()
        incoming.quit_fd = self._quit.fd
        incoming.bell_fd = self._bell.fd
        incoming.vcpu_tid = self._vcpu_tid
        incoming.vcpu_faults = self._vcpu_faults
        incoming.walker = self._followed(self._vcpus)
        incoming.vcpus = self._vcpus

    def _start(self, name: str, loop: Any, *arguments: int, cpus: CpuSet | None = None) -> CThread:
        run = partial(core.call, loop, self._incoming, *arguments)
        thread = CThread(name, run, self._bell, cpus)
        self._threads.append(thread)
        thread.start()
        return thread


def _release(incoming: Any) -> None:
    for stages in (incoming.stages_main, incoming.stages_urgent):
        core.lib.vm_stages_release(core.ffi.addressof(stages))


def _two_listen(blocks: RAMList) -> bool:
    """To map pages that are there is all the work with them, and each CPU does as much of it."""
    return any(block.in_image for block in blocks) and len(os.sched_getaffinity(0)) > 1


def _wanted_features() -> Feature:
    return Feature.THREAD_ID | Feature.MISSING_HUGETLBFS | Feature.MISSING_SHMEM


def _check_discard(block: RAMBlock, offset: int, length: int) -> None:
    where = f"block {block.name}: a discard of {offset:#x}+{length:#x}"
    if length == 0 or offset % block.page_size or length % block.page_size:
        raise ProtocolError(
            f"{where} is no whole number of pages of {format_size(block.page_size)}"
        )
    if offset + length > block.size:
        raise ProtocolError(f"{where} lies outside its {block.size:#x} bytes")


def _differences(ours: Summary, theirs: Summary) -> list[str]:
    """What differs between two summaries, in words."""
    found = []
    if theirs.target_page_size != ours.target_page_size:
        found.append(
            f"target page size {theirs.target_page_size} at the source, "
            f"{ours.target_page_size} here"
        )
    if [block.name for block in ours.blocks] != [block.name for block in theirs.blocks]:
        here = ", ".join(block.name for block in ours.blocks)
        there = ", ".join(block.name for block in theirs.blocks)
        return [*found, f"blocks {there} at the source, {here} here"]
    for our, their in zip(ours.blocks, theirs.blocks, strict=True):
        if our.size != their.size:
            found.append(
                f"block {our.name}: {counted(their.size, 'byte')} at the source, {our.size} here"
            )
        if our.page_size != their.page_size:
            there, here = format_size(their.page_size), format_size(our.page_size)
            found.append(f"block {our.name}: pages of {there} at the source, {here} here")
    return found
