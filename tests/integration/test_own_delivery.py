"""A vCPU that serves itself against a source that is played here: each race made to happen."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import anonymous, await_true, workload_of

from vmemu.channel import create_pipes, receive
from vmemu.content import ContentSpec, ExpectedContent
from vmemu.cthread import Bell
from vmemu.errors import PeerGone, ProtocolError
from vmemu.guest_worker import Guest, GuestWorker
from vmemu.manager import MemoryManager
from vmemu.postcopy import IncomingPostcopy
from vmemu.protocol import FLAG_URGENT, HEADER, BlockEntry, Header, Message, Summary
from vmemu.ramblock import RAMBlock

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")
PAGE = 4096
SEED = 5


class Destination:
    """A block of zeros that each of ``vcpus`` reads from its first page to its last."""

    def __init__(self, vcpus: int, pages: int = 1, block: RAMBlock | None = None) -> None:
        self.bell = Bell()
        self.block = block or anonymous(pages=pages)
        self.memory = MemoryManager([self.block])
        self.ends, self.source = create_pipes(True, vcpus)
        self.incoming = IncomingPostcopy(self.memory, self.ends, vcpus, self.bell)
        self.workers: list[GuestWorker] = []

    def start(self) -> None:
        self.memory.map()
        summary = Summary([BlockEntry("ram", self.block.size, PAGE)], PAGE)
        self.incoming.advise(summary)
        receive(self.source.return_path, Message.ADVISE, 60)
        self.incoming.listen()
        self.incoming.run()
        pages, vcpus = self.block.pages, len(self.ends.vcpus)
        fields = {"kind": "sequential", "accesses": pages * vcpus, "access_size": 8, "stride": PAGE}
        workload = workload_of([self.block], vcpus, SEED, write_share=0.0, **fields)
        zeros = ExpectedContent(SEED, [self.block], [ContentSpec(zero_share=1.0)])
        table = self.incoming.ram
        guest = Guest(
            workload, self.memory.blocks, table, zeros, check_reads=True, keep_marks=False
        )
        self.workers = [
            GuestWorker(guest, index, self.bell, slots=self.incoming.vcpu_slots(index))
            for index in range(vcpus)
        ]

    def asked(self, vcpu: int) -> int:
        """The page that the vCPU asks for."""
        end = self.source.vcpus[vcpu].return_path.fileno()
        header = Header(*HEADER.unpack(os.read(end, HEADER.size)))
        assert header.type in (Message.REQ_PAGES, Message.REQ_PAGES_ID)
        assert os.read(end, header.length) == b"ram" if header.length else True
        assert header.pages == 1
        return header.offset // PAGE

    def answer(self, vcpu: int, header: Header, payload: bytes = b"") -> None:
        os.write(self.source.vcpus[vcpu].pages.fileno(), header.pack() + payload)

    def push(self, page: int) -> None:
        header = Header(Message.ZERO, 0, 0, page * PAGE, 1)
        os.write(self.source.main.fileno(), header.pack())

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.incoming.release()
        for worker in self.workers:
            assert worker.join(60), "it was not let go"
        self.incoming.end()
        self.source.close()
        self.memory.unmap()
        self.bell.close()


@contextlib.contextmanager
def destination(vcpus: int = 1, pages: int = 1) -> Iterator[Destination]:
    made = Destination(vcpus, pages)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def zero(page: int = 0) -> Header:
    return Header(Message.ZERO, FLAG_URGENT, 0, page * PAGE, 1, 0, 1, 1)


def elsewhere(page: int = 0) -> Header:
    return Header(Message.ELSEWHERE, 0, 0, page * PAGE, 1)


def taken(there: Destination) -> bool:
    """Whether the vCPU has read all that was said to it."""
    left = array.array("i", [0])
    fcntl.ioctl(there.ends.vcpus[0].pages.fileno(), termios.FIONREAD, left)
    return left[0] == 0


def sleeps_in(worker: GuestWorker, words: str) -> bool:
    """Whether the vCPU's thread stands in that function of the kernel."""
    tid = worker.figures.thread  # 0: it does not run yet
    return bool(tid) and words in Path(f"/proc/self/task/{tid}/wchan").read_text()


def sleeps(worker: GuestWorker) -> str:
    """How often its thread has gone to sleep."""
    lines = Path(f"/proc/self/task/{worker.figures.thread}/status").read_text().splitlines()
    (times,) = (line for line in lines if line.startswith("voluntary"))
    return times


def in_futex(worker: GuestWorker) -> Callable[[], bool]:
    return lambda: sleeps_in(worker, "futex")


def in_read(worker: GuestWorker) -> Callable[[], bool]:
    return lambda: sleeps_in(worker, "pipe_read")


HALVES = [b"", zero().pack()[:7], Header(Message.PAGES, 1, 0, 0, 1, PAGE).pack() + b"x"]
"""What may have come of a page."""


def done(there: Destination) -> list[Any]:
    """The figures of all vCPUs, which found what they must."""
    for worker in there.workers:
        assert worker.join(60)
        assert worker.error is None
    there.incoming.check()
    assert [worker.figures.reads_wrong for worker in there.workers] == [0] * len(there.workers)
    return [worker.figures for worker in there.workers]


def test_a_page_that_was_pushed_before_it_was_asked_for_is_waited_for_where_it_comes():
    with destination() as there:
        (worker,) = there.workers
        worker.start()
        assert there.asked(0) == 0
        there.answer(0, elsewhere())
        await_true(in_futex(worker))
        assert there.incoming.figures.deliveries == 1
        there.push(0)
        (figures,) = done(there)
        assert figures.faults == 1


def test_a_page_that_is_pushed_before_the_source_says_so_is_there_at_once():
    with destination() as there:
        (worker,) = there.workers
        worker.start()
        assert there.asked(0) == 0
        there.push(0)
        await_true(lambda: there.incoming.complete)
        await_true(in_read(worker))  # the source owes an answer, whoever has brought the page
        there.answer(0, elsewhere())
        done(there)


def test_what_is_said_of_one_page_answers_for_no_other():
    with destination(pages=4) as there:
        (worker,) = there.workers
        worker.start()
        assert there.asked(0) == 0
        for answer in (elsewhere(3), zero(2)):
            there.answer(0, answer)
            await_true(lambda: taken(there))
            await_true(in_read(worker))
        there.answer(0, zero(0))
        assert there.asked(0) == 1
        there.answer(0, Header(Message.ZERO, FLAG_URGENT, 0, PAGE, 1, 0, 1, 1))
        assert there.asked(0) == 3  # and not 2, which has come
        there.answer(0, zero(3))
        done(there)


def test_all_who_miss_a_page_wait_for_the_one_who_has_asked():
    with destination(vcpus=3) as there:
        first, *others = there.workers
        first.start()
        assert there.asked(0) == 0
        for worker in others:
            worker.start()
        for worker in others:
            await_true(in_futex(worker))
        there.answer(0, zero())
        assert [figures.faults for figures in done(there)] == [1, 1, 1]
        stats = there.incoming.figures.stats
        assert (stats.messages, stats.requests, stats.shared) == (3, 1, 2)


def test_what_nobody_waits_for_wakes_nobody():
    with destination(pages=4) as there:
        (worker,) = there.workers
        worker.start()
        assert there.asked(0) == 0
        there.answer(0, elsewhere())
        await_true(in_futex(worker))
        before = sleeps(worker)
        for page in (1, 2, 3):
            there.push(page)
        await_true(lambda: there.incoming.ram.pages_received == 3)
        assert sleeps(worker) == before
        there.push(0)
        done(there)


def test_the_pages_of_a_run_wake_each_who_waits_for_one_of_them():
    with destination(vcpus=2, pages=2) as there:
        first, second = there.workers
        first.start()
        assert there.asked(0) == 0
        second.start()
        assert there.asked(1) == 1
        for vcpu, worker in enumerate(there.workers):
            there.answer(vcpu, elsewhere(vcpu))
            await_true(in_futex(worker))
        run = Header(Message.ZERO, 0, 0, 0, 2)
        os.write(there.source.main.fileno(), run.pack())
        done(there)


@pytest.mark.parametrize(
    "half", [b"", zero().pack()[:7], Header(9, 1, 0, 0, 1, PAGE).pack() + b"x"]
)
def test_who_waits_in_a_read_is_let_go_whatever_has_come_of_its_page(half):
    with destination() as there:
        (worker,) = there.workers
        worker.start()
        assert there.asked(0) == 0
        if half:
            os.write(there.source.vcpus[0].pages.fileno(), half)
        await_true(in_read(worker))
        assert not worker.done
    assert worker.figures.position <= 1


def test_who_waits_for_what_another_has_asked_for_is_let_go():
    with destination(vcpus=2) as there:
        first, second = there.workers
        first.start()
        assert there.asked(0) == 0
        second.start()
        await_true(in_futex(second))


def test_the_end_of_its_channel_is_an_error_and_nobody_goes_on_before_he_is_let_go():
    with destination(vcpus=2) as there:
        first, second = there.workers
        first.start()
        assert there.asked(0) == 0
        second.start()
        await_true(in_futex(second))
        there.source.vcpus[0].pages.close()
        await_true(lambda: there.incoming.deliveries.failed)
        with pytest.raises(PeerGone, match="channel of a vCPU: the source closed the channel"):
            there.incoming.check()
        await_true(in_futex(first))
        assert not first.done
        assert not second.done


def test_the_end_of_its_return_path_is_an_error():
    with destination() as there:
        there.source.vcpus[0].return_path.close()
        (worker,) = there.workers
        worker.start()
        await_true(lambda: there.incoming.deliveries.failed)
        with pytest.raises(PeerGone, match="return path: the source closed it while pages"):
            there.incoming.check()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (Header(Message.ELSEWHERE, pages=1, length=8), "pages that go another way carry no bytes"),
        (Header(Message.PAGES, FLAG_URGENT, 1, 0, 1, PAGE), "no such block"),
        (Header(Message.HELLO), "not expected here"),
    ],
    ids=["elsewhere", "block", "type"],
)
def test_what_no_source_may_say_is_an_error(header, words):
    with destination() as there:
        (worker,) = there.workers
        worker.start()
        assert there.asked(0) == 0
        there.answer(0, header)
        await_true(lambda: there.incoming.deliveries.failed)
        with pytest.raises(ProtocolError, match=words):
            there.incoming.check()


def test_end_alone_lets_go_of_who_waits():
    """Nobody has said stop, or released anything: what it touches then is unregistered."""
    made = Destination(1)
    made.start()
    try:
        (worker,) = made.workers
        worker.start()
        assert made.asked(0) == 0
        await_true(in_read(worker))
        made.incoming.end()
        assert worker.join(60)
        assert made.incoming.state.value == "end"
    finally:
        made.stop()


def test_a_vcpu_that_runs_on_keeps_what_it_uses(monkeypatch):
    monkeypatch.setattr("vmemu.incoming_threads.THREAD_PATIENCE_S", 0.05)
    made = Destination(1)
    made.start()
    try:
        tid = made.incoming.figures.vcpu_tid
        tid[0] = 1  # as of one that does not end
        with pytest.raises(Exception, match="threads that do not end: vcpu0"):
            made.incoming.end()
        assert made.incoming.stuck
        assert not made.ends.vcpus[0].pages.closed
        tid[0] = 0
        assert made.incoming.deliveries.close(0) == []
        made.ends.close()
        os.close(made.incoming.uffd.fd)
        made.incoming._threads.close()
    finally:
        made.source.close()
        made.memory.unmap()
        made.bell.close()


GONE = """
import os
from support import shared
from test_own_delivery import Destination
from vmemu import core
made = Destination(1, block=shared("ram", pages=1))
made.start()
core.lib.vm_ram_mark_received(core.ffi.addressof(made.incoming.ram.block, 0), 0, 1)
os.ftruncate(made.block._fd, 0)
print("touching", flush=True)
made.workers[0].start()
made.workers[0].join(60)
"""


def test_memory_that_is_refused_with_its_page_in_place_is_no_missing_page():
    """Served again and again, it would keep its vCPU busy for ever."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2]))}
    done = subprocess.run(
        [sys.executable, "-c", GONE],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == ("touching\n", -signal.SIGBUS), done.stderr
