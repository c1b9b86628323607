"""Every order of steps of the incoming side, with failures at any of them, against a model.

Memory, channels and threads are real; only userfaultfd is not: nothing ever faults here.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from vmemu import core
from vmemu.balloon import BalloonInhibitor
from vmemu.channel import create_pipes, send
from vmemu.cthread import Bell
from vmemu.errors import CoreError, HostError, MigrationError, ProtocolError, StateError
from vmemu.manager import MemoryManager
from vmemu.postcopy import IncomingPostcopy, PostcopyState
from vmemu.protocol import HEADER, BlockEntry, Header, Message, Summary
from vmemu.ramblock import Backing, RAMBlock
from vmemu.userfault import Ioctl

PAGE = 4096
PAGES = 4
SUMMARY = Summary([BlockEntry(name, PAGES * PAGE, PAGE) for name in ("ram", "vram")], PAGE)
State = PostcopyState
ALLOWED = {
    "advise": [State.NONE],
    "receive_precopy": [State.ADVISE],
    "discard": [State.ADVISE, State.DISCARD],
    "listen": [State.ADVISE, State.DISCARD],
    "run": [State.LISTENING],
    "pause": [State.RUNNING],
    "resume": [State.PAUSED],
    "request_push": [State.LISTENING, State.RUNNING],
}
STEPS: dict[str, Callable[[IncomingPostcopy], object]] = {
    "advise": lambda incoming: incoming.advise(SUMMARY),
    "receive_precopy": lambda incoming: incoming.receive_precopy(),
    "discard": lambda incoming: incoming.discard("ram", [(0, PAGE)]),
    "listen": lambda incoming: incoming.listen(),
    "run": lambda incoming: incoming.run(),
    "pause": lambda incoming: incoming.pause(),
    "resume": lambda incoming: incoming.resume(),
    "request_push": lambda incoming: incoming.request_push(),
}
BAD_DISCARDS = [
    ("rom", [(0, PAGE)]),
    ("ram", [(0, PAGE), (PAGES * PAGE, PAGE)]),
    ("ram", [(1, PAGE)]),
    ("vram", [(0, PAGE), (0, PAGE + 1)]),
    ("vram", [(0, 0)]),
    ("vram", [(0, 1 << 63)]),
    ("vram", [((1 << 64) - PAGE, 2 * PAGE)]),
]
good_ranges = st.lists(
    st.integers(0, PAGES - 1).flatmap(
        lambda first: st.tuples(
            st.just(first * PAGE), st.integers(1, PAGES - first).map(lambda n: n * PAGE)
        )
    ),
    min_size=1,
    max_size=3,
)


def allowed(step: str) -> Any:
    """Only while the state allows the step: every other order is ``step_in_the_wrong_state``."""
    return precondition(lambda self: self.state in ALLOWED[step])


class Injected(CoreError):
    """A failure that was asked for."""

    kind = "injected"


class Faults:
    """At most one point at which the next that comes by fails."""

    def __init__(self) -> None:
        self.armed: str | None = None

    def pass_by(self, point: str) -> None:
        if self.armed == point:
            self.armed = None
            raise Injected(point, errno.EIO)


class FaultyBlock(RAMBlock):
    """A real block that may fail to forget pages, or to hear about transparent hugepages."""

    faults: Faults

    def discard(self, offset: int = 0, length: int | None = None) -> None:
        self.faults.pass_by(f"discard {self.name}")
        super().discard(offset, length)

    def set_thp(self, enabled: bool) -> None:
        self.faults.pass_by(f"{'thp on' if enabled else 'thp off'} {self.name}")
        super().set_thp(enabled)


class FakeUffd:
    """A descriptor, and what is registered with it."""

    def __init__(self, faults: Faults, registered: set[int]) -> None:
        faults.pass_by("open")
        self._faults, self._registered = faults, registered
        self.fd = os.eventfd(0)

    def require(self, features: Any) -> None:
        self._faults.pass_by("require")

    def register(self, start: int, length: int, mode: int) -> Ioctl:
        if self._registered:
            self._faults.pass_by("register the second")
        self._faults.pass_by("register the first")
        assert start not in self._registered
        self._registered.add(start)
        return ~Ioctl(0)

    def unregister(self, start: int, length: int) -> None:
        self._registered.remove(start)
        self._faults.pass_by("unregister")

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class FakeMemlock:
    """Notes what is asked of it; a lock that can't be had again is a warning."""

    def __init__(self, faults: Faults) -> None:
        self.log: list[str] = []
        self._faults = faults

    def unlock(self) -> None:
        self._faults.pass_by("unlock")
        self.log.append("unlock")

    def relock(self) -> list[str]:
        self.log.append("relock")
        self._faults.pass_by("relock")
        return ["not locked again"]


def descriptors() -> set[str]:
    """Those that can be looked at: that of the listing itself is gone."""
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


class Incoming(RuleBasedStateMachine):
    """One incoming migration from its begin to a point where nothing of it is left."""

    @initialize(preempt=st.booleans(), fault_threads=st.integers(1, 3), life=st.integers(0, 12))
    def begin(self, preempt: bool, fault_threads: int, life: int) -> None:
        self.life, self.taken = life, 0  # the end may come once so many steps are taken
        self.before_all = descriptors()
        self.faults = Faults()
        self.registered: set[int] = set()
        self.bell = Bell()
        blocks = [
            FaultyBlock("ram", Backing.ANONYMOUS, PAGES * PAGE, PAGE),
            FaultyBlock("vram", Backing.SHARED, PAGES * PAGE, PAGE),
        ]
        for block in blocks:
            block.faults = self.faults
        self.memory = MemoryManager(blocks)
        self.memory.map()
        self.without = descriptors()
        self.destination, self.source = create_pipes(preempt)
        self.of_source = descriptors() - self.without
        self.of_source -= {str(end.fileno()) for end in self._ends() if not end.closed}
        self.memlock, self.inhibitor = FakeMemlock(self.faults), BalloonInhibitor()
        self.incoming = IncomingPostcopy(
            self.memory,
            self.destination,
            2,
            self.bell,
            fault_threads=fault_threads,
            memlock=self.memlock,  # type: ignore[arg-type]
            inhibitor=self.inhibitor,
        )
        self._patch()
        self.state, self.history = State.NONE, []
        self.inhibited = self.tried_to_listen = False
        self.precopy: Any = None
        self.said: list[int] = []

    def _ends(self) -> list[Any]:
        ends = (self.destination.main, self.destination.return_path, self.destination.urgent)
        return [end for end in ends if end is not None]

    def _patch(self) -> None:
        real = core.call

        def call(function: Any, *arguments: Any) -> Any:
            if function is core.lib.vm_fault_loop:
                self.faults.pass_by("fault thread")
            return real(function, *arguments)

        def open_uffd(wanted: object) -> FakeUffd:
            return FakeUffd(self.faults, self.registered)

        self.patches = [
            mock.patch.object(core, "call", call),
            mock.patch("vmemu.postcopy.Userfaultfd", open_uffd),
        ]
        for patch in self.patches:
            patch.start()

    # ---- the model ----

    def seen(self) -> tuple[Any, ...]:
        """All that a refused step might have changed."""
        one = self.incoming
        return (
            one.state,
            list(one.states),
            vars(one.discards).copy(),
            one.uffd,
            one.ram,
            self.inhibitor.active,
            list(self.memlock.log),
            set(self.registered),
            [block.read(0, block.size) for block in self.memory.blocks],
            descriptors(),
            threading.active_count(),
        )

    def step(
        self,
        name: str,
        call: Callable[[], object],
        to: State | None = None,
        failing: str | None = None,
    ) -> bool:
        """Take a step that the state allows; whether it did what it is for."""
        assert self.state in ALLOWED[name]
        if not self.attempt(call, failing):
            return False
        if to is not None and to is not self.state:
            self.state = to
            self.history.append(to)
        return True

    def attempt(self, call: Callable[[], object], failing: str | None) -> bool:
        """Whether it went through: it fails exactly when it comes by the point that fails."""
        self.taken += 1
        self.faults.armed = failing
        caught: Exception | None = None
        try:
            call()
        except (Injected, HostError) as error:
            caught = error
        hit = failing is not None and self.faults.armed is None
        self.faults.armed = None
        assert hit == (caught is not None)
        assert not hit or str(failing) in str(caught)
        return not hit

    # ---- the steps ----

    @rule(name=st.sampled_from(list(STEPS)))
    def step_in_the_wrong_state(self, name: str) -> None:
        if self.state in ALLOWED[name]:
            return
        before = self.seen()
        with pytest.raises(StateError) as caught:
            STEPS[name](self.incoming)
        names = " or ".join(state.value for state in ALLOWED[name])
        assert str(caught.value) == (
            f"{name} needs state {names}, and the migration is in state {self.state.value}"
        )
        assert self.seen() == before

    @allowed("advise")
    @rule(failing=st.none() | st.sampled_from(["unlock", "discard ram", "discard vram"]))
    def advise(self, failing: str | None) -> None:
        self.inhibited = True
        if self.step("advise", lambda: self.incoming.advise(SUMMARY), State.ADVISE, failing):
            self.said.append(Message.ADVISE)
            for block in self.memory.blocks:
                assert block.read(0, block.size) == bytes(block.size)
                block.write(0, b"x" * block.size)

    @precondition(lambda self: self.state is State.NONE)
    @rule()
    def advise_of_another_guest(self) -> None:
        before = self.seen()
        with pytest.raises(MigrationError, match="differ"):
            self.incoming.advise(Summary(SUMMARY.blocks[:1], PAGE))
        assert self.seen() == before

    @precondition(lambda self: self.precopy is None and self.state is State.ADVISE)
    @rule()
    def receive_precopy(self) -> None:
        threads: list[Any] = []
        if self.step("receive_precopy", lambda: threads.append(self.incoming.receive_precopy())):
            (self.precopy,) = threads

    @precondition(lambda self: self.precopy is not None and self.state is State.ADVISE)
    @rule()
    def flip(self) -> None:
        if not self.precopy.done:
            send(self.source.main, Message.FLIP)
            assert self.precopy.join()
            assert self.incoming.control == Header(Message.FLIP)

    @allowed("discard")
    @rule(
        name=st.sampled_from(["ram", "vram"]),
        ranges=good_ranges,
        failing=st.none() | st.sampled_from(["discard ram", "thp off ram", "thp off vram"]),
    )
    def discard(self, name: str, ranges: list[tuple[int, int]], failing: str | None) -> None:
        before = vars(self.incoming.discards).copy()
        if self.step(
            "discard", lambda: self.incoming.discard(name, ranges), State.DISCARD, failing
        ):
            block = self.memory.blocks.named(name)
            for offset, length in ranges:
                assert block.read(offset, length) == bytes(length)
            before["commands"] += 1
            before["ranges"] += len(ranges)
            before["bytes"] += sum(length for _, length in ranges)
        assert vars(self.incoming.discards) == before

    @allowed("discard")
    @rule(wrong=st.sampled_from(BAD_DISCARDS))
    def discard_what_is_not_there(self, wrong: tuple[str, list[tuple[int, int]]]) -> None:
        before = self.seen()
        with pytest.raises(ProtocolError):
            self.incoming.discard(*wrong)
        assert self.seen() == before

    @allowed("listen")
    @rule(
        failing=st.none()
        | st.sampled_from(
            [
                "thp off vram",
                "open",
                "require",
                "register the first",
                "register the second",
                "fault thread",
            ]
        )
    )
    def listen(self, failing: str | None) -> None:
        if self.tried_to_listen:
            before = self.seen()
            with pytest.raises(StateError, match=f"before, in state {self.state.value}: only end"):
                self.incoming.listen()
            assert self.seen() == before
            return
        self.tried_to_listen = True
        if self.step("listen", self.incoming.listen, State.LISTENING, failing):
            assert self.registered == {block.address for block in self.memory.blocks}

    @allowed("run")
    @rule()
    def run(self) -> None:
        self.step("run", self.incoming.run, State.RUNNING)

    @allowed("pause")
    @rule()
    def pause(self) -> None:
        self.step("pause", self.incoming.pause, State.PAUSED)

    @allowed("resume")
    @rule()
    def resume(self) -> None:
        self.step("resume", self.incoming.resume, State.RUNNING)

    @allowed("request_push")
    @rule()
    def request_push(self) -> None:
        if self.step("request_push", self.incoming.request_push):
            self.said.append(Message.PUSH)

    @precondition(lambda self: self.state is State.END or self.taken >= self.life)
    @rule(
        failed=st.booleans(),
        failing=st.none() | st.sampled_from(["thp on ram", "thp on vram", "unregister", "relock"]),
    )
    def end(self, failed: bool, failing: str | None) -> None:
        if self.state is State.END:
            before = self.seen()
            self.incoming.end(failed)
            assert self.seen() == before
            return
        self.state = State.END
        self.history.append(State.END)
        self.inhibited = False
        self.attempt(lambda: self.incoming.end(failed), failing)
        self.nothing_is_left(failed)

    def nothing_is_left(self, failed: bool) -> None:
        assert all(end.closed for end in self._ends())
        assert descriptors() == self.without | self.of_source
        assert self.registered == set()
        assert self.memlock.log.count("relock") == 1
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith(("fault", "listen", "precopy"))]
        messages = []
        while header := os.read(self.source.return_path.fileno(), HEADER.size):
            messages.append(Header(*HEADER.unpack(header)))
            os.read(self.source.return_path.fileno(), messages[-1].length)
        assert [message.type for message in messages] == [*self.said, Message.SHUT]
        assert messages[-1].pages == failed

    # ---- what holds all the time ----

    @invariant()
    def the_state_is_that_of_the_model(self) -> None:
        assert self.incoming.state is self.state
        assert [state for state, _ in self.incoming.states] == self.history
        times = [at for _, at in self.incoming.states]
        assert times == sorted(times)
        assert self.incoming.running == (self.state is State.RUNNING)
        assert self.inhibitor.active == self.inhibited

    def teardown(self) -> None:
        if not hasattr(self, "patches"):
            return
        try:
            if self.state is not State.END:
                self.end(False, None)
        finally:
            for patch in self.patches:
                patch.stop()
            self.source.close()
            self.memory.unmap()
            self.bell.close()
        assert descriptors() == self.before_all


TestIncoming = Incoming.TestCase
TestIncoming.settings = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
