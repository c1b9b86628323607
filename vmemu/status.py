"""What a run tells of itself while it runs, and how another process reads it.

::

    status = RunStatus(blocks, clients=[], vcpus=2)    # in the run: the vCPUs write to it from C
    read(pid).waiting                                  # elsewhere: who waits, where, for how long

It is a small memfd (``_core/status.h``), found among the descriptors of the run. To read it takes
nothing of the run, of which every thread may stand still, with the GIL in its hands.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmemu import core
from vmemu.errors import CoreError, VmemuError
from vmemu.units import format_seconds

if TYPE_CHECKING:
    from vmemu.ramblock import RAMBlock

NAME = "vmemu-status"
FIGURES = ("accesses", "accesses_total", "pages", "pages_total", "checked", "messages")
"""How far a run is: accesses of all vCPUs and host pages of all blocks, done and in all; bytes that
the verification has compared; messages from the source."""
_TRIES = 100
_MOST = 1 << 26
"""Bytes of a status that is believed; one of a thousand vCPUs takes some 100 KiB."""


class StatusError(VmemuError):
    """A process has no status, or none that this version can read."""

    kind = "status"


class StatusClient(NamedTuple):
    """A client process as the status has it; ``block`` is the index of its block in the VM."""

    name: str
    block: int
    vcpus: int


# ---- in the run ----


class RunStatus:
    """The status of a run, as it writes it. None of it is registered, so Python may hold it.

    Threads write to it without the GIL: close it after they have ended. Raises CoreError when the
    host has no memory for it.
    """

    def __init__(
        self, blocks: Sequence[RAMBlock], clients: Sequence[StatusClient], vcpus: int
    ) -> None:
        ffi = core.ffi
        block_at = ffi.sizeof("struct vm_status")
        client_at = block_at + len(blocks) * ffi.sizeof("struct vm_status_block")
        line = ffi.sizeof("struct vm_waiting")
        waiting_at = -(-(client_at + len(clients) * ffi.sizeof("struct vm_status_client")) // line)
        waiting_at *= line
        slots = vcpus + sum(client.vcpus for client in clients)
        size = waiting_at + slots * line
        self.fd = -1
        try:
            self.fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
            self._map(size)
        except OSError as error:
            if self.fd >= 0:
                os.close(self.fd)
            raise CoreError("memory for the status", error.errno or 0) from None
        head = self._head
        head.version, head.size, head.pid = core.lib.VM_STATUS_VERSION, size, os.getpid()
        head.blocks, head.clients, head.vcpus = len(blocks), len(clients), slots
        head.block_at, head.client_at, head.waiting_at = block_at, client_at, waiting_at
        self._describe(blocks, clients, vcpus)
        head.magic = core.lib.VM_STATUS_MAGIC

    @classmethod
    def attached(cls, fd: int) -> RunStatus:
        """The status of a run in a client of it; ``fd`` is its own from now on."""
        status = cls.__new__(cls)
        status.fd = fd
        status._map(os.fstat(fd).st_size)
        return status

    def _map(self, size: int) -> None:
        self._memory = mmap.mmap(self.fd, size)
        self._bytes = core.ffi.from_buffer(self._memory)
        self._head = core.ffi.cast("struct vm_status *", self._bytes)

    def _describe(
        self, blocks: Sequence[RAMBlock], clients: Sequence[StatusClient], vcpus: int
    ) -> None:
        for index, block in enumerate(blocks):
            entry = self._table("block")[index]
            entry.name = block.name.encode()
            entry.host, entry.size, entry.page_shift = block.address, block.size, block.page_shift
        owners = [(core.lib.VM_STATUS_GUEST, vcpu) for vcpu in range(vcpus)]
        for index, client in enumerate(clients):
            entry = self._table("client")[index]
            entry.name = client.name.encode()
            entry.block, entry.vcpus = client.block, client.vcpus
            owners += [(index, vcpu) for vcpu in range(client.vcpus)]
        for slot, owner in enumerate(owners):
            place = self.waiting(slot)
            place.client, place.vcpu = owner

    def _table(self, of: str) -> Any:
        address = self._bytes + getattr(self._head, f"{of}_at")
        return core.ffi.cast(f"struct vm_status_{of} *", address)

    def waiting(self, slot: int) -> Any:
        """Where vCPU number ``slot`` writes where it waits, a C pointer: the guest's vCPUs come
        first, then those of each client."""
        places = core.ffi.cast("struct vm_waiting *", self._bytes + self._head.waiting_at)
        return places + slot

    def enter(self, phase: str) -> None:
        """Say what the run does now."""
        self._head.phase = phase.encode()[:15]
        self._head.phase_ns = time.monotonic_ns()

    def wait_for_hugepages(self) -> None:
        """Say that it stands in line for them, until ``mapped``."""
        if not self._head.hugepages_ns:
            self._head.hugepages_ns = time.monotonic_ns()

    def mapped(self, blocks: Sequence[RAMBlock]) -> None:
        """Say where the blocks are, which have their memory from now on."""
        self._head.hugepages_ns = 0
        for index, block in enumerate(blocks):
            self._table("block")[index].host = block.address

    def note(self, figures: Mapping[str, int]) -> None:
        """Say how far it is: ``FIGURES`` by name."""
        head = self._head
        if any(getattr(head, name) != figures[name] for name in FIGURES):
            head.moved_ns = time.monotonic_ns()
        for name in FIGURES:
            setattr(head, name, figures[name])

    def show_bitmaps(self, ram: Any) -> None:
        """Say where the bitmaps of a ``struct vm_ram`` of these blocks are."""
        for index in range(self._head.blocks):
            entry, block = self._table("block")[index], ram.block[index]
            entry.received = int(core.ffi.cast("uintptr_t", block.received))
            entry.requested = int(core.ffi.cast("uintptr_t", block.requested))

    def close(self) -> None:
        """Give it back; safe to do twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self._head = core.ffi.NULL
            core.ffi.release(self._bytes)
            self._memory.close()


# ---- elsewhere ----


@dataclass(frozen=True)
class Stopped:
    """A vCPU that waits in a touch: of which page of which block, for how long; of a client, if it
    is one's. ``requested`` and ``received`` are None where that can't be known."""

    vcpu: int
    client: str
    block: str
    offset: int
    page: int
    seconds: float
    tid: int = 0
    requested: bool | None = None
    received: bool | None = None

    @property
    def who(self) -> str:
        """It in words."""
        return f"vCPU {self.vcpu}" + (f" of client {self.client}" if self.client else "")

    def __str__(self) -> str:
        place = f"{self.block}+{self.offset:#x} (page {self.page})"
        asked = {True: ", asked for", False: ", not asked for", None: ""}[self.requested]
        there = ", though it is there" if self.received else ""
        return f"{self.who} waits for {place} for {format_seconds(self.seconds)}{asked}{there}"


@dataclass(frozen=True)
class Status:
    """A run as it stands; ``threads`` are the vCPUs that run or wait, by their thread ids.

    ``figures`` say how far it is, each of ``FIGURES`` by its name; they have last changed
    ``still_s`` seconds ago, or never. ``phase_s`` is how long the phase goes on. ``hugepages_s`` is
    how long it waits for its ``hugepages``, their number by page size; None when it does not.
    """

    pid: int
    phase: str
    waiting: tuple[Stopped, ...]
    threads: dict[int, str]
    phase_s: float
    hugepages_s: float | None
    hugepages: dict[int, int]
    still_s: float | None
    figures: dict[str, int]


def read(pid: int) -> Status:
    """The status of the run that process ``pid`` is.

    Raises StatusError when it has none, or none for us to read.
    """
    path = _find(pid)
    try:
        with path.open("rb", buffering=0) as file:
            return _Reader(pid, file.fileno()).read()
    except (IndexError, OverflowError):
        raise StatusError(f"process {pid} has a status that can't be right") from None
    except OSError as error:
        raise StatusError(f"process {pid} has gone, or its status: {error.strerror}") from None


def _find(pid: int) -> Path:
    directory = Path(f"/proc/{pid}/fd")
    try:
        for fd in sorted(directory.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(fd).startswith(f"/memfd:{NAME} "):
                    return fd
    except PermissionError:
        raise StatusError(f"process {pid} is somebody else's: be root to read it") from None
    except OSError as error:
        raise StatusError(f"process {pid} can't be looked at: {error.strerror}") from None
    raise StatusError(f"process {pid} is no run of vmemu, or has not mapped its memory yet")


def _as_it_sees_itself(pid: int) -> int:
    """The number of process ``pid`` in its own PID namespace, which may be a container's."""
    for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def of_one_wait(copy: Callable[[], Any]) -> Any:
    """A copy of a ``struct vm_waiting``, of which the vCPU's thread writes one word after the
    other: taken until it was the same wait before and after; one that changes so fast stands not.
    """
    before, place = copy(), copy()
    for _ in range(_TRIES):
        after = copy()
        # Three, as in which order one of them copies its words is nowhere promised.
        if before.since_ns == place.since_ns == after.since_ns:
            return place
        before, place = place, after
    place.since_ns = 0
    return place


def _since(begin_ns: int) -> float | None:
    """Seconds; None for what has not begun."""
    return max(time.monotonic_ns() - begin_ns, 0) / 1e9 if begin_ns else None


class _Reader:
    """Reads by copying: a mapping could be cut short, which is a SIGBUS."""

    def __init__(self, pid: int, fd: int) -> None:
        self._pid = pid
        self._fd = fd

    def read(self) -> Status:
        head = self._part("struct vm_status", 0)
        if head.magic != core.lib.VM_STATUS_MAGIC or head.version != core.lib.VM_STATUS_VERSION:
            raise StatusError(
                f"process {self._pid} has a status of version {head.version}, which is not "
                f"{core.lib.VM_STATUS_VERSION}: read it with the vmemu that it runs"
            )
        # A client has the status of its run, whose addresses are not the client's.
        if head.pid != _as_it_sees_itself(self._pid):
            raise StatusError(f"process {self._pid} is a client of a run of vmemu, not the run")
        line, block_size, client_size = (
            core.ffi.sizeof(f"struct vm_{name}")
            for name in ("waiting", "status_block", "status_client")
        )
        if max(head.blocks, head.clients, head.vcpus) * line > _MOST:
            raise StatusError(f"process {self._pid} has a status that can't be right")
        self._blocks = [
            self._part("struct vm_status_block", head.block_at + index * block_size)
            for index in range(head.blocks)
        ]
        self._clients = [
            self._part("struct vm_status_client", head.client_at + index * client_size)
            for index in range(head.clients)
        ]
        places = [self._waiting(head.waiting_at + slot * line) for slot in range(head.vcpus)]
        waiting = [self._stopped(place) for place in places if place.since_ns]
        phase = core.text(head.phase)
        threads = {place.tid: self._who(place) for place in places if place.tid}
        return Status(
            self._pid,
            phase,
            tuple(waiting),
            threads,
            phase_s=_since(head.phase_ns) or 0.0,
            hugepages_s=_since(head.hugepages_ns),
            hugepages=self._hugepages(),
            still_s=_since(head.moved_ns),
            figures={name: int(getattr(head, name)) for name in FIGURES},
        )

    def _hugepages(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for block in self._blocks:
            size = 1 << block.page_shift
            if size > mmap.PAGESIZE:
                found[size] = found.get(size, 0) + (block.size >> block.page_shift)
        return found

    def _part(self, ctype: str, at: int) -> Any:
        size = core.ffi.sizeof(ctype)
        data = os.pread(self._fd, size, at)
        if len(data) < size:
            raise StatusError(f"process {self._pid} has a status that is cut short")
        part = core.ffi.new(f"{ctype} *")
        core.ffi.memmove(part, data, size)
        return part

    def _waiting(self, at: int) -> Any:
        return of_one_wait(lambda: self._part("struct vm_waiting", at))

    def _client(self, place: Any) -> Any:
        return None if place.client == core.lib.VM_STATUS_GUEST else self._clients[place.client]

    def _who(self, place: Any) -> str:
        client = self._client(place)
        return Stopped(
            place.vcpu, "" if client is None else core.text(client.name), "", 0, 0, 0.0
        ).who

    def _stopped(self, place: Any) -> Stopped:
        client = self._client(place)
        block = self._blocks[place.block if client is None else client.block]
        page = place.offset >> block.page_shift
        return Stopped(
            vcpu=place.vcpu,
            client="" if client is None else core.text(client.name),
            block=core.text(block.name),
            offset=place.offset,
            page=page,
            seconds=_since(place.since_ns) or 0.0,
            tid=place.tid,
            requested=self._bit(block.requested, page),
            received=self._bit(block.received, page),
        )

    def _bit(self, bitmap: int, page: int) -> bool | None:
        """A bit of a bitmap in the process's own memory, which takes the right to trace it."""
        if bitmap == 0:
            return None
        try:
            with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
                byte = os.pread(memory.fileno(), 1, bitmap + page // 8)
        except (OSError, OverflowError):
            return None
        return bool(byte[0] >> page % 8 & 1) if byte else None
