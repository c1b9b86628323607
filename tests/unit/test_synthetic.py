"""Synthetic accesses as the C core makes them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import HUGE, anonymous, huge, shared, shares_of, sizes_of, workload_of

from vmemu import core
from vmemu.ramblock import RAMBlock
from vmemu.synthetic import SyntheticShare
from vmemu.walks import MOST_LOOKED_UP, Shuffle
from vmemu.workload import Workload

STORE, LOAD = 1, 0
BLOCKS = [anonymous(pages=5), huge(pages=2), shared(pages=9)]
TOTAL = sum(block.size for block in BLOCKS)
PAGE = 4096

PHASES = [
    {
        "accesses": 300,
        "patterns": [{"kind": "zipf", "weight": 3}, {"kind": "strided", "stride": 512}],
    },
    {"accesses": 7, "patterns": [{"kind": "permutation", "block": "huge"}]},
    {"accesses": 150, "patterns": [{"kind": "pointer_chase"}, {"kind": "hot_cold", "period": 9}]},
]
KINDS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "strided": {"stride": 512},
    "uniform": {},
    "permutation": {},
    "zipf": {"unit": "16KiB"},
    "hot_cold": {"period": 37, "scatter": True},
    "pointer_chase": {"write_share": 0.5},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(share: SyntheticShare, *at_once: int) -> tuple[np.ndarray, np.ndarray]:
    """(addresses, kinds) of all accesses of a share, asked for by so many in turn."""
    state, _keep = share.to_c()
    counts = at_once or (4096,)
    where, what = np.zeros(max(counts), np.uint64), np.zeros(max(counts), np.uint8)
    pointers = core.ffi.from_buffer("uint64_t[]", where), core.ffi.from_buffer("uint8_t[]", what)
    parts = [(np.zeros(0, np.uint64), np.zeros(0, np.uint8))]
    while count := core.lib.vm_synthetic_fill(state, *pointers, counts[len(parts) % len(counts)]):
        parts.append((where[:count].copy(), what[:count].copy()))
    addresses, kinds = zip(*parts, strict=True)
    return np.concatenate(addresses), np.concatenate(kinds)


def work(kind: str, accesses: int | None = 500, vcpus: int = 1, seed: int = 1, **more) -> Workload:
    blocks: list[RAMBlock] = more.pop("blocks", BLOCKS)
    if kind == "phases":
        return workload_of(blocks, vcpus, seed, kind=kind, **({"phases": PHASES} | more))
    fields = {"kind": kind, "accesses": accesses} | KINDS[kind] | more
    return workload_of(blocks, vcpus, seed, **fields)


def addresses(kind: str, accesses: int | None = 500, **more) -> np.ndarray:
    """The addresses of the one vCPU that there is."""
    (share,) = shares_of(work(kind, accesses, **more))
    return made(share)[0].astype(np.int64)


# ---- shuffled orders ----


def shuffled(n: int, seed: int, count: int, look_up: bool = False) -> list[int]:
    shuffle = Shuffle(n, seed, look_up)
    return [core.lib.vm_shuffle(shuffle.c, i) for i in range(count)]


@given(st.integers(1, 3000), st.integers(0, (1 << 64) - 1))
def test_both_permutations_are_one_for_any_length_and_seed(n, seed):
    assert sorted(core.lib.vm_permute(i, n, seed) for i in range(n)) == list(range(n))
    assert sorted(shuffled(n, seed, n)) == list(range(n))


@given(st.integers(1, (1 << 64) - 1), st.data())
def test_they_stay_inside_and_keep_numbers_apart_whatever_the_length(n, data):
    numbers = data.draw(st.sets(st.integers(0, n - 1), max_size=20))
    shuffle = Shuffle(n, 5, look_up=False)
    for images in (
        {core.lib.vm_permute(i, n, 5) for i in numbers},
        {core.lib.vm_shuffle(shuffle.c, i) for i in numbers},
    ):
        assert len(images) == len(numbers)
        assert all(image < n for image in images)


def test_another_seed_gives_another_order():
    orders = {tuple(core.lib.vm_permute(i, 100, seed) for i in range(100)) for seed in range(20)}
    assert len(orders) == 20
    assert len({tuple(shuffled(100, seed, 100)) for seed in range(20)}) == 20


@pytest.mark.parametrize("n", [1, 2, 1000, MOST_LOOKED_UP, MOST_LOOKED_UP + 1, 1 << 33])
def test_a_position_that_is_looked_up_is_the_one_worked_out(n):
    numbers = [*range(min(n, 500)), *range(max(n - 500, 0), n)]
    for i in (MOST_LOOKED_UP - 1, MOST_LOOKED_UP):
        numbers += [i] if i < n else []
    kept, plain = Shuffle(n, 3, look_up=True), Shuffle(n, 3, look_up=False)
    assert [core.lib.vm_shuffle(kept.c, i) for i in numbers] == [
        core.lib.vm_shuffle(plain.c, i) for i in numbers
    ]


@pytest.mark.parametrize("n", [4096, 5000, 1 << 18, 262_147])
def test_a_shuffled_order_keeps_no_order(n):
    order = np.array(shuffled(n, 11, 4000))
    # Neighbours are as far from each other as two numbers drawn at random: a third of n.
    assert 0.31 < np.abs(np.diff(order)).mean() / n < 0.36
    counts = np.histogram(order, 16, (0, n))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 45  # chi-square of 15 degrees of freedom, p 1e-4
    assert 0.45 < (np.diff(order) > 0).mean() < 0.55


# ---- what holds for every kind ----


@pytest.mark.parametrize("kind", [*KINDS, "phases"])
@given(st.integers(0, (1 << 64) - 1), st.lists(st.integers(1, 700), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_accesses_follow_from_the_seed_alone_however_they_are_asked_for(kind, seed, at_once):
    ones, others = (shares_of(work(kind, seed=seed, vcpus=2, blocks=BLOCKS[:2])) for _ in range(2))
    for one, again in zip(ones, others, strict=True):
        for left, right in zip(made(one), made(again, *at_once), strict=True):
            assert (left == right).all()


@pytest.mark.parametrize("kind", [*KINDS, "phases"])
def test_a_share_can_be_made_again_from_its_start(kind):
    (share,) = shares_of(work(kind))
    assert (made(share)[0] == made(share)[0]).all()


@each_kind
@given(
    size=st.sampled_from([1, 2, 4, 8, 16, 64, 512, 4096]),
    vcpus=st.integers(1, 4),
    start=st.sampled_from([0, "4KiB", "30%"]),
    stop=st.sampled_from(["100%", "64KiB", "75%"]),
    block=st.sampled_from([None, "huge"]),
)
@settings(deadline=None, max_examples=40)
def test_accesses_are_aligned_inside_their_range_and_as_many_as_asked_for(
    *, kind, size, vcpus, start, stop, block
):
    fields = {"start": start, "stop": stop, "block": block, "access_size": size}
    if kind == "strided":
        fields["stride"] = 3 * size
    if kind == "pointer_chase":
        fields["node"] = max(size, 64)
    whole = (5 * PAGE, 2 * HUGE) if block else (0, TOTAL)
    low, high = whole[0], sum(whole)
    bounds = {0: 0, "4KiB": PAGE, "64KiB": 16 * PAGE}
    begin = low + bounds.get(start, whole[1] * 30 // 100 // PAGE * PAGE)
    end = low + bounds[stop] if stop in bounds else low + whole[1] * int(stop[:-1]) // 100
    if begin >= min(end, high):
        return
    workload = work(kind, 997, vcpus, **fields)
    assert sizes_of(workload).tolist() == [size] + [0] * 63
    assert workload.accesses == 997
    for share in shares_of(workload):
        where, what = made(share)
        assert len(where) == len(what) == share.accesses
        assert (where % size == 0).all()
        assert (begin <= where).all()
        assert (where + size <= end).all()
        assert set(what.tolist()) <= {LOAD, STORE}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sequential"])
def test_the_vcpus_do_not_do_the_same(kind):
    first, second = (made(share)[0] for share in shares_of(work(kind, vcpus=2)))
    assert first.tolist() != second.tolist()


@each_kind
@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 1, 1), (0.3, 0.28, 0.32)])
def test_the_share_of_writes_is_kept(kind, share, low, high):
    (one,) = shares_of(work(kind, 20_000, write_share=share))
    assert low <= (made(one)[1] == STORE).mean() <= high


def test_a_vcpu_without_accesses_makes_none():
    first, second = shares_of(work("uniform", accesses=1, vcpus=2))
    assert (len(made(first)[0]), len(made(second)[0])) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "accesses", "write_share", "vcpus", "seed", "digest"),
    [
        ("sequential", 100_000, 0.3, 3, 7, "6b7c42f1236e9e84"),
        ("sequential", 100_000, 1.0, 3, 7, "409c4233430249fb"),
        ("uniform", 5000, 0.5, 3, 1, "b4cc1f8b641412cc"),
        ("permutation", 16, 0.5, 2, 1, "21e96b0d82819c1c"),
        ("permutation", 4999, 0.25, 3, 7, "2b31b07bd4978f63"),
        ("strided", 100_000, 0.3, 3, 7, "9a1ef128d0716ef2"),
        ("zipf", 50_000, 0.3, 3, 7, "48a5494c39520a5f"),
        ("hot_cold", 50_000, 0.3, 3, 7, "ae7802a4e47db2e4"),
        ("pointer_chase", 100_000, 0.3, 3, 7, "a992eb48c24e1d81"),
    ],
)
def test_a_scenario_means_the_same_accesses_for_ever(
    *, kind, accesses, write_share, vcpus, seed, digest
):
    """A failure is replayed from its seed, by later versions too."""
    found = hashlib.sha256()
    workload = work(kind, accesses, vcpus, seed, write_share=write_share)
    for share in shares_of(workload):
        for column in made(share):
            found.update(column.tobytes())
    assert found.hexdigest()[:16] == digest


# ---- sequential, strided ----


@pytest.mark.parametrize("stride", [8, 64, 4096, 40_000, 4093, 3, 1 << 30])
@pytest.mark.parametrize("vcpus", [1, 3])
def test_a_sequential_walk_steps_by_the_stride_and_begins_again_at_the_end(stride, vcpus):
    for vcpu, share in enumerate(shares_of(work("sequential", 30_000, vcpus, stride=stride))):
        begin, end = (TOTAL * n // vcpus // PAGE * PAGE for n in (vcpu, vcpu + 1))
        fitting = range(begin, end - 7, stride)
        expected = [fitting[i % len(fitting)] for i in range(share.accesses)]
        assert made(share)[0].tolist() == expected


def test_a_step_is_no_shorter_than_an_access_by_default():
    for size, step in ((8, 64), (64, 64), (256, 256)):
        assert set(np.diff(addresses("sequential", 50, access_size=size)).tolist()) == {step}


@pytest.mark.parametrize(("stride", "size"), [(64, 8), (4096, 256), (24, 8), (3 * PAGE, 512)])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_strided_walk_meets_every_place_once_before_any_twice(stride, size, vcpus):
    blocks = [anonymous(pages=6)]
    places = 6 * PAGE // size
    shares = shares_of(
        work("strided", 2 * places, vcpus, stride=stride, access_size=size, blocks=blocks)
    )
    for half in (0, 1):
        parts = [np.split(made(share)[0], 2)[half] for share in shares]
        assert sorted(np.concatenate(parts).tolist()) == list(range(0, 6 * PAGE, size))


def test_a_strided_walk_begins_each_pass_one_access_further_on():
    walk = addresses("strided", 2000, stride=PAGE, blocks=[anonymous(pages=3)])
    assert walk[:9].tolist() == [
        *(0, PAGE, 2 * PAGE),
        *(8, PAGE + 8, 2 * PAGE + 8),
        *(16, PAGE + 16, 2 * PAGE + 16),
    ]
    assert walk[1536:1539].tolist() == [0, PAGE, 2 * PAGE]


def test_a_walk_of_more_vcpus_than_pages_stays_inside():
    for kind in ("sequential", "strided"):
        for share in shares_of(work(kind, 200, 9, blocks=[anonymous(pages=2)])):
            assert (made(share)[0] <= 2 * PAGE - 8).all()


# ---- uniform, permutation, pointer chase ----


def test_uniform_accesses_are_even_over_ram():
    pages = addresses("uniform", 64_000, blocks=[anonymous(pages=64)]) // PAGE
    counts = np.bincount(pages, minlength=64)
    assert counts.min() > 850  # 1000 less nearly five standard deviations
    assert counts.max() < 1150


def units_of(workload: Workload) -> np.ndarray:
    """Where the host pages begin that a permutation is one of, and the end."""
    return shares_of(workload)[0].phases[0][1][0].tables["place"]


def pages_of(workload: Workload, share: SyntheticShare) -> np.ndarray:
    return np.searchsorted(units_of(workload), made(share)[0], side="right") - 1


@pytest.mark.parametrize("vcpus", [1, 2, 3, 7, 16, 20])
def test_a_permutation_touches_each_host_page_once_over_all_vcpus(vcpus):
    workload = work("permutation", None, vcpus)
    pages = np.concatenate([pages_of(workload, share) for share in shares_of(workload)])
    assert sorted(pages.tolist()) == list(range(16))


def test_a_permutation_begins_again_in_another_order():
    workload = work("permutation", 32)
    pages = pages_of(workload, shares_of(workload)[0])
    assert sorted(pages[:16].tolist()) == sorted(pages[16:].tolist()) == list(range(16))
    assert pages[:16].tolist() != pages[16:].tolist()


def test_a_permutation_of_a_range_has_the_host_pages_that_lie_in_it():
    workload = work("permutation", None, start="12KiB", stop=3 * PAGE + HUGE)
    expected = [3 * PAGE, 4 * PAGE, 5 * PAGE, 3 * PAGE + HUGE]
    assert units_of(workload).tolist() == expected
    assert workload.accesses == 3


@pytest.mark.parametrize("vcpus", [1, 2, 3])
def test_the_vcpus_divide_each_round_of_a_permutation_in_a_phase(vcpus):
    phases = [{"accesses": 16, "patterns": [{"kind": "permutation"}]}]
    workload = work("phases", vcpus=vcpus, phases=phases, repeat=3)
    rounds: list[list[int]] = [[], [], []]
    for share in shares_of(workload):
        pages = pages_of(workload, share)
        for number, part in enumerate(np.split(pages, 3)):
            rounds[number] += part.tolist()
    assert all(sorted(one) == list(range(16)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 3


@pytest.mark.parametrize("node", [64, 256, 4096, HUGE])
def test_a_pointer_chase_is_one_cycle_through_all_nodes(node):
    blocks = [huge(pages=3)]
    nodes = 3 * HUGE // node
    walk = addresses("pointer_chase", 2 * nodes, node=node, blocks=blocks, write_share=0.0)
    assert sorted(walk[:nodes].tolist()) == list(range(0, 3 * HUGE, node))
    assert (walk[:nodes] == walk[nodes:]).all()


def test_the_vcpus_go_round_the_same_cycle_each_from_a_place_of_its_own():
    first, second = shares_of(work("pointer_chase", None, 2, blocks=[anonymous(pages=4)]))
    one, other = made(first)[0].tolist(), made(second)[0].tolist()
    assert sorted(one + other) == list(range(0, 4 * PAGE, 64))
    longer, _ = shares_of(work("pointer_chase", 512, 2, blocks=[anonymous(pages=4)]))
    assert made(longer)[0].tolist() == one + other


# ---- zipf ----


def ranks_of(walk: np.ndarray, units: int, unit: int = PAGE, seed: int = 1) -> np.ndarray:
    """How often each rank was met, where units are scattered."""
    workload = workload_of([anonymous(pages=units * unit // PAGE)], 1, seed, kind="zipf",
                           accesses=1, unit=unit)  # fmt: skip
    shuffle = shares_of(workload)[0].phases[0][1][0].shuffle
    place = np.array([core.lib.vm_shuffle(shuffle.c, i) for i in range(units)])
    return np.bincount(walk // unit, minlength=units)[place]


def zipf_shares(units: int, theta: float) -> np.ndarray:
    exact = np.arange(1, units + 1, dtype=float) ** -theta
    return exact / exact.sum()


@pytest.mark.parametrize("theta", [0.2, 0.5, 0.99, 1, 1.5])
@pytest.mark.parametrize("units", [1, 2, 3, 100, 5000])
def test_ranks_are_chosen_by_zipfs_law(units, theta):
    walk = addresses("zipf", 400_000, theta=theta, unit=PAGE, blocks=[anonymous(pages=units)])
    counts = ranks_of(walk, units)
    expected = zipf_shares(units, theta) * 400_000
    # Kolmogorov: beyond 1.95 / sqrt(n) once in a thousand.
    assert np.abs(np.cumsum(counts - expected)).max() < 1.95 * 400_000**0.5
    common = expected > 20
    chi, freedom = ((counts - expected)[common] ** 2 / expected[common]).sum(), common.sum()
    assert chi < freedom + 4 * (2 * freedom) ** 0.5


def test_units_of_one_rank_are_even_inside():
    walk = addresses("zipf", 64_000, unit="64KiB", blocks=[anonymous(pages=16)])
    counts = np.bincount(walk // PAGE, minlength=16)
    assert counts.min() > 3700
    assert counts.max() < 4300


def test_the_rest_of_a_range_that_is_no_whole_unit_is_one_of_its_own():
    walk = addresses("zipf", 20_000, unit="64KiB", blocks=[anonymous(pages=17)])
    counts = np.bincount(walk // (16 * PAGE), minlength=2)
    assert set(np.unique(walk[walk >= 16 * PAGE] // PAGE).tolist()) == {16}
    assert abs(counts.max() / 20_000 - zipf_shares(2, 0.99)[0]) < 0.02


def test_ranks_are_scattered_by_the_seed_unless_they_are_not():
    def hottest(**fields: Any) -> np.ndarray:
        walk = addresses("zipf", 50_000, unit=PAGE, blocks=[anonymous(pages=500)], **fields)
        return np.argsort(-np.bincount(walk // PAGE, minlength=500), kind="stable")[:4]

    assert hottest(scatter=False).tolist() == [0, 1, 2, 3]
    assert len({hottest(seed=seed)[0] for seed in range(8)}) > 4
    assert np.abs(np.diff(hottest())).max() > 10


# ---- hot and cold ----


def test_hot_pages_have_their_share_and_each_is_as_likely():
    blocks = [anonymous(pages=100)]
    pages = addresses("hot_cold", 100_000, blocks=blocks, period=None, scatter=False) // PAGE
    counts = np.bincount(pages, minlength=100)
    assert 89_500 < counts[:10].sum() < 90_500
    assert counts[:10].min() > 8500
    assert counts[10:].min() > 60  # 111 less nearly five standard deviations
    assert counts[10:].max() < 165


@pytest.mark.parametrize("vcpus", [1, 3])
def test_after_a_period_the_next_pages_are_hot_for_all_vcpus(vcpus):
    workload = work(
        "hot_cold", 12_000, vcpus, blocks=[anonymous(pages=10)],
        hot_share=0.3, hot_accesses=1, period=3000, scatter=False,
    )  # fmt: skip
    for share in shares_of(workload):
        pages = made(share)[0].astype(int) // PAGE
        turns = [set(part.tolist()) for part in np.split(pages, 4)]
        assert turns == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {9, 0, 1}]


def test_scattered_hot_pages_are_as_many_and_no_neighbours():
    fields = {"hot_accesses": 1, "period": None, "blocks": [anonymous(pages=1000)]}
    pages = np.unique(addresses("hot_cold", 20_000, **fields) // PAGE)
    assert len(pages) == 100
    assert (np.diff(pages) > 1).mean() > 0.7


@pytest.mark.parametrize(("pages", "share"), [(1, 0.1), (2, 0.999), (2, 0.001)])
def test_there_is_a_hot_page_and_a_cold_one_where_they_fit(pages, share):
    walk = addresses(
        "hot_cold", 4000, hot_share=share, blocks=[anonymous(pages=pages)], period=None
    )
    counts = np.bincount(walk // PAGE, minlength=pages)
    assert len(counts) == pages
    assert counts.min() == 4000 or 300 < counts.min() < 500


# ---- phases ----


def test_phases_come_in_their_order_each_with_its_accesses_again_and_again():
    phases = [
        {"accesses": 10, "patterns": [{"kind": "uniform", "block": "ram"}]},
        {"accesses": 5, "patterns": [{"kind": "uniform", "block": "vram", "write_share": 0}]},
        {"accesses": 20, "patterns": [{"kind": "uniform", "block": "huge", "write_share": 1}]},
    ]
    (share,) = shares_of(work("phases", phases=phases, repeat=3))
    where, what = made(share)
    blocks = np.searchsorted([5 * PAGE, 5 * PAGE + 2 * HUGE], where, side="right")
    assert blocks.tolist() == ([0] * 10 + [2] * 5 + [1] * 20) * 3
    assert set(what[blocks == 2].tolist()) == {LOAD}
    assert set(what[blocks == 1].tolist()) == {STORE}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 4))
@settings(deadline=None)
def test_the_accesses_of_each_phase_are_split_evenly(lengths, vcpus, repeat):
    phases = [{"accesses": n, "patterns": [{"kind": "uniform"}]} for n in lengths]
    workload = work("phases", vcpus=vcpus, phases=phases, repeat=repeat)
    assert workload.accesses == repeat * sum(lengths)
    for number, length in enumerate(lengths):
        of_phase = [share.phases[number][0] for share in shares_of(workload)]
        assert sum(of_phase) == length
        assert max(of_phase) - min(of_phase) <= 1
    for share in shares_of(workload):
        assert len(made(share)[0]) == share.accesses


def test_patterns_are_chosen_by_their_weights():
    patterns = [
        {"kind": "uniform", "block": "ram", "weight": 1},
        {"kind": "uniform", "block": "huge", "weight": 0},
        {"kind": "sequential", "block": "vram", "weight": 3, "access_size": 64},
    ]
    workload = work("phases", phases=[{"accesses": 40_000, "patterns": patterns}])
    where, what = made(shares_of(workload)[0])
    in_ram, in_vram = where < 5 * PAGE, where >= 5 * PAGE + 2 * HUGE
    assert (in_ram | in_vram).all()
    assert 0.24 < in_ram.mean() < 0.26
    assert set(sizes_of(workload)[what[in_ram] >> 2].tolist()) == {8}
    assert set(sizes_of(workload)[what[in_vram] >> 2].tolist()) == {64}


def test_a_pattern_goes_on_where_it_was_when_its_phase_comes_again():
    phases = [
        {"accesses": 7, "patterns": [{"kind": "sequential", "block": "ram"}]},
        {"accesses": 3, "patterns": [{"kind": "uniform", "block": "vram"}]},
    ]
    (share,) = shares_of(work("phases", phases=phases, repeat=4))
    where = made(share)[0]
    assert where[where < 5 * PAGE].tolist() == list(range(0, 28 * 64, 64))


def test_the_same_pages_are_hot_in_every_phase_on_the_same_range():
    one = {"accesses": 20_000, "patterns": [{"kind": "zipf", "block": "ram"}]}
    (share,) = shares_of(work("phases", phases=[one, one]))
    first, second = (
        np.bincount(part.astype(int) // PAGE, minlength=5) for part in np.split(made(share)[0], 2)
    )
    assert np.argsort(first).tolist() == np.argsort(second).tolist()


def test_phases_of_one_pattern_are_the_trace_of_that_kind():
    phases = [{"accesses": 500, "patterns": [{"kind": "permutation"}]}]
    for one, other in zip(
        shares_of(work("permutation", vcpus=3)),
        shares_of(work("phases", vcpus=3, phases=phases)),
        strict=True,
    ):
        assert (made(one)[0] == made(other)[0]).all()
