"""Which CPUs the threads of a run get, and why.

A fault wakes four threads one behind the other: the fault thread, the source's server, the fault
thread again, the vCPU. On one CPU each waking is a switch; on another CPU that is at rest it is an
interrupt and the end of that rest, which can cost twenty times as much, above all in a virtual
machine. So what is gained by CPUs of their own is laid against what four wakings cost there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from vmemu import affinity
from vmemu.affinity import CpuSet, Places
from vmemu.config import CpuLists, Scenario
from vmemu.cpulist import format_cpus
from vmemu.errors import Advice, HostError
from vmemu.host import wakeup
from vmemu.host.wakeup import Wakeup
from vmemu.topology import place
from vmemu.units import counted, format_duration

if TYPE_CHECKING:
    from vmemu.workload import Workload

ROLES = ("vcpus", "clients", "fault", "urgent", "listen", "push")
"""Threads by what they do, as the scenario names them."""
WAKINGS, WAKINGS_OF_PAIR = 4, 2
"""Threads that one fault wakes: with a fault thread between, and where each vCPU has a server."""
ACCESS_NS = 2
"""What an access on a page that is there takes."""
COPIED_BYTES_PER_US = 2700
"""Of a page that is written, read and placed by one CPU."""
SEEN_NS = 1000
"""What is seen in a fault's figures of three digits."""
ROUNDS = 5
"""How often a waking is timed at the start of a run: a few ms in all."""

_AT_SOURCE = {"vcpus": "source_vcpus", "push": "precopy_out", "listen": "precopy_in"}
"""Roles that CPUs are given to before the flip too, where somebody names them: without faults
there is nothing that one CPU for all would gain."""


@dataclass(frozen=True)
class Load:
    """What is known of a guest before it runs.

    ``threads`` may fault, ``of_clients`` among them; each computes for ``compute_ns`` between two
    faults on pages of ``page_bytes``. ``mixed``: urgent pages come on the channel of the push.
    ``paired``: each vCPU fetches its pages itself, from a server of its own.
    """

    threads: int = 1
    of_clients: int = 0
    fault_threads: int = 1
    compute_ns: int = 0
    page_bytes: int = 4096
    mixed: bool = False
    paired: bool = False


@dataclass(frozen=True)
class Placement:
    """What was ``asked``: a word of the scenario, or ``explicit``, where it names CPUs; what was
    ``chosen`` for ``auto``, and ``why``.

    ``allowed`` are the CPUs that the run may use. ``wakeup`` is None where nothing was measured.
    ``roles`` are those that have threads in this run; ``warning`` says what could not be done as
    it was asked, empty for nothing.
    """

    asked: str
    chosen: str
    why: str
    allowed: CpuSet
    places: Places = field(default_factory=Places)
    wakeup: Wakeup | None = None
    roles: Collection[str] = ROLES
    warning: str = ""

    def cpus(self, role: str) -> CpuSet:
        """All CPUs of a role."""
        return frozenset().union(*self.places.by_role.get(role, (self.allowed,)))

    def described(self) -> dict[str, Any]:
        """What a result says of it: plain data."""
        same, other = (self.wakeup.same_ns, self.wakeup.other_ns) if self.wakeup else (None, None)
        return {
            "asked": self.asked,
            "chosen": self.chosen,
            "why": self.why,
            "wakeup_same_ns": same,
            "wakeup_other_ns": other,
            "cpus": {
                role: format_cpus(self.cpus(role)) if role in self.roles else None for role in ROLES
            },
        }

    def lift(self, pids: Iterable[int], threads: Iterable[int]) -> None:
        """No fault can come any more: the threads of those processes, and those of this one, may
        compute wherever the run may, unless somebody has said where."""
        if self.chosen in ("colocate", "spread"):
            affinity.free(pids, threads, self.allowed)


def require(scenario: Scenario) -> None:
    """Raise HostError, with its place, for CPUs in the scenario that this process may not use."""
    for role, missing in beyond(scenario, affinity.allowed()):
        message, advice = refusal("this process", missing, affinity.allowed())
        error = HostError(message, advice)
        raise error.at(scenario.place_of(f"placement.{role}"))


def beyond(scenario: Scenario, allowed: CpuSet) -> list[tuple[str, CpuSet]]:
    """The roles whose CPUs are not all among those that are ``allowed``, and which are not."""
    asked = scenario.placement
    if not isinstance(asked, CpuLists):
        return []
    lists = [(role, getattr(asked, role) or frozenset()) for role in ROLES]
    return [(role, cpus - allowed) for role, cpus in lists if cpus - allowed]


def refusal(who: str, missing: CpuSet, allowed: CpuSet) -> tuple[str, Advice]:
    """What is wrong with CPUs that ``who`` may not use, and what mends it."""
    have = format_cpus(allowed)
    what = f"CPU {format_cpus(missing)} is not among those that {who} may use ({have})"
    return what, Advice(
        f"use CPUs of {have}, or a machine, an affinity (taskset -cp) and a control group"
        " (cpuset.cpus) that have more"
    )


def roles_of(scenario: Scenario) -> frozenset[str]:
    """The roles that have threads: who serves itself needs a fault thread for clients alone, and
    what answers requests on the channel of the push does the pushing too."""
    clients = bool(scenario.clients)
    none = set() if clients else {"clients"}
    if scenario.migration.postcopy.delivery == "sigbus" and not clients:
        none.add("fault")
    if not scenario.migration.postcopy.preempt:
        none.add("push")
    return frozenset(ROLES) - none


def crowded(scenario: Scenario, cpus: int) -> str:
    """Why ``spread`` can't keep those apart that hand a page to each other, on so many CPUs; empty
    where it can, or another placement is asked for."""
    if scenario.placement != "spread":
        return ""
    clients = _threads_of_clients(scenario)
    vcpus = scenario.guest.vcpus + clients
    postcopy = scenario.migration.postcopy
    paired = postcopy.delivery == "sigbus"
    if paired and not clients:
        # Who serves itself has its server on the next CPU, so it takes two of them and no more.
        needed, served = max(vcpus, 2), ""
    else:
        needed = vcpus + postcopy.fault_threads
        served = f" and the threads that serve {'clients' if paired else 'their faults'}"
    if needed <= cpus:
        return ""
    return (
        f"spread has {counted(cpus, 'CPU')} for {counted(vcpus, 'vCPU')}{served}: some share one,"
        f" and {needed} would keep them apart"
    )


def _threads_of_clients(scenario: Scenario) -> int:
    return sum(client.vcpus for client in scenario.clients)


def load_of(scenario: Scenario, workload: Workload) -> Load:
    """What the guest will do, from what its vCPUs replay."""
    import numpy as np

    pages = np.bincount(workload.block[workload.block >= 0], minlength=len(scenario.blocks))
    sizes = [block.page_size for block in scenario.blocks]
    # Each page faults once at most, and the dictionary has its target pages one by one.
    faults = [
        min(int(count), block.pages) for count, block in zip(pages, scenario.blocks, strict=True)
    ]
    total = max(sum(faults), 1)
    postcopy, clients = scenario.migration.postcopy, _threads_of_clients(scenario)
    return Load(
        threads=scenario.guest.vcpus + clients,
        of_clients=clients,
        fault_threads=postcopy.fault_threads,
        compute_ns=workload.accesses * ACCESS_NS // total,
        page_bytes=sum(n * size for n, size in zip(faults, sizes, strict=True)) // total,
        mixed=not postcopy.preempt,
        paired=postcopy.delivery == "sigbus",
    )


def decide(scenario: Scenario, workload: Workload) -> Placement:
    """Where the threads of this run go. Measures for a few ms what wakings cost here, where
    something depends on it."""
    allowed, load = affinity.allowed(), load_of(scenario, workload)
    here = affinity.current()
    measured = scenario.placement == "auto" and len(allowed) > 1
    cost = wakeup.measure(here, ROUNDS) if measured else None
    chosen = choose(scenario.placement, allowed, here, load, cost)
    crowd = crowded(scenario, len(allowed))
    return replace(chosen, roles=roles_of(scenario), warning=crowd)


def choose(
    asked: str | CpuLists, allowed: CpuSet, here: int, load: Load, cost: Wakeup | None
) -> Placement:
    """The placement for a guest on the ``allowed`` CPUs, of which ``here`` is the one that the run
    would best be on."""
    if isinstance(asked, CpuLists):
        lists = {role: cpus for role in ROLES if (cpus := getattr(asked, role)) is not None}
        places = _explicit(lists, allowed, load.mixed)
        return Placement("explicit", "explicit", "the scenario names the CPUs", allowed, places)
    chosen, why = (asked, "as the scenario says") if asked != "auto" else _auto(allowed, load, cost)
    places = Places()
    if chosen == "colocate":
        cpu = here if here in allowed else min(allowed)
        places = _pairs(allowed, cpu, load) if load.paired else _together(allowed, cpu, load.mixed)
    elif chosen == "spread":
        places = _apart(allowed, load)
    return Placement(asked, chosen, why, allowed, places, cost)


def _auto(allowed: CpuSet, load: Load, cost: Wakeup | None) -> tuple[str, str]:
    """The word that pays, and why."""
    if len(allowed) == 1:
        return "none", f"this process may use CPU {format_cpus(allowed)} alone"
    if cost is None or cost.same_ns is None or cost.other_ns is None:
        why = f": {cost.why}" if cost else ""
        return "none", f"what waking a thread costs could not be measured{why}"
    same, other = cost.same_ns, cost.other_ns
    at_once = min(load.threads, len(allowed))
    together, apart = _costs(load, same, other, at_once)
    told = _compared(load, _short(together), _short(apart), at_once)
    why = f"waking a thread takes {_short(same)} on its own CPU and {_short(other)} on another"
    return ("colocate" if together < apart else "none"), f"{why}: {told}"


def _compared(load: Load, together: str, apart: str, at_once: int) -> str:
    one = "each vCPU beside its server" if load.paired else "all on one CPU"
    fault = "a fault costs"
    if load.compute_ns >= SEEN_NS:
        fault = "a fault and what is computed until the next cost"
    if together == apart:
        return f"{fault} about {together}, with {one} as well as apart, so nothing is gained"
    beside = f", {at_once} at a time" if at_once > 1 else ""
    return f"with {one} {fault} about {together}, and apart {apart}{beside}"


def _costs(load: Load, same_ns: int, other_ns: int, at_once: int) -> tuple[float, float]:
    """A fault, and what is computed until the next, with its threads together and apart."""
    near = _fault_ns(load, same_ns)
    apart = (_fault_ns(load, other_ns) + load.compute_ns) / at_once
    if load.paired:
        return (near + load.compute_ns) / at_once, apart
    # One server and one fault thread have all pages in their hands, however many wait for them.
    return near + load.compute_ns, max(apart, near)


def _fault_ns(load: Load, waking_ns: int) -> float:
    """From one fault of a thread until it goes on."""
    wakings = WAKINGS_OF_PAIR if load.paired else WAKINGS
    return wakings * waking_ns + load.page_bytes * 1000 / COPIED_BYTES_PER_US


def _short(ns: float) -> str:
    return format_duration(round(ns), digits=3)


# ---- CPUs by role ----


def _explicit(lists: dict[str, CpuSet], allowed: CpuSet, mixed: bool) -> Places:
    """Every role has its CPUs: a thread begins on those of the one that has started it. Without a
    push of its own the source has one thread for all, pre-copy as well."""
    lists = {**lists, "push": lists.get("urgent", allowed)} if mixed else lists
    sets = {role: (lists.get(role, allowed),) for role in ROLES}
    return Places(sets | {before: sets[role] for role, before in _AT_SOURCE.items()})


def _together(allowed: CpuSet, cpu: int, mixed: bool) -> Places:
    """All on whose way a fault is on one CPU, and what else moves pages elsewhere."""
    one, rest = (frozenset({cpu}),), (beside(cpu, allowed) or frozenset({cpu}),)
    on_the_way = dict.fromkeys(("vcpus", "clients", "fault", "urgent"), one)
    return Places({**on_the_way, "listen": one if mixed else rest, "push": one if mixed else rest})


def _pairs(allowed: CpuSet, cpu: int, load: Load) -> Places:
    """Each vCPU and its server on a CPU, of which no two have the same as long as there are any;
    what only moves bulk elsewhere, if anything is left."""
    order = [cpu, *sorted(allowed - {cpu})]
    own = tuple(frozenset({each}) for each in order[: load.threads])
    rest = (beside(cpu, allowed).difference(*own) or allowed.difference(*own) or allowed,)
    on_the_way = {"vcpus": own, "urgent": own, "clients": own[:1], "fault": own[:1]}
    return Places({**on_the_way, "listen": rest, "push": rest})


def beside(cpu: int, allowed: CpuSet) -> CpuSet:
    """CPUs for those who shall not be in the way of ``cpu``: those of other cores, and of its node,
    where its memory is, as far as there are any."""
    at = place(cpu)
    rest = {other: place(other) for other in allowed - {cpu}}
    cores = {n for n, there in rest.items() if there[:3] != at[:3]}
    near = {n for n in cores if rest[n].node == at.node}
    return frozenset(near or cores or rest)


def _apart(allowed: CpuSet, load: Load) -> Places:
    """Dealt in turn, in the order in which a page passes them, so that no two that hand it to each
    other share a CPU."""
    ring = [frozenset({cpu}) for cpu in sorted(allowed)]
    turn = cycle(ring)
    vcpus = tuple(islice(turn, load.threads - load.of_clients))
    clients = tuple(islice(turn, load.of_clients))
    fault = tuple(islice(turn, min(load.fault_threads, len(ring))))
    urgent, listen, push = islice(turn, 3)
    servers = tuple(ring[(number + 1) % len(ring)] for number in range(len(vcpus)))
    return Places(
        {
            "vcpus": vcpus,
            "clients": clients or vcpus,
            "fault": fault,
            "urgent": servers if load.paired else (urgent,),
            "listen": (listen,),
            "push": (push,),
        }
    )
