"""The parts of the pytest plugin: seeds, limits, marks, and what loading it costs others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vmemu.errors import InputError
from vmemu.testing import marks
from vmemu.testing.limits import FIGURES, limits, parse_line
from vmemu.testing.migrationrun import MigrationRun
from vmemu.testing.runs import file_name
from vmemu.testing.seeds import seeds

EXAMPLE = Path(__file__).parents[1] / "data" / "result-example.json"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(EXAMPLE.read_text())
    return loaded


# ---- what loading it costs ----


def test_tests_of_others_load_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_other(): pass\n")
    code = (
        "import pytest, sys\n"
        "code = pytest.main(['-qp', 'no:hypothesispytest', '--strict-markers', 'test_other.py'])\n"
        "print(sorted({'numpy', 'cffi', 'click', 'yaml', 'rich', 'vmemu.core',\n"
        "              'vmemu.config', 'vmemu.testing.runs'} & set(sys.modules)))\n"
        "print('vmemu.testing.plugin' in sys.modules)\n"
        "sys.exit(code)\n"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout.splitlines()[-2:] == ["[]", "True"]
    assert "1 passed" in run.stdout


# ---- seeds ----


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 200), st.integers(1, 200))
def test_seeds_are_distinct_and_begin_with_the_scenarios_own(own: int, few: int, more: int) -> None:
    few, more = sorted((few, more))
    found = seeds(own, more)
    assert found[0] == own
    assert len(set(found)) == more
    assert seeds(own, few) == found[:few]
    assert all(0 <= seed < 1 << 64 for seed in found)


def test_seeds_are_the_same_in_every_version() -> None:
    assert seeds(7, 3) == [7, 1808820083, 1187467706]


# ---- limits ----


def test_every_figure_is_read_from_a_result(result: dict[str, Any]) -> None:
    for name, figure in FIGURES.items():
        measured = figure.read(result)
        (kept,) = limits({name: f"{measured}ns" if figure.time else measured}, "test")
        assert kept.exceeded(result) == ""
        if measured:
            lower = f"{measured - 1}ns" if figure.time else measured - 1
            (broken,) = limits({name: lower}, "test")
            assert f"{name} is {figure.show(measured)}" in broken.exceeded(result)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"p98": "2ms"}, r"no figure is called 'p98'; known: p50, p90, p99"),
        ({"p99": 2}, r"p99=2: write a time with its unit, such as '2ms'"),
        ({"p99": "2 parsecs"}, "p99='2 parsecs': .*parsecs"),
        ({"faults": "many"}, "faults='many': a count"),
        ({"faults": -1}, "faults=-1: a count"),
        ({"faults": True}, "faults=True: a count"),
    ],
)
def test_limits_that_mean_nothing(wanted: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        limits(wanted, "limit")


def test_lines_of_the_ini_file() -> None:
    assert parse_line("boot*.vmemu.yaml: p99=2ms, faults=10") == (
        "boot*.vmemu.yaml",
        {"p99": "2ms", "faults": "10"},
    )
    for line in ("p99=2ms", "x.vmemu.yaml:", "x.vmemu.yaml: p99", ": p99=2ms"):
        with pytest.raises(InputError, match=r"vmemu_limits: .*: write 'boot"):
            parse_line(line)


# ---- marks ----

plain = st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="ascii"))
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner))


@given(values)
def test_overrides_come_through_yaml_as_they_are(value: Any) -> None:
    (text,) = marks.override_texts({"guest.x": value})
    path, _, written = text.partition("=")
    assert path == "guest.x"
    assert yaml.safe_load(written) == value


def test_overrides_that_people_can_read() -> None:
    mapping = {"limits.stall": "30s", "guest.vcpus": 4, "on_unavailable": {"wait": "60s"}}
    assert marks.override_texts(mapping) == (
        "limits.stall=30s",
        "guest.vcpus=4",
        'on_unavailable={"wait": "60s"}',
    )
    assert marks.override_texts("guest.vcpus=4") == ("guest.vcpus=4",)
    assert marks.override_texts(["a=1", "b=2"]) == ("a=1", "b=2")
    assert marks.override_texts(None) == ()


def read(*arguments: Any, **options: Any) -> marks.Asked:
    mark: pytest.Mark = getattr(pytest.mark.vmemu(*arguments, **options), "mark")  # noqa: B009
    return marks.read_mark(mark, Path("/tests/test_boot.py"))


def test_a_mark_is_read() -> None:
    asked = read("boot.yaml", seeds=[3, 1], overrides={"guest.vcpus": 1}, timeout="90s")
    assert asked == marks.Asked(Path("/tests/boot.yaml"), (3, 1), ("guest.vcpus=1",), 90.0)
    assert read(config="/elsewhere/boot.yaml", seeds=3).config == Path("/elsewhere/boot.yaml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 0}, "seeds=0: write how many runs, or a list of seeds"),
        ({"seeds": []}, "seeds="),
        ({"seeds": "123"}, "seeds="),
        ({"seeds": [1, -1]}, "seeds="),
        ({"seeds": [1, 1]}, "seeds has one twice"),
        ({"seed": 1}, "unexpected keyword argument 'seed'; write vmemu"),
        ({"timeout": 0}, "timeout: 0 is no time"),
        ({"timeout": "soon"}, "timeout: .*soon"),
    ],
)
def test_marks_that_mean_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read("boot.yaml", **options)


def test_a_scenario_is_a_path() -> None:
    with pytest.raises(InputError, match="mark vmemu: a scenario is a path, not 5"):
        read(5)


def test_a_mark_without_a_scenario() -> None:
    with pytest.raises(InputError, match="missing 1 required positional argument: 'config'"):
        read(seeds=2)


# ---- files ----


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_two_tests_never_have_one_file(ids: list[str]) -> None:
    first, second = map(file_name, ids)
    assert first != second
    for name in (first, second):
        assert len(name.encode()) < 200
        assert "/" not in name
        assert name not in (".", "..")


# ---- the documentation ----

DOCS = Path(__file__).parents[2] / "docs"


def test_the_documentation_has_every_option_limit_and_attribute(
    pytestconfig: pytest.Config,
) -> None:
    text = (DOCS / "testing.md").read_text()
    group = pytestconfig._parser.getgroup("vmemu")
    options = {name for option in group.options for name in option.names()}
    assert len(options) == 4
    assert options == set(re.findall(r"--vmemu-\w+", text))
    named = set(re.findall(r"`(\w+)`", text))
    assert set(FIGURES) <= named
    assert {f"{name}_ns" for name, figure in FIGURES.items() if figure.time} <= named
    assert {name for name in vars(MigrationRun) if not name.startswith("_")} <= named
    for file in ("ci.md", "../README.md"):
        assert set(re.findall(r"--vmemu-\w+", (DOCS / file).read_text())) <= options


def test_the_files_for_ci_are_yaml_with_steps() -> None:
    text = (DOCS / "ci.md").read_text()
    github, gitlab, pod = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    )
    commands = [step.get("run", "") for step in github["jobs"]["migrations"]["steps"]]
    assert any(command.startswith(".venv/bin/pytest tests -n auto -rs") for command in commands)
    assert gitlab["migrations"]["script"][0].startswith(".venv/bin/pytest tests -n 2 -rs --vmemu")
    assert pod["spec"]["containers"][0]["command"][:2] == ["pytest", "tests"]


# ---- time ----


@pytest.mark.parametrize(
    ("whole", "wanted", "spent", "left"),
    [
        (0, None, 500, marks.DEFAULT_TIMEOUT_S),  # no limit of pytest-timeout's
        (0, 30, 0, 30),
        (1000, None, 0, marks.DEFAULT_TIMEOUT_S),
        (200, 500, 0, 170),
        (200, 500, 100, 70),
        (200, 20, 100, 20),
        (30, None, 0, 20),
        (6, None, 0, 3),
        (6, None, 60, 1),
    ],
)
def test_a_run_ends_before_the_test_would(
    whole: float, wanted: float | None, spent: float, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "_pytest_timeout", lambda item: whole)
    item = SimpleNamespace(config=SimpleNamespace(getoption=lambda name: None))
    assert marks.timeout_of(cast(pytest.Item, item), wanted, spent) == left
