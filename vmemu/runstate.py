"""What a run has and what it leaves: its phases, how far it is, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmemu.affinity import Places
from vmemu.balloon import Balloon
from vmemu.childprocess import ChildProcess
from vmemu.client_worker import Clients
from vmemu.config import Scenario
from vmemu.content import ExpectedContent
from vmemu.errors import MigrationError
from vmemu.flip import Flip
from vmemu.guest_worker import GuestWorker, Mismatch, Waiting
from vmemu.manager import MemoryManager
from vmemu.placement import Placement
from vmemu.postcopy import IncomingPostcopy
from vmemu.units import counted, format_seconds
from vmemu.verification import Verification
from vmemu.workload import Workload


class StallError(MigrationError):
    """Pages stopped coming while somebody needed them; ``waiting`` says who."""

    kind = "stall"

    def __init__(self, seconds: float, waiting: list[Waiting], missing: int) -> None:
        self.waiting = waiting
        who = "; ".join(str(one) for one in waiting) or "no vCPU waits"
        super().__init__(
            f"no page came for {format_seconds(seconds)}, {counted(missing, 'page')} missing: {who}"
        )


class VerificationError(MigrationError):
    """The migration completed and memory is not what it must be."""

    kind = "verification"


@dataclass(frozen=True)
class Phase:
    """A stretch of the run; times in ns, from the run's begin."""

    name: str
    start_ns: int
    duration_ns: int


@dataclass(frozen=True)
class Progress:
    """How far a run is; accesses of all vCPUs, host pages of all blocks."""

    phase: str
    accesses: int = 0
    accesses_total: int = 0
    pages: int = 0
    pages_total: int = 0
    bytes_checked: int = 0


@dataclass
class Run:
    """Everything that a run has and leaves for its result; what was not reached is None or empty.

    ``postcopy_started_ns`` is when the source may send its first page, ``postcopy_ended_ns`` when
    the last one was placed: CLOCK_MONOTONIC, 0 until then.
    """

    scenario: Scenario
    status: str = "failed"
    error: BaseException | None = None
    phases: list[Phase] = field(default_factory=list)
    started_ns: int = 0
    workload: Workload | None = None
    placement: Placement | None = None
    memory: MemoryManager | None = None
    incoming: IncomingPostcopy | None = None
    expected: ExpectedContent | None = None
    workers: list[GuestWorker] = field(default_factory=list)
    clients: Clients = field(default_factory=Clients)
    verification: Verification | None = None
    balloon: Balloon | None = None
    warnings: list[str] = field(default_factory=list)
    flip: Flip | None = None
    postcopy_started_ns: int = 0
    postcopy_ended_ns: int = 0

    @property
    def ended_in_precopy(self) -> bool:
        """Whether it ended before FLIP told what the source and the guest there had done."""
        return self.flip is None and any(phase.name == "precopy" for phase in self.phases)

    # ---- while it runs ----

    @property
    def places(self) -> Places:
        """The CPUs of its threads, once they are chosen."""
        return self.placement.places if self.placement is not None else Places()

    def waiting(self) -> list[Waiting]:
        """The vCPUs that are stopped now, those of clients too."""
        guests = [worker.waiting() for worker in self.workers]
        return [*filter(None, guests), *self.clients.waiting()]

    def stalled(self, seconds: float) -> StallError:
        """What is wrong when nothing has come for so long."""
        assert self.incoming is not None
        ram = self.incoming.ram
        return StallError(seconds, self.waiting(), ram.pages_total - ram.pages_received)

    def progress(self, phase: str) -> Progress:
        """How far it is."""
        assert self.incoming is not None
        return Progress(
            phase,
            accesses=sum(int(worker.figures.accesses) for worker in self.workers),
            accesses_total=self.workload.accesses if self.workload else 0,
            pages=int(self.incoming.ram.pages_received),
            pages_total=int(self.incoming.ram.pages_total),
            bytes_checked=self.verification.bytes_checked if self.verification else 0,
        )

    def figures(self) -> dict[str, int]:
        """The same for who reads its status: ``vmemu.status.FIGURES``."""
        assert self.incoming is not None
        now = self.progress("")
        return {
            "accesses": now.accesses,
            "accesses_total": now.accesses_total,
            "pages": now.pages,
            "pages_total": now.pages_total,
            "checked": now.bytes_checked,
            "messages": int(self.incoming.figures.messages),
        }

    def lift_placement(self, source: ChildProcess | None) -> None:
        """No fault can come any more: its threads, here and elsewhere, may compute anywhere."""
        if self.placement is None or self.incoming is None:
            return
        vcpus = [tid for worker in self.workers if (tid := worker.thread.tid) is not None]
        children = [child.pid for child in (*self.clients, source) if child is not None]
        self.placement.lift(filter(None, children), [*vcpus, *self.incoming.tids])

    # ---- at its end ----

    def require_right(self) -> None:
        """Raise VerificationError when a read of the guest or a byte of its memory was wrong."""
        found = self._mismatches()
        if not found:
            return
        wrong_bytes = self.verification.bytes_wrong if self.verification else 0
        first, reads = found[0], counted(self._wrong_reads(), "read")
        raise VerificationError(
            f"{counted(wrong_bytes, 'byte')} of memory and {reads} of the guest are wrong; first "
            f"{first.block}+{first.offset:#x}: {first.found:#04x} instead of {first.expected:#04x}"
        )

    def _mismatches(self) -> list[Mismatch]:
        """The first of each: at the source, at the destination, in clients, in the end."""
        found = list(self.flip.mismatches) if self.flip is not None else []
        found += [m for worker in self.workers for m in worker.mismatches()]
        found += [m for client in self.clients for m in client.figures.mismatches]
        return found + (self.verification.mismatches() if self.verification else [])

    def _wrong_reads(self) -> int:
        wrong = sum(int(worker.figures.reads_wrong) for worker in self.workers)
        wrong += self.flip.total("reads_wrong") if self.flip is not None else 0
        return wrong + sum(client.figures.counters["reads_wrong"] for client in self.clients)
