"""How a run ends when something is in its way: what is told, and that nothing is left."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import anonymous, scenario, synthetic

from vmemu.channel import ChannelEnds, create_pipes, receive
from vmemu.cthread import Bell
from vmemu.errors import CoreError, HostError, ProtocolError
from vmemu.hostcheck import PostcopyUnsupported
from vmemu.manager import MemoryManager
from vmemu.migration import Migration
from vmemu.postcopy import IncomingPostcopy
from vmemu.protocol import BlockEntry, Header, Message, Summary
from vmemu.runstate import StallError, VerificationError
from vmemu.source_loader import PushSpec, SourceSpec

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")
TESTS = str(Path(__file__).parents[1])
MODES = pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
SHARED = {"name": "vram", "backing": "shared", "size": "64KiB"}


def on_demand(preempt: bool, **more: Any) -> Migration:
    """A guest that touches every page, none of which comes by itself."""
    guest = {"vcpus": 2, "trace": synthetic("permutation", write_share=0.4)}
    modes = {"postcopy": {"preempt": preempt, "push": False}}
    return Migration(scenario(guest=guest, migration=modes, **more))


def program(code: str) -> subprocess.Popen[str]:
    """A Python program that finds ``support``."""
    environment = os.environ | {"PYTHONPATH": TESTS}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


# ---- the other end ----

KILLED = """
import dataclasses, signal, sys
from support import scenario
from vmemu.content import ContentSpec
from vmemu.migration import Migration
migration = Migration(scenario())
spec_of = migration._source_spec
def endless(memory):
    return dataclasses.replace(spec_of(memory), contents=(ContentSpec(path={path!r}),))
def tell():
    print(migration._source.process.pid, flush=True)
    signal.pause()
migration._source_spec, migration._precopy = endless, tell
migration.run()
"""


def test_a_source_that_makes_its_image_ends_when_the_destination_is_killed(tmp_path):
    """The image is that of a pipe that nobody writes to: it is never done."""
    path = tmp_path / "image"
    os.mkfifo(path)
    with program(KILLED.format(path=str(path))) as destination:
        assert destination.stdout is not None
        pidfd = os.pidfd_open(int(destination.stdout.readline()))
        destination.kill()
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)  # readable once the process has ended
        assert poll.poll(60_000)
    finally:
        os.close(pidfd)


@MODES
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Header(Message.REQ_PAGES_ID, pages=1, length=3).pack() + b"rom", "does not exist"),
        (Header(Message.REQ_PAGES_ID, 0, 0, 1, 1, 3).pack() + b"ram", "no whole pages"),
        (Header(Message.HELLO).pack(), "not expected here"),
    ],
    ids=["unknown-block", "crooked-offset", "unknown-message"],
)
def test_what_the_source_can_not_accept_is_told_in_its_own_words(preempt, said, words, monkeypatch):
    migration = on_demand(preempt)
    run_guest = migration._run_guest

    def lie_first() -> None:
        os.write(migration._source.ends.return_path.fileno(), said)
        run_guest()

    monkeypatch.setattr(migration, "_run_guest", lie_first)
    run = migration.run()
    assert run.status == "failed"
    assert "the source gave up: return path: message type" in str(run.error)
    assert words in str(run.error)
    assert "closed the channel" not in str(run.error)


def test_a_source_that_does_not_hear_what_it_has_to_do_is_waited_for_no_longer_than_any():
    """An order of the push may be longer than what the socket to the source holds."""
    migration = on_demand(True, source={"startup_timeout": "1s"})
    spec_of = migration._source_spec

    def long(memory: MemoryManager) -> SourceSpec:
        assert migration._source is not None
        os.kill(migration._source.process.pid, signal.SIGSTOP)
        order = PushSpec(order="recorded", recorded=bytes(8 << 20))
        return dataclasses.replace(spec_of(memory), push=order)

    migration._source_spec = long
    run = migration.run()
    assert run.status == "failed"
    assert "no HELLO came in time" in str(run.error)


@MODES
def test_a_stopped_source_and_a_full_return_path_hold_up_nobody(preempt):
    def fill(end: Any) -> None:
        for piece in (bytes(4096), b"\0"):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(end.fileno(), piece)

    migration = on_demand(preempt, limits={"stall": "300ms"})
    listen = migration._listen

    def listen_and_stop() -> None:
        listen()
        os.kill(migration._source.process.pid, signal.SIGSTOP)
        fill(migration._source.ends.return_path)

    migration._listen = listen_and_stop
    run = migration.run()
    assert run.status == "failed"
    assert isinstance(run.error, StallError)
    assert {one.vcpu for one in run.error.waiting} == {0, 1}


# ---- what a source may not claim ----


@contextlib.contextmanager
def running(preempt: bool) -> Iterator[tuple[IncomingPostcopy, ChannelEnds, Bell]]:
    """An incoming side that runs, with the source's ends of its channels."""
    bell = Bell()
    destination, source = create_pipes(preempt)
    with MemoryManager([anonymous(pages=16)]) as memory:
        memory.map()
        incoming = IncomingPostcopy(memory, destination, 1, bell)
        try:
            incoming.advise(Summary([BlockEntry("ram", 16 * 4096, 4096)], 4096))
            receive(source.return_path, Message.ADVISE, 60)
            incoming.listen()
            incoming.run()
            yield incoming, source, bell
        finally:
            incoming.end()
            source.close()
            bell.close()


@pytest.mark.parametrize("placed", [0, 1, 15])
def test_all_is_sent_and_pages_are_missing_is_a_protocol_error_at_once(placed):
    with running(preempt=False) as (incoming, source, _):
        zeros = Header(Message.ZERO, pages=placed).pack() if placed else b""
        os.write(source.main.fileno(), zeros + Header(Message.COMPLETE).pack())
        (listening,) = (one for one in incoming._threads if one.name == "listen")
        assert listening.join(60)
        assert listening.error is None
        with pytest.raises(ProtocolError, match=rf"all is sent, with {16 - placed} pages? missing"):
            incoming.check()


def test_all_is_sent_is_no_lie_while_pages_may_come_on_the_urgent_channel():
    with running(preempt=True) as (incoming, source, bell):
        os.write(source.main.fileno(), Header(Message.COMPLETE).pack())
        (listening,) = (one for one in incoming._threads if one.name == "listen")
        assert listening.join(60)
        incoming.check()
        assert source.urgent is not None
        os.write(source.urgent.fileno(), Header(Message.ZERO, 1, pages=16).pack())
        deadline = time.monotonic() + 60
        while not incoming.complete and time.monotonic() < deadline:
            bell.wait(1)
        assert incoming.complete
        incoming.check()


# ---- cleaning up ----


def failing_unmap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is unmapped, and then it is said that it was not."""
    unmap = MemoryManager.unmap

    def fail(memory: MemoryManager) -> None:
        unmap(memory)
        raise CoreError("munmap", 22)

    monkeypatch.setattr(MemoryManager, "unmap", fail)


def test_a_clean_up_that_fails_does_not_hide_wrong_bytes(monkeypatch):
    failing_unmap(monkeypatch)
    guest = {"vcpus": 1, "trace": synthetic("uniform", accesses=1, write_share=0)}
    run = Migration(scenario(guest=guest), flips=(("ram", 77_777),)).run()
    assert run.status == "failed"
    assert isinstance(run.error, VerificationError)
    assert f"ram+{77_777:#x}" in str(run.error)
    (note,) = run.error.__notes__
    assert note.startswith("cleaning up failed as well: munmap")
    assert run.verification.bytes_wrong == 1


def test_a_clean_up_that_fails_fails_a_run_that_was_complete(monkeypatch):
    failing_unmap(monkeypatch)
    run = Migration(scenario()).run()
    assert (run.status, run.verification.bytes_wrong) == ("failed", 0)
    assert isinstance(run.error, CoreError)
    assert run.error.operation == "munmap"


# ---- what this host can't do ----


def test_what_this_host_can_not_do_is_skipped_where_the_scenario_says_so():
    blocks = [SHARED | {"path": "/proc/vmemu-test"}]
    run = Migration(scenario(blocks, on_unavailable="skip")).run()
    assert run.status == "skipped"
    assert isinstance(run.error, PostcopyUnsupported)
    assert "not on tmpfs" in str(run.error)


@pytest.mark.parametrize("step", ["_map", "_start_source", "_precopy", "_listen", "_run_guest"])
@pytest.mark.parametrize("policy", ["skip", "fail"])
def test_a_host_that_fails_at_any_phase_is_skipped_or_raised(step, policy, monkeypatch):
    migration = Migration(scenario(on_unavailable=policy))
    take = getattr(migration, step)

    def fail_after_it() -> None:
        take()
        raise HostError("this host has had enough", "wait")

    monkeypatch.setattr(migration, step, fail_after_it)
    if policy == "fail":
        with pytest.raises(HostError, match="had enough"):
            migration.run()
        return
    run = migration.run()
    assert run.status == "skipped"
    assert isinstance(run.error, HostError)


WORKER = """
from multiprocessing import get_context
from support import scenario
from vmemu.errors import HostError
from vmemu.migration import Migration
def work(_):
    try:
        return Migration(scenario()).run().status
    except HostError as error:
        return str(error)
with get_context("fork").Pool(1) as pool:
    print(pool.map(work, [0])[0])
"""


def test_a_worker_of_a_pool_may_have_no_source_and_says_so():
    with program(WORKER) as done:
        out, _ = done.communicate(timeout=110)
    assert done.returncode == 0
    assert out.startswith("the source process can't be started: this process is a daemon")
