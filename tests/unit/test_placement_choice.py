"""Where the threads of a run go: never beyond what the process has, and by what wakings cost."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import scenario, synthetic

from vmemu import affinity, placement, topology
from vmemu.client_worker import placed
from vmemu.config import CpuLists, Scenario
from vmemu.errors import HostError
from vmemu.host.wakeup import Wakeup
from vmemu.placement import ROLES, Load, Placement, beside, choose
from vmemu.plan import blocks_of, client_plans, make_workload

NS = st.integers(200, 1_000_000)
CPU_SETS = st.frozensets(st.integers(0, 300), min_size=1, max_size=20)
LOADS = st.builds(
    Load,
    threads=st.integers(1, 40),
    fault_threads=st.integers(1, 8),
    compute_ns=st.integers(0, 10**6),
    page_bytes=st.sampled_from((4096, 65536, 2 << 20)),
    mixed=st.booleans(),
    paired=st.booleans(),
).map(lambda load: replace(load, of_clients=load.threads // 3))
COSTS = st.builds(Wakeup, NS, NS)
QUICK, SLOW = Wakeup(3_000, 4_000), Wakeup(3_000, 60_000)


@given(
    st.sampled_from(("auto", "colocate", "spread", "none")),
    CPU_SETS,
    st.integers(0, 300),
    LOADS,
    COSTS,
)
def test_no_thread_leaves_what_the_process_was_given(asked, allowed, here, load, cost):
    found = choose(asked, allowed, here, load, cost)
    assert found.asked == asked
    assert found.chosen in ("colocate", "none") if asked == "auto" else found.chosen == asked
    assert found.why
    for role in ROLES:
        assert found.cpus(role)
        assert found.cpus(role) <= allowed
        of_threads = [found.places.of(role, number) for number in range(50)]
        assert found.chosen == "none" or frozenset().union(*of_threads) == found.cpus(role)


@given(CPU_SETS, st.integers(0, 300), LOADS)
def test_together_means_one_cpu_and_bulk_beside_it(allowed, here, load):
    found = choose("colocate", allowed, here, replace(load, paired=False), None)
    (cpu,) = found.cpus("fault")
    assert cpu == here or here not in allowed
    assert found.cpus("vcpus") == found.cpus("clients") == found.cpus("urgent") == {cpu}
    for role in ("listen", "push"):
        # Without a channel of its own a page that was asked for comes with the bulk.
        assert (cpu in found.cpus(role)) == (load.mixed or len(allowed) == 1)


@given(st.frozensets(st.integers(0, 300), min_size=2, max_size=20), LOADS)
def test_apart_means_that_nobody_hands_a_page_to_its_own_cpu(allowed, load):
    places = choose("spread", allowed, 0, replace(load, paired=False), None).places
    assert places.of("urgent") != places.of("listen") != places.of("push")
    last = min(load.fault_threads, len(allowed)) - 1
    assert places.of("fault", last) != places.of("urgent")
    if load.threads == 1:
        assert places.of("vcpus") != places.of("fault")
    vcpus = [places.of("vcpus", number) for number in range(load.threads - load.of_clients)]
    vcpus += [places.of("clients", number) for number in range(load.of_clients)]
    uses = [vcpus.count(frozenset({cpu})) for cpu in allowed]
    assert max(uses) - min(uses) <= 1


@given(CPU_SETS, LOADS, COSTS, NS, st.integers(0, 10**6))
def test_what_speaks_for_one_cpu_never_speaks_against_it(allowed, load, cost, more, compute_ns):
    def chosen(load: Load, cost: Wakeup) -> bool:
        return choose("auto", allowed, 0, load, cost).chosen == "colocate"

    if chosen(load, cost):
        assert cost.same_ns is not None and cost.other_ns is not None
        assert chosen(load, Wakeup(cost.same_ns, cost.other_ns + more))
        assert chosen(replace(load, threads=max(load.threads - 1, 1)), cost)
        assert chosen(replace(load, compute_ns=min(load.compute_ns, compute_ns)), cost)


@given(CPU_SETS, st.integers(0, 300), LOADS, COSTS)
def test_a_vcpu_with_a_server_of_its_own_shares_its_cpu_with_that(allowed, here, load, cost):
    load = replace(load, paired=True)
    places = choose("colocate", allowed, here, load, None).places
    pairs = [places.of("vcpus", number) for number in range(load.threads)]
    assert pairs == [places.of("urgent", number) for number in range(load.threads)]
    assert len(set(pairs)) == min(load.threads, len(allowed))
    if load.threads < len(allowed):
        assert not places.of("push") & frozenset().union(*pairs)
    apart = choose("spread", allowed, here, load, None).places
    for number in range(load.threads):
        same = apart.of("vcpus", number) == apart.of("urgent", number)
        assert same == (len(allowed) == 1)
    # Nothing is in common that would make vCPUs wait for each other, so only the cost decides.
    decided = choose("auto", allowed, here, load, cost).chosen
    assert (decided == "colocate") == (cost.same_ns < cost.other_ns and len(allowed) > 1)


def auto(cost: Wakeup | None, load: Load | None = None, cpus: int = 2) -> Placement:
    return choose("auto", frozenset(range(cpus)), 1, load or Load(), cost)


def test_one_vcpu_goes_where_its_fault_is_served():
    found = auto(SLOW)
    assert (found.chosen, found.cpus("vcpus"), found.cpus("push")) == ("colocate", {1}, {0})
    assert "3us on its own CPU and 60us on another" in found.why
    assert found.described()["cpus"] == {
        "vcpus": "1", "clients": "1", "fault": "1", "urgent": "1", "listen": "0", "push": "0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cost", "load", "chosen"),
    [
        (SLOW, Load(threads=2), "colocate"),
        (QUICK, Load(threads=2, compute_ns=500), "none"),  # two compute side by side
        (SLOW, Load(threads=2, compute_ns=10**6), "none"),  # and these compute
        (SLOW, Load(threads=1, compute_ns=10**6), "colocate"),  # which one alone does anyway
        (SLOW, Load(threads=2, compute_ns=10_000), "colocate"),
        (SLOW, Load(page_bytes=2 << 20), "colocate"),
        (SLOW, Load(threads=4, page_bytes=2 << 20, compute_ns=1000), "none"),  # copying is all
        (Wakeup(3_000, 3_000), Load(), "none"),
    ],
)
def test_what_is_chosen_depends_on_cost_and_guest(cost, load, chosen):
    assert auto(cost, load).chosen == chosen


@pytest.mark.parametrize(
    ("cost", "load", "words"),
    [
        (SLOW, Load(), "with all on one CPU a fault costs about 13.5us, and apart 242us"),
        (SLOW, Load(threads=2, compute_ns=10**6), "one CPU a fault and what is computed until the"),
        (QUICK, Load(threads=2, page_bytes=2 << 20), "a fault costs about 789us, with all on one"),
    ],
)
def test_why_says_what_was_compared(cost, load, words):
    why = auto(cost, load).why
    assert words in why
    assert ("nothing is gained" in why) == (load.page_bytes > 4096)


def test_what_could_not_be_measured_is_left_to_the_scheduler():
    found = auto(Wakeup(None, None, "no more threads"))
    assert found.why == "what waking a thread costs could not be measured: no more threads"
    assert auto(Wakeup(3_000, None, "why")).chosen == "none"
    assert auto(None).chosen == "none"


def test_with_one_cpu_there_is_nothing_to_choose():
    found = choose("auto", frozenset({7}), 7, Load(), None)
    assert (found.chosen, found.why) == ("none", "this process may use CPU 7 alone")
    assert found.described()["wakeup_same_ns"] is None


def test_named_cpus_are_kept_before_the_flip_too_and_others_may_go_anywhere():
    allowed = frozenset(range(4))
    lists = CpuLists.model_validate({"vcpus": "0-1", "push": 3})
    found = choose(lists, allowed, 0, Load(), None)
    assert (found.asked, found.chosen) == ("explicit", "explicit")
    assert found.places.of("vcpus", 5) == found.places.of("source_vcpus") == {0, 1}
    assert found.places.of("push") == found.places.of("precopy_out") == {3}
    # A thread begins where the one that starts it is: left out must not mean left there.
    assert found.places.of("urgent") == found.places.of("precopy_in") == allowed


def test_who_answers_requests_alone_is_named_for_all_that_it_does():
    lists = CpuLists.model_validate({"urgent": 2})
    places = choose(lists, frozenset(range(4)), 0, Load(mixed=True), None).places
    assert places.of("urgent") == places.of("precopy_out") == {2}


def test_bulk_keeps_off_the_core_and_stays_on_the_node(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(topology, "SYSFS", tmp_path)
    for cpu in range(8):  # two nodes of two cores of two hyperthreads, one behind the other
        directory = tmp_path / f"cpu/cpu{cpu}"
        (directory / "topology").mkdir(parents=True)
        (directory / f"node{cpu // 4}").mkdir()
        first = cpu & ~1
        (directory / "topology/thread_siblings_list").write_text(f"{first}-{first + 1}\n")
    everything = frozenset(range(8))
    assert beside(0, everything) == {2, 3}
    assert beside(5, everything) == {6, 7}
    assert beside(0, frozenset({0, 1, 4, 6})) == {4, 6}
    assert beside(0, frozenset({0, 1})) == {1}
    assert beside(0, frozenset({0})) == set()


def loaded(**sections: object) -> Load:
    made = scenario(**sections)  # type: ignore[arg-type]
    return placement.load_of(made, make_workload(made, blocks_of(made))[0])


def test_what_a_guest_does_is_seen_in_its_scenario():
    blocks = [
        {"name": "ram", "backing": "anonymous", "size": "1MiB"},
        {"name": "vram", "backing": "shared", "size": "1MiB"},
    ]
    guest = {"vcpus": 3, "trace": synthetic("uniform", accesses=51_200)}
    client = {"name": "c", "block": "vram", "vcpus": 2, "trace": synthetic("permutation")}
    postcopy = {"preempt": False, "fault_threads": 2}
    load = loaded(blocks=blocks, guest=guest, clients=[client], migration={"postcopy": postcopy})
    assert load == Load(5, 2, 2, 100 * placement.ACCESS_NS, 4096, mixed=True)


def test_a_hugepage_faults_once():
    huge = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "8MiB"}
    load = loaded(blocks=[huge], guest={"trace": synthetic("uniform", accesses=400)})
    assert (load.page_bytes, load.compute_ns) == (2 << 20, 100 * placement.ACCESS_NS)


@pytest.mark.parametrize(
    ("postcopy", "client", "absent"),
    [
        ({}, False, ["clients"]),
        ({}, True, []),
        ({"delivery": "sigbus"}, False, ["clients", "fault"]),
        ({"delivery": "sigbus"}, True, []),  # whose faults the vCPUs don't serve
        ({"preempt": False}, True, ["push"]),
    ],
)
def test_only_threads_that_there_are_have_cpus(postcopy, client, absent):
    blocks = [{"name": "ram", "backing": "shared", "size": "1MiB"}]
    clients = [{"name": "c", "block": "ram", "trace": synthetic("permutation")}]
    made = scenario(
        blocks,
        placement="none",
        clients=clients if client else [],
        migration={"postcopy": postcopy},
    )
    found = placement.decide(made, make_workload(made, blocks_of(made))[0])
    cpus = found.described()["cpus"]
    assert [role for role in ROLES if cpus[role] is None] == absent


@pytest.mark.parametrize(
    ("word", "vcpus", "delivery", "cpus", "words"),
    [
        ("spread", 1, "thread", 2, ""),
        ("spread", 2, "thread", 2, "has 2 CPUs for 2 vCPUs and the threads that serve their"),
        ("spread", 1, "thread", 1, "has 1 CPU for 1 vCPU and"),
        ("spread", 2, "sigbus", 2, ""),
        ("spread", 5, "sigbus", 2, "5 vCPUs: some share one, and 5 would keep them apart"),
        ("spread", 1, "sigbus", 1, "and 2 would keep them apart"),
        ("colocate", 5, "thread", 1, ""),
    ],
)
def test_spread_says_when_it_has_too_few_cpus(word, vcpus, delivery, cpus, words):
    guest = {"vcpus": vcpus, "trace": synthetic("permutation")}
    made = scenario(guest=guest, placement=word, migration={"postcopy": {"delivery": delivery}})
    said = placement.crowded(made, cpus)
    assert words in said
    assert bool(words) == bool(said)


def client(name: str, vcpus: int = 1) -> dict[str, object]:
    return {"name": name, "block": "ram", "vcpus": vcpus, "trace": synthetic("permutation")}


@given(
    vcpus=st.integers(1, 4),
    clients=st.lists(st.integers(1, 3), max_size=3),
    delivery=st.sampled_from(("thread", "sigbus")),
    fault_threads=st.integers(1, 3),
)
def test_as_many_cpus_as_spread_asks_for_keep_all_apart(vcpus, clients, delivery, fault_threads):
    threads = fault_threads if delivery == "thread" else 1
    made = scenario(
        [{"name": "ram", "backing": "shared", "size": "1MiB"}],
        guest={"vcpus": vcpus, "trace": synthetic("permutation")},
        clients=[client(f"c{number}", count) for number, count in enumerate(clients)],
        placement="spread",
        migration={"postcopy": {"delivery": delivery, "fault_threads": threads}},
    )
    needed = next(cpus for cpus in range(1, 100) if not placement.crowded(made, cpus))
    assert f"and {needed} would keep them apart" in placement.crowded(made, needed - 1)
    load = placement.load_of(made, make_workload(made, blocks_of(made))[0])
    places = choose("spread", frozenset(range(needed)), 0, load, None).places
    at = [places.of("vcpus", number) for number in range(vcpus)]
    specs = [spec for spec, _ in client_plans(made, blocks_of(made))]
    for spec in placed(specs, places):
        at += [spec.places.of("clients", number) for number in range(spec.vcpus)]
    if "fault" in placement.roles_of(made):
        at += [places.of("fault", number) for number in range(threads)]
    assert len(set(at)) == len(at)


def named(**lists: object) -> Scenario:
    return scenario(placement=lists)


def test_cpus_that_are_not_there_are_refused_before_anything_is_taken():
    here = max(os.sched_getaffinity(0))
    placement.require(named(vcpus=here, push=here))
    refused = r"placement\.fault: CPU 8000-8001 is not among those"
    with pytest.raises(HostError, match=refused) as info:
        placement.require(named(vcpus=here, fault=f"{here},8000-8001"))
    assert info.value.exit_code == 3
    assert "use CPUs of " in str(info.value)


def test_what_was_taken_away_is_not_there():
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        assert affinity.allowed() == {min(cpus)}
        if len(cpus) > 1:
            with pytest.raises(HostError, match=f"may use \\({min(cpus)}\\)"):
                placement.require(named(push=max(cpus)))
    finally:
        os.sched_setaffinity(0, cpus)


def test_a_word_needs_no_measuring_but_auto(monkeypatch):
    def never(*_: object) -> Wakeup:
        raise AssertionError("measured for nothing")

    monkeypatch.setattr(placement.wakeup, "measure", never)
    for word in ("colocate", "spread", "none"):
        made = scenario(placement=word)
        assert placement.decide(made, make_workload(made, blocks_of(made))[0]).chosen == word
