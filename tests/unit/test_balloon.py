"""The balloon, its worker and what inhibits it; the blocks only note what was given back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu.balloon import (
    Balloon,
    BalloonFigures,
    BallooningInhibited,
    BalloonInhibitor,
    BalloonWorker,
)
from vmemu.cthread import Bell
from vmemu.errors import StateError

PAGE = 4096


class NotedBlock:
    """A block that notes what it was told to forget; ``then`` runs in the middle of it."""

    def __init__(self, name: str = "ram", pages: int = 8, page_size: int = PAGE) -> None:
        self.name = name
        self.size = pages * page_size
        self.page_size = page_size
        self.discarded: list[tuple[int, int]] = []
        self.then: Callable[[], object] = lambda: None

    def discard(self, offset: int, length: int) -> None:
        self.discarded.append((offset, length))
        self.then()


@pytest.fixture
def bell() -> Iterator[Bell]:
    bell = Bell()
    yield bell
    bell.close()


def balloon_of(*blocks: NotedBlock) -> Balloon:
    return Balloon(blocks, BalloonInhibitor())


# ---- the balloon ----


def test_what_is_given_back_is_noted_and_counted():
    ram, vram = NotedBlock("ram"), NotedBlock("vram", pages=4)
    balloon = balloon_of(ram, vram)
    balloon.inflate(0, PAGE, 2 * PAGE)
    balloon.inflate(0, 3 * PAGE, PAGE)
    balloon.inflate(1, 3 * PAGE, PAGE)
    balloon.inflate(0, 7 * PAGE, PAGE)
    assert ram.discarded == [(PAGE, 2 * PAGE), (3 * PAGE, PAGE), (7 * PAGE, PAGE)]
    assert balloon.given_back() == [
        (0, PAGE, 3 * PAGE),
        (0, 7 * PAGE, PAGE),
        (1, 3 * PAGE, PAGE),
    ]
    assert balloon.page_maps == (bytearray(b"\0\1\1\1\0\0\0\1"), bytearray(b"\0\0\0\1"))
    assert balloon.figures == BalloonFigures(done=4, refused=0, bytes_given_back=5 * PAGE)


def test_a_page_given_back_twice_is_one_page():
    balloon = balloon_of(NotedBlock())
    balloon.inflate(0, 0, PAGE)
    balloon.inflate(0, 0, 2 * PAGE)
    assert balloon.given_back() == [(0, 0, 2 * PAGE)]
    assert balloon.figures.bytes_given_back == 3 * PAGE


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1, PAGE), (0, PAGE - 1), (0, 0), (-PAGE, PAGE), (7 * PAGE, 2 * PAGE), (8 * PAGE, PAGE)],
)
def test_a_range_that_is_not_whole_pages_of_the_block_is_refused(offset, length):
    ram = NotedBlock()
    balloon = balloon_of(ram)
    with pytest.raises(ValueError, match="block ram"):
        balloon.inflate(0, offset, length)
    assert (ram.discarded, balloon.given_back()) == ([], [])
    assert balloon.figures == BalloonFigures(0, 0, 0)


def test_a_large_page_is_one_page():
    balloon = balloon_of(NotedBlock(pages=2, page_size=512 * PAGE))
    with pytest.raises(ValueError, match="whole pages"):
        balloon.inflate(0, 0, PAGE)
    balloon.inflate(0, 512 * PAGE, 512 * PAGE)
    assert balloon.page_maps == (bytearray(b"\0\1"),)


def test_a_page_is_noted_before_it_goes():
    ram = NotedBlock()
    balloon = balloon_of(ram)
    seen = []
    ram.then = lambda: seen.append(balloon.given_back())
    balloon.inflate(0, PAGE, PAGE)
    assert seen == [[(0, PAGE, PAGE)]]


def test_a_discard_that_fails_is_not_counted_and_its_page_no_longer_trusted():
    ram = NotedBlock()
    balloon = balloon_of(ram)

    def fail() -> None:
        raise OSError("no")

    ram.then = fail
    with pytest.raises(OSError, match="no"):
        balloon.inflate(0, 0, PAGE)
    assert balloon.given_back() == [(0, 0, PAGE)]
    assert balloon.figures == BalloonFigures(0, 0, 0)
    ram.then = lambda: None
    balloon._inhibitor.inhibit()  # nothing is left in flight


def test_a_map_stays_where_it_is():
    """C code keeps a pointer to it."""
    balloon = balloon_of(NotedBlock())
    with memoryview(balloon.page_maps[0]) as held:
        balloon.inflate(0, 0, PAGE)
        assert held[0] == 1
        balloon.forget()
        assert held[0] == 0
    assert balloon.given_back() == []


@given(st.lists(st.tuples(st.integers(0, 31), st.integers(1, 8)), max_size=20))
def test_the_ranges_are_the_pages_given_back_and_never_touch(calls):
    balloon = balloon_of(NotedBlock(pages=32))
    pages = set()
    for first, count in calls:
        count = min(count, 32 - first)  # noqa: PLW2901
        balloon.inflate(0, first * PAGE, count * PAGE)
        pages |= set(range(first, first + count))
    ranges = balloon.given_back()
    found = [
        p for _, offset, length in ranges for p in range(offset // PAGE, (offset + length) // PAGE)
    ]
    assert found == sorted(pages)
    ends = [(offset, offset + length) for _, offset, length in ranges]
    assert all(end < start for (_, end), (start, _) in pairwise(ends))


# ---- the inhibitor ----


def test_it_is_refused_while_inhibited_and_works_again():
    ram = NotedBlock()
    inhibitor = BalloonInhibitor()
    balloon = Balloon([ram], inhibitor)
    with inhibitor:
        assert inhibitor.active
        with pytest.raises(BallooningInhibited, match="while post-copy runs") as caught:
            balloon.inflate(0, 0, PAGE)
        assert isinstance(caught.value, StateError)
        assert (ram.discarded, balloon.given_back()) == ([], [])
    assert not inhibitor.active
    balloon.inflate(0, 0, PAGE)
    assert balloon.figures == BalloonFigures(done=1, refused=1, bytes_given_back=PAGE)


def test_inhibitors_are_counted():
    inhibitor = BalloonInhibitor()
    balloon = Balloon([NotedBlock()], inhibitor)
    inhibitor.inhibit()
    inhibitor.inhibit()
    inhibitor.release()
    with pytest.raises(BallooningInhibited):
        balloon.inflate(0, 0, PAGE)
    inhibitor.release()
    balloon.inflate(0, 0, PAGE)


def test_a_release_without_an_inhibition_is_an_error_and_changes_nothing():
    inhibitor = BalloonInhibitor()
    with pytest.raises(StateError, match="nobody inhibits"):
        inhibitor.release()
    with inhibitor:
        assert inhibitor.active


def test_no_discard_is_in_flight_when_inhibit_returns():
    ram = NotedBlock()
    inhibitor = BalloonInhibitor()
    balloon = Balloon([ram], inhibitor)
    begun, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def slow() -> None:
        begun.set()
        assert go_on.wait(60)
        order.append("discarded")

    def inhibit() -> None:
        inhibitor.inhibit()
        order.append("inhibited")

    ram.then = slow
    giving = threading.Thread(target=lambda: balloon.inflate(0, 0, PAGE))
    giving.start()
    assert begun.wait(60)
    inhibiting = threading.Thread(target=inhibit)
    inhibiting.start()
    while not inhibitor.active:
        assert inhibiting.is_alive()
    with pytest.raises(BallooningInhibited):  # no new one begins while it waits for the old one
        balloon.inflate(0, PAGE, PAGE)
    assert order == []
    go_on.set()
    giving.join()
    inhibiting.join()
    assert order == ["discarded", "inhibited"]


def test_an_inhibition_that_is_interrupted_inhibits_nothing(monkeypatch):
    inhibitor = BalloonInhibitor()

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inhibitor._idle, "wait_for", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inhibitor.inhibit()
    assert not inhibitor.active


def test_many_threads_never_discard_while_anybody_inhibits():
    inhibitor = BalloonInhibitor()
    forbidden = threading.Event()
    wrong: list[str] = []
    blocks = [NotedBlock(str(i)) for i in range(3)]
    balloon = Balloon(blocks, inhibitor)
    stop = threading.Event()

    def look() -> None:
        if forbidden.is_set():
            wrong.append("a discard while inhibited")

    def give(index: int) -> None:
        blocks[index].then = look
        while not stop.is_set():
            with suppress(BallooningInhibited):
                balloon.inflate(index, 0, PAGE)

    threads = [threading.Thread(target=give, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        with inhibitor:
            forbidden.set()
            forbidden.clear()
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    figures = balloon.figures
    assert figures.done == sum(len(block.discarded) for block in blocks)
    assert figures.bytes_given_back == figures.done * PAGE


# ---- the worker ----


def given_by_a_worker(bell: Bell, seed: int, **options: object) -> list[tuple[str, int]]:
    """The pages that a worker gives back until its end, in order."""
    order: list[tuple[str, int]] = []
    blocks = [NotedBlock("ram", pages=20), NotedBlock("vram", pages=5)]
    for block in blocks:
        block.then = lambda block=block: order.append((block.name, block.discarded[-1][0] // PAGE))
    worker = BalloonWorker(balloon_of(*blocks), seed, 1e6, bell, **options)
    worker.start()
    assert worker.join(60)
    assert worker.error is None
    return order


def test_every_page_goes_once_in_the_order_of_the_seed(bell):
    first = given_by_a_worker(bell, 7)
    assert sorted(first) == [("ram", p) for p in range(20)] + [("vram", p) for p in range(5)]
    assert first == given_by_a_worker(bell, 7)
    assert first != given_by_a_worker(bell, 8)
    assert first != sorted(first)
    assert bell.wait(0)


def test_a_limit_is_a_prefix_and_the_rest_is_left(bell):
    assert given_by_a_worker(bell, 7, limit=6) == given_by_a_worker(bell, 7)[:6]
    assert given_by_a_worker(bell, 7, limit=0) == []


def test_only_eligible_pages_go(bell):
    even = given_by_a_worker(bell, 7, eligible=lambda block, page: page % 2 == 0)
    assert even == [(name, page) for name, page in given_by_a_worker(bell, 7) if page % 2 == 0]
    assert len(given_by_a_worker(bell, 7, eligible=lambda b, page: page % 2 == 0, limit=3)) == 3


def test_a_refused_page_is_tried_again_so_that_the_order_stays(bell):
    inhibitor = BalloonInhibitor()
    ram = NotedBlock(pages=40)
    balloon = Balloon([ram], inhibitor)
    worker = BalloonWorker(balloon, 3, 1e6, bell)
    inhibitor.inhibit()
    worker.start()
    while balloon.figures.refused < 3:
        assert not worker.thread.done
    inhibitor.release()
    assert worker.join(60)
    undisturbed = NotedBlock(pages=40)
    other = BalloonWorker(balloon_of(undisturbed), 3, 1e6, bell)
    other.start()
    assert other.join(60)
    assert ram.discarded == undisturbed.discarded


def test_it_stops_when_told_even_while_refused(bell):
    inhibitor = BalloonInhibitor()
    balloon = Balloon([NotedBlock()], inhibitor)
    with inhibitor:
        worker = BalloonWorker(balloon, 3, 1e6, bell)
        worker.start()
        while balloon.figures.refused < 1:
            assert not worker.thread.done
        worker.stop()
        worker.stop()
        assert worker.join(60)
    assert worker.error is None
    assert balloon.figures.done == 0


def test_it_stops_when_told_even_at_a_slow_beat(bell):
    worker = BalloonWorker(balloon_of(NotedBlock()), 3, 1e-6, bell)
    worker.start()
    worker.stop()
    assert worker.join(60)


def test_what_ends_it_is_kept(bell):
    ram = NotedBlock()

    def fail() -> None:
        raise OSError("broken")

    ram.then = fail
    worker = BalloonWorker(balloon_of(ram), 3, 1e6, bell)
    worker.start()
    assert worker.join(60)
    assert str(worker.error) == "broken"


def test_a_balloon_without_blocks_gives_nothing(bell):
    worker = BalloonWorker(balloon_of(), 3, 1e6, bell)
    worker.start()
    assert worker.join(60)
    assert worker.error is None


@pytest.mark.parametrize("rate", [0, -1])
def test_a_rate_is_above_nothing(bell, rate):
    with pytest.raises(ValueError, match="pages a second"):
        BalloonWorker(balloon_of(NotedBlock()), 3, rate, bell)
