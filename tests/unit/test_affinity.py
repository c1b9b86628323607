"""Threads on their CPUs: moved by themselves, let go by others; lists of CPUs as text."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu import affinity
from vmemu.affinity import Places
from vmemu.cpulist import LAST_CPU, format_cpus, parse_cpus
from vmemu.cthread import Bell, CThread
from vmemu.errors import HostError
from vmemu.units import UnitError

NOWHERE = frozenset({8000})


@given(st.frozensets(st.integers(0, LAST_CPU), min_size=1))
def test_a_list_is_read_as_it_was_written(cpus):
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), (" 2 , 1-2", {1, 2})]
)
def test_lists(text, cpus):
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no list of CPUs"),
        ("0-", "no list of CPUs; write one such as 0-3,8"),
        ("-1", "no list of CPUs"),
        ("all", "no list of CPUs"),
        ("1,,2", "no list of CPUs"),
        ("٣", "no list of CPUs"),
        ("3-1", "3-1 holds no CPU; write 1-3"),
        ("0-999999999", f"no machine has a CPU 999999999; use CPUs from 0 to {LAST_CPU}"),
        ("9" * 30, "no list of CPUs"),
    ],
)
def test_what_is_no_list(text, message):
    with pytest.raises(UnitError) as info:
        parse_cpus(text)
    assert message in str(info.value)


def test_threads_of_a_role_are_dealt_its_sets_in_turn():
    one, two = frozenset({1}), frozenset({2, 3})
    places = Places({"vcpus": (one, two)})
    assert [places.of("vcpus", number) for number in range(3)] == [one, two, one]
    assert places.of("push") is None


def test_the_cpu_of_a_thread_is_one_that_it_may_use():
    assert affinity.current() in affinity.allowed()


def run_on(cpus: frozenset[int] | None) -> tuple[CThread, list[frozenset[int]]]:
    """A thread that says where it may run, once it has been let go meanwhile."""
    seen: list[frozenset[int]] = []
    go, bell = threading.Event(), Bell()

    def run() -> None:
        seen.append(affinity.allowed())
        bell.ring()
        go.wait()
        seen.append(affinity.allowed())

    thread = CThread("placed", run, bell, cpus)
    thread.start()
    bell.wait(60)
    if not thread.done:
        assert thread.tid is not None
        affinity.free([], [thread.tid], affinity.allowed())
    go.set()
    thread.join()
    bell.close()
    return thread, seen


def test_a_thread_moves_itself_and_is_let_go():
    mine = affinity.allowed()
    cpu = frozenset({max(mine)})
    thread, seen = run_on(cpu)
    assert seen == [cpu, mine]
    assert affinity.allowed() == mine
    assert thread.tid is None


def test_a_thread_that_nobody_places_stays():
    assert run_on(None)[1] == [affinity.allowed()] * 2


def test_cpus_that_have_gone_end_the_thread_with_words():
    thread, seen = run_on(NOWHERE)
    assert seen == []
    assert isinstance(thread.error, HostError)
    assert str(thread.error).startswith(
        "thread placed can't be moved to CPU 8000: Invalid argument"
    )


def test_who_has_ended_is_passed_over():
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()
    tid = ended.native_id
    assert tid is not None
    affinity.free([2**22 + 1], [tid], affinity.allowed())
    assert os.sched_getaffinity(0) == affinity.allowed()
