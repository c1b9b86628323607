"""What waking a thread costs: on the CPUs that this process may use, and nothing is left of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import Footprint

from vmemu import core
from vmemu.errors import CoreError
from vmemu.host import wakeup


def test_waking_is_timed_and_leaves_nothing():
    before, cpus = Footprint.now(), os.sched_getaffinity(0)
    found = wakeup.measure()
    assert found.same_ns is not None and found.same_ns > 0
    assert (found.other_ns is not None) == (len(cpus) > 1)
    assert bool(found.why) == (len(cpus) == 1)
    assert before.left_by(Footprint.now()) == {}
    assert os.sched_getaffinity(0) == cpus


def test_with_one_cpu_there_is_no_other():
    cpus = os.sched_getaffinity(0)
    only = max(cpus)
    os.sched_setaffinity(0, {only})
    try:
        found = wakeup.measure()
    finally:
        os.sched_setaffinity(0, cpus)
    assert found.same_ns is not None
    assert (found.other_ns, found.why) == (None, f"this process may use no other CPU than {only}")


@pytest.mark.parametrize("which", ["waker", "sleeper"])
def test_a_cpu_that_is_not_there_is_an_error_and_nobody_waits(which):
    here = min(os.sched_getaffinity(0))
    nowhere = 8000  # more than any kernel is built for, and than cpu_set_t holds
    took = core.ffi.new("uint64_t[]", 3)
    pair = (nowhere, here) if which == "waker" else (here, nowhere)
    with pytest.raises(CoreError, match="a thread on a CPU of its own"):
        core.call(core.lib.vm_wakeup, *pair, 3, 0, took)
    assert list(took) == [0, 0, 0]


def test_every_waking_is_timed():
    here = min(os.sched_getaffinity(0))
    took = core.ffi.new("uint64_t[]", 100)
    core.call(core.lib.vm_wakeup, here, here, 100, 0, took)
    assert all(took)


def test_what_failed_is_said_and_what_did_not_is_kept(monkeypatch):
    cpu = min(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {cpu, 8000})
    found = wakeup.measure()
    assert found.same_ns is not None
    assert found.other_ns is None
    assert "a thread on a CPU of its own: Invalid argument" in found.why


def test_the_other_cpu_is_of_another_core(monkeypatch, tmp_path: Path):
    for cpu, siblings in {0: "0-1\n", 1: "0-1\n", 2: "2-3\n", 3: "2-3\n"}.items():
        topology = tmp_path / f"cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings)
    pairs: list[tuple[int, int]] = []
    monkeypatch.setattr(wakeup, "_CPUS", tmp_path)
    monkeypatch.setattr(wakeup, "_median_ns", lambda *pair: pairs.append(pair[:2]) or 1)
    for allowed in ({0, 1, 2, 3}, {0, 1}, {1, 3}, {4, 5}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, cpus=allowed: cpus)
        wakeup.measure()
    assert pairs[1::2] == [(0, 2), (0, 1), (1, 3), (4, 5)]
