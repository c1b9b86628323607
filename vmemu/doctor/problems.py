"""What keeps post-copy, or a kind of memory, from working on a host: the weightiest first.

All is told from the document alone, so that a recorded one answers as its host would.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Literal

from vmemu import hugepages
from vmemu.doctor.features import USES
from vmemu.host.document import HostDocument, Mount, Pool, Problem
from vmemu.host.raising import raised
from vmemu.privilege import as_root, on_the_host
from vmemu.units import GIB, MIB, counted, format_duration, format_size

_SEVERITIES = ("error", "warning", "note")
_POOL_SUGGESTED = {2 * MIB: 64}
_PIPE_WANTED = 1 << 20
_OPEN_FILES_WANTED = 256
_LITTLE_ROOM = 256 * MIB
_SLOW_WAKEUP_NS = 20_000


def problems(host: HostDocument) -> tuple[Problem, ...]:
    """Everything, errors first, then warnings, then notes."""
    found = [
        *_userfault(host),
        *_features(host),
        *_proofs(host),
        *(problem for pool in host.pools for problem in _pool(host, pool)),
        *_mounts(host),
        *_memory(host),
        *_limits(host),
        *_wakeups(host),
    ]
    return tuple(sorted(found, key=lambda problem: _SEVERITIES.index(problem.severity)))


def _problem(
    code: str,
    what: str,
    remedy: str = "",
    severity: Literal["error", "warning", "note"] = "warning",
) -> Problem:
    return Problem(code=code, what=what, remedy=remedy, severity=severity)


# ---- userfaultfd ----


def _userfault(host: HostDocument) -> Iterator[Problem]:
    ways = {way.how: way for way in host.userfault.ways}
    if host.userfault.how is None:
        refused = "; ".join(f"{_LABELS[how]}: {way.why}" for how, way in ways.items())
        remedy = next((way.remedy for way in host.userfault.ways if way.remedy), "")
        what = f"userfaultfd can't be opened, so no page can be missing ({refused})"
        yield _problem("userfaultfd", what, remedy, "error")
    elif host.userfault.how == "user_mode_only" and "syscall" in ways:
        what = (
            "only faults of user mode are served: a system call that touches a missing page fails "
            f"with EFAULT ({ways['syscall'].why})"
        )
        yield _problem("user_mode_only", what, ways["syscall"].remedy)


_LABELS = {
    "syscall": "userfaultfd(2)",
    "device": "/dev/userfaultfd",
    "user_mode_only": "userfaultfd(2) for faults of user mode",
}


def _features(host: HostDocument) -> Iterator[Problem]:
    if host.userfault.how is None:
        return
    for feature, use in USES.items():
        name = str(feature.name)
        if not use.needed:
            continue
        if name in host.userfault.refused:
            what = f"this kernel refuses UFFD_FEATURE_{name} to this process: {use.what}"
            yield _problem("feature", what)
        elif name not in host.userfault.features:
            what = f"this kernel lacks UFFD_FEATURE_{name}: {use.what} (Linux {use.since} has it)"
            yield _problem("feature", what)


def _proofs(host: HostDocument) -> Iterator[Problem]:
    """Missing faults that fail: nothing else keeps post-copy from working."""
    for proof in host.proofs:
        absent = proof.thp and host.thp.enabled is None
        if proof.fault == "missing" and proof.works is False and not absent:
            ordinary = proof.backing == "anonymous" and not proof.thp
            kind = f"{proof.backing} memory of {format_size(proof.page_size)} pages"
            severity: Literal["error", "warning"] = "error" if ordinary else "warning"
            what = f"missing pages of {kind} can't be served: {proof.why}"
            yield _problem("missing", what, proof.remedy, severity)


# ---- hugepages ----


def _pool(host: HostDocument, pool: Pool) -> Iterator[Problem]:
    size = format_size(pool.page_size)
    free = pool.free - pool.reserved + max(pool.overcommit - pool.surplus, 0)
    if pool.total == 0 and pool.overcommit == 0:
        yield _pool_empty(host, pool)
    elif free <= 0:
        what = f"no page of {size} is free: {_figures(pool)}"
        more = pool.total + max(pool.total // 2, 1)
        yield _problem("pool_taken", what, resize_command(host, pool.page_size, more))
    if pool.cgroup_room is not None and pool.cgroup_room < pool.page_size and pool.total:
        what = f"the control group of this process grants no page of {size}"
        yield _problem("pool_cgroup", what, pool.cgroup_remedy)


def _pool_empty(host: HostDocument, pool: Pool) -> Problem:
    """Most hosts have pages of one size only: that others have none is hardly wrong."""
    what = f"the pool of {format_size(pool.page_size)} pages is empty"
    if pool.page_size >= GIB:
        what += (
            "; where memory is too fragmented for the command, the kernel makes some at boot: "
            f"hugepagesz={pool.page_size // GIB}G hugepages=1"
        )
    command = resize_command(host, pool.page_size, _POOL_SUGGESTED.get(pool.page_size, 1))
    usual = pool.page_size == host.default_hugepage_size
    return _problem("pool_empty", what, command, "warning" if usual else "note")


def _figures(pool: Pool) -> str:
    return f"{pool.total} in all, {pool.free} free, {pool.reserved} of these reserved"


def resize_command(host: HostDocument, page_size: int, pages: int) -> str:
    """The command that gives a host's pool of that size ``pages`` pages."""
    default = host.default_hugepage_size
    return _of_the_machine(host, hugepages.resize_words(page_size, pages, default))


def _of_the_machine(host: HostDocument, command: str) -> str:
    """A container shows what the machine has set, and may not change it."""
    return on_the_host(command) if host.userfault.container else as_root(command)


def _mounts(host: HostDocument) -> Iterator[Problem]:
    """Blocks without a path need no mount, so that it is only a note."""
    for pool in host.pools:
        there = [m for m in host.mounts if m.type == "hugetlbfs" and m.page_size == pool.page_size]
        if pool.total and not there:
            size = format_size(pool.page_size)
            what = f"no hugetlbfs of {size} pages is mounted, for blocks with a path"
            yield _problem("mount", what, mount_command(host, pool.page_size), "note")
        elif pool.total and not any(mount.writable for mount in there):
            yield _not_writable(there[0])


def _not_writable(mount: Mount) -> Problem:
    what = f"nothing can be made in {mount.path}: it is of {mount.owner} with mode {mount.mode}"
    remedy = as_root(f"chmod 1777 {shlex.quote(mount.path)}")
    return _problem("mount_access", what, remedy, "note")


def mount_command(host: HostDocument, page_size: int) -> str:
    """The command that mounts a hugetlbfs of that page size where nothing is mounted."""
    base = f"/dev/hugepages-{format_size(page_size).removesuffix('iB')}"
    taken = {mount.path for mount in host.mounts}
    names = [base, *(f"{base}-{number}" for number in range(2, len(taken) + 3))]
    directory = next(name for name in names if name not in taken)
    return hugepages.mount_on_command(directory, page_size)


# ---- memory, limits, CPUs ----


def _memory(host: HostDocument) -> Iterator[Problem]:
    room = host.memory.room
    if room < _LITTLE_ROOM:
        by = f", limited by {host.memory.limited_by}" if host.memory.limited_by else ""
        what = f"new memory may take {format_size(room, digits=3)} only{by}"
        yield _problem("memory", what, host.memory.remedy)


def _limits(host: HostDocument) -> Iterator[Problem]:
    limits = host.limits
    if limits.memlock_soft is not None and not limits.ipc_lock:
        what = (
            f"memory.lock can lock {format_size(limits.memlock_soft, digits=3)} of a scenario's "
            "memory (RLIMIT_MEMLOCK)"
        )
        words, remedy = _raised(host, "memlock", None, limits.memlock_hard)
        yield _problem("memlock", what + words, remedy, "note")
    if limits.pipe_max_size is not None and limits.pipe_max_size < _PIPE_WANTED:
        what = (
            f"pipes hold at most {format_size(limits.pipe_max_size)}: "
            f"the channel asks for {format_size(_PIPE_WANTED)} and is slower with less"
        )
        remedy = _of_the_machine(host, f"sysctl fs.pipe-max-size={_PIPE_WANTED}")
        yield _problem("pipe_max_size", what, remedy, "note")
    if limits.open_files is not None and limits.open_files < _OPEN_FILES_WANTED:
        what = f"at most {counted(limits.open_files, 'open file')}: many vCPUs or clients need more"
        words, remedy = _raised(host, "nofile", _OPEN_FILES_WANTED, limits.open_files_hard)
        yield _problem("open_files", what + words, remedy, "note")


def _raised(host: HostDocument, name: str, wanted: int | None, hard: int | None) -> tuple[str, str]:
    container = host.userfault.container
    return raised(name, wanted, hard, raisable=host.limits.raisable, container=container)


def _wakeups(host: HostDocument) -> Iterator[Problem]:
    other = host.cpus.wakeup_other_ns
    if other is not None and other > _SLOW_WAKEUP_NS:
        what = (
            f"waking a thread on another, idle CPU takes {format_duration(other, digits=3)}: "
            "each fault waits for that with 'placement: none' or 'spread', and not with"
            " 'colocate', which 'auto' chooses where it pays"
        )
        yield _problem("wakeup", what, "", "note")
