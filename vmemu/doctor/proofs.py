"""Which kinds of memory and faults work here, proven by doing it, with the time of a fault.

What a kernel announces is only the beginning. For each kind a few pages are mapped, registered,
touched by a thread of the C core, served and looked at; nothing of it is left behind.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

from vmemu import core, hugepages, reservation, thp_memory
from vmemu.errors import Advice, CoreError, HostError, HugepageShortage, mending
from vmemu.host.document import Backing, FaultKind, Proof
from vmemu.memlock import locks_new_memory
from vmemu.needed import OF_FAULT, features_of
from vmemu.ramblock import BASE_PAGE, RAMBlock
from vmemu.ramblock import Backing as BlockBacking
from vmemu.units import format_size
from vmemu.userfault import Feature, Userfaultfd

_WAIT_NS = 2_000_000_000  # a fault that is not served by then is taken for lost
_GIB = 1 << 30

_NO_MINOR = (
    "a minor fault is one on a page that the page cache has and this mapping has not; "
    "anonymous memory is in no page cache"
)
_REFUSED_HUGEPAGE = (
    "the pool has a free hugepage, and this process does not get it: a cgroup's limit or a cpuset "
    "is against it"
)


@dataclass(frozen=True)
class Kind:
    """One kind of memory and fault. ``thp``: the memory is advised with MADV_HUGEPAGE, and
    ``page_size`` is that of a transparent hugepage."""

    backing: Backing
    page_size: int
    fault: FaultKind
    thp: bool = False

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of userfaultfd without which there is no such fault."""
        return OF_FAULT[self.fault][BlockBacking(self.backing)]


def every_kind() -> list[Kind]:
    """All kinds that a scenario of this host could name, also those that can't work."""
    return list(_kinds())


def _kinds() -> Iterator[Kind]:
    memories: list[tuple[Backing, int, bool]] = [
        ("anonymous", BASE_PAGE, False),
        ("anonymous", thp_memory.thp_size(), True),
        ("shared", BASE_PAGE, False),
        ("shared", thp_memory.thp_size(), True),
    ]
    memories += [("hugetlbfs", size, False) for size in hugepages.page_sizes()]
    for backing, page_size, thp in memories:
        for fault in get_args(FaultKind):
            yield Kind(backing, page_size, fault, thp)


def prove(kinds: Iterable[Kind] | None = None, *, most_pages: int | None = None) -> list[Proof]:
    """Try each kind (all of ``every_kind()`` by default) and tell of each how it went, in their
    order.

    No more than ``most_pages`` pages are mapped for a kind (17 by default, 4 from 2 MiB on, and one
    of 1 GiB), and no more hugepages than are free; the first of several only warms up. Takes some
    10 ms, and up to a second where there is a page of 1 GiB. Nothing is raised for what this host
    can't do: that is what a proof says.
    """
    wanted = every_kind() if kinds is None else list(kinds)
    with ExitStack() as stack:
        try:
            uffd = stack.enter_context(Userfaultfd(_all_features()))
        except (HostError, CoreError) as error:
            return [_cannot(kind) or _untried(kind, error) for kind in wanted]
        if locks_new_memory():
            locked = HostError(
                "this process locks all its new memory (mlockall with MCL_FUTURE): no page is "
                "missing, and no second mapping is without it"
            )
            return [_cannot(kind) or _untried(kind, locked) for kind in wanted]
        return [_cannot(kind, uffd) or _Trial(kind, uffd, most_pages).proof() for kind in wanted]


def _all_features() -> Feature:
    return features_of(group for of_backing in OF_FAULT.values() for group in of_backing.values())


def _proof(kind: Kind, works: bool | None, why: str = "", remedy: str = "") -> Proof:
    if isinstance(remedy, Advice):  # a document has commands alone, to be run as they are
        why, remedy = f"{why}; {mending(remedy)}", ""
    return Proof(
        backing=kind.backing,
        page_size=kind.page_size,
        thp=kind.thp,
        fault=kind.fault,
        works=works,
        why=why,
        remedy=remedy,
    )


def _cannot(kind: Kind, uffd: Userfaultfd | None = None) -> Proof | None:
    """The proof of a kind that needs no trial: there is no such thing, or not in this kernel."""
    if kind.backing == "anonymous" and kind.fault == "minor":
        return _proof(kind, False, _NO_MINOR)
    if kind.thp and not thp_memory.SYSFS.is_dir():
        return _proof(kind, False, "this kernel has no transparent hugepages")
    if kind.backing == "hugetlbfs" and kind.page_size not in hugepages.page_sizes():
        return _proof(kind, False, f"this host has no hugepages of {format_size(kind.page_size)}")
    if uffd is None:
        return None
    lacking = [f"UFFD_FEATURE_{f.name}" for f in kind.features if not f & uffd.features]
    if lacking:
        return _proof(kind, False, f"this kernel lacks {' and '.join(lacking)}")
    return None


def _untried(kind: Kind, error: HostError | CoreError) -> Proof:
    if isinstance(error, HostError):
        return _proof(kind, None, error.what, error.remedy)
    return _proof(kind, None, _words(error))


def _words(error: CoreError) -> str:
    """Without the address, which is another one each time."""
    return str(CoreError(error.operation, error.errno, 0, error.detail))


class _Trial:
    """One kind, tried."""

    def __init__(self, kind: Kind, uffd: Userfaultfd, most_pages: int | None) -> None:
        self._kind = kind
        self._uffd = uffd
        self._most = _most_pages(kind.page_size) if most_pages is None else most_pages
        self._note = ""
        self._late = False

    def proof(self) -> Proof:
        """The proof. A machine that stood still for as long as a fault may take looks like one that
        tells of no fault, so that is believed the second time only."""
        proof = self._attempt()
        return self._attempt() if self._late else proof

    def _attempt(self) -> Proof:
        kind = self._kind
        # In one moment: a run that may not wait is not to fail because these pages are tried.
        pools = [kind.page_size] if kind.backing == "hugetlbfs" else []
        with reservation.changing(pools), ExitStack() as stack:
            try:
                block = self._map(stack)
                self._prepare(block, stack)
            except HugepageShortage as short:
                what = f"no free hugepage of {format_size(kind.page_size)}"
                return _proof(kind, None, what, short.remedy)
            except (HostError, CoreError) as error:
                return _untried(kind, error)
            return self._touch(block)

    # ---- memory ----

    def _map(self, stack: ExitStack) -> RAMBlock:
        """As many pages as there are, at least one. Raises HostError."""
        for pages in range(self._at_most(), 1, -1):
            try:
                return self._map_pages(pages, stack)
            except HugepageShortage:
                continue
        return self._map_pages(1, stack)

    def _at_most(self) -> int:
        """A pool that may grow by surplus pages does so for one, and only when none is free."""
        if self._kind.backing != "hugetlbfs":
            return self._most
        return min(self._most, max(1, hugepages.pool(self._kind.page_size).available))

    def _map_pages(self, pages: int, stack: ExitStack) -> RAMBlock:
        size = self._kind.page_size
        block = RAMBlock("proof", BlockBacking(self._kind.backing), pages * size, size)
        return self._mapped(block, None, stack)

    def _mapped(self, block: RAMBlock, of: RAMBlock | None, stack: ExitStack) -> RAMBlock:
        stack.callback(block.unmap)
        if of is None:
            block.map()
        else:
            block.attach(of.share())
        block.set_thp(self._kind.thp)
        return block

    def _prepare(self, block: RAMBlock, stack: ExitStack) -> None:
        """Have there what must be there before the touch. Raises HostError, CoreError."""
        if self._kind.fault == "missing":
            self._empty(block)
        elif self._kind.fault == "minor":
            other = RAMBlock("proof", block.backing, block.size, block.page_size)
            self._fill(self._mapped(other, block, stack))
        else:
            self._fill(block)

    def _empty(self, block: RAMBlock) -> None:
        if block.pages == 1:
            # It can't be warmed up by another: one that a hypervisor has to find first takes
            # seconds a GiB, which are none of the fault's.
            self._populate(block)
            block.discard()
        if self._kind.thp:
            size = format_size(BASE_PAGE)
            self._note = f"placed as pages of {size}: userfaultfd places no larger ones here"

    def _fill(self, block: RAMBlock) -> None:
        self._populate(block)
        if self._kind.thp:
            self._note = thp_memory.make_huge(block)
        core.lib.vm_probe_stamp(block.address, block.page_size, block.pages)

    def _populate(self, block: RAMBlock) -> None:
        try:
            core.call(core.lib.vm_probe_populate, block.address, block.size)
        except CoreError as error:
            if not block.hugetlb or error.errno not in (errno.EFAULT, errno.ENOMEM):
                raise
            raise HostError(_REFUSED_HUGEPAGE) from error

    # ---- faults ----

    def _touch(self, block: RAMBlock) -> Proof:
        took = core.ffi.new("uint64_t[]", block.pages)
        probe = self._probe_of(block, took)
        try:
            core.call(core.lib.vm_probe, probe)
        except CoreError as error:
            return self._failed(probe.outcome, error)
        # Making the thread, and the first look at everything, is in the first one.
        times = sorted(list(took)[1 if block.pages > 1 else 0 :])
        proof = _proof(self._kind, True, self._note)
        return proof.model_copy(update={"faults": len(times), "fault_ns": times[len(times) // 2]})

    def _probe_of(self, block: RAMBlock, took: Any) -> Any:
        probe = core.ffi.new("struct vm_probe *")
        probe.uffd = self._uffd.fd
        probe.kind = getattr(core.lib, f"VM_PROBE_{self._kind.fault.upper()}")
        probe.address, probe.page_size, probe.pages = block.address, block.page_size, block.pages
        probe.wait_ns = _WAIT_NS
        probe.took_ns = took
        return probe

    def _failed(self, outcome: int, error: CoreError) -> Proof:
        kind = self._kind
        self._late = outcome in (core.lib.VM_PROBE_SILENT, core.lib.VM_PROBE_STUCK)
        if outcome == core.lib.VM_PROBE_REFUSED and error.errno == errno.EINVAL:
            fault = kind.fault.replace("_", "-")
            return _proof(kind, False, f"this kernel refuses to register it for {fault} faults")
        if error.errno == errno.ENOMEM:  # says nothing about what the kernel can do
            what = _REFUSED_HUGEPAGE if kind.backing == "hugetlbfs" else _words(error)
            return _proof(kind, None, what)
        return _proof(kind, False, _words(error))


def _most_pages(page_size: int) -> int:
    """A warm-up, and what makes a median."""
    if page_size >= _GIB:
        return 1
    return 4 if page_size > 1 << 20 else 17
