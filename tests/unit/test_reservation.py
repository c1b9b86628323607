"""Locks, lines and sizes of pools: files stand in for sysfs, the kernel's locks are real."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import HUGE

from vmemu import hugepages, reservation
from vmemu.errors import HostError, HugepageShortage
from vmemu.reservation import Resizer, _Place

GIGA = 1 << 30
FIGURES = ("nr", "free", "resv", "surplus", "nr_overcommit")


class Pools:
    """Pools of 2 MiB and 1 GiB pages whose pages tests take and give back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for size in (HUGE, GIGA):
            (root / f"hugepages-{size >> 10}kB").mkdir()
            self.set(size, total=8, free=8)
        self.taken: list[str] = []

    def set(self, size: int, *, total: int, free: int, surplus: int = 0, more: int = 0) -> None:
        for name, value in zip(FIGURES, (total, free, 0, surplus, more), strict=True):
            path = self.root / f"hugepages-{size >> 10}kB" / f"{name}_hugepages"
            with open(os.open(path, os.O_WRONLY | os.O_CREAT), "w") as file:
                file.write(f"{value:4}\n")  # in one write, and the file stays: locks are on it

    def taker(self, who: str, pages: dict[int, int]) -> Callable[[], None]:
        """What maps the pages, or raises and takes nothing."""

        def attempt() -> None:
            pools = {size: hugepages.pool(size) for size in pages}
            for size, count in pages.items():
                if pools[size].free < count:
                    raise hugepages.shortage(who, size, count)
            for size, count in pages.items():
                self.set(size, total=pools[size].total, free=pools[size].free - count)
            self.taken.append(who)

        return attempt


@pytest.fixture
def pools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pools:
    monkeypatch.setattr(hugepages, "SYSFS", tmp_path)
    return Pools(tmp_path)


def descriptors() -> set[str]:
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


def elsewhere(body: Callable[[], object]) -> threading.Thread:
    """A thread that has started: its locks exclude this one's as another process's would."""
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


# ---- changing ----


def test_one_at_a_time_changes_a_pool(pools):
    inside, waited, done = threading.Event(), [], []
    go_on = threading.Event()

    def hold() -> None:
        with reservation.changing([HUGE]):
            inside.set()
            go_on.wait()
            done.append("first")

    def pause(seconds: float) -> None:
        waited.append(seconds)
        go_on.set()

    other = elsewhere(hold)
    inside.wait()
    with reservation.changing([HUGE], pause) as locked:
        done.append("second")
        assert locked
    other.join()
    assert done == ["first", "second"]
    assert waited


def test_another_pool_is_nobodys_concern(pools):
    with reservation.changing([HUGE]):
        thread = elsewhere(lambda: ExitStack().enter_context(reservation.changing([GIGA])))
        thread.join(10)
        assert not thread.is_alive()


def test_what_is_inside_a_moment_is_part_of_it(pools):
    with reservation.changing([HUGE], pytest.fail) as outer:
        with reservation.changing([HUGE], pytest.fail):
            pass
        with reservation.changing([HUGE, GIGA], pytest.fail) as both:
            assert outer and both
    with reservation.changing([HUGE, GIGA], pytest.fail) as again:
        assert again


def test_a_holder_that_never_moves_stops_nobody_for_long(pools, monkeypatch):
    monkeypatch.setattr(reservation, "PATIENCE_S", 0.02)
    with ExitStack() as stuck:
        holder = elsewhere(lambda: stuck.enter_context(reservation.changing([HUGE])))
        holder.join()
        with reservation.changing([HUGE]) as locked:
            assert not locked


def test_a_host_without_the_pool_has_no_lock_and_no_line(pools):
    with reservation.changing([64 << 10], pytest.fail), reservation.using([64 << 10]):
        pass
    assert reservation.take({64 << 10: 1}, lambda: "asked", 5, pytest.fail) == "asked"


def test_locks_are_no_childs_and_a_fork_keeps_none(pools):
    before = descriptors()
    with ExitStack() as stack:
        stack.enter_context(reservation.changing([HUGE]))
        stack.enter_context(reservation.using([HUGE]))
        place = stack.enter_context(_Place([HUGE], "free_hugepages"))
        place.stand()
        mine = [int(fd) for fd in descriptors() - before]
        assert len(mine) == 3
        assert not any(os.get_inheritable(fd) for fd in mine)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # holds what was open, as long as the pipe does
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
    try:
        with (
            reservation.changing([HUGE], pytest.fail) as locked,
            _Place([HUGE], "free_hugepages") as next_one,
            reservation.resizing(HUGE, wait_s=0),
        ):
            next_one.stand()
            assert locked and next_one.first
    finally:
        os.close(writing)
        os.waitpid(child, 0)
    assert descriptors() == before


# ---- the line ----


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_who_came_first_of_those_who_stand_is_first(moves):
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        directory = Path(stack.enter_context(_temporary()))
        patch.setattr(hugepages, "SYSFS", directory)
        Pools(directory)
        places = [stack.enter_context(_Place([HUGE, GIGA], "free_hugepages")) for _ in range(6)]
        standing: set[int] = set()
        for who, stands in moves:
            if stands:
                places[who].stand()
                standing.add(who)
            else:
                places[who].step_aside()
                standing.discard(who)
            firsts = [number for number in sorted(standing) if places[number].first]
            assert firsts == sorted(standing)[:1]


def _temporary():  # type: ignore[no-untyped-def]
    import tempfile

    return tempfile.TemporaryDirectory()


def test_one_that_needs_many_is_not_passed_by_those_that_need_few(pools):
    pools.set(HUGE, total=8, free=4)
    waits = threading.Event()
    free_again = threading.Event()

    def pause(seconds: float) -> None:
        waits.set()
        free_again.wait(seconds)

    many = {HUGE: 8}
    big = elsewhere(lambda: reservation.take(many, pools.taker("many", many), 60, pause))
    waits.wait()
    few = {HUGE: 2}
    small = elsewhere(lambda: reservation.take(few, pools.taker("few", few), 60))
    small.join(0.3)
    assert pools.taken == []  # the four that are free would do for it
    pools.set(HUGE, total=8, free=8)
    free_again.set()
    big.join()
    assert pools.taken == ["many"]
    pools.set(HUGE, total=8, free=8)
    small.join()
    assert pools.taken == ["many", "few"]


def test_one_that_does_not_beat_is_passed_after_a_time_and_waited_for_again_when_it_does(
    pools, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr(reservation.time, "monotonic", lambda: clock[0])
    with ExitStack() as stack:
        stopped, awake, mine = (
            stack.enter_context(_Place([HUGE, GIGA], "free_hugepages")) for _ in range(3)
        )
        for place in (stopped, awake, mine):
            place.stand()

        def look(beats: int, *, step_s: float = 0.05) -> bool:
            first = False
            for _ in range(beats):
                clock[0] += step_s
                awake.beat()
                first = mine.first
            return first

        enough = int(reservation.STILL_S / 0.05) + 2
        assert not look(enough)  # one is passed, and the other beats
        awake.step_aside()
        assert mine.first
        stopped.beat()
        assert not mine.first
        assert not look(3, step_s=reservation.STILL_S)  # I was stopped too, and saw nothing
        assert look(enough)


def test_nobody_sees_how_long_one_was_still_whom_he_did_not_watch(pools):
    with _Place([HUGE], "free_hugepages") as earlier, _Place([HUGE], "free_hugepages") as late:
        earlier.stand()
        time.sleep(0.01)
        late.stand()
        assert earlier.first and not late.first
        earlier.step_aside()
        assert late.first


@pytest.mark.parametrize(
    ("before", "length"), [(100, 50), (101, 50), (100, 0), (100, 1 << 40), (51, 1), (1, 1 << 40)]
)
def test_a_strangers_lock_that_is_no_place_is_in_nobodys_way(pools, before, length):
    """Any user may lock any bytes of a file that all can read, to its end (a length of 0) too."""
    with _Place([HUGE], "free_hugepages") as earlier, _Place([HUGE], "free_hugepages") as late:
        earlier.stand()
        time.sleep(0.01)
        late.stand()
        with open(hugepages.directory(HUGE) / "free_hugepages") as file:
            lock = (fcntl.F_RDLCK, os.SEEK_SET, late._at - before, length, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, reservation._FLOCK.pack(*lock))
            assert not late.first  # the one ahead is still seen, below the stranger
            earlier.step_aside()
            assert late.first


def test_a_strangers_lock_on_all_of_the_file_does_not_stop_the_line(pools):
    with open(hugepages.directory(HUGE) / "free_hugepages") as file:
        lock = (fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, reservation._FLOCK.pack(*lock))
        few = {HUGE: 1}
        reservation.take(few, pools.taker("me", few), 60)
    assert pools.taken == ["me"]


def test_who_needs_more_than_the_pool_has_lets_others_pass_and_keeps_its_place(pools):
    waits = threading.Event()

    def pause(seconds: float) -> None:
        waits.set()
        threading.Event().wait(seconds)

    many = {HUGE: 9}
    big = elsewhere(lambda: reservation.take(many, pools.taker("many", many), 60, pause))
    waits.wait()
    few = {HUGE: 8}
    reservation.take(few, pools.taker("few", few), 60)
    pools.set(HUGE, total=9, free=9)
    big.join()
    assert pools.taken == ["few", "many"]


def test_nobody_waits_in_a_circle_for_two_pools(pools):
    """Each has one pool and wants the other: as all is taken in one moment, nobody has half."""
    threads = []
    for number in range(6):
        pages = {HUGE: 8, GIGA: 8} if number % 2 else {GIGA: 8, HUGE: 8}

        def run(pages: dict[int, int] = pages, who: str = str(number)) -> None:
            reservation.take(pages, pools.taker(who, pages), 60)
            with reservation.changing([HUGE, GIGA]):
                for size in pages:
                    pools.set(size, total=8, free=8)

        threads.append(elsewhere(run))
    for thread in threads:
        thread.join()
    assert sorted(pools.taken) == list("012345")


def test_when_the_time_is_over_the_shortage_is_the_error(pools):
    pools.set(HUGE, total=8, free=1)
    asked: list[float] = []
    wanted = {HUGE: 2}
    before = descriptors()
    with pytest.raises(HugepageShortage, match="1 free"):
        reservation.take(wanted, pools.taker("late", wanted), 0.05, asked.append)
    assert asked
    assert descriptors() == before


def test_who_may_not_wait_is_told_at_once_and_stands_in_no_line(pools):
    pools.set(HUGE, total=8, free=1)
    wanted = {HUGE: 2}
    with pytest.raises(HugepageShortage):
        reservation.take(wanted, pools.taker("fails", wanted), 0, pytest.fail)
    with _Place([HUGE], "free_hugepages") as place:
        place.stand()  # somebody who waits for more does not keep one that fits from going on
        few = {HUGE: 1}
        reservation.take(few, pools.taker("fits", few), 0, pytest.fail)
    assert pools.taken == ["fits"]


def test_who_has_waited_in_vain_says_how_long_and_nothing_of_a_scenario(pools):
    pools.set(HUGE, total=8, free=1)
    wanted = {HUGE: 2}
    with pytest.raises(HugepageShortage, match=r"back; waited [\d.]+m?s for that; ") as caught:
        reservation.take(wanted, pools.taker("waits", wanted), 0.05)
    assert "scenario" not in str(caught.value)


def test_an_interruption_while_waiting_leaves_no_lock(pools):
    pools.set(HUGE, total=8, free=0)
    before = descriptors()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    wanted = {HUGE: 1}
    with pytest.raises(KeyboardInterrupt):
        reservation.take(wanted, pools.taker("stopped", wanted), 60, interrupt)
    assert descriptors() == before
    with _Place([HUGE], "free_hugepages") as place:
        place.stand()
        assert place.first


def test_pages_that_may_still_be_made_count(pools):
    pools.set(HUGE, total=3, free=0, surplus=1, more=3)
    pool = hugepages.pool(HUGE)
    assert (pool.available, pool.obtainable, pool.most) == (0, 2, 5)
    waiting = [0.0]

    def attempt() -> str:
        return "made"

    assert reservation.take({HUGE: 2}, attempt, 60, waiting.append) == "made"
    assert waiting == [0.0]
    with pytest.raises(HugepageShortage, match="1 of 3 surplus ones made; others hold 3") as caught:
        raise hugepages.shortage("x", HUGE, 4)
    assert caught.value.remedy.endswith("7") or "7 >" in caught.value.remedy


# ---- who uses a pool and who resizes it ----


def test_a_resizer_waits_for_users_and_those_who_come_later_wait_for_it(pools):
    order: list[str] = []
    waits, leave = threading.Event(), threading.Event()

    def resize() -> None:
        def pause(seconds: float) -> None:
            waits.set()
            leave.wait(seconds)

        with reservation.resizing(HUGE, pause=pause):
            order.append("resized")

    def use() -> None:
        with reservation.using([HUGE, GIGA]):
            order.append("used")

    with reservation.using([HUGE]), reservation.using([GIGA, HUGE], wait_s=0):
        resizer = elsewhere(resize)
        waits.wait()
        late = elsewhere(use)  # could share the pool with us, and would starve the resizer
        late.join(0.2)
        order.append("left")
    leave.set()
    resizer.join()
    late.join()
    assert order == ["left", "resized", "used"]


def test_who_waits_for_one_pool_stands_in_nobodys_way_at_another(pools):
    """Else a resizer of both would wait for one that waits for it."""
    waits = threading.Event()

    def pause(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    def use() -> None:
        with reservation.using([HUGE, GIGA], pause=pause):
            pass

    with reservation.resizing(HUGE):
        user = elsewhere(use)
        waits.wait()
        with reservation.resizing(GIGA, wait_s=0):
            pass
    user.join()


def test_who_has_the_pool_alone_may_use_it_and_resize_it_inside(pools):
    with reservation.resizing(HUGE, pause=pytest.fail):
        with reservation.using([HUGE, GIGA], pause=pytest.fail):
            pass
        with reservation.resizing(HUGE, pause=pytest.fail):
            pass
        other = elsewhere(lambda: ExitStack().enter_context(reservation.using([HUGE])))
        other.join(0.2)
        assert other.is_alive()  # what is inside ended, and nobody else was let in
    other.join()


def test_who_uses_a_pool_uses_it_inside_whoever_waits_to_resize_it(pools):
    waits = threading.Event()

    def pause(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    with reservation.using([HUGE]):
        resizer = elsewhere(lambda: ExitStack().enter_context(_resizing(pause)))
        waits.wait()
        with reservation.using([HUGE], pause=pytest.fail):
            pass
        assert resizer.is_alive()
    resizer.join()


def _resizing(pause: Callable[[float], None]) -> AbstractContextManager[Resizer]:
    return reservation.resizing(HUGE, pause=pause)


def test_what_could_only_wait_for_itself_or_in_a_circle_is_refused_at_once(pools):
    with (
        reservation.using([HUGE]),
        pytest.raises(ValueError, match="pool of 2MiB inside using it would wait for itself"),
        reservation.resizing(HUGE, pause=pytest.fail),
    ):
        pass
    with (
        reservation.resizing(GIGA),
        pytest.raises(ValueError, match="2MiB has to be locked before that of 1GiB"),
        reservation.using([HUGE], pause=pytest.fail),
    ):
        pass
    with reservation.resizing(HUGE, wait_s=0), reservation.resizing(GIGA, wait_s=0):
        pass


def test_a_run_tells_resizers_to_wait_but_never_waits_itself(pools):
    run, late = reservation.Tenancy(), reservation.Tenancy()
    run.begin([HUGE])
    still = r"2MiB hugepages is still used or resized .* after 0 s"
    with pytest.raises(HostError, match=still), reservation.resizing(HUGE, wait_s=0):
        pass
    run.end()
    run.end()
    with reservation.resizing(HUGE, wait_s=0):
        late.begin([HUGE])
    with reservation.resizing(HUGE, wait_s=0):
        pass
    late.end()


def test_only_a_resizer_that_waits_keeps_a_run_from_telling(pools):
    run, other = reservation.Tenancy(), reservation.Tenancy()
    with _Place([HUGE], reservation._SIZE) as user:
        user.stand()
        run.begin([HUGE])
    with pytest.raises(HostError, match="still used"), reservation.resizing(HUGE, wait_s=0):
        pass
    waits = threading.Event()

    def pause(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    def resize() -> None:
        with reservation.resizing(HUGE, pause=pause):
            pass

    resizer = elsewhere(resize)
    waits.wait()
    other.begin([HUGE])
    run.end()
    resizer.join(60)
    assert not resizer.is_alive()
    other.end()


def test_the_size_comes_back_after_an_error_too(pools):
    def fail(resizer: reservation.Resizer) -> None:
        # A file takes what is written and does not make pages, which resize would wait for.
        pools.set(resizer.page_size, total=3, free=3)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), reservation.resizing(HUGE) as resizer:
        fail(resizer)
    assert hugepages.pool(HUGE).total == 8


def test_a_size_that_has_not_changed_is_not_written(pools, monkeypatch):
    """Only root may; and that others take pages meanwhile, or have surplus ones, is no change."""
    monkeypatch.setattr(reservation.Resizer, "_write", lambda self, pages: pytest.fail("written"))
    with reservation.resizing(HUGE):
        pools.set(HUGE, total=9, free=2, surplus=1)


def test_a_pool_that_does_not_get_its_size_is_told_with_figures(pools):
    with reservation.resizing(HUGE, pause=lambda seconds: None) as resizer:
        pools.set(HUGE, total=8, free=2, surplus=2)
        with pytest.raises(HostError, match="does not get 8 pages: 8 in all, 2 free, 2 surplus"):
            resizer.resize(8, wait_s=0)
        pools.set(HUGE, total=8, free=8)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, r"only root changes .*5"),
        (errno.EROFS, r"1GiB hugepages can't be resized: Read-only file system .*  # on the host$"),
        (
            errno.EINVAL,
            r"Invalid argument .*; boot with 'hugepagesz=1G hugepages=5' for the kernel",
        ),
        (errno.EIO, r"can't be resized: Input/output error \(.*/nr_hugepages\)$"),
    ],
)
def test_a_pool_whose_size_cant_be_written_is_told_with_what_would_do(
    pools, monkeypatch, number, said
):
    def write(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with reservation.resizing(GIGA) as resizer:
        monkeypatch.setattr(Path, "write_text", write)
        with pytest.raises(HostError, match=said):
            resizer.resize(5)


@pytest.fixture(autouse=True)
def _no_lock_is_left() -> Iterator[None]:
    yield
    assert reservation._held.sizes == frozenset()
    assert reservation._held.sized == {}
