"""CPUs dealt to workers: whole, equal, and in the order of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu import topology
from vmemu.jobs import cpus

CPU_SETS = st.sets(st.integers(0, 300), min_size=1, max_size=70)


@given(CPU_SETS, st.integers(1, 100))
def test_shares_are_equal_within_one_and_nobody_is_left_out(allowed, workers):
    shares = [cpus.deal(worker, workers, allowed) for worker in range(workers)]
    sizes = {len(share) for share in shares}
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert frozenset().union(*shares) == allowed
    if workers <= len(allowed):
        assert sum(len(share) for share in shares) == len(allowed)  # disjoint
    else:
        uses = [sum(cpu in share for share in shares) for cpu in allowed]
        assert max(uses) - min(uses) <= 1


def test_by_default_it_is_what_this_process_may_use():
    mine = os.sched_getaffinity(0)
    assert cpus.deal(0, 1) == mine
    assert cpus.deal(0, 1, None) == cpus.share_of_xdist({}) == mine


@pytest.mark.parametrize(
    ("worker", "workers", "allowed"), [(2, 2, {0, 1}), (-1, 2, {0}), (0, 0, {0}), (0, 1, set())]
)
def test_who_is_no_worker_gets_nothing(worker, workers, allowed):
    with pytest.raises(ValueError, match="no worker"):
        cpus.deal(worker, workers, allowed)


def machine(root: Path, nodes: int, cores: int) -> dict[int, tuple[int, int]]:
    """A machine with two hyperthreads a core, numbered as Linux does: first all cores' first ones,
    node after node alternating. Gives (node, core) of each CPU."""
    places = {}
    for cpu in range(2 * cores):
        core = cpu % cores
        places[cpu] = (core % nodes, core)
        directory = root / f"cpu/cpu{cpu}"
        (directory / "topology").mkdir(parents=True)
        (directory / f"node{core % nodes}").mkdir()
        (directory / "topology/physical_package_id").write_text(f"{core % nodes}\n")
        (directory / "topology/thread_siblings_list").write_text(f"{core},{core + cores}\n")
    return places


def test_hyperthreads_and_nodes_stay_together(tmp_path, monkeypatch):
    monkeypatch.setattr(topology, "SYSFS", tmp_path)
    places = machine(tmp_path, nodes=2, cores=8)
    allowed = set(places)
    for worker in range(2):
        assert {places[cpu][0] for cpu in cpus.deal(worker, 2, allowed)} == {worker}
    for worker in range(8):
        first, second = cpus.deal(worker, 8, allowed)
        assert places[first] == places[second]


def test_without_sysfs_numbers_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(topology, "SYSFS", tmp_path)
    assert cpus.deal(1, 2, {5, 3, 9, 7}) == {7, 9}


@pytest.mark.parametrize(
    ("worker", "count", "share"),
    [
        ("gw0", "2", (0, 2)),
        ("gw1", "2", (1, 2)),
        ("gw5", "2", (1, 2)),  # stands in for one that has crashed
        ("master", "2", (0, 1)),
        ("gw0", "", (0, 1)),
        ("gw0", "0", (0, 1)),
    ],
)
def test_workers_of_xdist(worker, count, share):
    environ = {"PYTEST_XDIST_WORKER": worker, "PYTEST_XDIST_WORKER_COUNT": count}
    assert cpus.share_of_xdist(environ) == cpus.deal(*share)
