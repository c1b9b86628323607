"""Figures about faults against naive models of what they mean."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmemu import blocktime, core
from vmemu.guest_worker import FAULT_DTYPE

QUANTILES = {"p50": (1, 2), "p90": (9, 10), "p99": (99, 100), "p999": (999, 1000)}


@st.composite
def fault_lists(draw, longest: int = 8):
    """A vCPU's faults: they follow each other, and may touch."""
    edges = draw(st.lists(st.integers(0, 60), max_size=2 * longest))
    edges = sorted(edges)[: len(edges) // 2 * 2]
    return list(zip(edges[::2], edges[1::2], strict=True))


def faults(pairs: list[tuple[int, int]]) -> np.ndarray:
    array = np.zeros(len(pairs), FAULT_DTYPE)
    array["start_ns"] = [start for start, _ in pairs]
    array["end_ns"] = [end for _, end in pairs]
    return array


latency_arrays = st.lists(
    st.one_of(st.integers(0, 3000), st.integers(0, 10**13)), min_size=1, max_size=50
).map(lambda values: np.array(values, np.uint64))


@given(st.lists(fault_lists(), min_size=1, max_size=4))
def test_overlapped_is_the_time_in_which_every_vcpu_is_stopped(vcpus):
    naive = sum(
        all(any(start <= at < end for start, end in one) for one in vcpus) for at in range(60)
    )
    assert blocktime.overlapped([faults(one) for one in vcpus]) == naive


def test_overlapped_is_nothing_without_vcpus_or_with_one_that_never_stops():
    assert blocktime.overlapped([]) == 0
    assert blocktime.overlapped([faults([(0, 10)]), faults([])]) == 0


def test_overlapped_keeps_apart_the_nanoseconds_of_a_machine_that_is_up_for_years():
    start = 10**17
    both = [faults([(start, start + 7)]), faults([(start + 2, start + 9)])]
    assert blocktime.overlapped(both) == 5


def test_a_latency_is_end_less_start():
    assert blocktime.latencies(faults([(5, 9), (9, 9)])).tolist() == [4, 0]


@given(latency_arrays)
def test_a_quantile_is_the_smallest_latency_that_so_many_do_not_exceed(latency):
    summary = blocktime.summary(latency)
    ordered = sorted(latency.tolist())
    for name, share in QUANTILES.items():
        rank = math.ceil(Fraction(*share) * len(ordered))
        assert summary[name] == ordered[rank - 1]
    assert summary["max"] == ordered[-1]
    assert abs(summary["mean"] - Fraction(sum(ordered), len(ordered))) <= 1 + ordered[-1] * 1e-15


@given(st.integers(1, 5000))
def test_ranks_are_exact_for_any_number_of_faults(count):
    summary = blocktime.summary(np.arange(1, count + 1, dtype=np.uint64))
    for name, share in QUANTILES.items():
        assert summary[name] == math.ceil(Fraction(*share) * count)


def test_without_faults_all_figures_are_zero():
    nothing = np.empty(0, np.uint64)
    assert set(blocktime.summary(nothing).values()) == {0}
    assert blocktime.histogram(nothing) == []


@given(latency_arrays)
def test_a_histogram_counts_each_latency_in_its_bucket(latency):
    buckets = blocktime.histogram(latency)
    bounds = [bucket["le_ns"] for bucket in buckets]
    assert bounds == sorted(set(bounds))
    assert sum(bucket["count"] for bucket in buckets) == len(latency)
    assert buckets[0]["count"] > 0
    assert buckets[-1]["count"] > 0
    seen = 0
    for bucket in buckets:
        seen += bucket["count"]
        assert seen == sum(value <= bucket["le_ns"] for value in latency.tolist())


# ---- QEMU's buckets, stages, others ----


def naive_bucket(latency_ns: int) -> int:
    us = latency_ns // 1000
    inside = [n for n in range(24) if 2**n <= us < 2 ** (n + 1)]
    return inside[0] if inside else 0 if us < 1 else 23


edges = st.builds(
    lambda power, below: max(1000 * 2**power - below, 0), st.integers(0, 40), st.integers(-1, 1001)
)


@given(st.lists(st.one_of(st.integers(0, 10**14), edges), max_size=60))
def test_each_latency_is_in_its_bucket_of_qemu(latencies):
    expected = [0] * 24
    for latency in latencies:
        expected[naive_bucket(latency)] += 1
    assert blocktime.qemu_buckets(np.array(latencies, np.uint64)) == expected


TIMES = ("asked_ns", "queued_ns", "sent_ns", "arrived_ns", "placed_ns")


@st.composite
def requested_pages(draw):
    """Ways of requested pages: times in order, asked for by one of a few threads."""
    steps = st.lists(st.integers(0, 10**10), min_size=4, max_size=4)
    found = []
    for start in draw(st.lists(st.integers(0, 10**17), max_size=20)):
        times = [start, *(start + sum(taken) for taken in prefixes(draw(steps)))]
        found.append((*times, 0, 0, draw(st.integers(0, 4))))
    return np.array(found, blocktime.STAGE_DTYPE)


def prefixes(steps: list[int]) -> list[list[int]]:
    return [steps[: n + 1] for n in range(len(steps))]


@given(requested_pages())
def test_the_stages_are_what_lies_between_the_times_of_a_page(records):
    stages = blocktime.stages(records)
    assert list(stages) == ["request", "queue", "transfer", "place"]
    for name, begin, end in zip(stages, TIMES, TIMES[1:], strict=False):
        taken = [int(one[end]) - int(one[begin]) for one in records]
        assert stages[name] == blocktime.summary(np.array(taken, np.uint64))
        assert stages[name]["max"] == max(taken, default=0)


@given(requested_pages(), st.sets(st.integers(0, 6)))
def test_others_are_the_pages_that_no_vcpu_asked_for_first(records, vcpus):
    others = [
        int(one["placed_ns"]) - int(one["asked_ns"]) for one in records if one["tid"] not in vcpus
    ]
    assert blocktime.of_others(records, sorted(vcpus)).tolist() == others


def test_the_core_has_the_records_of_pages_as_numpy_reads_them():
    assert core.ffi.sizeof("struct vm_stage_record") == blocktime.STAGE_DTYPE.itemsize
    for name in blocktime.STAGE_DTYPE.names:
        offset = core.ffi.offsetof("struct vm_stage_record", name)
        assert blocktime.STAGE_DTYPE.fields[name][1] == offset


def test_a_histogram_begins_at_a_microsecond_and_has_eight_buckets_an_octave():
    buckets = blocktime.histogram(np.array([1, 1000, 1001, 2000], np.uint64))
    assert [bucket["count"] for bucket in buckets] == [2, 1, 0, 0, 0, 0, 0, 0, 1]
    assert (buckets[0]["le_ns"], buckets[-1]["le_ns"]) == (1000, 2000)


@given(st.lists(fault_lists(), max_size=4))
def test_the_worst_are_the_longest_of_all_vcpus(vcpus):
    told = blocktime.worst([faults(one) for one in vcpus])
    naive = sorted(
        ((start - end, start, vcpu) for vcpu, one in enumerate(vcpus) for start, end in one),
        key=lambda fault: fault[:2],
    )[: blocktime.WORST]
    assert [(-int(f["end_ns"] - f["start_ns"]), int(f["start_ns"])) for _, f in told] == [
        fault[:2] for fault in naive
    ]
    for vcpu, fault in told:
        assert (int(fault["start_ns"]), int(fault["end_ns"])) in vcpus[vcpu]
