"""Synthetic accesses as the C core makes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import anonymous, huge, shared, workload_of

from vmemu import core
from vmemu.ramblock import RAMBlock
from vmemu.synthetic import SyntheticShare

STORE, LOAD = 1, 0
BLOCKS = [anonymous(pages=5), huge(pages=2), shared(pages=9)]


def made(share: SyntheticShare, at_once: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """(addresses, kinds) of all accesses of a share, asked for a few at a time."""
    state, _keep = share.to_c()
    where, what = np.zeros(at_once, np.uint64), np.zeros(at_once, np.uint8)
    pointers = core.ffi.from_buffer("uint64_t[]", where), core.ffi.from_buffer("uint8_t[]", what)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    while count := core.lib.vm_synthetic_fill(state, *pointers, at_once):
        parts.append((where[:count].copy(), what[:count].copy()))
    empty = (np.zeros(0, np.uint64), np.zeros(0, np.uint8))
    addresses, kinds = zip(*(parts or [empty]), strict=True)
    return np.concatenate(addresses), np.concatenate(kinds)


def shares(kind: str, accesses: int | None = 500, vcpus: int = 2, seed: int = 1, **more):
    blocks: list[RAMBlock] = more.pop("blocks", BLOCKS)
    fields = {"kind": kind, "accesses": accesses, "write_share": 0.5} | more
    return workload_of(blocks, vcpus, seed, **fields).vcpus


@given(st.integers(1, 3000), st.integers(0, (1 << 64) - 1))
def test_the_permutation_is_one_for_any_length_and_seed(n, seed):
    assert sorted(core.lib.vm_permute(i, n, seed) for i in range(n)) == list(range(n))


@given(st.integers(1, (1 << 64) - 1), st.data())
def test_the_permutation_stays_inside_and_keeps_numbers_apart_whatever_the_length(n, data):
    numbers = data.draw(st.sets(st.integers(0, n - 1), max_size=20))
    images = {core.lib.vm_permute(i, n, 5) for i in numbers}
    assert len(images) == len(numbers)
    assert all(image < n for image in images)


def test_another_seed_gives_another_order():
    orders = {tuple(core.lib.vm_permute(i, 100, seed) for i in range(100)) for seed in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize("kind", ["sequential", "uniform", "permutation"])
@given(st.integers(0, (1 << 64) - 1), st.integers(1, 700))
def test_accesses_follow_from_the_seed_alone(kind, seed, at_once):
    for one, again in zip(shares(kind, seed=seed), shares(kind, seed=seed), strict=True):
        for left, right in zip(made(one), made(again, at_once), strict=True):
            assert (left == right).all()


@pytest.mark.parametrize("kind", ["sequential", "uniform", "permutation"])
def test_accesses_are_aligned_words_inside_ram_and_as_many_as_asked_for(kind):
    total = sum(block.size for block in BLOCKS)
    for share in shares(kind, accesses=4999):
        where, what = made(share)
        assert len(where) == len(what) == share.accesses
        assert (where % 8 == 0).all()
        assert (where < total).all()
        assert set(what.tolist()) <= {LOAD, STORE}


@pytest.mark.parametrize("kind", ["uniform", "permutation"])
def test_the_vcpus_do_not_do_the_same(kind):
    first, second = (made(share)[0] for share in shares(kind))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("vcpus", [1, 2, 3, 7])
def test_a_permutation_touches_each_host_page_once_over_all_vcpus(vcpus):
    work = shares("permutation", accesses=None, vcpus=vcpus)
    units = work[0].units
    touched = np.concatenate([made(share)[0] for share in work])
    pages = np.searchsorted(units, touched, side="right") - 1
    assert sorted(pages.tolist()) == list(range(len(units) - 1))


def test_a_permutation_begins_again_in_another_order():
    work = shares("permutation", accesses=32, vcpus=1)[0]
    pages = np.searchsorted(work.units, made(work)[0], side="right") - 1
    assert sorted(pages[:16].tolist()) == sorted(pages[16:].tolist()) == list(range(16))
    assert pages[:16].tolist() != pages[16:].tolist()


@pytest.mark.parametrize("stride", [8, 64, 4096, 40_000, 1 << 30])
@pytest.mark.parametrize("vcpus", [1, 3])
def test_a_sequential_walk_steps_by_the_stride_and_begins_again_at_the_end(stride, vcpus):
    for share in shares("sequential", accesses=30_000, vcpus=vcpus, stride=stride):
        steps = -(-(share.end - share.begin) // stride)
        expected = [share.begin + i % steps * stride for i in range(share.accesses)]
        assert made(share)[0].tolist() == expected
        assert all(at + 8 <= share.end for at in expected)


def test_a_walk_of_more_vcpus_than_pages_stays_inside():
    for share in shares("sequential", accesses=200, vcpus=9, blocks=[anonymous(pages=2)]):
        assert (made(share)[0] <= 2 * 4096 - 8).all()


@pytest.mark.parametrize("kind", ["sequential", "uniform", "permutation"])
@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.3, 0.28, 0.32)])
def test_the_share_of_writes_is_kept(kind, share, low, high):
    work = shares(kind, accesses=20_000, write_share=share, vcpus=1)[0]
    assert low <= (made(work)[1] == STORE).mean() <= high


def test_uniform_accesses_are_even_over_ram():
    work = shares("uniform", accesses=64_000, vcpus=1, blocks=[anonymous(pages=64)])[0]
    counts = np.bincount((made(work)[0] >> np.uint64(12)).astype(int), minlength=64)
    assert counts.min() > 850  # 1000 less nearly five standard deviations
    assert counts.max() < 1150


def test_a_share_without_accesses_makes_none():
    assert len(made(replace(shares("uniform")[0], accesses=0))[0]) == 0
