"""What a run has taken of the machine, and how all of it is given back, whatever has happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from vmemu.balloon import BalloonWorker
from vmemu.cleanup import run_all
from vmemu.cthread import Bell
from vmemu.errors import MigrationError
from vmemu.events import DESTINATION, SOURCE, EventBlock, EventLog
from vmemu.events import write as write_events
from vmemu.memlock import MemoryLock
from vmemu.ramblock import RAMList
from vmemu.runstate import Run
from vmemu.source_loader import SourceProcess
from vmemu.status import RunStatus

PATIENCE_S = 5.0
"""How long threads and the source get to end once nothing holds them any more."""
CLIENT_PATIENCE_S = 1.0
"""How long a client gets to tell its figures when a run ends before its time."""


@dataclass
class Resources:
    """Beside what ``run`` has for its result: the source process with the channels to it, the bell
    that threads ring, what others read of the run, its event logs, which ``event_file`` is to have,
    locks of memory, the balloon. What was not reached is None or empty.
    """

    run: Run
    source: SourceProcess | None = None
    event_file: str | None = None
    bell: Bell | None = None
    status: RunStatus | None = None
    logs: list[EventLog] = field(default_factory=list)
    memlock: MemoryLock | None = None
    balloon_worker: BalloonWorker | None = None

    # ---- the event logs ----

    def open_logs(self, blocks: RAMList, vcpus: int) -> None:
        """One log a side; without a file to write them to there are none, and they cost nothing."""
        if self.event_file is not None:
            self.logs = [EventLog(DESTINATION, vcpus=vcpus), EventLog(SOURCE)]
            self.logs[1].describe([EventBlock(b.name, 0, b.size, b.page_size) for b in blocks])

    def log(self, side: str) -> EventLog | None:
        """That of one side, if there are any."""
        return next((log for log in self.logs if log.side == side), None)

    def _close_logs(self) -> None:
        """Write what both sides have logged; the source's own end included, and when it was
        killed."""
        try:
            if self.logs and self.event_file is not None:
                write_events(self.event_file, self.logs)
        finally:
            if not self._stuck():
                run_all(log.close for log in self.logs)

    # ---- the way out ----

    def give_back(self) -> Exception | None:
        """Give everything back, in any state of the run. What failed, if anything did: every step
        is tried."""
        run = self.run
        # Clients first: a vCPU that is let go fills a hole with zeros, which they would read.
        steps: list[Callable[[], object]] = [
            partial(run.clients.stop, CLIENT_PATIENCE_S),
            self._stop_guest,
            self._stop_balloon,
        ]
        if run.incoming is not None:
            steps.append(partial(run.incoming.end, failed=run.status != "completed"))
        elif self.source is not None:
            steps.append(self.source.ends.close)
        steps.append(self._close_clients)
        steps += [self._unmap, self._lock_again]  # while the source frees its memory, and ends
        if self.source is not None:
            patience_s = PATIENCE_S if run.status == "completed" else 0.2
            steps.append(partial(self.source.stop, patience_s))
        steps += [self._close_logs, self._close_bell, self._close_status]
        try:
            run_all(steps)
        except Exception as error:
            return error
        return None

    def _stop_guest(self) -> None:
        """Released vCPUs see fresh pages instead of the guest's; they are told to stop before."""
        run = self.run
        for worker in run.workers:
            worker.stop()
        try:
            if run.incoming is not None:
                run.incoming.release()
        finally:
            for worker in run.workers:
                worker.join(PATIENCE_S)

    def _close_clients(self) -> None:
        """Not while a fault thread might still read one's userfaultfd."""
        run = self.run
        if run.incoming is None or not run.incoming.stuck:
            run.clients.close()

    def _stop_balloon(self) -> None:
        if self.balloon_worker is not None:
            self.balloon_worker.stop()
            self.balloon_worker.join()

    def _stuck(self) -> bool:
        """Whether a thread may still use what all share: giving that back would kill the process,
        or have it write into somebody else's file."""
        run = self.run
        vcpus = any(not worker.join(0) for worker in run.workers)
        return vcpus or (run.incoming is not None and bool(run.incoming.stuck))

    def _unmap(self) -> None:
        if self._stuck():
            raise MigrationError("threads do not end; the guest's memory stays mapped")
        if self.run.memory is not None:
            self.run.memory.unmap()

    def _lock_again(self) -> None:
        """What else this process had locked, when the migration did not get as far as its end."""
        if self.memlock is not None and self.run.status != "completed":
            self.run.warnings += self.memlock.relock()

    def _close_status(self) -> None:
        if self.status is not None and not self._stuck():
            self.status.close()
            self.status = None

    def _close_bell(self) -> None:
        if self.bell is not None and not self._stuck():
            self.bell.close()
