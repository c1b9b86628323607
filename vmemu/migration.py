"""One migration from beginning to end: the only module that knows all the others.

::

    prepare   open the trace, lay it on the blocks; nothing is taken from the machine yet
    map       memory of the destination
    source    the source process comes up and announces its blocks; the guest is laid on memory,
              the clients map theirs
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

from vmemu import placement, processlimits
from vmemu.balloon import Balloon, BalloonInhibitor, BalloonWorker
from vmemu.channel import NothingCame, channels_of, receive_one_of, receive_payload
from vmemu.client_worker import Clients, ClientSpec
from vmemu.config import Scenario, Wait
from vmemu.content import ExpectedContent
from vmemu.cthread import Bell, CThread
from vmemu.errors import HostError, HugepageShortage, MigrationError, PeerGone, VmemuError
from vmemu.events import DESTINATION, SOURCE, pointer
from vmemu.flip import unpack_flip
from vmemu.guest_worker import Guest, GuestWorker
from vmemu.hostcheck import require_postcopy
from vmemu.idle import idle_settings
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
from vmemu.resources import PATIENCE_S, Resources
from vmemu.runstate import Progress, Run
from vmemu.source_loader import SourceProcess, SourceSpec
from vmemu.source_plan import longer_startup, source_spec, spoiled
from vmemu.status import RunStatus, StatusClient
from vmemu.verification import Verification
from vmemu.watch import TICK_S, Watch
from vmemu.workload import Workload

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
        self._flips = flips
        self._stalls = stalls
        self._resources = Resources(self.run_state, source, events)
        self._guest: Guest | None = None
        self._recipe: Recipe | None = None
        self._client_plans: list[tuple[ClientSpec, Workload]] = []
        self._inhibitor = BalloonInhibitor()
        self._interrupts = Interrupts()
        self._watch = Watch(self._resources, self._interrupts, progress)

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
        with self._watch.enter("prepare"), self._interrupts.allowed(), planning(self.scenario):
            self._prepare()
        with self._watch.enter("map"), planning(self.scenario):
            self._map()
        with self._watch.enter("source"):
            self._start_source()
        with self._watch.enter("precopy"):
            self._precopy()
        with self._watch.enter("listen"):
            self._listen()
        with self._watch.enter("guest"):
            self._run_guest()
        with self._watch.enter("drain"):
            self._drain()
        with self._watch.enter("verify"):
            self._verify()

    # ---- the phases ----

    def _prepare(self) -> None:
        processlimits.require(self.scenario, events=self._resources.event_file is not None)
        placement.require(self.scenario)
        blocks = blocks_of(self.scenario)
        images = images_of(self.scenario, blocks)
        need = memory_needed(self.scenario)
        if memory_shortage(need) or beyond_memory(need):
            self._require_host(blocks)  # no dictionary of pages for blocks that can't be
        self._client_plans = client_plans(self.scenario, blocks)
        self.run_state.workload, self._recipe = make_workload(self.scenario, blocks)
        self.run_state.warnings += [idle.message for idle in idle_settings(self.scenario)]
        self.run_state.placement = placement.decide(self.scenario, self.run_state.workload)
        wait = self.scenario.on_unavailable
        wait_s = wait.wait / 1e9 if isinstance(wait, Wait) else 0.0
        beside = need.beside_hugepages()
        self.run_state.memory = MemoryManager(blocks, wait_s, self._watch.pause, beside, images)

    def _map(self) -> None:
        """Check by doing that this host can, then take the memory."""
        memory = self.run_state.memory
        assert memory is not None
        blocks = list(memory.blocks)
        memlock = self._resources.memlock = MemoryLock(blocks)
        memlock.unlock()  # a process that locks all its memory locks what it maps as well
        if self.scenario.guest.balloon is not None:
            memlock.require_balloon()
        status = self._open_status(blocks)
        with self._located():
            memory.map(lambda: self._require_host(blocks))
        status.mapped(blocks)
        contents = contents_of(self.scenario)
        self.run_state.expected = ExpectedContent(self.scenario.seed, blocks, contents)
        if self.scenario.memory.lock:
            memlock.lock()

    def _open_status(self, blocks: list[RAMBlock]) -> RunStatus:
        """From here on another process can see where this one stands."""
        specs = [spec for spec, _ in self._client_plans]
        clients = [StatusClient(spec.name, spec.index, spec.vcpus) for spec in specs]
        status = self._resources.status = RunStatus(blocks, clients, self.scenario.guest.vcpus)
        status.enter(self._watch.phase)
        return status

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
        bell = self._resources.bell = Bell()
        self._resources.open_logs(memory.blocks, self.scenario.guest.vcpus)
        if self._resources.source is None:
            self._resources.source = SourceProcess(channels_of(self.scenario))
            self._source.start()
        self._source.tell(self._source_spec(memory))
        incoming = IncomingPostcopy(
            memory,
            self._source.ends,
            self.scenario.guest.vcpus,
            bell,
            fault_threads=self.scenario.migration.postcopy.fault_threads,
            prefetch=self.scenario.migration.postcopy.prefetch == "adaptive",
            memlock=self._resources.memlock,
            inhibitor=self._inhibitor,
            events=self._resources.log(DESTINATION),
            places=self.run_state.places,
        )
        self.run_state.incoming = incoming
        self._launch_clients(memory)
        incoming.advise(unpack_summary(self._receive(Message.HELLO)), self._await_guest)

    def _launch_clients(self, memory: MemoryManager) -> None:
        """They come up beside the source, and register before anybody runs."""
        bell, status = self._resources.bell, self._resources.status
        assert bell is not None and status is not None
        run = self.run_state
        run.clients = Clients.planned(self._client_plans, run.places, bell)
        run.clients.launch(memory.blocks, status, self.scenario.guest.vcpus)

    def _await_guest(self) -> None:
        """All that is to be there before the source may flip; clients come up meanwhile."""
        self._lay_guest()
        self._await_clients()

    def _lay_guest(self) -> None:
        run, verify = self.run_state, self.scenario.verify
        assert run.workload is not None and run.expected is not None
        self._guest = Guest(
            run.workload,
            self._incoming.blocks,
            self._incoming.ram,
            run.expected,
            check_reads=verify.reads,
            keep_marks=verify.final,
        )

    def _await_clients(self) -> None:
        assert self._resources.status is not None
        self._resources.status.show_bitmaps(self._incoming.ram)
        clients, timeout_s = self.run_state.clients, self.scenario.source.startup_timeout / 1e9
        deadline = time.monotonic() + timeout_s
        self._watch.wait(lambda: clients.ready or time.monotonic() > deadline)
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
        log, images = self._resources.log(SOURCE), memory.shared_images
        return replace(spec, events=log, images=images, places=self.run_state.places)

    def _receive(self, message: Message) -> bytes:
        return self._receive_one_of(message)[1]

    def _receive_one_of(self, *messages: Message) -> tuple[Message, bytes]:
        timeout_s = self.scenario.source.startup_timeout / 1e9
        with self._interrupts.allowed():
            try:
                return receive_one_of(self._source.ends.main, messages, timeout_s)
            except NothingCame as error:
                raise MigrationError(f"{error}{longer_startup(self.scenario)}") from None

    def _precopy(self) -> None:
        """Until the source says FLIP: where the guest stopped, and what it did there."""
        thread = self._incoming.receive_precopy()
        self._watch.wait(lambda: thread.done)
        payload = receive_payload(
            self._source.ends.main, self._incoming.control, Message.FLIP, TICK_S + PATIENCE_S
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
        run, guest = self.run_state, self._guest
        bell, status = self._resources.bell, self._resources.status
        assert guest is not None and bell is not None and status is not None
        run.workers = [
            GuestWorker(
                guest,
                index,
                bell,
                slots=self._incoming.vcpu_slots(index),
                begin=self._begin(index),
                log=pointer(self._resources.log(DESTINATION)),
                waiting=status.waiting(index),
                cpus=run.places.of("vcpus", index),
            )
            for index in range(self.scenario.guest.vcpus)
        ]
        self._start_balloon()
        for worker in run.workers:
            worker.start()
        run.clients.go()
        self._watch.wait(lambda: all(worker.done for worker in run.workers) and run.clients.done)

    def _start_balloon(self) -> None:
        """Refused while post-copy runs; what it gives back after it must read as zeros."""
        run, config = self.run_state, self.scenario.guest.balloon
        if config is None:
            return
        assert self._resources.bell is not None
        blocks = self._incoming.blocks
        run.balloon = Balloon(blocks, self._inhibitor)
        worker = self._resources.balloon_worker = BalloonWorker(
            run.balloon,
            self.scenario.seed,
            config.rate,
            self._resources.bell,
            limit=config.limit,
        )
        worker.start()

    def _end_balloon(self) -> None:
        """Post-copy is over: let it give back what it may, before memory is compared."""
        worker = self._resources.balloon_worker
        if worker is None:
            return
        self._watch.wait(lambda: worker.thread.done)
        worker.join()
        if worker.error is not None:
            raise worker.error

    def _begin(self, vcpu: int) -> int:
        """Where a vCPU goes on: at the source's last access, or at its first."""
        flip = self.run_state.flip
        return flip.vcpus[vcpu]["position"] if flip is not None and flip.vcpus else 0

    def _drain(self) -> None:
        self.run_state.lift_placement(self._resources.source)
        if not self.scenario.migration.postcopy.push:
            self._incoming.request_push()
        self._watch.wait(lambda: self._incoming.settled)
        self._watch.note_complete()

    def _verify(self) -> None:
        run = self.run_state
        run.clients.stop(PATIENCE_S)  # QEMU tells them that it is over before it unregisters
        self._incoming.end()
        self._end_balloon()
        bell = self._resources.bell
        assert self._guest is not None and run.expected is not None and bell is not None
        if self.scenario.verify.final:
            run.verification = Verification(self._guest, run.expected, run.balloon, run.clients)
            thread = CThread("verify", run.verification.run, bell)
            thread.start()
            try:
                self._watch.wait(lambda: thread.done)
            finally:
                run.verification.stop()
                thread.join()
            if thread.error is not None:
                raise thread.error
        run.require_right()

    # ---- the way out ----

    def _explain(self, error: MigrationError) -> MigrationError:
        """Add what only the owner of memory and of the source process knows: why a page got no
        memory, how the source ended."""
        if self.run_state.memory is not None:
            error = explained(error, self.run_state.memory.blocks)
            self.scenario.locate(error)
        if isinstance(error, PeerGone) and self._resources.source is not None:
            self._source.process.join(PATIENCE_S / 5)
            ended = self._source.describe_end()
            if ended:
                return PeerGone(f"{ended} while it was needed ({error})")
        return error

    def _clean_up(self) -> Exception | None:
        """Give everything back; Ctrl-C waits until it is done. What failed, if anything did."""
        with self._watch.enter("cleanup"):
            return self._resources.give_back()

    # ---- what is there from phase to phase ----

    @property
    def _source(self) -> SourceProcess:
        assert self._resources.source is not None
        return self._resources.source

    @property
    def _incoming(self) -> IncomingPostcopy:
        assert self.run_state.incoming is not None
        return self.run_state.incoming
