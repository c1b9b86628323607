"""Threads of real migrations on their CPUs: seen from outside while they run, and nothing of the
caller's is changed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import scenario, synthetic

from vmemu.config import Scenario
from vmemu.errors import HostError
from vmemu.migration import Migration
from vmemu.results import document, schema
from vmemu.results.terminal import plain
from vmemu.runstate import Progress, Run

pytestmark = pytest.mark.usefixtures("userfault")

ALLOWED = frozenset(os.sched_getaffinity(0))
FIRST, LAST = frozenset({min(ALLOWED)}), frozenset({max(ALLOWED)})
two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="there is one CPU")

CpuSet = frozenset[int]


@pytest.fixture(autouse=True)
def not_moved(nothing_left: None) -> Iterator[None]:
    """Each test leaves nothing, and its own thread where it was."""
    yield
    assert os.sched_getaffinity(0) == ALLOWED


class Watched:
    """A migration, and where its threads might run each time that it told how far it was."""

    def __init__(self, what: Scenario, stop: Callable[[Watched], object] | None = None) -> None:
        self._seen: dict[str, dict[int, CpuSet]] = {}
        self._stop = stop
        self.migration = Migration(what, progress=self._look)
        self.run: Run = self.migration.run_state

    @property
    def seen(self) -> dict[str, set[CpuSet]]:
        """By phase and thread. At the end of the phase: a thread that has just begun is about to
        move."""
        return {key: set(threads.values()) for key, threads in self._seen.items()}

    def _look(self, progress: Progress) -> None:
        incoming, source = self.run.incoming, self.migration._source
        assert incoming is not None and source is not None and source.pid is not None
        for worker in self.run.workers:
            self._note(progress.phase, f"vcpu{worker.index}", worker.thread.tid)
        for thread in incoming._threads:
            self._note(progress.phase, thread.name, thread.tid)
        self._note(progress.phase, "source", source.pid)
        self._note_children(progress.phase, "beside", source.pid)
        for client in self.run.clients:
            self._note_children(progress.phase, "client", client.pid)
        if self._stop is not None:
            self._stop(self)

    def _note_children(self, phase: str, who: str, pid: int | None) -> None:
        with contextlib.suppress(OSError):
            for tid in map(int, os.listdir(f"/proc/{pid}/task")):
                if tid != pid:
                    self._note(phase, who, tid)

    def _note(self, phase: str, who: str, tid: int | None) -> None:
        with contextlib.suppress(OSError):
            if tid is not None:
                cpus = frozenset(os.sched_getaffinity(tid))
                self._seen.setdefault(f"{phase} {who}", {})[tid] = cpus

    def completed(self) -> dict[str, Any]:
        """Run it; its document, which is valid."""
        assert self.migration.run().error is None
        return self.document()

    def document(self) -> dict[str, Any]:
        built = document.build(self.run)
        schema.validate(built)
        return built


def slow(placement: Any, *, vcpus: int = 1, **sections: Any) -> Scenario:
    """A guest that takes about half a second for the first part of its memory, and a drain that
    takes as long for the rest."""
    trace = synthetic("permutation", accesses=64)
    return scenario(
        [{"name": "ram", "backing": "anonymous", "size": "2MiB"}],
        guest={
            "vcpus": vcpus,
            "trace": trace,
            "pace": {"kind": "rate", "accesses_per_second": 120},
        },
        placement=placement,
        **{"migration": {"postcopy": {"push": False, "bandwidth": "3MiB/s"}}} | sections,
    )


@two_cpus
def test_all_on_whose_way_a_fault_is_share_a_cpu_until_the_guest_is_done():
    watched = Watched(slow("colocate"))
    told = watched.completed()["placement"]
    one = frozenset({int(told["cpus"]["fault"])})
    seen = watched.seen
    assert seen["guest vcpu0"] == seen["guest fault0"] == seen["guest source"] == {one}
    assert seen["guest listen"] == {ALLOWED - one}
    assert ALLOWED - one in seen["guest beside"]  # the push, which waits
    for who in ("fault0", "listen", "source", "beside"):
        assert seen[f"drain {who}"] == {ALLOWED}
    assert (told["asked"], told["chosen"]) == ("colocate", "colocate")


@two_cpus
def test_vcpus_compute_anywhere_once_the_last_page_is_there():
    guest_alone = slow("colocate", migration={"postcopy": {"push": True}})
    watched = Watched(guest_alone)
    watched.completed()
    assert ALLOWED in watched.seen["guest vcpu0"]


@two_cpus
def test_named_cpus_are_kept_to_the_end():
    first, last = min(ALLOWED), max(ALLOWED)
    lists = {"vcpus": last, "fault": first, "urgent": last, "listen": first, "push": first}
    watched = Watched(slow(lists))
    told = watched.completed()["placement"]
    assert watched.seen["guest vcpu0"] == {LAST}
    for phase in ("guest", "drain"):
        assert watched.seen[f"{phase} fault0"] == watched.seen[f"{phase} listen"] == {FIRST}
        assert watched.seen[f"{phase} source"] == {LAST}
        assert FIRST in watched.seen[f"{phase} beside"]
    assert told["chosen"] == "explicit"
    assert told["cpus"]["clients"] is None  # there are none


@two_cpus
def test_a_role_that_is_left_out_is_not_left_where_its_starter_is():
    watched = Watched(slow({"urgent": min(ALLOWED)}))
    watched.completed()
    assert watched.seen["guest source"] == {FIRST}
    assert watched.seen["guest beside"] == {ALLOWED}
    assert watched.seen["guest vcpu0"] == {ALLOWED}


@two_cpus
def test_named_cpus_hold_at_the_source_before_the_flip():
    first, last = min(ALLOWED), max(ALLOWED)
    lists = {"vcpus": last, "push": first, "listen": first, "urgent": first}
    flip = {"flip_at": "600ms", "precopy": {"rounds": 2, "bandwidth": "4MiB/s"}}
    watched = Watched(slow(lists, migration=flip))
    watched.completed()
    assert FIRST in watched.seen["precopy source"]
    assert LAST in watched.seen["precopy beside"]
    assert watched.seen["precopy precopy"] == {FIRST}


@two_cpus
@pytest.mark.parametrize("role", ["clients", "vcpus"])
def test_clients_have_their_own_role(role: str):
    client = {
        "name": "c",
        "block": "vram",
        "trace": synthetic("uniform", accesses=1 << 20),
    }
    blocks = [{"name": "vram", "backing": "shared", "size": "2MiB"}]
    what = scenario(
        blocks,
        clients=[client],
        placement={role: max(ALLOWED)},
        guest={
            "trace": synthetic("permutation", accesses=64),
            "pace": {"kind": "rate", "accesses_per_second": 120},
        },
        migration={"postcopy": {"push": False}},
    )
    watched = Watched(what)
    watched.completed()
    assert watched.seen["guest vcpu0"] == ({LAST} if role == "vcpus" else {ALLOWED})
    assert ALLOWED in watched.seen["guest client"]  # its main thread has none of it


@pytest.mark.parametrize("word", ["auto", "colocate", "spread", "none"])
@pytest.mark.parametrize("preempt", [True, False])
@pytest.mark.parametrize("push", [True, False])
def test_every_byte_is_right_wherever_threads_are(word: str, preempt: bool, push: bool):
    what = scenario(
        [
            {"name": "ram", "backing": "anonymous", "size": "2MiB"},
            {"name": "vram", "backing": "shared", "size": "1MiB"},
        ],
        guest={"vcpus": 3, "trace": synthetic("uniform", accesses=20_000, write_share=0.4)},
        clients=[{"name": "c", "block": "vram", "vcpus": 2, "trace": synthetic("permutation")}],
        placement=word,
        migration={
            "flip_at": "30%",
            "precopy": {"rounds": 1},
            "postcopy": {"preempt": preempt, "push": push, "fault_threads": 2},
        },
    )
    told = Watched(what).completed()
    assert told["verify"]["ok"] is True
    assert told["placement"]["asked"] == word
    assert "\nplacement  " in plain(told)


def test_a_process_with_one_cpu_has_nothing_to_choose():
    os.sched_setaffinity(0, LAST)
    try:
        watched = Watched(slow("auto"))
        told = watched.completed()["placement"]
        assert os.sched_getaffinity(0) == LAST
    finally:
        os.sched_setaffinity(0, ALLOWED)
    assert told["chosen"] == "none"
    assert set().union(*watched.seen.values()) == {LAST}


@two_cpus
def test_cpus_that_were_withheld_are_refused():
    os.sched_setaffinity(0, FIRST)
    try:
        with pytest.raises(HostError, match=rf"placement\.push: CPU {max(LAST)} is not among"):
            Migration(slow({"push": max(ALLOWED)})).run()
    finally:
        os.sched_setaffinity(0, ALLOWED)


@pytest.mark.parametrize("word", ["colocate", "spread"])
def test_a_run_that_loses_its_source_ends_wherever_its_threads_are(word: str):
    def kill(watched: Watched) -> None:
        source = watched.migration._source
        if watched.run.workers and source is not None and source.pid is not None:
            os.kill(source.pid, signal.SIGKILL)

    watched = Watched(slow(word), kill)
    assert watched.migration.run().status == "failed"
    assert watched.document()["error"]["kind"] == "peer_gone"


@pytest.mark.parametrize("word", ["colocate", "spread"])
def test_a_page_that_never_comes_ends_the_run_wherever_its_threads_are(word: str):
    what = scenario(placement=word, limits={"stall": "300ms"})
    run = Migration(what, stalls=(("ram", 0),)).run()
    assert run.status == "failed"
    assert getattr(run.error, "kind", "") == "stall"
