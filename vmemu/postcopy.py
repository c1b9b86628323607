"""The incoming side of post-copy: what QEMU's migration/postcopy-ram.c does at the destination.

::

    NONE ── advise ──▶ ADVISE ── listen ──▶ LISTENING ── run ──▶ RUNNING ── end ──▶ END
                                  any of them ── end ──▶ END

Advise compares what both ends believe about the blocks. Listen empties them, registers them with
userfaultfd and starts the fault thread: from here on a touch is answered. Run starts the listen
thread, which places what the source sends, and lets the guest go. End gives everything back in
QEMU's order and may be called in any state, twice too.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable
from typing import Any

from vmemu import core
from vmemu.channel import ChannelEnds, send
from vmemu.cthread import Bell, CThread
from vmemu.errors import MigrationError, PeerGone, StateError
from vmemu.manager import MemoryManager
from vmemu.protocol import BlockEntry, Message
from vmemu.ramblock import BASE_PAGE
from vmemu.units import format_size
from vmemu.userfault import Feature, Userfaultfd

THREAD_PATIENCE_S = 5.0
"""How long a thread that was told to quit may take; it only has to leave one poll."""


class PostcopyState(enum.Enum):
    """Where the incoming migration is."""

    NONE = "none"
    ADVISE = "advise"
    LISTENING = "listening"
    RUNNING = "running"
    END = "end"


class IncomingPostcopy:
    """The destination of one migration.

    ``memory`` is mapped before ``listen``; ``vcpus`` is how many threads of the guest will announce
    themselves. ``bell`` rings when the last page is placed and when one of the two threads ends.
    """

    def __init__(self, memory: MemoryManager, ends: ChannelEnds, vcpus: int, bell: Bell) -> None:
        self.state = PostcopyState.NONE
        self.memory = memory
        self.uffd: Userfaultfd | None = None
        self.ram: Any = None
        self._ends = ends
        self._bell = bell
        self._quit = Bell()
        self._incoming = core.ffi.new("struct vm_incoming *")
        self._vcpu_tid = core.ffi.new("uint32_t[]", vcpus)
        self._vcpu_faults = core.ffi.new("uint64_t[]", vcpus)
        self._vcpus = vcpus
        self._threads: list[CThread] = []

    def _expect(self, step: str, *allowed: PostcopyState) -> None:
        if self.state not in allowed:
            names = " or ".join(state.value for state in allowed)
            raise StateError(
                f"{step} needs state {names}, and the migration is in state {self.state.value}"
            )

    # ---- the way there ----

    def advise(self, announced: list[BlockEntry], target_page_size: int) -> None:
        """Compare the source's blocks with ours. Raises MigrationError naming all that differ; the
        state stays."""
        self._expect("advise", PostcopyState.NONE)
        ours = [BlockEntry(b.name, b.size, b.page_size) for b in self.memory.blocks]
        differences = _differences(ours, announced)
        if target_page_size != BASE_PAGE:
            differences.append(
                f"target page size {target_page_size} at the source, {BASE_PAGE} here"
            )
        if differences:
            raise MigrationError("source and destination differ: " + "; ".join(differences))
        self.state = PostcopyState.ADVISE

    def listen(self) -> None:
        """Empty and register all blocks, start the fault thread, tell the source to send.

        Raises HostError or CoreError; the state stays, and ``end`` gives back what was taken.
        """
        self._expect("listen", PostcopyState.ADVISE)
        self.memory.discard_all()
        self.uffd = Userfaultfd(_wanted_features())
        self.uffd.require(self._needed_features())
        self.memory.register(self.uffd)
        self.ram = self.memory.blocks.table()
        self._fill_incoming(self.uffd.fd)
        self._start("fault", core.lib.vm_fault_loop)
        with contextlib.suppress(PeerGone):  # if it has failed, what it says next tells why
            send(self._ends.return_path, Message.READY)
        self.state = PostcopyState.LISTENING

    def run(self) -> None:
        """Place what the source sends from now on; the guest may touch its memory."""
        self._expect("run", PostcopyState.LISTENING)
        self._start("listen", core.lib.vm_listen_loop)
        self.state = PostcopyState.RUNNING

    def request_push(self) -> None:
        """Ask for the background push. Only before the guest runs or after: the fault thread owns
        the return path while there can be faults, and remembers which block it has named last."""
        self._expect("request_push", PostcopyState.LISTENING, PostcopyState.RUNNING)
        send(self._ends.return_path, Message.PUSH)

    # ---- while it runs ----

    @property
    def complete(self) -> bool:
        """Whether every page of every block is placed."""
        return self.ram is not None and self.ram.pages_received == self.ram.pages_total

    def check(self) -> None:
        """Raise what ended one of the threads, if anything did."""
        for thread in self._threads:
            if thread.error is not None:
                raise thread.error

    def vcpu_slots(self, index: int) -> tuple[Any, Any]:
        """Where vCPU ``index`` writes its thread id, and where its faults are counted: two C
        pointers."""
        return self._vcpu_tid + index, self._vcpu_faults + index

    @property
    def figures(self) -> Any:
        """The C core's ``struct vm_incoming``: statistics of the threads."""
        return self._incoming

    # ---- the way back ----

    def release(self) -> None:
        """Let go of every thread that waits for a page: it goes on with zeros, so it must be told
        to stop first."""
        self.memory.unregister()

    def end(self) -> None:
        """Give everything but the mappings back. Safe in any state and after any failure; once is
        enough.

        QEMU's order: hugepages back on, unregister, the fault thread told to quit and joined,
        descriptors closed, the return path shut.
        """
        if self.state is PostcopyState.END:
            return
        self.state = PostcopyState.END
        steps: list[Callable[[], object]] = [
            self._thp_on,
            self.memory.unregister,
            self._stop_threads,
            self._close_uffd,
            self._shut_return_path,
            self._quit.close,
        ]
        _run_all(steps)

    def _thp_on(self) -> None:
        for block in self.memory.blocks:
            if block.address:
                block.set_thp(True)

    def _stop_threads(self) -> None:
        self._quit.ring()
        for thread in self._threads:
            if not thread.join(THREAD_PATIENCE_S):
                raise MigrationError(f"the {thread.name} thread does not end")

    def _close_uffd(self) -> None:
        if self.uffd is not None:
            self.uffd.close()

    def _shut_return_path(self) -> None:
        with contextlib.suppress(PeerGone):  # a source that is gone needs no telling
            send(self._ends.return_path, Message.SHUT)
        self._ends.close()

    # ---- pieces ----

    def _needed_features(self) -> list[Feature]:
        needed = [Feature.THREAD_ID]
        if any(block.hugetlb for block in self.memory.blocks):
            needed.append(Feature.MISSING_HUGETLBFS)
        if any(block.backing.value == "shared" for block in self.memory.blocks):
            needed.append(Feature.MISSING_SHMEM)
        return needed

    def _fill_incoming(self, uffd: int) -> None:
        incoming = self._incoming
        incoming.ram = self.ram
        incoming.uffd = uffd
        incoming.main_fd = self._ends.main.fileno()
        incoming.urgent_fd = self._ends.urgent_fd
        incoming.return_fd = self._ends.return_path.fileno()
        incoming.quit_fd = self._quit.fd
        incoming.bell_fd = self._bell.fd
        incoming.vcpu_tid = self._vcpu_tid
        incoming.vcpu_faults = self._vcpu_faults
        incoming.vcpus = self._vcpus

    def _start(self, name: str, loop: Any) -> None:
        thread = CThread(name, lambda: core.call(loop, self._incoming), self._bell)
        self._threads.append(thread)
        thread.start()


def _wanted_features() -> Feature:
    return Feature.THREAD_ID | Feature.MISSING_HUGETLBFS | Feature.MISSING_SHMEM


def _differences(ours: list[BlockEntry], theirs: list[BlockEntry]) -> list[str]:
    """What differs between two tables of blocks, in words."""
    found = []
    if [block.name for block in ours] != [block.name for block in theirs]:
        here, there = ", ".join(b.name for b in ours), ", ".join(b.name for b in theirs)
        return [f"blocks {there} at the source, {here} here"]
    for our, their in zip(ours, theirs, strict=True):
        if our.size != their.size:
            found.append(f"block {our.name}: {their.size} bytes at the source, {our.size} here")
        if our.page_size != their.page_size:
            there, here = format_size(their.page_size), format_size(our.page_size)
            found.append(f"block {our.name}: pages of {there} at the source, {here} here")
    return found


def _run_all(steps: list[Callable[[], object]]) -> None:
    """Run every step even when some fail; raise the first failure at the end."""
    first: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            first = first or error
    if first is not None:
        raise first
