"""A run while its owner waits: its phases, what ends it before its time, pages that stop coming."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmemu.interrupts import Interrupts
from vmemu.postcopy import IncomingPostcopy
from vmemu.resources import Resources
from vmemu.runstate import Phase, Progress

TICK_S = 0.2
"""How often the owner looks at the threads when no bell rings: for progress and stalls only."""


class Watch:
    """Waits in the place of the run's owner, and looks at everything meanwhile. Only in here, and
    where a message is awaited, can Ctrl-C strike.

    ``phase`` is the run's; ``progress`` is called a few times a second.
    """

    def __init__(
        self,
        resources: Resources,
        interrupts: Interrupts,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.phase = "prepare"
        self._resources = resources
        self._run = resources.run
        self._interrupts = interrupts
        self._progress = progress

    @contextmanager
    def enter(self, name: str) -> Iterator[None]:
        """A phase: how long it takes is noted, however it ends."""
        start = time.monotonic_ns()
        self.phase = name
        if self._resources.status is not None:
            self._resources.status.enter(name)
        try:
            yield
        finally:
            phase = Phase(name, start - self._run.started_ns, time.monotonic_ns() - start)
            self._run.phases.append(phase)

    def pause(self, seconds: float) -> None:
        """Of who waits for hugepages."""
        if self._resources.status is not None:
            self._resources.status.wait_for_hugepages()
        with self._interrupts.allowed():
            time.sleep(seconds)

    def wait(self, over: Callable[[], bool]) -> None:
        """Wait until it is over. Raises what ended a thread, StallError when pages stop coming."""
        assert self._resources.bell is not None
        pages, since = -1, time.monotonic()
        while not over():
            with self._interrupts.allowed():
                self._resources.bell.wait(TICK_S)
            self.note_complete()
            self._check()
            self._note_progress()
            received = self._incoming.ram.pages_received + self._incoming.figures.messages
            if received != pages or not self._somebody_waits():
                pages, since = received, time.monotonic()
            elif time.monotonic() - since > self._patience_s():
                raise self._run.stalled(time.monotonic() - since)
            with self._interrupts.allowed():
                self._report()
        self._check()  # the last thread to end may have failed

    def note_complete(self) -> None:
        """Note when the last page came, which may be long before the guest is done."""
        if self._incoming.complete and not self._run.postcopy_ended_ns:
            self._run.postcopy_ended_ns = time.monotonic_ns()
            self._run.lift_placement(self._resources.source)

    @property
    def _incoming(self) -> IncomingPostcopy:
        assert self._run.incoming is not None
        return self._run.incoming

    def _check(self) -> None:
        """Raise what ended a thread before its time."""
        self._incoming.check()
        self._run.clients.check()
        for worker in self._run.workers:
            if worker.error is not None:
                raise worker.error

    def _somebody_waits(self) -> bool:
        if self._incoming.complete:
            return False
        return bool(self._run.waiting()) or self.phase in ("precopy", "drain")

    def _patience_s(self) -> float:
        """How long nothing may come; making an image of many GiB, the source says nothing."""
        starts = self.phase == "precopy" and not self._incoming.figures.messages
        limits, source = self._run.scenario.limits, self._run.scenario.source
        return max(limits.stall, source.startup_timeout if starts else 0) / 1e9

    def _note_progress(self) -> None:
        """For whoever looks at it from outside."""
        assert self._resources.status is not None
        self._resources.status.note(self._run.figures())

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self._run.progress(self.phase))
