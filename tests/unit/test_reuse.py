"""Reuse and working sets against definitions written out, and estimates beyond the bound."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.core import lib
from vmemu.errors import TraceError
from vmemu.traces.figures import reuse
from vmemu.traces.figures.reuse import ReuseCollector
from vmemu.traces.reader import MAX_STREAMS

Streams = dict[int, list[int]]
"""Pages in order, by stream."""


def collected(streams: Streams, cut: int = 1000, watched: int = reuse.WATCHED) -> ReuseCollector:
    collector = ReuseCollector(watched)
    longest = max(map(len, streams.values()), default=0)
    for start in range(0, longest, cut):
        for stream, pages in streams.items():
            part = np.array(pages[start : start + cut], np.uint64)
            collector.add(stream, part << np.uint64(12))
    return collector


def test_more_streams_than_there_is_room_for_are_refused() -> None:
    collector = ReuseCollector()
    page = np.zeros(1, np.uint64)
    for stream in range(MAX_STREAMS):
        collector.add(stream * 7, page)
    collector.add(7, page)
    with pytest.raises(TraceError, match="more than 4096 threads"):
        collector.add(1, page)
    assert sum(collector.lengths().values()) == MAX_STREAMS + 1


def distinct(streams: Streams) -> int:
    return len({page for pages in streams.values() for page in pages})


def times(streams: Streams) -> list[int]:
    found = []
    for pages in streams.values():
        last: dict[int, int] = {}
        for at, page in enumerate(pages):
            if page in last:
                found.append(at - last[page])
            last[page] = at
    return sorted(found)


def mean_working_set(streams: Streams, window: int) -> float:
    moments = sum(map(len, streams.values()))
    sizes = (
        len(set(pages[max(0, at + 1 - window) : at + 1]))
        for pages in streams.values()
        for at in range(len(pages))
    )
    return sum(sizes) / moments


def streams_of_pages() -> st.SearchStrategy[Streams]:
    pages = st.lists(st.integers(0, 12).map(lambda n: n * n * n << n), min_size=1, max_size=60)
    return st.dictionaries(st.sampled_from([0, 7, 100_000]), pages, min_size=1)


@given(streams_of_pages(), st.integers(1, 30))
def test_reuse_is_what_its_words_say(streams: Streams, cut: int) -> None:
    got = collected(streams, cut).reuse(distinct(streams))
    counts: dict[int, int] = {}
    for pages in streams.values():
        for page in pages:
            counts[page] = counts.get(page, 0) + 1
    accesses = sum(counts.values())
    assert got is not None
    assert got.accesses_per_page.mean == accesses / len(counts)
    assert got.accesses_per_page.median == statistics.median(counts.values())
    assert got.accesses_per_page.max == max(counts.values())
    assert got.pages_touched_once == sum(n == 1 for n in counts.values()) / len(counts)
    assert got.accesses_to_known_pages == pytest.approx(1 - len(counts) / accesses)
    assert got.pages_per_watched == 1
    known = times(streams)
    if known:
        at = [known[max(0, math.ceil(len(known) * share) - 1)] for share in (0.5, 0.9, 0.99)]
        assert got.time == tuple(at)
    else:
        assert got.time is None


@given(streams_of_pages(), st.integers(1, 30))
def test_curve(streams: Streams, cut: int) -> None:
    points = dict(collected(streams, cut).curve(distinct(streams)))
    for percent in reuse.CURVE_PERCENTS:
        seen = set()
        for pages in streams.values():
            seen |= set(pages[: math.ceil(len(pages) * percent / 100)])
        assert points[percent] == len(seen)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([[1500], [2500, 40], [1000, 1000, 1001]]))
def test_mean_working_set(seed: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    streams = {
        number: rng.zipf(1.3, length).clip(max=5000).tolist()
        for number, length in enumerate(lengths)
    }
    windows = collected(streams, 333).windows()
    assert [window.accesses for window in windows] == [1000]
    assert windows[0].mean_pages == pytest.approx(mean_working_set(streams, 1000))


def test_no_window_longer_than_the_longest_stream() -> None:
    assert collected({0: [1] * 999}).windows() == []
    assert [w.accesses for w in collected({0: [1] * 10_000}).windows()] == [1000, 10_000]


def test_nothing() -> None:
    collector = ReuseCollector()
    assert (collector.reuse(0), collector.curve(0), collector.windows()) == (None, [], [])


@given(st.integers(0, (1 << 64) - 1))
def test_buckets_hold_times_within_one_percent(time: int) -> None:
    bucket = lib.vm_reuse_bucket(time)
    assert 0 <= bucket < lib.VM_REUSE_BUCKETS
    middle = reuse._middle(bucket)
    assert abs(middle - time) <= time / 100 if time >= 128 else middle == time


def test_estimates_beyond_the_bound() -> None:
    """40,000 pages, of which at most 8192 are watched: every figure near the true one."""
    count = 40_000
    rng = np.random.default_rng(11)
    order = rng.permutation(count)
    pages = np.concatenate([order, order[: count // 2], order])
    streams = {3: pages.tolist()}
    collector = collected(streams, 1 << 14, watched=8192)
    got = collector.reuse(count)
    assert got is not None
    assert got.pages_per_watched == 8
    assert got.accesses_per_page.mean == 2.5
    assert got.accesses_per_page.max == 3
    assert got.pages_touched_once == 0
    assert got.time is not None
    assert got.time.p50 == pytest.approx(count, rel=0.02)
    assert dict(collector.curve(count))[20] == pytest.approx(count / 2, rel=0.05)
    assert dict(collector.curve(count))[100] == count
    by_window = dict(collector.windows())
    assert by_window[1000] == pytest.approx(1000, rel=0.05)
    assert by_window[10_000] == pytest.approx(9500, rel=0.05)
