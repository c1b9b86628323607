"""One migration from beginning to end: the only module that knows all the others.

::

    prepare   open the trace, lay it on the blocks; nothing is taken from the machine yet
    map       memory of the destination
    source    the source process comes up and announces its blocks; the clients map theirs
    precopy   rounds of pages while the guest runs at the source; until the flip
    listen    what was written since is forgotten, memory is registered, the fault thread runs
    guest     vCPUs replay, and clients; pages come on demand and, with push, in the background
    drain     the guest is done; the pages that are left come
    verify    clients end; every byte is compared
    cleanup   everything is given back, whatever happened before
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from vmemu import placement, processlimits
from vmemu.balloon import Balloon, BalloonInhibitor, BalloonWorker
from vmemu.channel import NothingCame, channels_of, receive_one_of, receive_payload
from vmemu.cleanup import run_all
from vmemu.client_worker import Clients, ClientSpec
from vmemu.config import Scenario, Wait
from vmemu.content import ExpectedContent
from vmemu.cthread import Bell, CThread
from vmemu.errors import HostError, HugepageShortage, MigrationError, PeerGone, VmemuError
from vmemu.events import DESTINATION, SOURCE, EventBlock, EventLog, pointer
from vmemu.events import write as write_events
from vmemu.flip import unpack_flip
from vmemu.guest_worker import Guest, GuestWorker
from vmemu.hostcheck import require_postcopy
from vmemu.interrupts import Interrupts
from vmemu.manager import MemoryManager
from vmemu.memlock import MemoryLock
from vmemu.memoryneed import beyond_memory, memory_needed, memory_shortage, planning
from vmemu.plan import blocks_of, client_plans, contents_of, entries_of, images_of, make_workload
from vmemu.postcopy import IncomingPostcopy
from vmemu.protocol import Message, unpack_discard, unpack_summary
from vmemu.ramblock import RAMBlock
from vmemu.recipe import Recipe
from vmemu.refusedpage import explained
from vmemu.runstate import Phase, Progress, Run
from vmemu.source_loader import SourceProcess, SourceSpec
from vmemu.source_plan import longer_startup, source_spec, spoiled
from vmemu.status import RunStatus, StatusClient
from vmemu.verification import Verification
from vmemu.workload import Workload

TICK_S = 0.2
"""How often the owner looks at the threads when no bell rings: for progress and stalls only."""
CLIENT_PATIENCE_S = 1.0
"""How long a client gets to tell its figures when a run ends before its time."""
PATIENCE_S = 5.0
"""How long threads and the source get to end once nothing holds them any more."""
_HOW_TO_WAIT = "'on_unavailable: {wait: 30s}' in the scenario waits for that"


class Migration:
    """Runs a scenario once.

    ``progress`` is called a few times a second. ``events`` is a file for the event log of both
    sides: JSON lines, or text as QEMU's log backend writes it when it ends in ``.log``. ``flips``
    are (block name, offset): bytes that the source spoils after it has made its image, which the
    verification must find. ``stalls`` are (block name, offset): pages that the source never sends.
    ``source`` is a source process that was started before.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        progress: Callable[[Progress], None] | None = None,
        flips: tuple[tuple[str, int], ...] = (),
        stalls: tuple[tuple[str, int], ...] = (),
        events: str | None = None,
        source: SourceProcess | None = None,
    ) -> None:
        self.run_state = Run(scenario)
        self.scenario = scenario
        self._progress = progress
        self._flips = flips
        self._stalls = stalls
        self._event_file = events
        self._logs: list[EventLog] = []
        self._status: RunStatus | None = None
        self._phase = "prepare"
        self._bell: Bell | None = None
        self._source = source
        self._ends = source.ends if source is not None else None
        self._guest: Guest | None = None
        self._recipe: Recipe | None = None
        self._client_plans: list[tuple[ClientSpec, Workload]] = []
        self._memlock: MemoryLock | None = None
        self._inhibitor = BalloonInhibitor()
        self._balloon_worker: BalloonWorker | None = None
        self._interrupts = Interrupts()

    # ---- the whole ----

    def run(self) -> Run:
        """Run it. Input and host errors are raised; whatever happens later is in the returned Run.

        ``status`` is completed, failed, interrupted (KeyboardInterrupt) or skipped (a resource is
        missing and the scenario says to skip). Nothing is left behind in any case.
        """
        run = self.run_state
        run.started_ns = time.monotonic_ns()
        with self._interrupts, processlimits.named():
            try:
                self._attempt()
            except BaseException:
                self._clean_up()
                raise
            self._note_cleanup(self._clean_up())
            if self._interrupts.take() and run.status == "completed":
                run.status, run.error = "interrupted", KeyboardInterrupt()
        return run

    def _attempt(self) -> None:
        """Migrate; what ends it is noted in the run, but for errors of input and host."""
        run = self.run_state
        try:
            self._migrate()
            run.status = "completed"
        except HostError as error:
            if self.scenario.on_unavailable != "skip":
                raise
            run.status, run.error = "skipped", error
        except KeyboardInterrupt as error:
            run.status, run.error = "interrupted", error
        except MigrationError as error:
            if processlimits.is_met(error):
                raise
            if isinstance(error, PeerGone) and run.incoming and run.incoming.running:
                run.incoming.pause()  # and from there to the end: nobody looks for the source
            run.status, run.error = "failed", self._explain(error)

    def _note_cleanup(self, error: Exception | None) -> None:
        """A failure to give something back must not hide what the run came to."""
        run = self.run_state
        if error is None:
            return
        if run.error is None:
            run.status, run.error = "failed", error
        else:
            run.error.add_note(f"cleaning up failed as well: {error}")

    def _migrate(self) -> None:
        with self._enter("prepare"), self._interrupts.allowed(), planning(self.scenario):
            self._prepare()
        with self._enter("map"), planning(self.scenario):
            self._map()
        with self._enter("source"):
            self._start_source()
        with self._enter("precopy"):
            self._precopy()
        with self._enter("listen"):
            self._listen()
        with self._enter("guest"):
            self._run_guest()
        with self._enter("drain"):
            self._drain()
        with self._enter("verify"):
            self._verify()

    @contextmanager
    def _enter(self, name: str) -> Iterator[None]:
        start = time.monotonic_ns()
        self._phase = name
        if self._status is not None:
            self._status.enter(name)
        try:
            yield
        finally:
            phase = Phase(name, start - self.run_state.started_ns, time.monotonic_ns() - start)
            self.run_state.phases.append(phase)

    # ---- the phases ----

    def _prepare(self) -> None:
        processlimits.require(self.scenario, events=self._event_file is not None)
        placement.require(self.scenario)
        blocks = blocks_of(self.scenario)
        images = images_of(self.scenario, blocks)
        need = memory_needed(self.scenario)
        if memory_shortage(need) or beyond_memory(need):
            self._require_host(blocks)  # no dictionary of pages for blocks that can't be
        self._client_plans = client_plans(self.scenario, blocks)
        self.run_state.workload, self._recipe = make_workload(self.scenario, blocks)
        self.run_state.placement = placement.decide(self.scenario, self.run_state.workload)
        wait = self.scenario.on_unavailable
        wait_s = wait.wait / 1e9 if isinstance(wait, Wait) else 0.0
        beside = need.beside_hugepages()
        self.run_state.memory = MemoryManager(blocks, wait_s, self._pause, beside, images)

    def _map(self) -> None:
        """Check by doing that this host can, then take the memory."""
        memory = self.run_state.memory
        assert memory is not None
        blocks = list(memory.blocks)
        self._memlock = MemoryLock(blocks)
        self._memlock.unlock()  # a process that locks all its memory locks what it maps as well
        if self.scenario.guest.balloon is not None:
            self._memlock.require_balloon()
        status = self._open_status(blocks)
        with self._located():
            memory.map(lambda: self._require_host(blocks))
        status.mapped(blocks)
        contents = contents_of(self.scenario)
        self.run_state.expected = ExpectedContent(self.scenario.seed, blocks, contents)
        if self.scenario.memory.lock:
            self._memlock.lock()

    def _open_status(self, blocks: list[RAMBlock]) -> RunStatus:
        """From here on another process can see where this one stands."""
        specs = [spec for spec, _ in self._client_plans]
        clients = [StatusClient(spec.name, spec.index, spec.vcpus) for spec in specs]
        self._status = RunStatus(blocks, clients, self.scenario.guest.vcpus)
        self._status.enter(self._phase)
        return self._status

    def _require_host(self, blocks: Sequence[RAMBlock]) -> None:
        """Raise PostcopyUnsupported with all that keeps this host from it."""
        target = self.scenario.guest.target_page_size
        delivery = self.scenario.migration.postcopy.delivery
        need = memory_needed(self.scenario)
        with self._located():
            require_postcopy(blocks, need=need, target_page_size=target, delivery=delivery)

    @contextmanager
    def _located(self) -> Iterator[None]:
        """What is wrong with a block is told with its place in the scenario."""
        try:
            yield
        except VmemuError as error:
            self.scenario.locate(error)
            if isinstance(error, HugepageShortage) and error.waiting_helps:
                error.waited = error.waited or _HOW_TO_WAIT
            raise

    def _start_source(self) -> None:
        memory = self.run_state.memory
        assert memory is not None
        self._bell = Bell()
        self._open_logs()
        if self._source is None:
            self._source = SourceProcess(channels_of(self.scenario))
            self._ends = self._source.ends
            self._source.start()
        self._source.tell(self._source_spec(memory))
        incoming = IncomingPostcopy(
            memory,
            self._source.ends,
            self.scenario.guest.vcpus,
            self._bell,
            fault_threads=self.scenario.migration.postcopy.fault_threads,
            prefetch=self.scenario.migration.postcopy.prefetch == "adaptive",
            memlock=self._memlock,
            inhibitor=self._inhibitor,
            events=self._log(DESTINATION),
            places=self.run_state.places,
        )
        self.run_state.incoming = incoming
        self._launch_clients(memory)
        incoming.advise(unpack_summary(self._receive(Message.HELLO)), self._await_clients)

    def _open_logs(self) -> None:
        """One log a side; without a file to write them to there are none, and they cost nothing."""
        if self._event_file is not None:
            vcpus = self.scenario.guest.vcpus
            self._logs = [EventLog(DESTINATION, vcpus=vcpus), EventLog(SOURCE)]
            assert self.run_state.memory is not None
            blocks = self.run_state.memory.blocks
            self._logs[1].describe([EventBlock(b.name, 0, b.size, b.page_size) for b in blocks])

    def _log(self, side: str) -> EventLog | None:
        return next((log for log in self._logs if log.side == side), None)

    def _close_logs(self) -> None:
        """Write what both sides have logged; the source's own end included, and when it was
        killed."""
        try:
            if self._logs and self._event_file is not None:
                write_events(self._event_file, self._logs)
        finally:
            if not self._stuck():
                run_all(log.close for log in self._logs)

    def _launch_clients(self, memory: MemoryManager) -> None:
        """They come up beside the source, and register before anybody runs."""
        assert self._bell is not None and self._status is not None
        run = self.run_state
        run.clients = Clients.planned(self._client_plans, run.places, self._bell)
        run.clients.launch(memory.blocks, self._status, self.scenario.guest.vcpus)

    def _await_clients(self) -> None:
        assert self._status is not None
        self._status.show_bitmaps(self._incoming.ram)
        clients, timeout_s = self.run_state.clients, self.scenario.source.startup_timeout / 1e9
        deadline = time.monotonic() + timeout_s
        self._wait(lambda: clients.ready or time.monotonic() > deadline)
        late = [client.what for client in clients if not client.ready]
        if late:
            what = f"{', '.join(late)} did not come up in {timeout_s:g} s"
            raise MigrationError(f"{what}{longer_startup(self.scenario)}")

    def _source_spec(self, memory: MemoryManager) -> SourceSpec:
        workload = self.run_state.workload
        assert workload is not None
        assert self._recipe is not None
        spec = source_spec(self.scenario, workload, self._recipe, entries_of(list(memory.blocks)))
        spec = spoiled(spec, flips=self._flips, stalls=self._stalls)
        log, images = self._log(SOURCE), memory.shared_images
        return replace(spec, events=log, images=images, places=self.run_state.places)

    def _receive(self, message: Message) -> bytes:
        return self._receive_one_of(message)[1]

    def _receive_one_of(self, *messages: Message) -> tuple[Message, bytes]:
        assert self._ends is not None
        timeout_s = self.scenario.source.startup_timeout / 1e9
        with self._interrupts.allowed():
            try:
                return receive_one_of(self._ends.main, messages, timeout_s)
            except NothingCame as error:
                raise MigrationError(f"{error}{longer_startup(self.scenario)}") from None

    def _precopy(self) -> None:
        """Until the source says FLIP: where the guest stopped, and what it did there."""
        thread = self._incoming.receive_precopy()
        self._wait(lambda: thread.done)
        assert self._ends is not None
        payload = receive_payload(
            self._ends.main, self._incoming.control, Message.FLIP, TICK_S + PATIENCE_S
        )
        self.run_state.flip = unpack_flip(payload, self.scenario.guest.vcpus)

    def _listen(self) -> None:
        incoming = self._incoming
        while True:
            message, payload = self._receive_one_of(Message.DISCARD, Message.LISTEN)
            if message is Message.LISTEN:
                break
            incoming.discard(*unpack_discard(payload))
        with self._located():
            incoming.listen(self.run_state.clients.handed_over())
        self._receive(Message.RUN)
        self.run_state.postcopy_started_ns = time.monotonic_ns()
        if self.scenario.migration.postcopy.push:
            incoming.request_push()
        incoming.run()

    def _run_guest(self) -> None:
        run, verify = self.run_state, self.scenario.verify
        assert run.workload is not None and run.expected is not None
        assert self._bell is not None and self._status is not None
        self._guest = Guest(
            run.workload,
            self._incoming.blocks,
            self._incoming.ram,
            run.expected,
            check_reads=verify.reads,
            keep_marks=verify.final,
        )
        run.workers = [
            GuestWorker(
                self._guest,
                index,
                self._bell,
                slots=self._incoming.vcpu_slots(index),
                begin=self._begin(index),
                log=pointer(self._log(DESTINATION)),
                waiting=self._status.waiting(index),
                cpus=run.places.of("vcpus", index),
            )
            for index in range(self.scenario.guest.vcpus)
        ]
        self._start_balloon()
        for worker in run.workers:
            worker.start()
        run.clients.go()
        self._wait(lambda: all(worker.done for worker in run.workers) and run.clients.done)

    def _start_balloon(self) -> None:
        """Refused while post-copy runs; what it gives back after it must read as zeros."""
        run, config = self.run_state, self.scenario.guest.balloon
        if config is None:
            return
        assert self._bell is not None
        blocks = self._incoming.blocks
        run.balloon = Balloon(blocks, self._inhibitor)
        self._balloon_worker = BalloonWorker(
            run.balloon,
            self.scenario.seed,
            config.rate,
            self._bell,
            limit=config.limit,
        )
        self._balloon_worker.start()

    def _end_balloon(self) -> None:
        """Post-copy is over: let it give back what it may, before memory is compared."""
        worker = self._balloon_worker
        if worker is None:
            return
        self._wait(lambda: worker.thread.done)
        worker.join()
        if worker.error is not None:
            raise worker.error

    def _begin(self, vcpu: int) -> int:
        """Where a vCPU goes on: at the source's last access, or at its first."""
        flip = self.run_state.flip
        return flip.vcpus[vcpu]["position"] if flip is not None and flip.vcpus else 0

    def _drain(self) -> None:
        self.run_state.lift_placement(self._source)
        if not self.scenario.migration.postcopy.push:
            self._incoming.request_push()
        self._wait(lambda: self._incoming.settled)
        self._note_complete()

    def _verify(self) -> None:
        run = self.run_state
        run.clients.stop(PATIENCE_S)  # QEMU tells them that it is over before it unregisters
        self._incoming.end()
        self._end_balloon()
        assert self._guest is not None and run.expected is not None and self._bell is not None
        if self.scenario.verify.final:
            run.verification = Verification(self._guest, run.expected, run.balloon, run.clients)
            thread = CThread("verify", run.verification.run, self._bell)
            thread.start()
            try:
                self._wait(lambda: thread.done)
            finally:
                run.verification.stop()
                thread.join()
            if thread.error is not None:
                raise thread.error
        run.require_right()

    # ---- waiting: only here can Ctrl-C strike ----

    def _pause(self, seconds: float) -> None:
        """Of who waits for hugepages."""
        if self._status is not None:
            self._status.wait_for_hugepages()
        with self._interrupts.allowed():
            time.sleep(seconds)

    @property
    def _incoming(self) -> IncomingPostcopy:
        assert self.run_state.incoming is not None
        return self.run_state.incoming

    def _wait(self, over: Callable[[], bool]) -> None:
        """Wait until it is over. Raises what ended a thread, StallError when pages stop coming."""
        assert self._bell is not None
        pages, since = -1, time.monotonic()
        while not over():
            with self._interrupts.allowed():
                self._bell.wait(TICK_S)
            self._note_complete()
            self._check()
            self._note_progress()
            received = self._incoming.ram.pages_received + self._incoming.figures.messages
            if received != pages or not self._somebody_waits():
                pages, since = received, time.monotonic()
            elif time.monotonic() - since > self._patience_s():
                raise self.run_state.stalled(time.monotonic() - since)
            with self._interrupts.allowed():
                self._report()
        self._check()  # the last thread to end may have failed

    def _check(self) -> None:
        """Raise what ended a thread before its time."""
        self._incoming.check()
        self.run_state.clients.check()
        for worker in self.run_state.workers:
            if worker.error is not None:
                raise worker.error

    def _note_complete(self) -> None:
        """Note when the last page came, which may be long before the guest is done."""
        if self._incoming.complete and not self.run_state.postcopy_ended_ns:
            self.run_state.postcopy_ended_ns = time.monotonic_ns()
            self.run_state.lift_placement(self._source)

    def _somebody_waits(self) -> bool:
        if self._incoming.complete:
            return False
        return bool(self.run_state.waiting()) or self._phase in ("precopy", "drain")

    def _patience_s(self) -> float:
        """How long nothing may come; making an image of many GiB, the source says nothing."""
        starts = self._phase == "precopy" and not self._incoming.figures.messages
        limits, source = self.scenario.limits, self.scenario.source
        return max(limits.stall, source.startup_timeout if starts else 0) / 1e9

    def _note_progress(self) -> None:
        """For whoever looks at it from outside."""
        assert self._status is not None
        self._status.note(self.run_state.figures())

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(self.run_state.progress(self._phase))

    # ---- the way out ----

    def _explain(self, error: MigrationError) -> MigrationError:
        """Add what only the owner of memory and of the source process knows: why a page got no
        memory, how the source ended."""
        if self.run_state.memory is not None:
            error = explained(error, self.run_state.memory.blocks)
            self.scenario.locate(error)
        if isinstance(error, PeerGone) and self._source is not None:
            self._source.process.join(PATIENCE_S / 5)
            ended = self._source.describe_end()
            if ended:
                return PeerGone(f"{ended} while it was needed ({error})")
        return error

    def _clean_up(self) -> Exception | None:
        """Give everything back; Ctrl-C waits until it is done. What failed, if anything did."""
        run = self.run_state
        # Clients first: a vCPU that is let go fills a hole with zeros, which they would read.
        steps: list[Callable[[], object]] = [
            partial(run.clients.stop, CLIENT_PATIENCE_S),
            self._stop_guest,
            self._stop_balloon,
        ]
        if run.incoming is not None:
            steps.append(partial(run.incoming.end, failed=run.status != "completed"))
        elif self._ends is not None:
            steps.append(self._ends.close)
        steps.append(self._close_clients)
        steps += [self._unmap, self._lock_again]  # while the source frees its memory, and ends
        if self._source is not None:
            patience_s = PATIENCE_S if run.status == "completed" else 0.2
            steps.append(partial(self._source.stop, patience_s))
        steps += [self._close_logs, self._close_bell, self._close_status]
        with self._enter("cleanup"):
            try:
                run_all(steps)
            except Exception as error:
                return error
        return None

    def _stop_guest(self) -> None:
        """Released vCPUs see fresh pages instead of the guest's; they are told to stop before."""
        run = self.run_state
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
        run = self.run_state
        if run.incoming is None or not run.incoming.stuck:
            run.clients.close()

    def _stop_balloon(self) -> None:
        if self._balloon_worker is not None:
            self._balloon_worker.stop()
            self._balloon_worker.join()

    def _stuck(self) -> bool:
        """Whether a thread may still use what all share: giving that back would kill the process,
        or have it write into somebody else's file."""
        run = self.run_state
        vcpus = any(not worker.join(0) for worker in run.workers)
        return vcpus or (run.incoming is not None and bool(run.incoming.stuck))

    def _unmap(self) -> None:
        if self._stuck():
            raise MigrationError("threads do not end; the guest's memory stays mapped")
        if self.run_state.memory is not None:
            self.run_state.memory.unmap()

    def _lock_again(self) -> None:
        """What else this process had locked, when the migration did not get as far as its end."""
        run = self.run_state
        if self._memlock is not None and run.status != "completed":
            run.warnings += self._memlock.relock()

    def _close_status(self) -> None:
        if self._status is not None and not self._stuck():
            self._status.close()
            self._status = None

    def _close_bell(self) -> None:
        if self._bell is not None and not self._stuck():
            self._bell.close()
