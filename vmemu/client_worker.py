"""A client: another process on the memory of a block, as a vhost-user back end is.

It maps the block and replays a trace of its own on it. Its mapping has page tables of its own, so
the destination's userfaultfd sees none of its faults: without one of its own it would take the
zeros of a hole for the guest's memory. So it registers its mapping and hands that userfaultfd over;
the destination's fault threads answer for both, and wake in both whoever waits.

What travels on the socket between the two (``SOCK_SEQPACKET``, a JSON object a packet)::

    memory  ▶  descriptors of the block, of what is shared beside it and of the run's status
    ready   ◀  where the block is mapped, and the userfaultfd
    go      ▶  the guest runs
    alive   ◀  a few times a second: how many accesses are done, who waits where
    done    ◀  the figures: the trace is over, or was stopped
    stop    ▶  end
    failed  ◀  why it can't go on

A client is started by spawn, ignores Ctrl-C and ends as soon as the destination's end of the socket
closes.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmemu import blocktime, core
from vmemu.affinity import Places
from vmemu.childprocess import ChildProcess, live_with
from vmemu.cleanup import run_all
from vmemu.content import ContentSpec, ExpectedContent
from vmemu.cthread import Bell, CThread
from vmemu.errors import MigrationError, ProtocolError, VmemuError
from vmemu.guest_worker import (
    FAULT_DTYPE,
    WORDS_PER_PAGE,
    Guest,
    GuestWorker,
    Mismatch,
    Waiting,
    gather_marks,
)
from vmemu.incoming_threads import Client
from vmemu.needed import needed_features, register_mode
from vmemu.protocol import BlockEntry, load_object
from vmemu.ramblock import Backing, RAMBlock, RAMList
from vmemu.recipe import Recipe
from vmemu.status import RunStatus
from vmemu.userfault import Feature, Userfaultfd
from vmemu.workload import Workload

ALIVE_S = 0.2
"""How often a client tells how far it is."""
LAST_WORDS_S = 1.0
"""How long a client that has closed its socket may take to end."""
GRACE_S = 0.2
"""How long vCPUs that are told to stop may take; they only have to end one access."""
PACKET = 1 << 16
MISMATCHES = 16
"""Wrong reads that are told one by one."""
COUNTERS = (
    "accesses",
    "reads",
    "writes",
    "dropped",
    "faults",
    "blocktime_ns",
    "reads_checked",
    "reads_wrong",
)
QUANTILES = ("p50", "p90", "p99", "max")


class ClientGone(MigrationError):
    """A client ended before it was told to: what it had written by then is unknown."""

    kind = "client_gone"


@dataclass(frozen=True)
class ClientSpec:
    """All that a client is told; ``index`` is that of its block in the VM. Its threads have their
    CPUs in ``places``."""

    name: str
    index: int
    block: BlockEntry
    backing: Backing
    content: ContentSpec
    seed: int
    vcpus: int
    recipe: Recipe
    check_reads: bool
    keep_marks: bool
    places: Places = field(default_factory=Places)

    @property
    def marked(self) -> bool:
        """Whether marks are kept of what it writes."""
        return self.check_reads or self.keep_marks


@dataclass(frozen=True)
class ClientFigures:
    """What a client did and what it suffered, all its vCPUs together; names as in a result."""

    counters: dict[str, int]
    latency_ns: dict[str, int]
    mismatches: tuple[Mismatch, ...] = ()

    @classmethod
    def nothing(cls) -> ClientFigures:
        """Those of a client that has not run."""
        return cls(dict.fromkeys(COUNTERS, 0), dict.fromkeys(QUANTILES, 0))


class SharedState:
    """Memory that a client and the destination have both mapped, beside the block.

    Thread ids and fault counts of the client's vCPUs, between which and the fault threads nothing
    else must stand; and the marks of what it has written, which the final check needs. None of it
    is registered, so Python may hold it. It goes away with ``close`` or the last reference.
    """

    def __init__(self, fd: int, vcpus: int, marked_pages: int) -> None:
        header = -(-vcpus * 16 // mmap.PAGESIZE) * mmap.PAGESIZE
        size = header + marked_pages * WORDS_PER_PAGE
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)  # sparse: what is never written costs no memory
        memory = mmap.mmap(fd, size)
        self._faults = np.frombuffer(memory, np.uint64, vcpus)
        self._tids = np.frombuffer(memory, np.uint32, vcpus, vcpus * 8)
        self.marks: NDArray[np.uint8] | None = None
        if marked_pages:
            self.marks = np.frombuffer(memory, np.uint8, marked_pages * WORDS_PER_PAGE, header)

    def slots(self) -> tuple[Any, Any]:
        """C arrays: thread ids (``uint32_t``), faults (``uint64_t``); they keep the memory."""
        from_buffer = core.ffi.from_buffer
        return from_buffer("uint32_t[]", self._tids), from_buffer("uint64_t[]", self._faults)

    def close(self) -> None:
        """Let go of the memory."""
        self._faults = np.empty(0, np.uint64)
        self._tids = np.empty(0, np.uint32)
        self.marks = None


def _send(end: socket.socket, what: str, fds: Sequence[int] = (), **fields: Any) -> None:
    """Send a packet; one that nobody reads any more is as good as sent."""
    packet = json.dumps({"what": what, **fields}).encode()
    with contextlib.suppress(ConnectionError):
        socket.send_fds(end, [packet], fds)


# ---- in the destination ----


class ClientProcess(ChildProcess):
    """A client as the destination sees it.

    ``bell`` rings when it has something to tell: it is ``ready``, it is ``done``, it has ended.
    ``accesses`` are those that it had done when it told last, ``figures`` come with its end.
    """

    def __init__(self, spec: ClientSpec, workload: Workload, bell: Bell) -> None:
        self._end, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(f"client {spec.name}", "vmemu-client", serve, (spec, self._theirs))
        self.spec = spec
        self.figures = ClientFigures.nothing()
        self.uffd = -1
        self.base = 0
        self.ready = False
        self.done = False
        self.accesses = 0
        self.workload = workload
        self._shared: SharedState | None = None
        self._waiting: list[Waiting] = []
        self._told_to_stop = False
        self._bell = bell
        self._thread = CThread(f"client-{spec.name}", self._listen, bell)

    # ---- its life ----

    def launch(self, block: RAMBlock, status: RunStatus, slot: int) -> None:
        """Start it and hand the block's descriptor over, and the run's status, in which its first
        vCPU is number ``slot``. It is registered when it is ``ready``."""
        memory = block.share()
        beside = os.memfd_create("vmemu-client", os.MFD_CLOEXEC)
        try:
            pages = len(self.workload.block) if self.spec.marked else 0
            self._shared = SharedState(beside, self.spec.vcpus, pages)
            self.start()
            handed = [memory, beside, status.fd]
            _send(self._end, "memory", handed, slot=slot, in_image=block.in_image)
        finally:
            os.close(memory)
            os.close(beside)
            self._theirs.close()
        self._thread.start()

    def go(self) -> None:
        """The guest runs now."""
        _send(self._end, "go")

    def ask_to_stop(self) -> None:
        """Have it stop its vCPUs, tell its figures and end. Safe to call twice."""
        if self._end.fileno() >= 0 and not self._told_to_stop:
            self._told_to_stop = True
            _send(self._end, "stop")

    def stop(self, patience_s: float) -> None:
        """Wait for its end, then kill it; what it told last is read. ``ask_to_stop`` comes first.
        Safe to call twice and before it was started."""
        super().stop(patience_s)
        self._thread.join()  # the socket has ended with the process

    def close(self) -> None:
        """Close what is left. Only when no fault thread polls its userfaultfd any more."""
        self._end.close()
        self._theirs.close()
        uffd, self.uffd = self.uffd, -1
        if uffd >= 0:
            os.close(uffd)
        if self._shared is not None:
            self._shared.close()

    # ---- what is known of it ----

    def check(self) -> None:
        """Raise ClientGone when it ended before it was told to, or what it could not do."""
        if self._thread.error is None:
            return
        if isinstance(self._thread.error, ClientGone):
            if not self._closed:
                self.process.join(LAST_WORDS_S)
            ended = self.describe_end() or f"{self.what} has closed its socket"
            raise ClientGone(f"{ended} while the guest's memory was in its hands")
        raise self._thread.error

    def waiting(self) -> list[Waiting]:
        """Its vCPUs that wait for a page, as it told last."""
        return self._waiting

    def handed_over(self) -> Client:
        """What the fault threads need of it, once it is ready."""
        assert self._shared is not None
        block = self.spec.block
        return Client(self.uffd, self.spec.index, self.base, block.size, *self._shared.slots())

    def add_marks(self, index: int, marks: NDArray[np.uint8]) -> None:
        """Add what it has written to the marks of a block of the VM."""
        if index == self.spec.index and self._shared is not None:
            assert self._shared.marks is not None
            gather_marks(self.workload, self._shared.marks, 0, marks)

    # ---- what it tells: a thread of its own ----

    def _listen(self) -> None:
        while True:
            try:
                packet, fds, _, _ = socket.recv_fds(self._end, PACKET, 1)
            except ConnectionResetError:
                # It ended with something unread. That is told once, before what it sent last.
                continue
            if not packet:
                if self._told_to_stop:
                    return
                raise ClientGone(f"{self.what} has closed its socket")
            try:
                self._handle(load_object(packet), fds)
            except (KeyError, TypeError, ValueError) as error:
                raise ProtocolError(
                    f"{self.what}: a packet is not well formed: {error!r}"
                ) from None
            finally:
                for fd in fds:
                    if fd != self.uffd:
                        os.close(fd)
            self._bell.ring()

    def _handle(self, packet: dict[str, Any], fds: list[int]) -> None:
        what = packet["what"]
        if what == "ready":
            self._take(int(packet["base"]), fds)
        elif what == "alive":
            self.accesses = int(packet["accesses"])
            self._waiting = [
                Waiting(int(vcpu), self.spec.block.name, int(offset), seconds, self.spec.name)
                for vcpu, offset, seconds in packet["waiting"]
            ]
        elif what == "done":
            self._waiting = []
            self.figures = self._figures(packet)
            self.done = True
        elif what == "failed":
            raise MigrationError(f"{self.what}: {packet['message']}")
        else:
            raise ValueError(what)

    def _take(self, base: int, fds: list[int]) -> None:
        """Its userfaultfd. Anything else would be read as messages that are none."""
        if len(fds) != 1 or "userfaultfd" not in os.readlink(f"/proc/self/fd/{fds[0]}"):
            raise ValueError("no userfaultfd came with it")
        self.uffd, self.base = fds[0], base
        self.ready = True

    def _figures(self, packet: dict[str, Any]) -> ClientFigures:
        return ClientFigures(
            {name: int(packet[name]) for name in COUNTERS},
            {name: int(packet["latency_ns"][name]) for name in QUANTILES},
            tuple(
                Mismatch(self.spec.block.name, int(offset), int(expected), int(found))
                for offset, expected, found in packet["mismatches"]
            ),
        )


def placed(specs: Sequence[ClientSpec], places: Places) -> list[ClientSpec]:
    """Each with its part of ``places``, which has CPUs for the threads of all clients in turn."""
    before = accumulate((spec.vcpus for spec in specs), initial=0)
    return [
        replace(spec, places=places.beginning_at("clients", first))
        for first, spec in zip(before, specs, strict=False)
    ]


class Clients(Sequence[ClientProcess]):
    """All clients of a VM."""

    def __init__(self, clients: Sequence[ClientProcess] = ()) -> None:
        self._clients = tuple(clients)

    @classmethod
    def planned(
        cls, plans: Sequence[tuple[ClientSpec, Workload]], places: Places, bell: Bell
    ) -> Clients:
        """Those of ``plans``, which are not started yet, on the CPUs of ``places``."""
        specs = placed([spec for spec, _ in plans], places)
        return cls(
            [
                ClientProcess(spec, workload, bell)
                for spec, (_, workload) in zip(specs, plans, strict=True)
            ]
        )

    def __len__(self) -> int:
        return len(self._clients)

    def __getitem__(self, index: Any) -> Any:
        return self._clients[index]

    def __iter__(self) -> Iterator[ClientProcess]:
        return iter(self._clients)

    def launch(self, blocks: RAMList, status: RunStatus, slot: int) -> None:
        """Start them all on the blocks, which are mapped; ``slot`` is the first in the status that
        is for clients."""
        for client in self:
            client.launch(blocks[client.spec.index], status, slot)
            slot += client.spec.vcpus

    @property
    def ready(self) -> bool:
        """Whether all of them have handed their userfaultfds over."""
        return all(client.ready for client in self)

    @property
    def done(self) -> bool:
        """Whether all of them have nothing left to do."""
        return all(client.done for client in self)

    def go(self) -> None:
        """The guest runs now."""
        for client in self:
            client.go()

    def check(self) -> None:
        """Raise what ended one before its time."""
        for client in self:
            client.check()

    def waiting(self) -> list[Waiting]:
        """Their vCPUs that wait for a page."""
        return [one for client in self for one in client.waiting()]

    def handed_over(self) -> list[Client]:
        """What the fault threads need of them."""
        return [client.handed_over() for client in self]

    def stop(self, patience_s: float) -> None:
        """End them all, those that take longer by force. Safe to call twice and in any state."""
        for client in self:
            client.ask_to_stop()
        steps: list[Callable[[], object]] = [partial(client.stop, patience_s) for client in self]
        run_all(steps)

    def close(self) -> None:
        """Close what is left of them. Only when no fault thread polls their userfaultfds."""
        run_all([client.close for client in self])


# ---- in the client ----


def serve(spec: ClientSpec, end: socket.socket) -> None:
    """The whole life of a client."""
    live_with(end.fileno())
    try:
        _serve(spec, end)
    except (VmemuError, MemoryError) as error:
        _send(end, "failed", message=str(error) or "no memory")
        # Not by way of the interpreter's end, which would take memory away under the vCPUs.
        os._exit(1)


def _serve(spec: ClientSpec, end: socket.socket) -> None:
    packet, descriptors, _, _ = socket.recv_fds(end, PACKET, 3)
    if not packet:
        return  # the owner ended before it had anything to say
    memory, beside, told = descriptors
    said = load_object(packet)
    status, slot = RunStatus.attached(told), int(said["slot"])
    workload = spec.recipe.make((spec.block,))
    shared = SharedState(beside, spec.vcpus, len(workload.block) if spec.marked else 0)
    os.close(beside)
    block = RAMBlock(
        spec.block.name,
        spec.backing,
        spec.block.size,
        spec.block.page_size,
        in_image=bool(said["in_image"]),
    )
    block.attach(memory)
    block.set_thp(False)  # as at the destination: a huge page would fill holes unseen
    features = needed_features([block])
    with Userfaultfd(Feature(sum(features))) as uffd:
        uffd.require(features)
        uffd.register(block.address, block.size, register_mode(block))
        places = [status.waiting(slot + vcpu) for vcpu in range(spec.vcpus)]
        guest = _ClientGuest(spec, workload, block, shared, places)
        _send(end, "ready", [uffd.fd], base=block.address)
        goes = _receive(end) == "go"
        if goes:
            guest.run(end)
        guest.stop()
        _send(end, "done", **guest.figures())
        if goes:
            _receive(end)  # stop: nothing else is left to be told
        if not guest.ended:
            # A vCPU that waits for a page ends with this process. Were it let go, it would fill the
            # hole with zeros: for the guest, too.
            os._exit(0)
        uffd.unregister(block.address, block.size)
    guest.close()
    status.close()
    block.unmap()


def _receive(end: socket.socket) -> str:
    """What the next packet is about. The end of the socket ends this process."""
    packet = end.recv(PACKET)
    return str(load_object(packet)["what"]) if packet else "stop"


class _ClientGuest:
    """The vCPUs of a client.

    It can't know which pages have arrived, so each first touch of a page is timed; it was a fault
    if the destination has read one of that thread meanwhile.
    """

    def __init__(
        self,
        spec: ClientSpec,
        workload: Workload,
        block: RAMBlock,
        shared: SharedState,
        places: Sequence[Any],
    ) -> None:
        blocks = RAMList([block])
        blocks.index_addresses()
        self._blocks = blocks
        self._bell = Bell()
        guest = Guest(
            workload,
            blocks,
            blocks.table(),
            ExpectedContent(spec.seed, [block], [spec.content]),
            check_reads=spec.check_reads,
            keep_marks=spec.keep_marks,
            marks=shared.marks,
        )
        tids, faults = self._slots = shared.slots()
        self._workers = [
            GuestWorker(
                guest,
                index,
                self._bell,
                slots=(tids + index, faults + index),
                waiting=place,
                cpus=spec.places.of("clients", index),
            )
            for index, place in enumerate(places)
        ]

    @property
    def ended(self) -> bool:
        """Whether no vCPU runs, or waits for a page."""
        return all(worker.join(0) for worker in self._workers)

    def run(self, end: socket.socket) -> None:
        """Replay until it is over or a packet comes, which is a stop. Raises what ended a vCPU."""
        poll = select.poll()
        poll.register(end, select.POLLIN)
        poll.register(self._bell.fd, select.POLLIN)
        for worker in self._workers:
            worker.start()
        while not all(worker.done for worker in self._workers):
            ready = [fd for fd, _ in poll.poll(ALIVE_S * 1000)]
            if end.fileno() in ready:
                return
            if self._bell.fd in ready:
                self._bell.wait(0)
            self._tell(end)
        for worker in self._workers:
            if worker.error is not None:
                raise worker.error

    def _tell(self, end: socket.socket) -> None:
        waiting = [one for worker in self._workers if (one := worker.waiting())]
        told = [(one.vcpu, one.offset, one.seconds) for one in waiting]
        accesses = sum(int(worker.figures.accesses) for worker in self._workers)
        _send(end, "alive", accesses=accesses, waiting=told)

    def stop(self) -> None:
        """End the replay of all vCPUs but those that wait for a page."""
        for worker in self._workers:
            worker.stop()
        deadline = time.monotonic() + GRACE_S
        for worker in self._workers:
            worker.join(max(deadline - time.monotonic(), 0))

    def figures(self) -> dict[str, Any]:
        """What ``ClientFigures`` is made of; without the latencies of a vCPU that waits."""
        faults = [worker.faults() for worker in self._workers if worker.join(0)]
        everything = np.concatenate([np.empty(0, FAULT_DTYPE), *faults])
        wrong = [one for worker in self._workers for one in worker.mismatches()][:MISMATCHES]
        return {
            "latency_ns": blocktime.summary(blocktime.latencies(everything)),
            "mismatches": [(one.offset, one.expected, one.found) for one in wrong],
            **{
                name: sum(int(getattr(w.figures, name)) for w in self._workers) for name in COUNTERS
            },
        }

    def close(self) -> None:
        """Close what it has opened."""
        self._bell.close()
