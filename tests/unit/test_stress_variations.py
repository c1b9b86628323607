"""Variations of a scenario: the same for the same number, each valid, and of every kind."""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu import plan
from vmemu.config import Scenario, load, split_override
from vmemu.errors import ConfigError
from vmemu.jobs.supervised import Job
from vmemu.memoryneed import memory_needed
from vmemu.stress.dimensions import MOST_MEMORY
from vmemu.stress.draw import Draw
from vmemu.stress.kinds import HostKinds
from vmemu.stress.tally import modes
from vmemu.stress.variations import Variation, Variations
from vmemu.traces import native

CONFIGS = Path(__file__).parents[2] / "configs"
HUGE = 2 << 20
RICH = HostKinds(
    (("anonymous", 4096), ("shared", 4096), ("hugetlbfs", HUGE)),
    {HUGE: 64},
    None,
    ("auto", "kernel", "replay"),
)
POOR = HostKinds((("anonymous", 4096), ("shared", 4096)), {}, 64 << 10)

SMALL = """\
blocks:
  - {name: pc.ram, backing: anonymous, size: 2MiB, content: {kind: seeded, zero_share: 0.25}}
  - {name: "it's [odd]: $(x) \\u00e9", backing: shared, size: 1MiB, path: /dev/shm/vmemu-vram}
guest:
  vcpus: 2
  trace:
    synthetic: {kind: uniform, accesses: 2000}
"""


@pytest.fixture(autouse=True)
def _traces_opened_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unpacking a trace takes longer than all the rest of a variation."""
    cached = functools.lru_cache(native.open)
    monkeypatch.setattr(native, "open", cached)
    yield
    cached.cache_clear()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def plain(variation: Variation) -> tuple[int, int | None, tuple[str, ...]]:
    return variation.number, variation.seed, variation.overrides


def read_again(file: Path, variation: Variation) -> Scenario:
    """As the command that replays it reads it."""
    return load(file, map(split_override, variation.overrides), variation.seed)


def hugepages_of(scenario: Scenario) -> dict[int, int]:
    return memory_needed(scenario).hugepages


# ---- the same for the same number ----


@pytest.mark.parametrize("name", ["quickstart", "mixed", "clients"])
def test_a_variation_depends_on_seed_and_number_alone(name: str) -> None:
    file = CONFIGS / f"{name}.yaml"
    one, other = Variations(file, 7, RICH), Variations(file, 7, RICH)
    forwards = [plain(one.of(number)) for number in range(40)]
    backwards = [plain(other.of(number)) for number in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert len({overrides for _, _, overrides in forwards}) > 30
    assert len({seed for _, seed, _ in forwards}) == 40
    assert [plain(Variations(file, 8, RICH).of(number)) for number in range(1, 40)] != forwards[1:]


def test_another_process_draws_the_same() -> None:
    """Nothing hangs on the order of a set."""
    script = (
        "from test_stress_variations import *\n"
        "print([plain(Variations(CONFIGS / 'mixed.yaml', 3, RICH).of(n)) for n in range(20)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_choices_are_those_of_every_other_machine() -> None:
    draw = Draw("a scenario", 7, 1, 0)
    assert [draw.between(1, 16) for _ in range(8)] == [12, 13, 4, 2, 5, 9, 16, 3]
    assert [draw.magnitude(1, 1 << 20) for _ in range(5)] == [506, 24853, 621731, 320, 932]
    assert (draw.word(), draw.chance(0.5), draw.pick("abc")) == (2585135033, False, "c")


@given(st.integers(), st.integers(1, 1 << 40), st.integers(0, 1 << 40))
def test_choices_stay_in_their_bounds(seed: int, low: int, more: int) -> None:
    draw = Draw(seed)
    for choose in (draw.between, draw.magnitude):
        assert low <= choose(low, low + more) <= low + more
        assert choose(low, low) == low


def test_number_0_is_the_scenario_itself() -> None:
    first = Variations(CONFIGS / "quickstart.yaml", 5, POOR).of(0)
    assert plain(first) == (0, None, ())
    assert first.scenario == load(CONFIGS / "quickstart.yaml")


# ---- each is valid ----


@pytest.mark.parametrize("kinds", [RICH, POOR], ids=["rich", "poor"])
@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_variation_is_one_that_this_host_could_run(file: Path, kinds: HostKinds) -> None:
    base = load(file)
    variations = Variations(file, 1, kinds)
    for number in range(1, 501 if kinds is RICH else 51):
        variation = variations.of(number)
        scenario = read_again(file, variation)
        assert scenario.seed == variation.seed
        assert scenario.verify.reads and scenario.verify.final
        size = sum(block.size for block in scenario.blocks)
        assert size <= max(sum(block.size for block in base.blocks) * 5 // 4, MOST_MEMORY)
        if hugepages_of(scenario) != hugepages_of(base):
            assert all(n <= kinds.pools.get(size, 0) for size, n in hugepages_of(scenario).items())
        if scenario.memory.lock and kinds.lockable is not None:
            assert size <= kinds.lockable
        assert scenario.migration.precopy.dirty_tracking in kinds.tracking
        if number % 10 == 0:
            blocks = plan.blocks_of(scenario)
            plan.client_plans(scenario, blocks)
            assert plan.make_workload(scenario, blocks)[0].accesses > 0


def test_the_command_that_replays_a_variation_survives_the_shell(small: Path) -> None:
    variations = Variations(small, 2, RICH, ["blocks[1].content={kind: seeded}"])
    for number in range(200):
        variation = variations.of(number)
        job = Job(small, variation.seed, variation.overrides)
        assert shlex.split(job.command())[1:] == job.arguments()
        assert read_again(small, variation) == variation.scenario


# ---- all is seen ----


def test_every_dimension_is_seen() -> None:
    variations = Variations(CONFIGS / "clients.yaml", 1, RICH)
    drawn = [variations.of(number).scenario for number in range(1, 301)]
    seen = Counter(mode for scenario in drawn for mode in modes(scenario))
    assert set(seen) == {
        "balloon",
        "clients",
        "colocated",
        "collapsed to hugepages",
        "converging pre-copy",
        "demand faults alone",
        "fault-around",
        "prefetch",
        "push in recorded order",
        "push in sequence",
        "dirty tracking by the replay",
        "fixed rate",
        "guest at the source first",
        "left to the scheduler",
        "limited push",
        "locked memory",
        "mixed page sizes",
        "one channel",
        "sigbus delivery",
        "pre-copy",
        "preempt",
        "push",
        "release_ram",
        "several fault threads",
        "spread apart",
        "several vCPUs",
        "shared memory",
    }
    # Few of anything would mean that its dimension is hardly ever drawn, or hardly ever fits.
    assert min(seen.values()) >= 10
    assert {block.backing for s in drawn for block in s.blocks} == {
        "anonymous",
        "shared",
        "hugetlbfs",
    }
    assert {scenario.guest.vcpus for scenario in drawn} == set(range(1, 17))
    assert {scenario.migration.postcopy.fault_threads for scenario in drawn} == {1, 2, 3, 4}
    assert {s.migration.precopy.dirty_tracking for s in drawn} == {"auto", "kernel", "replay"}
    assert len({str(scenario.migration.flip_at) for scenario in drawn}) > 50
    sizes = Counter(scenario.blocks[2].size for scenario in drawn)
    assert min(sizes) <= 16384
    assert max(sizes) > 4 << 20
    assert any(size % 8192 for size in sizes)
    shares = {getattr(scenario.blocks[0].content, "zero_share", None) for scenario in drawn}
    assert {0.0, 1.0} < shares


def test_a_recorded_pace_is_varied() -> None:
    variations = Variations(CONFIGS / "recorded-faults.yaml", 1, POOR)
    factors = {getattr(variations.of(n).scenario.guest.pace, "factor", None) for n in range(50)}
    assert len(factors) > 4


# ---- what must not be changed ----


def test_a_block_that_gets_another_backing_loses_its_path(small: Path) -> None:
    variations = Variations(small, 1, RICH)
    blocks = [variations.of(number).scenario.blocks[1] for number in range(1, 200)]
    kept = [block for block in blocks if block.path is not None]
    assert 0 < len(kept) < len(blocks)
    assert {block.backing for block in kept} == {"shared"}
    assert {block.backing for block in blocks} == {"anonymous", "shared", "hugetlbfs"}
    assert {block.name for block in blocks} == {"it's [odd]: $(x) \u00e9"}


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "guest.vcpus=5",
                "guest={vcpus: 5, trace: {synthetic: {kind: permutation}}}",
                "blocks[pc.ram].size=3MiB",
                "blocks[0].backing=shared",
                "blocks=[{name: one, backing: anonymous, size: 64KiB}]",
                "migration.postcopy={push: false}",
                "migration.flip_at=50%",
                "memory={lock: false}",
                "verify.reads=false",
            ]
        ),
        unique=True,
        max_size=3,
    )
)
def test_what_its_user_sets_stays(overrides: list[str]) -> None:
    file = CONFIGS.parent / "tests/data/stress-small.yaml"
    try:
        base = load(file, map(split_override, overrides))
    except ConfigError:
        return
    variations = Variations(file, 3, RICH, overrides)
    for number in range(20):
        scenario = variations.of(number).scenario
        for override in overrides:
            field = override.partition("=")[0]
            if field == "verify.reads":
                continue
            assert field_of(scenario, field) == field_of(base, field), override


def field_of(scenario: Scenario, path: str) -> object:
    value: object = scenario
    for name in path.replace("[pc.ram]", "[0]").replace("[0]", ".first").split("."):
        value = value[0] if name == "first" else getattr(value, name)  # type: ignore[index]
    return value


def test_every_byte_is_checked_even_where_the_scenario_would_not(small: Path) -> None:
    small.write_text(SMALL + "verify: {reads: false, final: false}\n")
    first = Variations(small, 1, POOR).of(0)
    assert first.overrides == ("verify.reads=true", "verify.final=true")
    assert first.scenario.verify.reads and first.scenario.verify.final


def test_runs_wait_for_hugepages_that_others_will_give_back() -> None:
    assert Variations(CONFIGS / "mixed.yaml", 1, RICH).of(0).overrides == ()
    changed = Variations(CONFIGS / "mixed.yaml", 1, RICH, ["on_unavailable=skip"]).of(0)
    assert changed.overrides == ("on_unavailable=skip",)
    shared = Variations(CONFIGS / "shared.yaml", 1, RICH)
    for number in range(50):
        variation = shared.of(number)
        waits = "on_unavailable={wait: 30s}" in variation.overrides
        assert waits == bool(hugepages_of(variation.scenario))


def test_a_wrong_scenario_has_no_variations(small: Path) -> None:
    with pytest.raises(ConfigError, match=r"guest\.cpus"):
        Variations(small, 1, POOR, ["guest.cpus=3"])
    with pytest.raises(ConfigError, match="'guest' is no path=value"):
        Variations(small, 1, POOR, ["guest"])
