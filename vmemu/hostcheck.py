"""Whether post-copy works on this host for these blocks: everything that is wrong, proven by doing.

QEMU asks the same in ``postcopy_ram_supported_by_host`` and stops at the first thing that is wrong;
here all of it is collected, each with the blocks that it concerns and the command that mends it.
What the kernel announces is only the beginning: for each kind of memory in use one page is mapped,
registered, placed and read, and given back on every way out.
"""

from __future__ import annotations

import enum
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from vmemu import core, hugepages, reservation, userfault
from vmemu.errors import Advice, CoreError, HostError, HugepageShortage, InputError, mending
from vmemu.memlock import UNLOCK, locks_new_memory
from vmemu.memoryneed import Need, memory_shortage
from vmemu.needed import needed_features, needed_ioctls, register_mode
from vmemu.pagefit import HERE, Beside, another_page_size, called, target_page
from vmemu.ramblock import BASE_PAGE, Backing, RAMBlock
from vmemu.userfault import Feature, How, Ioctl, Userfaultfd

TARGET_PAGE_SIZE = 4096
"""Bytes of a page of the guest; QEMU's target page."""

_API_IOCTLS = {"UFFDIO_REGISTER": 1 << 0x00, "UFFDIO_UNREGISTER": 1 << 0x01}
_HEAD, _TAIL = b"vmemu>>>", b"<<<vmemu"


class Code(enum.StrEnum):
    """What kind of thing is wrong: for programs, so the values stay as they are."""

    OPEN = "userfaultfd"
    """userfaultfd can't be opened."""
    HANDSHAKE = "handshake"
    """``UFFDIO_API`` failed."""
    API_IOCTLS = "api_ioctls"
    """The handshake's answer lacks register or unregister."""
    FEATURE = "feature"
    """The kernel lacks a feature that some block needs."""
    TARGET_PAGE = "target_page"
    """The target page is bigger than the host page."""
    LOCKED = "locked"
    """The process locks all new memory, so that no page is ever missing."""
    HUGEPAGES = "hugepages"
    """The pool gives no page now."""
    MAP = "map"
    """A page can't be mapped."""
    REGISTER = "register"
    """A page can't be registered."""
    RANGE_IOCTLS = "range_ioctls"
    """Registered memory can't be served: no COPY, WAKE or ZEROPAGE."""
    PLACE = "place"
    """``UFFDIO_COPY`` failed."""
    UNREGISTER = "unregister"
    """A page can't be unregistered."""
    MEMORY = "memory"
    """Both sides together need more memory than there is."""
    READ = "read"
    """A page was placed, and what is read is something else."""


@dataclass(frozen=True)
class HostProblem:
    """One thing that is wrong; ``blocks`` are the names of the blocks that it concerns, none when
    it concerns them all. ``remedy`` is a command, Advice, or empty when there is none; ``key`` is
    what of a block is to blame, or without blocks of the scenario, and ``place`` where that stands
    in it, once somebody has said so. ``waiting_helps`` is as that of HugepageShortage.
    """

    code: Code
    what: str
    remedy: str = ""
    blocks: tuple[str, ...] = ()
    key: str = ""
    place: str = ""
    waiting_helps: bool = False

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        remedy = f"; {mending(self.remedy)}" if self.remedy else ""
        return f"{place}{self.what}{remedy}"


class PostcopyUnsupported(HostError):
    """Post-copy does not work here; ``problems`` has everything that is wrong.

    ``remedy`` is that of the only problem; when there are several, each has its own.
    """

    def __init__(self, problems: Sequence[HostProblem]) -> None:
        self.problems = tuple(problems)
        first = self.problems[0]
        if len(self.problems) == 1:
            super().__init__(first.what, first.remedy)
            self.about(first.blocks[0] if first.blocks else "", first.key)
            return
        super().__init__(_listed(self.problems))

    def locate(self, place_of_block: Callable[[str, str], str]) -> None:
        """As its parent does; of several problems each has a place of its own."""
        if len(self.problems) == 1:
            return super().locate(place_of_block)
        places = [
            place_of_block(p.blocks[0] if p.blocks else "", p.key) if p.key else ""
            for p in self.problems
        ]
        located = [replace(p, place=at) for p, at in zip(self.problems, places, strict=True)]
        self.problems = tuple(located)
        self.what = _listed(located)
        self.args = (self.what,)
        return None


def _listed(problems: Sequence[HostProblem]) -> str:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return f"post-copy does not work here, for {len(problems)} reasons:{lines}"


class PostcopyShortage(HugepageShortage, PostcopyUnsupported):
    """All that is wrong is that pools of hugepages are too small now: waiting may help."""

    def __init__(self, problems: Sequence[HostProblem]) -> None:
        super().__init__(problems)
        self.waiting_helps = all(problem.waiting_helps for problem in problems)


def postcopy_supported(
    blocks: Sequence[RAMBlock],
    *,
    target_page_size: int = TARGET_PAGE_SIZE,
    need: Need | None = None,
    delivery: str = "thread",
) -> list[HostProblem]:
    """Everything that keeps these blocks from migrating by post-copy to this host; empty when
    nothing does. ``need`` is the memory that the whole run takes, if that is to be looked at too,
    ``delivery`` that of the scenario.

    To be asked before the blocks are mapped: the proof takes a page of each pool, which a run that
    has mapped the whole pool has no more, and makes the files that blocks name, as mapping does.
    Raises ValueError when a block is mapped. Nothing is left behind.
    """
    mapped = [block.name for block in blocks if block.address]
    if mapped:
        raise ValueError(f"blocks are mapped already: {', '.join(mapped)}")
    check = _Check(blocks, delivery)
    check.target_page(target_page_size)
    check.locked()
    check.memory(need)
    with ExitStack() as stack, reservation.changing(hugepages.pages_of(blocks)):
        check.open(stack)
        for users in _kinds(blocks):
            check.prove(users)
    check.pools()
    return check.problems


def require_postcopy(
    blocks: Sequence[RAMBlock],
    wait_s: float = 0.0,
    pause: Callable[[float], None] = time.sleep,
    need: Need | None = None,
    *,
    target_page_size: int = TARGET_PAGE_SIZE,
    delivery: str = "thread",
) -> None:
    """Raise PostcopyUnsupported with everything that is wrong, if anything is.

    When only hugepages are short, ask again for ``wait_s`` seconds, ``pause`` being what sleeps,
    and raise PostcopyShortage (a HugepageShortage) then. Raises ValueError as
    ``postcopy_supported``.
    """

    def attempt() -> None:
        problems = postcopy_supported(
            blocks, target_page_size=target_page_size, need=need, delivery=delivery
        )
        if any(problem.code is not Code.HUGEPAGES for problem in problems):
            raise PostcopyUnsupported(problems)
        if problems:
            raise PostcopyShortage(problems)

    proof = {block.page_size: 1 for block in blocks if block.hugetlb}
    reservation.take(proof, attempt, wait_s, pause)


def _kinds(blocks: Sequence[RAMBlock]) -> list[list[RAMBlock]]:
    """The blocks, those together that one page proves right or wrong: same backing, page size and,
    as a file's place decides what can be done with it, the same path."""
    kinds: dict[tuple[Backing, int, str | None], list[RAMBlock]] = {}
    for block in blocks:
        kinds.setdefault((block.backing, block.page_size, block.path), []).append(block)
    return list(kinds.values())


def _names(blocks: Sequence[RAMBlock]) -> tuple[str, ...]:
    return tuple(block.name for block in blocks)


class _Check:
    """One check: what was found so far, and the userfaultfd that the proofs use."""

    def __init__(self, blocks: Sequence[RAMBlock], delivery: str) -> None:
        self.problems: list[HostProblem] = []
        self._blocks = blocks
        self._needed = needed_features(blocks, delivery)
        self._uffd: Userfaultfd | None = None
        self._short: list[int] = []  # page sizes whose pool gave nothing
        self._locked = False
        self._beside = Beside()

    def _add(
        self,
        code: Code,
        what: str,
        remedy: str = "",
        names: tuple[str, ...] = (),
        key: str = "",
    ) -> None:
        key = key or ("backing" if names else "")
        self.problems.append(HostProblem(code, what, remedy, names, key))

    # ---- what can be told without touching memory ----

    def target_page(self, target_page_size: int) -> None:
        refusal = target_page(HERE, target_page_size, BASE_PAGE)
        if refusal is not None:
            self._add(Code.TARGET_PAGE, *refusal, key="guest.target_page_size")

    def memory(self, need: Need | None) -> None:
        if need is not None:
            self._beside = need.beside_hugepages()
        short = None if need is None else memory_shortage(need)
        if short is not None:
            self._add(Code.MEMORY, short.what, short.remedy, key="blocks")

    def locked(self) -> None:
        self._locked = locks_new_memory()
        if self._locked:
            self._add(
                Code.LOCKED,
                "this process locks all its new memory (mlockall with MCL_FUTURE), which fills "
                "each page that should be missing",
                UNLOCK,
            )

    def open(self, stack: ExitStack) -> None:
        try:
            uffd = stack.enter_context(Userfaultfd(Feature(sum(self._needed))))
        except HostError as error:
            return self._add(Code.OPEN, error.what, error.remedy)
        except CoreError as error:
            code = Code.HANDSHAKE if error.operation == "UFFDIO_API" else Code.OPEN
            return self._add(code, f"userfaultfd does not answer: {error}")
        self._uffd = uffd
        for feature, names in self._needed.items():
            if not feature & uffd.available:
                who = f", needed by {called(names)}" if names else ""
                what = f"userfaultfd of this kernel lacks UFFD_FEATURE_{feature.name}{who}"
                by_delivery = feature is Feature.SIGBUS
                remedy = Advice("use 'delivery: thread'") if by_delivery else ""
                key = "migration.postcopy.delivery" if by_delivery else ""
                self._add(Code.FEATURE, what, remedy, names, key)
        return self._api_ioctls(uffd.how)

    def _api_ioctls(self, how: How) -> None:
        try:
            ioctls = userfault.ask(how).ioctls
        except CoreError as error:
            code = Code.HANDSHAKE if error.operation == "UFFDIO_API" else Code.OPEN
            return self._add(code, f"userfaultfd does not answer: {error}")
        missing = [name for name, bit in _API_IOCTLS.items() if not ioctls & bit]
        if missing:
            what = f"userfaultfd of this kernel has no {' and no '.join(missing)}"
            self._add(Code.API_IOCTLS, what)
        return None

    # ---- proof by doing ----

    def prove(self, users: list[RAMBlock]) -> None:
        """Map one page as these blocks would, and migrate it."""
        first, names = users[0], _names(users)
        if self._page_size_is_absent(users):
            return
        page = replace(first, size=first.page_size)
        try:
            page.map()
            if self._uffd is not None and not self._locked and not self._lacks_feature(page):
                self._serve(self._uffd, page, names)
        except HugepageShortage:
            self._short.append(page.page_size)
        except HostError as error:
            known = error.what.startswith(("block ", "blocks "))
            what = error.what if known else f"{called(names)}: {error.what}"
            self._add(Code.MAP, what, error.remedy, names, error.key)
        except InputError as error:
            self._add(Code.MAP, str(error), "", names, error.key)
        finally:
            page.unmap()

    def _page_size_is_absent(self, users: list[RAMBlock]) -> bool:
        """Each block has a remedy of its own then: what another page size would have to divide."""
        page_size = users[0].page_size
        try:
            if users[0].hugetlb:
                hugepages.pool(page_size)
        except HostError as error:
            for block in users:
                remedy = another_page_size(block.size, page_size, hugepages.page_sizes())
                what = f"{called([block.name])}: {error.what}"
                self._add(Code.MAP, what, remedy, (block.name,), "page_size")
            return True
        return False

    def _lacks_feature(self, page: RAMBlock) -> bool:
        """Registering would only say once more what is known."""
        assert self._uffd is not None
        return any(not feature & self._uffd.available for feature in needed_features([page]))

    def _serve(self, uffd: Userfaultfd, page: RAMBlock, names: tuple[str, ...]) -> None:
        try:
            ioctls = uffd.register(page.address, page.size, register_mode(page))
        except CoreError as error:
            return self._add(Code.REGISTER, f"{called(names)}: {error}", "", names)
        missing = needed_ioctls(page) & ~ioctls
        placed = False
        try:
            if missing:
                listed = ", ".join(f"UFFDIO_{ioctl.name}" for ioctl in missing)
                what = f"{called(names)}: no {listed} on {page.backing.value} memory here"
                self._add(Code.RANGE_IOCTLS, what, "", names)
            if Ioctl.COPY in ioctls:
                placed = self._place(uffd, page, names)
        finally:
            free = self._unregister(uffd, page, names)
        # Only now: a page that was not placed after all is zeros here, and nobody waits for it.
        if placed and free and _ends_of(page) != (_HEAD, _TAIL):
            self._add(Code.READ, f"{called(names)}: a placed page reads otherwise", "", names)
        return None

    def _place(self, uffd: Userfaultfd, page: RAMBlock, names: tuple[str, ...]) -> bool:
        why = "the mapping is gone"
        try:
            if _placed(uffd, page):
                return True
        except (CoreError, OSError) as error:
            why = str(error)
        self._add(Code.PLACE, f"{called(names)}: a page can't be placed: {why}", "", names)
        return False

    def _unregister(self, uffd: Userfaultfd, page: RAMBlock, names: tuple[str, ...]) -> bool:
        try:
            uffd.unregister(page.address, page.size)
        except CoreError as error:
            self._add(Code.UNREGISTER, f"{called(names)}: {error}", "", names)
            return False
        return True

    def pools(self) -> None:
        """One problem a pool, with the pages that all its blocks need: a remedy for the one page of
        the proof would only lead to the next shortage."""
        for page_size in dict.fromkeys(b.page_size for b in self._blocks if b.hugetlb):
            wanting = [b for b in self._blocks if b.hugetlb and b.page_size == page_size]
            names = _names(wanting)
            pages = sum(block.pages for block in wanting)
            if page_size not in self._short and not self._never(page_size, pages):
                continue
            who = called(names) if len(names) == 1 else f"the VM ({called(names)})"
            short = hugepages.shortage(who, page_size, pages, self._beside, blocks=len(names))
            self.problems.append(
                HostProblem(
                    Code.HUGEPAGES,
                    short.what,
                    short.remedy,
                    names,
                    "size",
                    waiting_helps=short.waiting_helps,
                )
            )

    def _never(self, page_size: int, pages: int) -> bool:
        """Whether memory could not hold so many: a page of the pool proves nothing then."""
        known = page_size in hugepages.page_sizes()
        return known and bool(hugepages.growth(page_size, pages, self._beside).never)


def _placed(uffd: Userfaultfd, page: RAMBlock) -> bool:
    """False when the mapping is gone."""
    size = page.page_size
    if page.in_image:
        _lay_in_file(page)
        return uffd.map_there(page.address, size, size)
    with _sample(size) as data:
        return uffd.copy(page.address, data, size, size)


def _lay_in_file(page: RAMBlock) -> None:
    """As a source does that has mapped the same file."""
    fd = page.share()
    try:
        os.pwrite(fd, _HEAD, 0)
        os.pwrite(fd, _TAIL, page.size - len(_TAIL))
    finally:
        os.close(fd)


@contextmanager
def _sample(size: int) -> Iterator[object]:
    """``size`` bytes to place, known at both ends and zeros between: mapped, as what is only read
    takes no memory, however large a hugepage is.

    All of it is read once: UFFDIO_COPY of a page of 1 GiB fails with ENOMEM where its source has
    pages that are not mapped yet, as the kernel then wants a second gigantic page to copy to.
    """
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory[:: mmap.PAGESIZE]
        memory[: len(_HEAD)] = _HEAD
        memory[-len(_TAIL) :] = _TAIL
        pointer = core.ffi.from_buffer(memory)
        try:
            yield pointer
        finally:
            core.ffi.release(pointer)


def _ends_of(page: RAMBlock) -> tuple[bytes, bytes]:
    return page.read(0, len(_HEAD)), page.read(page.size - len(_TAIL), len(_TAIL))
