"""The host document: what ``vmemu doctor`` finds out, and ``vmemu check`` judges by.

Sizes are bytes, times integer nanoseconds under names that end in ``_ns``. A figure that could not
be found out is None, and ``unknown`` says why. A document is written on one host and read on
another, perhaps by another version: keys that are not known are passed over.
"""

from __future__ import annotations

from typing import Annotated, Literal

from vmemu.model.base import Model
from vmemu.model.faults import Refusal
from vmemu.model.fields import AfterValidator, Field, field_validator

SCHEMA = "vmemu-host/1"
"""Changes its number when a key goes away or changes its meaning; new keys keep it."""

Backing = Literal["anonymous", "hugetlbfs", "shared"]
FaultKind = Literal["missing", "minor", "write_protect"]


def _power_of_two(value: int) -> int:
    if value < 1 or value & (value - 1):
        raise Refusal("no_power_of_two", "is no power of two")
    return value


Count = Annotated[int, Field(ge=0, le=(1 << 64) - 1)]
"""A number of bytes, pages or nanoseconds: the kernel has none below or beyond."""
BasePage = Annotated[int, Field(ge=4096, le=1 << 20), AfterValidator(_power_of_two)]
HugePage = Annotated[int, Field(ge=4096, le=1 << 40), AfterValidator(_power_of_two)]


class _Part(Model):
    extra = "ignore"


class Kernel(_Part):
    """``base_page_size`` is the smallest page that this host can place."""

    release: str
    machine: str
    base_page_size: BasePage


class Way(_Part):
    """One way to open userfaultfd: ``how`` as in ``vmemu.userfault.How`` (``syscall``, ``device``,
    ``user_mode_only``); when it does not work, why, and the command that mends it."""

    how: Literal["syscall", "device", "user_mode_only"]
    works: bool
    why: str = ""
    remedy: str = ""


class Userfault(_Part):
    """``how`` is the way that a run takes, None when there is none. ``features`` are names without
    ``UFFD_FEATURE_``, ``bitN`` for one that has none here; those of ``refused`` are announced, and
    refused to who asks for them."""

    how: Literal["syscall", "device", "user_mode_only"] | None
    ways: tuple[Way, ...]
    features: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    unprivileged_sysctl: Count | None = None
    seccomp: Literal["disabled", "strict", "filter"] | None = None
    container: str = ""
    capabilities: tuple[str, ...] = ()


class Proof(_Part):
    """One kind of memory and fault, tried: ``works`` None when it could not be tried, and ``why``.

    ``thp`` is anonymous or shared memory in which the kernel may put transparent hugepages.
    ``fault_ns`` is the median of ``faults`` faults, from the touch until it goes on.
    """

    backing: Backing
    page_size: Count
    thp: bool = False
    fault: FaultKind
    works: bool | None
    why: str = ""
    remedy: str = ""
    faults: Count = 0
    fault_ns: Count | None = None


class Collapsing(_Part):
    """Whether memory of a ``backing`` that comes in small pages can be made hugepages
    (MADV_COLLAPSE), as ``collapse: on_complete`` does; tried."""

    backing: Literal["anonymous", "shared"]
    works: bool
    why: str = ""


class NodePool(_Part):
    """A pool's pages on one NUMA node."""

    node: Count
    total: Count
    free: Count
    surplus: Count


class Pool(_Part):
    """One pool of hugepages, in pages; ``overcommit`` is how many surplus ones may be made.
    ``cgroup_room`` is how many bytes of them the control groups still grant, None for no limit, and
    ``cgroup_remedy`` the command that lifts it."""

    page_size: HugePage
    total: Count
    free: Count
    reserved: Count
    surplus: Count
    overcommit: Count = 0
    cgroup_room: Count | None = None
    cgroup_remedy: str = ""
    nodes: tuple[NodePool, ...] = ()


class Mount(_Part):
    """A mounted file system. ``page_size``, ``size`` and ``free`` are of hugetlbfs and tmpfs;
    ``size`` and ``free`` are None without a limit; ``writable`` is for who asked."""

    path: str
    type: str
    page_size: Count | None = None
    size: Count | None = None
    free: Count | None = None
    writable: bool = True
    mode: str = ""
    owner: str = ""


class Memory(_Part):
    """What memory there is. ``room`` is what new memory may take now: the smallest of what is
    available (and free swap), the cgroup's rest, the commit limit's rest when ``overcommit`` is 2,
    and the rest of the address space that this process may map. ``limited_by`` says which it is,
    empty for the first, and ``remedy`` which command lifts that limit."""

    total: Count
    available: Count
    room: Count
    limited_by: str = ""
    remedy: str = ""
    swap_free: Count = 0
    overcommit: Count | None = None
    cgroup_limit: Count | None = None
    cgroup_used: Count | None = None


class Limits(_Part):
    """Limits of who asked; None is unlimited. ``ipc_lock`` is CAP_IPC_LOCK, without limit, and
    ``raisable`` whether root may have CAP_SYS_RESOURCE, with which a hard limit can be raised."""

    memlock_soft: Count | None
    memlock_hard: Count | None
    ipc_lock: bool
    pipe_max_size: Count | None
    pipe_user_pages_soft: Count | None = None
    open_files: Count | None = None
    open_files_hard: Count | None = None
    file_size: Count | None = None
    file_size_hard: Count | None = None
    raisable: bool = True


class Thp(_Part):
    """Transparent hugepages: the chosen words of sysfs, None where the kernel has none."""

    enabled: str | None
    shmem_enabled: str | None
    defrag: str | None = None
    page_size: Count | None = None


class Cpus(_Part):
    """``wakeup_same_ns`` and ``wakeup_other_ns``: the median of waking a thread on the same CPU and
    on another one that is idle; None where it could not be measured."""

    online: Count
    allowed: tuple[Count, ...]
    wakeup_same_ns: Count | None = None
    wakeup_other_ns: Count | None = None


class Problem(_Part):
    """Something that is not as it should be; ``remedy`` is a command, or empty where there is none.

    ``error``: no post-copy at all. ``warning``: none of a kind of memory, or not as it should be.
    ``note``: it works, and what meets a limit or is slow is named.
    """

    code: str
    what: str
    remedy: str = ""
    severity: Literal["error", "warning", "note"] = "warning"


class Unknown(_Part):
    """What could not be found out, why, and the command that lets it be."""

    what: str
    why: str
    remedy: str = ""


class HostDocument(_Part):
    """Everything about one host."""

    schema_: Literal["vmemu-host/1"] = Field(default="vmemu-host/1", alias="schema")
    vmemu: str
    recorded_at: str
    hostname: str = ""
    kernel: Kernel
    userfault: Userfault
    proofs: tuple[Proof, ...] = ()
    collapse: tuple[Collapsing, ...] = ()
    pools: tuple[Pool, ...] = ()
    default_hugepage_size: HugePage | None = None
    mounts: tuple[Mount, ...] = ()
    memory: Memory
    limits: Limits
    thp: Thp
    cpus: Cpus
    problems: tuple[Problem, ...] = ()
    unknown: tuple[Unknown, ...] = ()

    @field_validator("pools")
    @classmethod
    def _one_pool_a_size(cls, pools: tuple[Pool, ...]) -> tuple[Pool, ...]:
        if len({pool.page_size for pool in pools}) < len(pools):
            raise Refusal("twice", "has two pools of one page size")
        return pools
