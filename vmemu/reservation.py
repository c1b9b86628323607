"""Taking pages of the machine's pools of hugepages so that parallel runs don't step on each other.

The truth is the kernel's own reservation: mapping takes it, and the kernel gives it back however a
process ends. Around it are three advisory locks, all on files that each pool has in sysfs: any user
may take them, no file is made, and nothing is left when a process is killed.

* *changing* (flock on the pool's directory): the short moments in which pages change hands, such as
  between proving one page and mapping all, or between a hole and its new reservation. Held by
  nobody who waits, but for the page of a hole that a stranger has taken. Who does not get it within
  some seconds goes on without: its holder may be stopped, and the kernel decides in the end.
* the *line* (locks on ``free_hugepages``): who waits for pages comes in turn, so that one that
  needs many is not starved by those that need few. Each stands at the offset that its time of
  arrival gives; it is first when nobody who is awake stands below that. Who waits shows that it is
  by a beat; one that was stopped (SIGSTOP, a debugger, a frozen cgroup) is passed until it goes on.
* *using* and *resizing* (flock on ``nr_hugepages``): nobody changes a pool's size under those who
  count on it, with a line of its own, so that those who come later let a resizer in.

Nobody waits in a circle, or for itself. Pools are locked in the order of their page sizes, each
waited for in its own line alone. Who waits for pages has nothing yet, and stands in the lines of
all their pools with one time of arrival. A container with a sysfs of its own does not share the
locks; then what is left is the kernel's answer, which is asked again.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

from vmemu import core, hugepages
from vmemu.errors import Advice, CoreError, HostError, HugepageShortage
from vmemu.privilege import on_the_host
from vmemu.units import counted, format_seconds, format_size

Pause = Callable[[float], None]
Result = TypeVar("Result")

PATIENCE_S = 5.0
"""How long ``changing`` waits for others, who hold it for milliseconds; a page of 1 GiB takes one
second to prove."""
_LINE, _SIZE = "free_hugepages", "nr_hugepages"
_RESIZERS = "nr_overcommit_hugepages"
"""Where those who wait to resize stand as well: a run lets only these pass."""
_STEP_S = (0.002, 0.01)
_BEAT_S = (0.02, 0.06)
_FLOCK = struct.Struct("hhqqi4x")
STILL_S = 3.0
"""Seconds without a beat after which somebody in a line is taken for stopped: many beats, and more
than it takes to ask the kernel for a page of 1 GiB, during which nobody beats."""
_LONGEST_LOOK_S = 0.1
_OUT_OF_TURN = 16
"""Beats after which the first in line asks the kernel whatever the pool's figures say: pages that a
mount of hugetlbfs has set aside for itself (min_size) are in none of them."""


# ---- the moments in which pages change hands ----


class _Held(threading.local):
    """What this thread has of the pools: those that it is changing, as what it does inside is part
    of the same moment; and those whose size it counts on or changes, with the kind of lock."""

    def __init__(self) -> None:
        self.sizes: frozenset[int] = frozenset()
        self.sized: dict[int, int] = {}


_held = _Held()


@contextmanager
def changing(page_sizes: Iterable[int], pause: Pause = time.sleep) -> Iterator[bool]:
    """Pages of these pools change hands inside, and nobody else's do meanwhile.

    Short, and without waiting for anything inside. Waits at most ``PATIENCE_S`` for others; gives
    False when it went on without the lock.
    """
    before = _held.sizes
    wanted = sorted(set(page_sizes) - before)
    deadline = time.monotonic() + PATIENCE_S
    with ExitStack() as stack:
        got = [_locked(stack, _open(stack, size, ""), deadline, pause) for size in wanted]
        _held.sizes = before.union(wanted)
        try:
            yield all(got)
        finally:
            _held.sizes = before


def _open(stack: ExitStack, page_size: int, name: str) -> int:
    """A descriptor of a file of the pool, closed with the stack; -1 where there is none."""
    try:
        fd = os.open(hugepages.directory(page_size) / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    stack.callback(os.close, fd)
    return fd


def _locked(stack: ExitStack, fd: int, deadline: float, pause: Pause) -> bool:
    """flock alone, until the deadline; unlocked with the stack."""
    while not _flock(stack, fd, fcntl.LOCK_EX):
        if time.monotonic() >= deadline:
            return False
        pause(random.uniform(*_STEP_S))
    return fd >= 0


def _flock(stack: ExitStack, fd: int, operation: int) -> bool:
    """Whether it is locked now, or can't be at all, as there is no such pool."""
    if fd < 0:
        return True
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a sysfs that has no locks, as some sandboxes emulate it
        return True
    # Said, not left to close: a process that was forked meanwhile has the same open file.
    stack.callback(fcntl.flock, fd, fcntl.LOCK_UN)
    return True


# ---- in turn ----


class _Place:
    """A place in the lines of some pools, by the time of arrival; a context manager.

    Two bytes of each line: the first is locked as long as it stands there, the second *beats*, as
    it is locked and unlocked in turn. A process that is stopped keeps its locks, but beats no more.
    """

    def __init__(self, page_sizes: Iterable[int], name: str) -> None:
        self._stack = ExitStack()
        opened = [_open(self._stack, size, name) for size in sorted(page_sizes)]
        self._fds = [fd for fd in opened if fd >= 0]
        self._at = 2 * time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._standing = self._beats = False
        self._watched: list[dict[int, _Watched]] = [{} for _ in self._fds]

    def stand(self) -> None:
        """Stand in line, at the place that the time of arrival gives."""
        if not self._standing:
            self._set(fcntl.F_RDLCK, self._at)
            self._standing = True

    def beat(self) -> None:
        """Show those behind that it still waits; to be called again and again."""
        if self._standing:
            self._beats = not self._beats
            self._set(fcntl.F_RDLCK if self._beats else fcntl.F_UNLCK, self._at + 1)

    def step_aside(self) -> None:
        """Let the others pass."""
        if self._standing:
            self._set(fcntl.F_UNLCK, self._at, 2)
            self._standing = self._beats = False

    @property
    def first(self) -> bool:
        """Whether nobody stands in these lines who came earlier, and was seen to beat, or not for
        ``STILL_S`` seconds watched by this property."""
        now = time.monotonic()
        lines = zip(self._fds, self._watched, strict=True)
        still = [
            self._all_still(fd, watched, now) for fd, watched in lines
        ]  # every line is looked at
        return all(still)

    def _all_still(self, fd: int, watched: dict[int, _Watched], now: float) -> bool:
        ahead = dict(_standing(fd, self._at))
        for place in watched.keys() - ahead.keys():
            del watched[place]
        for place, beats in ahead.items():
            watched.setdefault(place, _Watched(beats, now)).look(beats, now)
        return all(one.still_s >= STILL_S for one in watched.values())

    def _set(self, kind: int, start: int, length: int = 1) -> None:
        for fd in self._fds:
            with suppress(OSError):  # a file system without such locks has no line
                wanted = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self.step_aside()


class _Watched:
    """Somebody ahead in a line, as one behind sees it."""

    def __init__(self, beats: bool, now: float) -> None:
        self.still_s = 0.0
        self._beats = beats
        self._looked = now

    def look(self, beats: bool, now: float) -> None:
        """Note what it does now. Of the time since the last look only some counts: whoever looks
        may have been stopped as well, and sees the other as it was before both went on."""
        self.still_s += min(now - self._looked, _LONGEST_LOOK_S)
        if beats != self._beats:
            self.still_s, self._beats = 0.0, beats
        self._looked = now


def _standing(fd: int, end: int) -> Iterator[tuple[int, bool]]:
    """(place, whether its beat is locked) of all who stand in a line below ``end``.

    Any user may lock whatever it likes of these files; what is no place does not stand in line.
    """
    ranges = [(0, end)]
    while ranges:
        low, high = ranges.pop()
        found = _locked_in(fd, low, high) if low < high else None
        if found is not None:  # some lock in there, not the first one
            start, length = found
            behind = start + length if length else high
            if start % 2 == 0 and length in (1, 2):
                yield start, length == 2
                behind = start + 2
            ranges += [(low, start), (behind, high)]


def _locked_in(fd: int, low: int, high: int) -> tuple[int, int] | None:
    """(start, length) of a lock of somebody else that reaches into [low, high), and may begin
    before that and end behind it; a length of 0 is up to the end of the file."""
    # Locks for reading are enough, and all that a descriptor for reading may take; but what is in
    # the way of one for writing may be asked of any.
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, low, high - low, 0)
    try:
        found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    except OSError:
        return None
    return None if found[0] == fcntl.F_UNLCK else (found[2], found[3])


def take(
    pages: Mapping[int, int],
    attempt: Callable[[], Result],
    wait_s: float = 0.0,
    pause: Pause = time.sleep,
) -> Result:
    """Call ``attempt``, which maps ``pages`` (their number by page size) or raises
    HugepageShortage and has mapped nothing, while nobody else takes any.

    Who may wait stands in line and tries again when it is first; who needs more than the pools can
    ever have now lets others pass. Raises what ``attempt`` raises, a shortage when ``wait_s``
    seconds are over, which says so.
    """
    begun = time.monotonic()
    deadline = begun + wait_s
    if wait_s <= 0 or not pages:
        with changing(pages, pause):
            return attempt()
    with _Place(pages, _LINE) as place:
        beat = 0
        while True:
            over = time.monotonic() >= deadline
            if over or _its_turn(place, pages, beat):
                try:
                    with changing(pages, pause):
                        return attempt()
                except HugepageShortage as short:
                    if over:
                        waited = format_seconds(time.monotonic() - begun)
                        short.waited = f"waited {waited} for that{_holders(pages)}"
                        raise
            pause(random.uniform(*_BEAT_S))
            beat += 1


def _holders(page_sizes: Iterable[int]) -> str:
    """Who has their pages, as the end of a sentence."""
    from vmemu import holders  # only where something is short

    found = [holders.held(page_size) for page_size in sorted(page_sizes)]
    return "".join(f"; {text}" for text in found if text)


def _its_turn(place: _Place, pages: Mapping[int, int], beat: int) -> bool:
    """Whether to ask the kernel now: who is first and the pools look as if they would do."""
    pools = [(_pool(size), count) for size, count in pages.items()]
    if any(pool is not None and count > pool.most for pool, count in pools):
        place.step_aside()  # only another size of the pool would help
        return beat == 0
    place.stand()
    place.beat()
    if not place.first:
        return False
    likely = all(pool is None or count <= pool.obtainable for pool, count in pools)
    return likely or beat % _OUT_OF_TURN == 0


def _pool(page_size: int) -> hugepages.Pool | None:
    try:
        return hugepages.pool(page_size)
    except HostError:  # whoever asks the kernel for such a page will be told
        return None


# ---- holding pages, and the size of a pool ----


@contextmanager
def hold(
    pages: Mapping[int, int], wait_s: float = 0.0, pause: Pause = time.sleep
) -> Iterator[None]:
    """Keep ``pages`` (their number by page size) from everybody else inside.

    They are reserved by a mapping that nobody touches: given back at the end, by the kernel if the
    process is killed. Raises HugepageShortage when there are not enough after ``wait_s`` seconds,
    HostError for a size that the host lacks, ValueError for no pages.
    """
    for size, count in pages.items():
        hugepages.pool(size)
        if count < 1:
            raise ValueError(f"{count} pages of {format_size(size)} can't be held")
    with take(pages, lambda: _mapped(pages), wait_s, pause):
        yield


def _mapped(pages: Mapping[int, int]) -> ExitStack:
    with ExitStack() as stack:
        for size, count in sorted(pages.items()):
            try:
                _untouched(stack, size, count)
            except (OSError, OverflowError, CoreError) as error:
                if getattr(error, "errno", errno.ENOMEM) not in (errno.ENOMEM, errno.ENOSPC):
                    raise
                raise hugepages.shortage("this process", size, count) from None
        return stack.pop_all()


def _untouched(stack: ExitStack, page_size: int, count: int) -> None:
    """Map so many pages until the end of the stack, for this process alone: whatever a process that
    is forked meanwhile had of them, it would keep."""
    shift, length = page_size.bit_length() - 1, count * page_size
    address = core.ffi.new("uint64_t *")
    fd = os.memfd_create("vmemu-held", os.MFD_CLOEXEC | os.MFD_HUGETLB | shift << os.MFD_HUGE_SHIFT)
    try:
        os.ftruncate(fd, length)
        core.call(core.lib.vm_map, length, fd, page_size, address)
    finally:
        os.close(fd)
    stack.callback(core.call, core.lib.vm_unmap, address[0], length)
    core.call(core.lib.vm_advise, address[0], length, mmap.MADV_DONTFORK)


@contextmanager
def using(
    page_sizes: Iterable[int], wait_s: float | None = None, pause: Pause = time.sleep
) -> Iterator[None]:
    """Nobody changes the size of these pools inside, if they do it by ``resizing``.

    Inside itself or ``resizing`` of the same thread, it is part of that. Raises HostError when one
    is still being resized after ``wait_s`` seconds (None: as long as it takes), ValueError inside
    one of a larger size, as two that lock pools in different orders would wait for each other.
    """
    with _sized(page_sizes, fcntl.LOCK_SH, wait_s, pause):
        yield


@contextmanager
def _sized(
    page_sizes: Iterable[int], operation: int, wait_s: float | None, pause: Pause
) -> Iterator[None]:
    deadline = math.inf if wait_s is None else time.monotonic() + wait_s
    mine = _held.sized
    with ExitStack() as stack:
        for size in _not_yet_sized(mine, set(page_sizes), operation):
            if not _sized_one(stack, size, operation, deadline, pause):
                raise HostError(
                    f"the pool of {format_size(size)} hugepages is still used or resized"
                    f" by others after {wait_s:g} s"
                )
            mine[size] = operation
            stack.callback(mine.pop, size)
        yield


def _not_yet_sized(mine: Mapping[int, int], page_sizes: set[int], operation: int) -> list[int]:
    """The pools that are still to be locked by a thread that has ``mine``, in order."""
    used = [size for size in page_sizes & mine.keys() if mine[size] == fcntl.LOCK_SH]
    if used and operation == fcntl.LOCK_EX:
        size = format_size(used[0])
        raise ValueError(f"resizing the pool of {size} inside using it would wait for itself")
    wanted = sorted(page_sizes - mine.keys())
    if wanted and mine and wanted[0] < max(mine):
        small, large = format_size(wanted[0]), format_size(max(mine))
        raise ValueError(f"the pool of {small} has to be locked before that of {large}, not inside")
    return wanted


def _sized_one(
    stack: ExitStack, page_size: int, operation: int, deadline: float, pause: Pause
) -> bool:
    # One line at a time: who stood in that of a larger size as well, and waited here, would keep
    # whoever has this pool from the larger one, and both would wait for ever.
    fd = _open(stack, page_size, _SIZE)
    with _Place([page_size], _SIZE) as place, _Place([page_size], _RESIZERS) as shown:
        place.stand()  # left once it is in: those behind may ask
        if operation == fcntl.LOCK_EX:
            shown.stand()
        while not (place.first and _flock(stack, fd, operation)):
            if time.monotonic() >= deadline:
                return False
            pause(random.uniform(*_STEP_S))
            place.beat()
    return True


class Tenancy:
    """What a run that has mapped hugepages tells to those who would resize their pools: wait.

    It never waits itself: who comes while a pool is resized, or somebody waits to do it, goes on
    without. So a program that runs migrations may resize the pool around them.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def begin(self, page_sizes: Iterable[int]) -> None:
        """Have resizers wait from now on, if none is there."""
        sizes = sorted(set(page_sizes))
        with _Place(sizes, _RESIZERS) as place:
            for size in sizes if place.first else ():
                _flock(self._stack, _open(self._stack, size, _SIZE), fcntl.LOCK_SH)

    def end(self) -> None:
        """Let them; safe to call twice."""
        self._stack.close()


class Resizer:
    """The pool of one page size while nobody else uses it."""

    def __init__(self, page_size: int, pause: Pause) -> None:
        self.page_size = page_size
        self._pause = pause
        self._file = hugepages.directory(page_size) / _SIZE

    def resize(self, pages: int, wait_s: float = 30.0) -> None:
        """Give the pool ``pages`` pages, none of them surplus. Raises HostError when the kernel has
        not done it within ``wait_s`` seconds: memory is in pieces, or somebody uses pages who knows
        nothing of these locks."""
        self._set(pages, wait_s, lambda pool: pool.total == pages and pool.surplus == 0)

    def restore(self, pages: int, wait_s: float = 30.0) -> None:
        """The same, but pages that somebody still uses may go when they are given back."""
        self._set(pages, wait_s, lambda pool: _size(pool) == pages)

    def _set(self, pages: int, wait_s: float, done: Callable[[hugepages.Pool], bool]) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            self._write(pages)
            pool = hugepages.pool(self.page_size)
            if done(pool):
                return
            if time.monotonic() >= deadline:
                raise HostError(
                    f"the pool of {format_size(self.page_size)} does not get"
                    f" {counted(pages, 'page')}: {pool.total} in all, {pool.free} free,"
                    f" {pool.surplus} surplus"
                )
            self._pause(0.1)

    def _write(self, pages: int) -> None:
        try:
            self._file.write_text(str(pages))
        except PermissionError:
            command = hugepages.resize_command(self.page_size, pages)
            raise HostError("only root changes the size of a pool of hugepages", command) from None
        except OSError as error:
            raise self._refused(pages, error) from None

    def _refused(self, pages: int, error: OSError) -> HostError:
        what = f"the pool of {format_size(self.page_size)} hugepages can't be resized"
        remedy = ""
        if error.errno == errno.EROFS:  # /sys of a container
            remedy = on_the_host(f"echo {pages} > {self._file}")
        elif error.errno == errno.EINVAL:  # a kernel that finds no gigantic pages once it has begun
            size = format_size(self.page_size).removesuffix("iB")
            remedy = Advice(f"boot with 'hugepagesz={size} hugepages={pages}' for the kernel")
        return HostError(f"{what}: {error.strerror} ({self._file})", remedy)


@contextmanager
def resizing(
    page_size: int, wait_s: float | None = None, pause: Pause = time.sleep
) -> Iterator[Resizer]:
    """Have the pool alone, to change its size; the size that it had comes back afterwards.

    Waits for those inside ``using`` and for runs that have mapped pages; inside itself in the same
    thread, it has what the outer one has. A process that is killed inside gives the pool free, at
    the size that it has then. Raises HostError when it is still used after ``wait_s`` seconds
    (None: as long as it takes), or the host has no such pages, ValueError inside ``using`` of the
    same thread, and as that does.
    """
    hugepages.pool(page_size)
    with _sized([page_size], fcntl.LOCK_EX, wait_s, pause):
        pool = hugepages.pool(page_size)
        resizer = Resizer(page_size, pause)
        try:
            yield resizer
        finally:
            if _size(hugepages.pool(page_size)) != _size(pool):
                resizer.restore(_size(pool))


def _size(pool: hugepages.Pool) -> int:
    """Pages that it keeps, whatever is taken or given back."""
    return pool.total - pool.surplus
