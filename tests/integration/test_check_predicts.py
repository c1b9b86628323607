"""What ``vmemu check`` says comes true: what it lets pass runs to its end with every byte right,
and what it calls incompatible does not."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from any_scenario import CONFIGS, AnyScenario, Places
from support import HUGE, await_true

from vmemu import hugepages
from vmemu.check.codes import Code
from vmemu.check.judge import judge
from vmemu.check.verdict import ScenarioReport, Verdict
from vmemu.config import load
from vmemu.errors import ConfigError, VmemuError
from vmemu.migration import Migration
from vmemu.reservation import Resizer

pytestmark = [
    pytest.mark.usefixtures("userfault"),
    pytest.mark.timeout(600),  # those who resize the pool wait in line, for all others that do
]

PASSES = {Verdict.OK, Verdict.DEGRADED}
DEPENDS = {Code.MEMORY_TIGHT, Code.POOL_TAKEN, Code.TIME_LIMIT}
"""On what the guest does, or on what others do meanwhile."""
POOL = 8
"""Pages of 2 MiB that there are."""
IN_A_CHUNK = 10

Overrides = Sequence[tuple[str, str]]


SOON = [("on_unavailable", "{wait: 200ms}")]
"""The project's own wait for a minute."""


def predicted(path: Path, overrides: Overrides = ()) -> ScenarioReport | ConfigError:
    try:
        return judge(path, overrides=overrides)
    except ConfigError as error:
        return error


def outcome(path: Path, overrides: Overrides = ()) -> str:
    """Empty when every byte arrived; else how it ended, or what was raised."""
    try:
        wanted = load(path, overrides)
        run = Migration(wanted).run()
    except VmemuError as error:
        return f"{type(error).__name__}: {error}"
    if run.status != "completed":
        return f"{run.status}: {run.error}"
    assert run.verification is not None
    size = sum(block.size for block in wanted.blocks)
    assert (run.verification.bytes_checked, run.verification.bytes_wrong) == (size, 0)
    return ""


def disagreement(path: Path, overrides: Overrides = ()) -> str:
    """What check said and what came, where that differs; empty where they agree.

    What is unknown is not run: it may take all the memory that others use.
    """
    said = predicted(path, overrides)
    if isinstance(said, ConfigError):
        came = outcome(path, overrides)
        return "" if came else f"{path}: completed, and is no scenario: {said}"
    reasons = [*said.reasons, *(reason for block in said.blocks for reason in block.reasons)]
    why = f"{path}: {said.verdict}: {[f'{one.code}: {one.message}' for one in reasons]}"
    if said.verdict is Verdict.UNKNOWN:
        unknown = {one.code for one in reasons if one.verdict is said.verdict}
        return "" if unknown <= DEPENDS else why
    came = outcome(path, overrides)
    return "" if (said.verdict in PASSES) == (not came) else f"{why}\n  and it ended: {came}"


@pytest.fixture
def places(own_mounts: None, tmp_path: Path) -> Places:
    """Directories of every kind, mounted for this test."""
    made = Places(*(tmp_path / name for name in Places.__annotations__))
    options = {
        made.tmpfs: ("tmpfs", "size=64M"),
        made.little: ("tmpfs", "size=256K"),
        made.huge: ("hugetlbfs", "pagesize=2M"),
        made.little_huge: ("hugetlbfs", "pagesize=2M,size=2M"),
        made.gigantic: ("hugetlbfs", "pagesize=1G"),
        made.sealed: ("tmpfs", "ro,size=1M"),
    }
    made.disk.mkdir()
    for place, (kind, option) in options.items():
        place.mkdir()
        if kind == "hugetlbfs" and place is made.gigantic and 1 << 30 not in SIZES:
            continue
        subprocess.run(["mount", "-t", kind, "-o", option, "none", place], check=True)
    return made


SIZES = hugepages.page_sizes()


def write(number: int, places: Places, directory: Path, *, huge: bool) -> Path:
    path = directory / f"any-{number}.yaml"
    data = AnyScenario(number, places, huge=huge).data()
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def numbers(count: int, first: int = 0) -> list[range]:
    return [range(at, at + IN_A_CHUNK) for at in range(first, first + count, IN_A_CHUNK)]


def disagreements(chunk: range, places: Places, directory: Path, *, huge: bool) -> list[str]:
    paths = [write(number, places, directory, huge=huge) for number in chunk]
    return [found for path in paths if (found := disagreement(path))]


@pytest.mark.parametrize("chunk", numbers(140), ids=lambda chunk: f"{chunk[0]}-{chunk[-1]}")
def test_of_ordinary_memory(chunk: range, places: Places, tmp_path: Path, pool_lock: None) -> None:
    assert not disagreements(chunk, places, tmp_path, huge=False)


@pytest.mark.parametrize("chunk", numbers(80, 1000), ids=lambda chunk: f"{chunk[0]}-{chunk[-1]}")
def test_of_hugepages(chunk: range, places: Places, tmp_path: Path, pool_alone: Resizer) -> None:
    pool_alone.resize(POOL)
    assert not disagreements(chunk, places, tmp_path, huge=True)
    # A page that another test proves at this moment is back in a few milliseconds.
    await_true(lambda: hugepages.pool(HUGE).free == POOL)


@pytest.mark.parametrize("pages", [0, 64])
@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_of_the_projects_own(config: Path, pages: int, pool_alone: Resizer) -> None:
    pool_alone.resize(pages)
    assert not disagreement(config, SOON)
