"""Documents of made-up hosts."""

from __future__ import annotations

from typing import Any

from vmemu.host.document import (
    Cpus,
    HostDocument,
    Kernel,
    Limits,
    Memory,
    Pool,
    Proof,
    Thp,
    Userfault,
    Way,
)
from vmemu.userfault import Feature

MIB, GIB = 1 << 20, 1 << 30

EVERY_FEATURE = tuple(str(feature.name) for feature in Feature)
WAYS = (
    Way(how="syscall", works=True),
    Way(how="device", works=True),
    Way(how="user_mode_only", works=True),
)
FULL = Pool(page_size=2 * MIB, total=8, free=8, reserved=0, surplus=0)


def good_host(**changes: Any) -> HostDocument:
    """One with nothing to say about; ``changes`` replace its parts."""
    proof = Proof(
        backing="anonymous", page_size=4096, fault="missing", works=True, faults=16, fault_ns=8000
    )
    document = HostDocument(
        vmemu="0.1.0",
        recorded_at="2026-01-02T03:04:05+00:00",
        hostname="host-a",
        kernel=Kernel(release="6.12.0", machine="x86_64", base_page_size=4096),
        userfault=Userfault(how="syscall", ways=WAYS, features=EVERY_FEATURE),
        proofs=(proof,),
        pools=(),
        default_hugepage_size=2 * MIB,
        memory=Memory(total=16 * GIB, available=8 * GIB, room=8 * GIB),
        limits=Limits(memlock_soft=None, memlock_hard=None, ipc_lock=False, pipe_max_size=MIB),
        thp=Thp(enabled="madvise", shmem_enabled="never", page_size=2 * MIB),
        cpus=Cpus(online=4, allowed=(0, 1, 2, 3), wakeup_same_ns=4000, wakeup_other_ns=9000),
    )
    return document.model_copy(update=changes)
