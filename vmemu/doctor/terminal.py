"""What a person sees of a host: what is wrong first, each with what mends it, then all there is.

Plain aligned text of 100 columns or as many as a terminal has, with colour where it is asked for.
Nothing is cut off: what is long is wrapped, and a remedy stands on a line of its own, whole, so
that it can be copied.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from vmemu.doctor.features import use_of
from vmemu.doctor.support import Answer, ordinary, settings
from vmemu.host.document import FaultKind, HostDocument, Memory, Mount, Pool, Proof
from vmemu.host.places import MEMORY
from vmemu.results.terminal import Table, align
from vmemu.units import counted, format_duration, format_size, printable
from vmemu.userfault import Feature

WIDTH = 100
_TITLES = {"error": "what keeps post-copy from working", "warning": "problems", "note": "notes"}
_COLOURS = {"error": 31, "warning": 33, "note": 36}
_GREEN, _BOLD = 32, 1
_INDENT = 2
_REMEDY = "mend it with: "


def lines(host: HostDocument, *, colour: bool = False, width: int = WIDTH) -> Iterator[str]:
    """The whole document for people."""
    page = Page(width, colour)
    yield from page.verdict(host)
    yield from page.kinds(host)
    yield from page.problems(host)
    if host.unknown:
        yield from ("", page.painted("could not be found out", _BOLD))
        for unknown in host.unknown:
            what = f"{unknown.what}: {unknown.why}"
            yield from page.entry(what, unknown.remedy, "to find out: ")
    for title, body in _SECTIONS.items():
        shown = list(body(page, host))
        if shown:
            yield from ("", page.painted(title, _BOLD), *shown)


@dataclass(frozen=True)
class Page:
    """What the lines go on: ``width`` columns."""

    width: int
    colour: bool

    def painted(self, text: str, code: int) -> str:
        """In that colour, if there are any."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def wrapped(self, text: str, first: str, others: str) -> list[str]:
        """As many lines as it takes; words stay whole."""
        return textwrap.wrap(
            text,
            self.width,
            initial_indent=first,
            subsequent_indent=others,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def table(self, table: Table, *, words: bool = True) -> Iterator[str]:
        """Aligned; a last column of ``words``, to the left, is wrapped in its place."""
        words = words and table.left == len(table.columns)
        cells = [table.columns, *table.rows] if table.figures else table.rows
        for line, row in zip(align(table).split("\n"), cells, strict=True):
            start = len(line) - len(row[-1]) + _INDENT
            if _INDENT + len(line) <= self.width or not words:
                yield f"{' ' * _INDENT}{line}".rstrip()
            else:
                first = f"{' ' * _INDENT}{line[: start - _INDENT]}"
                yield from self.wrapped(row[-1], first, " " * start)

    def verdict(self, host: HostDocument) -> Iterator[str]:
        """Whether post-copy of ordinary memory works."""
        found: Answer = ordinary(host)
        text = "post-copy works here" if found.works else "post-copy does not work here"
        told = f"{text}: {found.why}" if found.why else text
        first, *others = self.wrapped(told, "", "  ")
        code = _GREEN if found.works else _COLOURS["error"]
        yield self.painted(text, code) + first.removeprefix(text)
        yield from others

    def entry(self, what: str, remedy: str, lead: str = _REMEDY) -> Iterator[str]:
        """Something to know, and the command that goes with it."""
        yield from self.wrapped(what, "  ", "    ")
        if remedy:
            yield f"    {lead}{remedy}"

    def kinds(self, host: HostDocument) -> Iterator[str]:
        """Which memory can be missing here and come later: what post-copy is."""
        rows = []
        for proof in host.proofs:
            if proof.fault == "missing" and not proof.thp:
                word = "yes" if proof.works else _cell(proof)
                rows.append((memory_of(proof), word, _beside(proof)))
        if rows and host.userfault.how is not None:
            yield from self.table(Table(("", "", ""), rows, left=3))

    def problems(self, host: HostDocument) -> Iterator[str]:
        """What is wrong, the weightiest first."""
        for severity, title in _TITLES.items():
            found = [problem for problem in host.problems if problem.severity == severity]
            if found:
                yield from ("", self.painted(title, _COLOURS[severity]))
            for problem in found:
                yield from self.entry(problem.what, problem.remedy)


def _beside(proof: Proof) -> str:
    if not proof.works:
        return proof.why
    return "" if proof.fault_ns is None else f"{_cell(proof)} a fault"


def _whole(text: str) -> str:
    """With nothing in it that a terminal would obey."""
    return printable(text, max(len(text), 1))


# ---- the parts ----


def _host(page: Page, host: HostDocument) -> Iterator[str]:
    kernel, cpus = host.kernel, host.cpus
    size = format_size(kernel.base_page_size)
    rows = [
        ("recorded", f"{host.recorded_at} on {_whole(host.hostname)} by vmemu {host.vmemu}"),
        ("kernel", f"Linux {kernel.release}, {kernel.machine}, pages of {size}"),
        ("CPUs", f"{cpus.online} online, this process may use {len(cpus.allowed)}"),
    ]
    costs = ((cpus.wakeup_same_ns, "the same CPU"), (cpus.wakeup_other_ns, "another, idle one"))
    told = [f"{format_duration(ns, digits=3)} on {where}" for ns, where in costs if ns is not None]
    if told:
        rows.append(("  waking a thread", ", ".join(told)))
    rows += [*_memory(host.memory), *_limits(host), *_thp(host)]
    yield from page.table(Table(("", ""), rows, left=2))


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
    size = f"{format_size(thp.page_size)}; " if thp.page_size else ""
    words = (
        (thp.enabled, "anonymous memory"),
        (thp.shmem_enabled, "shared memory"),
        (thp.defrag, "defrag"),
    )
    told = ", ".join(f"{what}: {word}" for word, what in words if word is not None)
    yield "transparent hugepages", f"{size}{told}"


def _size(size: int | None) -> str:
    return "unlimited" if size is None else format_size(size, digits=4)


def _userfault(page: Page, host: HostDocument) -> Iterator[str]:
    uffd = host.userfault
    for way in uffd.ways:
        works = "works" + (", and is what a run takes" if way.how == uffd.how else "")
        text = works if way.works else f"no: {way.why}"
        yield from page.wrapped(text, f"  {way.how:<16}", " " * 18)
        if way.remedy:
            yield " " * 18 + _REMEDY + way.remedy
    facts = [
        f"vm.unprivileged_userfaultfd is {uffd.unprivileged_sysctl}"
        if uffd.unprivileged_sysctl is not None
        else "",
        f"seccomp: {uffd.seccomp}" if uffd.seccomp else "",
        f"container: {_whole(uffd.container)}" if uffd.container else "no container",
    ]
    yield from page.wrapped("; ".join(fact for fact in facts if fact), "  ", "    ")
    rights = ", ".join(uffd.capabilities) or "none that counts here"
    yield from page.wrapped(f"capabilities: {rights}", "  ", "    ")


def _faults(page: Page, host: HostDocument) -> Iterator[str]:
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
    yield from page.table(Table(headings, rows))
    for why, which in _reasons(host.proofs).items():
        yield from page.wrapped(f"{'; '.join(which)}: {why}", "  ", "    ")


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


def _settings(page: Page, host: HostDocument) -> Iterator[str]:
    if host.userfault.how is None or not host.collapse:
        return
    rows = []
    for setting, found in settings(host):
        rows.append((setting, "yes" if found.works else "no", found.why))
    yield from page.table(Table(("", "", ""), rows, left=3))


def _features(page: Page, host: HostDocument) -> Iterator[str]:
    if host.userfault.how is None:
        return
    known = [str(feature.name) for feature in Feature]
    others = [name for name in host.userfault.features if name not in known]
    rows = []
    for name in (*known, *others):
        use = use_of(name)
        rows.append((name, _granted(host, name), use.since, use.setting, use.what))
    yield from page.table(Table(("feature", "", "since", "needed by", "for"), rows, left=5))


def _granted(host: HostDocument, name: str) -> str:
    if name in host.userfault.refused:
        return "refused"
    return "yes" if name in host.userfault.features else "no"


def _pools(page: Page, host: HostDocument) -> Iterator[str]:
    columns = ("page size", "node", "total", "free", "reserved", "surplus", "overcommit")
    rows: list[tuple[str, ...]] = []
    for pool in host.pools:
        rows.append(_pool(pool))
        if len(pool.nodes) > 1:
            for node in pool.nodes:
                figures = (node.total, node.free, "", node.surplus, "")
                rows.append(("", str(node.node), *(map(str, figures))))
    if rows:
        yield from page.table(Table(columns, rows))


def _pool(pool: Pool) -> tuple[str, ...]:
    name = format_size(pool.page_size)
    figures = (pool.total, pool.free, pool.reserved, pool.surplus, pool.overcommit)
    return (name, "all", *(f"{figure:,}" for figure in figures))


def _mounts(page: Page, host: HostDocument) -> Iterator[str]:
    rows = [_mount(mount) for mount in host.mounts if mount.type in MEMORY]
    if rows:
        columns = ("type", "pages", "size", "free", "writable", "mode", "owner", "mounted on")
        yield from page.table(Table(columns, rows, left=len(columns)), words=False)


def _mount(mount: Mount) -> tuple[str, ...]:
    sizes = (
        "-" if size is None else format_size(size, digits=4) for size in (mount.size, mount.free)
    )
    page = "?" if mount.page_size is None else format_size(mount.page_size)
    access = "yes" if mount.writable else "no"
    owner = _whole(mount.owner)
    return (mount.type, page, *sizes, access, mount.mode, owner, _whole(mount.path))


_SECTIONS = {
    "host": _host,
    "userfaultfd": _userfault,
    "faults that work, and the median time of one": _faults,
    "settings of a scenario that not every host has": _settings,
    "features of userfaultfd, and the release of Linux that brought each": _features,
    "hugepages": _pools,
    "memory that is mounted": _mounts,
}
