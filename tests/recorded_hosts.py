"""Hosts as `vmemu doctor` would have recorded them, for `vmemu check` to judge by."""

from __future__ import annotations

from typing import Any

from vmemu.host.document import (
    Cpus,
    HostDocument,
    Kernel,
    Limits,
    Memory,
    Mount,
    Pool,
    Proof,
    Thp,
    Userfault,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FEATURES = ("THREAD_ID", "MISSING_HUGETLBFS", "MISSING_SHMEM", "WP_ASYNC", "WP_UNPOPULATED")
SHM = Mount(path="/dev/shm", type="tmpfs", page_size=4096, size=GIB, free=GIB)
DISK = Mount(path="/", type="ext4")


def pool(page_size: int = 2 * MIB, total: int = 64, **figures: Any) -> Pool:
    return Pool(
        **{"page_size": page_size, "total": total, "free": total, "reserved": 0, "surplus": 0}
        | figures
    )


def memory(total: int = 16 * GIB, **figures: Any) -> Memory:
    return Memory(**{"total": total, "available": total, "room": total} | figures)


def limits(soft: int | None = None, hard: int | None = None) -> Limits:
    return Limits(memlock_soft=soft, memlock_hard=hard, ipc_lock=False, pipe_max_size=None)


def proven(base: int, pools: tuple[Pool, ...]) -> tuple[Proof, ...]:
    """All that a verdict may rest on works."""
    kinds = [("anonymous", base), ("shared", base), *(("hugetlbfs", p.page_size) for p in pools)]
    return tuple(
        Proof(backing=backing, page_size=size, fault=fault, works=True)
        for backing, size in kinds
        for fault in ("missing", "write_protect")
    )


def host(base: int = 4096, how: Any = "syscall", **parts: Any) -> HostDocument:
    """A host that has everything, but for ``parts``."""
    features = parts.pop("features", FEATURES)
    pools = parts.pop("pools", (pool(),))
    userfault = Userfault(how=how, ways=parts.pop("ways", ()), features=features)
    return HostDocument(
        **{
            "vmemu": "0",
            "recorded_at": "2026-01-01T00:00:00+00:00",
            "hostname": "node7",
            "kernel": Kernel(release="6.18", machine="x86_64", base_page_size=base),
            "userfault": userfault,
            "pools": pools,
            "proofs": proven(base, pools),
            "default_hugepage_size": 2 * MIB,
            "mounts": (DISK, SHM),
            "memory": memory(),
            "limits": limits(),
            "thp": Thp(enabled=None, shmem_enabled=None),
            "cpus": Cpus(online=2, allowed=(0, 1)),
        }
        | parts
    )
