"""The threads of the destination, and what of the C core they share (``_core/incoming.h``).

Before the flip there is the one that takes pre-copied pages; then the fault threads, which answer
for this process and for its clients, the listen threads and the one that collapses. They end by an
eventfd; one that does not end keeps what it uses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import core
from vmemu.affinity import CpuSet, Places
from vmemu.blocktime import STAGE_DTYPE
from vmemu.channel import ChannelEnds
from vmemu.cthread import Bell, CThread
from vmemu.delivery import Deliveries, Slots
from vmemu.errors import MigrationError, ProtocolError
from vmemu.events import EventLog, pointer
from vmemu.ramblock import RAMList
from vmemu.units import counted

LAST_WORDS_S = 0.5
"""How long the listen thread may take to read the source's last message: why it has ended, or that
all is sent."""
THREAD_PATIENCE_S = 5.0
"""How long a thread that was told to quit may take; it only has to leave one poll."""


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


class IncomingThreads:
    """The threads of one migration, in the order in which they were started.

    ``shared`` is the C core's ``struct vm_incoming``: what they work on, and their statistics.
    ``ends`` are the channels; ``vcpus`` is how many threads of the guest will announce themselves.
    ``bell`` rings when the last page is placed and when a thread ends.
    """

    def __init__(
        self,
        ends: ChannelEnds,
        vcpus: int,
        bell: Bell,
        *,
        fault_threads: int,
        prefetch: bool,
        events: EventLog | None,
        places: Places | None,
    ) -> None:
        self.shared = core.ffi.gc(core.ffi.new("struct vm_incoming *"), _release)
        self.shared.fault_threads = fault_threads
        self.shared.log = pointer(events)
        self.deliveries = Deliveries(ends.vcpus, self.shared)
        self._ends = ends
        self._bell = bell
        self._quit = Bell()
        self._vcpu_tid = core.ffi.new("uint32_t[]", vcpus)
        self._vcpu_faults = core.ffi.new("uint64_t[]", vcpus)
        self._vcpus = vcpus
        self._prefetch = prefetch
        self._walkers: list[Any] = []
        self._threads: list[CThread] = []
        self._places = places or Places()
        self._stuck: list[str] = []
        self._clients: tuple[Any, list[Client]] | None = None

    def __iter__(self) -> Iterator[CThread]:
        return iter(self._threads)

    # ---- their begin ----

    def attach(self, ram: Any) -> None:
        """Have them work on the C core's table of the blocks, which its owner keeps."""
        shared = self.shared
        shared.ram = ram
        shared.uffd = -1
        shared.main_fd = self._ends.main.fileno()
        shared.urgent_fd = self._ends.urgent_fd
        shared.return_fd = self._ends.return_path.fileno()
        shared.quit_fd = self._quit.fd
        shared.bell_fd = self._bell.fd
        shared.vcpu_tid = self._vcpu_tid
        shared.vcpu_faults = self._vcpu_faults
        shared.walker = self._followed(self._vcpus)
        shared.vcpus = self._vcpus

    def receive_precopy(self) -> CThread:
        """Start the one that takes pre-copied pages; it ends at the flip."""
        cpus = self._places.of("precopy_in")
        return self._start("precopy", core.lib.vm_precopy_receive, cpus=cpus)

    def answer_faults(self, uffd: int, clients: Sequence[Client]) -> None:
        """Start the fault threads on a userfaultfd, or have the vCPUs serve themselves, and wait
        until they run. Raises CoreError, HostError, MigrationError."""
        self.shared.uffd = uffd
        self._fill_clients(clients)
        self.deliveries.open()
        if self.deliveries and not clients:
            self.shared.fault_threads = 0  # nobody's faults would ever be read
        core.lib.vm_image_show_clients(self.shared)
        for index in range(self.shared.fault_threads):
            cpus = self._places.of("fault", index)
            self._start(f"fault{index}", core.lib.vm_fault_loop, index, cpus=cpus)
        self._wait_for_fault_threads()

    def listen(self, blocks: RAMList) -> None:
        """Start those that place what the source sends."""
        cpus = self._places.of("listen")
        self._start("listen", core.lib.vm_listen_loop, cpus=cpus)
        if self._ends.urgent is not None and _two_listen(blocks):
            self._start("listen2", core.lib.vm_listen_beside, cpus=cpus)

    def add(self, thread: CThread) -> None:
        """One that somebody else has started on ``shared``."""
        self._threads.append(thread)

    def _start(self, name: str, loop: Any, *arguments: int, cpus: CpuSet | None = None) -> CThread:
        run = partial(core.call, loop, self.shared, *arguments)
        thread = CThread(name, run, self._bell, cpus)
        self._threads.append(thread)
        thread.start()
        return thread

    def _fill_clients(self, clients: Sequence[Client]) -> None:
        table = core.ffi.new("struct vm_client[]", len(clients))
        for entry, client in zip(table, clients, strict=True):
            for name in ("uffd", "block", "base", "size", "vcpu_tid", "vcpu_faults"):
                setattr(entry, name, getattr(client, name))
            entry.vcpus = len(client.vcpu_tid)
            entry.walker = self._followed(entry.vcpus)
        self.shared.client = table
        self.shared.clients = len(clients)
        self._clients = (table, list(clients))

    def _followed(self, vcpus: int) -> Any:
        """What the fault threads know of where so many vCPUs are going; NULL without prefetch."""
        if not self._prefetch:
            return core.ffi.NULL
        self._walkers.append(core.ffi.new("struct vm_walker[]", vcpus))
        return self._walkers[-1]

    def _wait_for_fault_threads(self) -> None:
        """Nobody may touch registered memory before somebody answers."""
        deadline = time.monotonic() + THREAD_PATIENCE_S
        while self.shared.fault_running < self.shared.fault_threads:
            self._bell.wait(0.1)
            self.check()
            if time.monotonic() > deadline:
                raise MigrationError("the fault threads do not start")

    @property
    def _listening(self) -> list[CThread]:
        """The one that hears the source's last word, once it was started."""
        return [thread for thread in self._threads if thread.name == "listen"]

    # ---- while they run ----

    @property
    def complete(self) -> bool:
        """Whether every page of every block is placed."""
        ram = self.shared.ram
        return bool(ram) and int(ram.pages_received) == int(ram.pages_total)

    @property
    def tids(self) -> list[int]:
        """Those that run, as the kernel numbers them."""
        return [tid for thread in self._threads if (tid := thread.tid) is not None]

    def check(self) -> None:
        """Raise what ended one of them before its time.

        When the source ends, all channels do, and only the main one may say why: that thread is
        heard first, and gets a moment to have its say.
        """
        if self.deliveries.failed or any(thread.error is not None for thread in self._threads):
            self.hear_out()
            for thread in (*self._listening, *self._threads):
                if thread.error is not None:
                    raise thread.error
            self.deliveries.check()
        self._check_promise()

    def _check_promise(self) -> None:
        """All is sent, says the source; on one channel nothing can be on its way any more."""
        listened = any(thread.done for thread in self._listening)
        if listened and not self.complete and self._ends.urgent is None:
            ram = self.shared.ram
            missing = ram.pages_total - ram.pages_received
            raise ProtocolError(
                f"the source says that all is sent, with {counted(missing, 'page')} missing"
            )

    def vcpu_slots(self, index: int) -> Slots:
        """What vCPU ``index`` has here, once faults are answered."""
        delivery = self.deliveries.slot(index) if self.deliveries else None
        return Slots(self._vcpu_tid + index, self._vcpu_faults + index, delivery)

    # ---- their end ----

    def hear_out(self) -> None:
        """Give the listen thread a moment to end with the source's last word: at the end, as in
        QEMU, that all is sent, and one that does not come is not needed any more."""
        for thread in self._listening:
            thread.join(LAST_WORDS_S)

    def stop(self) -> None:
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
        """Whether one did not end when it was told to: what it uses must stay."""
        return bool(self._stuck)

    def forget_clients(self) -> None:
        """Their descriptors and their memory may go, unless a thread might still use them."""
        if not self._stuck:
            self.shared.clients = 0
            self._clients = None

    def close(self) -> None:
        """Nobody needs to be told any more; only when none is stuck."""
        self._quit.close()

    def requested_pages(self) -> NDArray[np.void]:
        """The way of each page that was asked for: a copy, of ``blocktime.STAGE_DTYPE``.

        Only after they have ended.
        """
        parts = [np.empty(0, STAGE_DTYPE)]
        shared = self.shared
        for part in (shared.stages_main, shared.stages_urgent, *self.deliveries.stages):
            if part.count:
                buffer = core.ffi.buffer(part.record, part.count * STAGE_DTYPE.itemsize)
                parts.append(np.frombuffer(buffer, STAGE_DTYPE).copy())
        return np.concatenate(parts)


def _release(shared: Any) -> None:
    for stages in (shared.stages_main, shared.stages_urgent):
        core.lib.vm_stages_release(core.ffi.addressof(stages))


def _two_listen(blocks: RAMList) -> bool:
    """To map pages that are there is all the work with them, and each CPU does as much of it."""
    return any(block.in_image for block in blocks) and len(os.sched_getaffinity(0)) > 1
