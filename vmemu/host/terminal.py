"""What a person sees of a host: what is wrong first, each with what mends it, then all there is.

Plain aligned text of 100 columns, with colour where it is asked for. A remedy stands on a line of
its own, whole, so that it can be copied.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import get_args

from vmemu.host.document import FaultKind, HostDocument, Memory, Mount, Pool, Proof
from vmemu.host.features import use_of
from vmemu.host.places import MEMORY
from vmemu.host.support import Answer, ordinary
from vmemu.results.terminal import Table, align
from vmemu.units import counted, format_duration, format_size, printable
from vmemu.userfault import Feature

WIDTH = 100
_TITLES = {"error": "what keeps post-copy from working", "warning": "problems", "note": "notes"}
_COLOURS = {"error": 31, "warning": 33, "note": 36}
_GREEN, _BOLD = 32, 1
_REMEDY = "mend it with: "


def lines(host: HostDocument, *, colour: bool = False) -> Iterator[str]:
    """The whole document for people."""
    yield verdict(host, colour=colour)
    yield from _problems(host, colour)
    if host.unknown:
        yield from ("", _painted("could not be found out", _BOLD, colour))
        for unknown in host.unknown:
            yield from _entry(f"{unknown.what}: {unknown.why}", unknown.remedy, "to see it: ")
    for title, body in _SECTIONS.items():
        shown = list(body(host))
        if shown:
            yield from ("", _painted(title, _BOLD, colour), *shown)


def verdict(host: HostDocument, *, colour: bool = False) -> str:
    """Whether post-copy of ordinary memory works, in a line."""
    found: Answer = ordinary(host)
    if found.works:
        text = "post-copy works here"
        return f"{_painted(text, _GREEN, colour)}: {found.why}" if found.why else text
    return f"{_painted('post-copy does not work here', _COLOURS['error'], colour)}: {found.why}"


def _problems(host: HostDocument, colour: bool) -> Iterator[str]:
    for severity, title in _TITLES.items():
        found = [problem for problem in host.problems if problem.severity == severity]
        if found:
            yield from ("", _painted(title, _COLOURS[severity], colour))
        for problem in found:
            yield from _entry(problem.what, problem.remedy)


def _entry(what: str, remedy: str, lead: str = _REMEDY) -> Iterator[str]:
    yield from _wrapped(what, "  ", "    ")
    if remedy:
        yield f"    {lead}{remedy}"


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _painted(text: str, code: int, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _table(table: Table) -> list[str]:
    return [f"  {line}".rstrip() for line in align(table).split("\n")]


# ---- the parts ----


def _host(host: HostDocument) -> Iterator[str]:
    kernel, cpus = host.kernel, host.cpus
    page = format_size(kernel.base_page_size)
    rows = [
        ("recorded", f"{host.recorded_at} on {printable(host.hostname)} by vmemu {host.vmemu}"),
        ("kernel", f"Linux {kernel.release}, {kernel.machine}, pages of {page}"),
        ("CPUs", f"{cpus.online} online, this process may use {len(cpus.allowed)}"),
    ]
    costs = ((cpus.wakeup_same_ns, "the same CPU"), (cpus.wakeup_other_ns, "another, idle one"))
    told = [f"{format_duration(ns, digits=3)} on {where}" for ns, where in costs if ns is not None]
    if told:
        rows.append(("  waking a thread", ", ".join(told)))
    rows += [*_memory(host.memory), *_limits(host), *_thp(host)]
    yield from _table(Table(("", ""), rows, left=2))


def _memory(memory: Memory) -> Iterator[tuple[str, str]]:
    total, available, room = (
        format_size(size, digits=4) for size in (memory.total, memory.available, memory.room)
    )
    yield "memory", f"{total}, {available} available"
    by = f", limited by {memory.limited_by}" if memory.limited_by else ""
    yield "  for new mappings", f"{room}{by}"
    if memory.cgroup_limit is not None and memory.cgroup_used is not None:
        used = format_size(memory.cgroup_used, digits=4)
        yield "  control group", f"{used} of {format_size(memory.cgroup_limit, digits=4)} used"
    if memory.overcommit is not None:
        yield "  vm.overcommit_memory", str(memory.overcommit)


def _limits(host: HostDocument) -> Iterator[tuple[str, str]]:
    limits = host.limits
    if limits.ipc_lock:
        yield "locked memory", "unlimited (CAP_IPC_LOCK)"
    else:
        soft, hard = _size(limits.memlock_soft), _size(limits.memlock_hard)
        yield "locked memory", f"{soft}, at most {hard}"
    if limits.pipe_max_size is not None:
        pages = limits.pipe_user_pages_soft
        user = f", {counted(pages, 'page')} for a user's pipes together" if pages else ""
        yield "pipes", f"{_size(limits.pipe_max_size)} each{user}"
    files = limits.open_files
    yield "open files", "unlimited" if files is None else f"{files:,}"


def _thp(host: HostDocument) -> Iterator[tuple[str, str]]:
    thp = host.thp
    if thp.enabled is None and thp.shmem_enabled is None:
        yield "transparent hugepages", "none"
        return
    size = f" of {format_size(thp.page_size)}" if thp.page_size else ""
    words = (
        (thp.enabled, "anonymous memory"),
        (thp.shmem_enabled, "shared memory"),
        (thp.defrag, "defrag"),
    )
    told = ", ".join(f"{what}: {word}" for word, what in words if word is not None)
    yield f"transparent hugepages{size}", told


def _size(size: int | None) -> str:
    return "unlimited" if size is None else format_size(size, digits=4)


def _userfault(host: HostDocument) -> Iterator[str]:
    uffd = host.userfault
    for way in uffd.ways:
        works = "works" + (", and is what a run takes" if way.how == uffd.how else "")
        text = works if way.works else f"no: {way.why}"
        yield from _wrapped(text, f"  {way.how:<16}", " " * 18)
        if way.remedy:
            yield " " * 18 + _REMEDY + way.remedy
    facts = [
        f"vm.unprivileged_userfaultfd is {uffd.unprivileged_sysctl}"
        if uffd.unprivileged_sysctl is not None
        else "",
        f"seccomp: {uffd.seccomp}" if uffd.seccomp else "",
        f"container: {printable(uffd.container)}" if uffd.container else "no container",
    ]
    yield f"  {'; '.join(fact for fact in facts if fact)}"
    rights = ", ".join(uffd.capabilities) or "none that counts here"
    yield from _wrapped(f"capabilities: {rights}", "  ", "    ")


def _faults(host: HostDocument) -> Iterator[str]:
    if not host.proofs:
        return
    kinds: dict[str, dict[str, Proof]] = {}
    for proof in host.proofs:
        kinds.setdefault(memory_of(proof), {})[proof.fault] = proof
    faults = get_args(FaultKind)
    rows = [
        (kind, *(_cell(proofs.get(fault)) for fault in faults)) for kind, proofs in kinds.items()
    ]
    headings = ("memory", *(fault.replace("_", "-") for fault in faults))
    yield from _table(Table(headings, rows))
    for why, which in _reasons(host.proofs).items():
        yield from _wrapped(f"{'; '.join(which)}: {why}", "  ", "    ")


def memory_of(proof: Proof) -> str:
    """What memory a proof is of: ``hugetlbfs 2MiB``, ``anonymous THP 2MiB``."""
    return f"{proof.backing} {'THP ' if proof.thp else ''}{format_size(proof.page_size)}"


def _cell(proof: Proof | None) -> str:
    if proof is None or proof.works is None:
        return "not tried"
    if not proof.works:
        return "no"
    return "yes" if proof.fault_ns is None else format_duration(proof.fault_ns, digits=3)


def _reasons(proofs: Iterable[Proof]) -> dict[str, list[str]]:
    """Each thing to say, and of which kinds it is said: those of one memory together."""
    found: dict[str, dict[str, list[str]]] = {}
    for proof in proofs:
        if proof.why:
            memories = found.setdefault(proof.why, {})
            memories.setdefault(memory_of(proof), []).append(proof.fault.replace("_", "-"))
    every = len(get_args(FaultKind))
    return {
        why: [
            memory if len(faults) == every else f"{memory}, {' and '.join(faults)}"
            for memory, faults in memories.items()
        ]
        for why, memories in found.items()
    }


def _features(host: HostDocument) -> Iterator[str]:
    if host.userfault.how is None:
        return
    known = [str(feature.name) for feature in Feature]
    others = [name for name in host.userfault.features if name not in known]
    rows = []
    for name in (*known, *others):
        use = use_of(name)
        rows.append((name, _granted(host, name), f"Linux {use.since}", use.what))
    yield from _table(Table(("feature", "", "since", "for"), rows, left=4))


def _granted(host: HostDocument, name: str) -> str:
    if name in host.userfault.refused:
        return "refused"
    return "yes" if name in host.userfault.features else "no"


def _pools(host: HostDocument) -> Iterator[str]:
    columns = ("page size", "node", "total", "free", "reserved", "surplus", "overcommit")
    rows: list[tuple[str, ...]] = []
    for pool in host.pools:
        rows.append(_pool(pool))
        if len(pool.nodes) > 1:
            for node in pool.nodes:
                figures = (node.total, node.free, "", node.surplus, "")
                rows.append(("", str(node.node), *(map(str, figures))))
    if rows:
        yield from _table(Table(columns, rows))


def _pool(pool: Pool) -> tuple[str, ...]:
    name = format_size(pool.page_size)
    figures = (pool.total, pool.free, pool.reserved, pool.surplus, pool.overcommit)
    return (name, "all", *(f"{figure:,}" for figure in figures))


def _mounts(host: HostDocument) -> Iterator[str]:
    rows = [_mount(mount) for mount in host.mounts if mount.type in MEMORY]
    if rows:
        columns = ("mounted on", "type", "mode", "owner", "", "pages", "size", "free")
        yield from _table(Table(columns, rows, left=5))


def _mount(mount: Mount) -> tuple[str, ...]:
    sizes = ("-" if size is None else format_size(size, digits=4) for size in _sizes(mount))
    page = "?" if mount.page_size is None else format_size(mount.page_size)
    access = "writable" if mount.writable else "read-only"
    path = printable(mount.path, 26)
    return (path, mount.type, mount.mode, printable(mount.owner, 14), access, page, *sizes)


def _sizes(mount: Mount) -> tuple[int | None, int | None]:
    return mount.size, mount.free


_SECTIONS = {
    "host": _host,
    "userfaultfd": _userfault,
    "faults that work, and the median time of one": _faults,
    "features": _features,
    "hugepages": _pools,
    "memory that is mounted": _mounts,
}
