"""Everything about this host, gathered: each part by itself, none of which stops the others."""

from __future__ import annotations

import datetime
import mmap
import os
from dataclasses import dataclass, field
from typing import Literal

from vmemu.doctor import features, opening
from vmemu.doctor.problems import problems
from vmemu.errors import CoreError
from vmemu.host import memory, places, pools, settings
from vmemu.host.document import Collapsing, Cpus, HostDocument, Kernel, Proof, Userfault
from vmemu.host.files import COLLAPSE, HostFiles
from vmemu.host.identity import Identity, identify
from vmemu.userfault import How
from vmemu.version import installed


def survey(
    *, proofs: bool = False, collapse: bool = False, wakeups: bool = False, version: bool = True
) -> HostDocument:
    """This host as post-copy sees it.

    ``proofs`` tries the kinds of memory and fault, and which small pages can be made hugepages;
    ``collapse`` tries the latter alone. ``wakeups`` measures what waking a thread costs,
    ``version`` finds out which vmemu this is. Without them that part stays empty, and the rest
    takes a few milliseconds and maps nothing. Raises HostError where the C core does not load;
    whatever else can't be found out stands in ``unknown``.
    """
    return Survey().document(proofs=proofs, collapse=collapse, wakeups=wakeups, version=version)


@dataclass
class Survey:
    """The parts of a survey: who asks for one alone pays for no other."""

    files: HostFiles = field(default_factory=HostFiles)

    def __post_init__(self) -> None:
        self.identity: Identity = identify(self.files)

    def document(
        self,
        *,
        proofs: bool = False,
        collapse: bool = False,
        wakeups: bool = False,
        version: bool = True,
    ) -> HostDocument:
        """All of them, as ``survey`` gives them."""
        found = HostDocument(
            vmemu=installed() if version else "",
            recorded_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            hostname=os.uname().nodename,
            kernel=kernel(),
            userfault=self.userfault(),
            proofs=self.proofs() if proofs else (),
            collapse=self.collapse() if proofs or collapse else (),
            pools=pools.pools(self.files),
            default_hugepage_size=pools.default_page_size(self.files),
            mounts=places.mounts(self.files),
            memory=memory.memory(self.files, self.identity),
            limits=settings.limits(self.files, self.identity),
            thp=settings.thp(self.files),
            cpus=self.cpus(wakeups=wakeups),
        )
        unknown = tuple(self.files.unknown)
        return found.model_copy(update={"problems": problems(found), "unknown": unknown})

    def userfault(self) -> Userfault:
        """How it opens, and what it can."""
        ways = opening.ways(self.files, self.identity)
        how = next((way.how for way in ways if way.works), None)
        granted = features.Granted((), ())
        if how is not None:
            try:
                granted = features.ask(How[how.upper()])
            except CoreError as error:
                self.files.note("the features of userfaultfd", str(error))
        return Userfault(
            how=how,
            ways=ways,
            features=granted.features,
            refused=granted.refused,
            unprivileged_sysctl=self.files.number(
                opening.SYSCTL, "vm.unprivileged_userfaultfd", must=False
            ),
            seccomp=self.identity.seccomp,
            container=self.identity.container,
            capabilities=self.identity.capabilities,
        )

    def proofs(self) -> tuple[Proof, ...]:
        """Every kind of memory and fault, tried."""
        from vmemu.doctor.proofs import prove

        try:
            return tuple(prove())
        except OSError as error:  # without /proc nothing tells what a mapping has become
            self.files.note("which faults work", f"{error.filename}: {error.strerror}")
            return ()

    def collapse(self) -> tuple[Collapsing, ...]:
        """Which small pages can be made hugepages, tried."""
        try:
            return collapsing()
        except OSError as error:  # /proc again
            why = f"{error.filename}: {error.strerror}"
            self.files.note(COLLAPSE, why)
            return ()

    def cpus(self, *, wakeups: bool = False) -> Cpus:
        """The CPUs, and what it costs to wake a thread if that is wanted."""
        found = settings.cpus(self.files)
        if not wakeups:
            return found
        from vmemu.host.wakeup import measure

        cost = measure()
        if cost.why and len(found.allowed) > 1:
            self.files.note("what waking a thread costs", cost.why)
        costs = {"wakeup_same_ns": cost.same_ns, "wakeup_other_ns": cost.other_ns}
        return found.model_copy(update=costs)


def collapsing() -> tuple[Collapsing, ...]:
    """Whether small pages can be made hugepages here, tried."""
    from vmemu.collapse import why_not
    from vmemu.ramblock import Backing

    backings: tuple[Literal["anonymous", "shared"], ...] = ("anonymous", "shared")
    reasons = {backing: why_not(Backing(backing)) for backing in backings}
    return tuple(
        Collapsing(backing=backing, works=not why, why=why) for backing, why in reasons.items()
    )


def kernel() -> Kernel:
    """The kernel that runs."""
    names = os.uname()
    return Kernel(release=names.release, machine=names.machine, base_page_size=mmap.PAGESIZE)
