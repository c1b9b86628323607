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
from vmemu.jobs.supervised import Job, Outcome
from vmemu.testing import failure, marks
from vmemu.testing.closeness import closest_last, has_own
from vmemu.testing.limits import FIGURES, limits, not_kept, parse_line
from vmemu.testing.migrationrun import MigrationRun
from vmemu.testing.runs import file_name
from vmemu.testing.seeds import seeds

pytest_plugins = ["pytester"]
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
        if measured is None:
            continue
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


def test_a_limit_on_what_was_not_measured_is_not_kept(result: dict[str, Any]) -> None:
    wanted = limits({"lag": "1min", "p50": "1ns"}, "test")
    assert re.fullmatch(
        "limit exceeded: p50 is .*; limit on nothing: lag was not measured: the scenario has no"
        " guest.pace",
        not_kept(wanted, result),
    )
    with pytest.raises(AttributeError, match=r"a run without guest\.pace has no 'lag_ns'"):
        _ = ended("completed", result).lag_ns
    paced = result | {"vcpus": [vcpu | {"lag_ns": {"max": 61 << 30}} for vcpu in result["vcpus"]]}
    assert not_kept(wanted[:1], paced).startswith("limit exceeded: lag is ")
    assert ended("completed", paced).lag_ns == 61 << 30


def ended(status: str, result: dict[str, Any] | None, message: str = "") -> MigrationRun:
    files = Path("boot.json"), Path("boot.events.jsonl")
    job = Job(Path("/tests/boot.vmemu.yaml"))
    stacks = "Python stacks of process 1:"
    outcome = Outcome(job, status, None, message, result, *files, 1.0, stacks)
    return MigrationRun(outcome, "vmemu run boot.vmemu.yaml")


def test_a_skipped_run_has_no_figures(result: dict[str, Any]) -> None:
    run = ended("skipped", result, "no hugepages")
    for name in ("p99_ns", "faults", "lag_ns"):
        with pytest.raises(AttributeError, match="a run that is skipped has no figures: no huge"):
            getattr(run, name)
    assert not run.measured
    assert ended("completed", result).measured


def test_what_is_said_of_a_run_says_nothing_twice() -> None:
    run = ended("skipped", None, "boot.vmemu.yaml:2:9: blocks: too large")
    assert failure.why_skipped(run, Path("/tests/test_it.py")) == run.message
    run = ended("skipped", None, "for 2 reasons:\n  boot.vmemu.yaml:2:9: blocks")
    assert failure.why_skipped(run, run.outcome.job.scenario) == run.message
    told = failure.why_skipped(run, Path("/tests/test_it.py"))
    assert told == f"boot.vmemu.yaml: {run.message}"
    assert failure.headline("failed", "1 byte is wrong") == "1 byte is wrong"  # after "Failed: "
    assert failure.headline("stuck", "vCPU 0 waits") == "stuck: vCPU 0 waits"


def test_stacks_are_told_of_runs_that_stand_and_not_of_slow_ones() -> None:
    assert "stacks:" in failure.describe(ended("stuck", None), "stuck")
    assert "stacks:" in failure.describe(ended("died", None), "died")
    assert "stacks:" not in failure.describe(ended("timeout", None), "timeout")


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


def test_the_closest_mark_is_the_last(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.vmemu_features("conftest"))
        """
    )
    items, _ = pytester.inline_genitems(
        pytester.makepyfile(
            """
            import pytest
            at = pytest.mark.vmemu_features
            pytestmark = at("module")

            @at("base")
            class Base:
                def test_bare(self):
                    pass

            @at("upper")
            @at("lower")
            class TestIt(Base):
                @at("test")
                @pytest.mark.parametrize("x", [pytest.param(1, marks=at("parameter"))])
                def test_marked(self, x):
                    pass
            """
        ),
        "-p",
        "no:hypothesispytest",
    )
    found = {
        item.name: [mark.args[0] for mark in closest_last(item, "vmemu_features")] for item in items
    }
    around = ["module", "base", "upper", "lower", "conftest"]
    assert found == {"test_bare": around, "test_marked[1]": [*around, "test", "parameter"]}
    assert {item.name: has_own(item, "vmemu_features") for item in items} == {
        "test_bare": False,
        "test_marked[1]": True,
    }


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


def test_times_of_runs() -> None:
    texts = ("90s", "2min", "1h", "1.5h", "30")
    assert [marks.seconds(text, "timeout") for text in texts] == [90, 120, 3600, 5400, 30]
    for text in ("h", "-1h", "1hour", "0h", "inf"):
        with pytest.raises(InputError, match="timeout: "):
            marks.seconds(text, "timeout")


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
    job = github["jobs"]["migrations"]
    *_, tests, replays, upload = job["steps"]
    assert tests["run"].startswith(".venv/bin/pytest tests -n auto -rs --timeout 300 --vmemu")
    assert tests["timeout-minutes"] < job["timeout-minutes"]
    assert {step["if"] for step in (replays, upload)} == {"${{ always() }}"}
    script = gitlab["migrations"]["script"][0]
    assert script.startswith(".venv/bin/pytest tests -n 2 -rs --timeout 300 --vmemu")
    assert gitlab["migrations"]["after_script"] == [f"{replays['run']} || true"]
    assert pod["spec"]["containers"][0]["command"][:2] == ["pytest", "tests"]


def test_the_files_for_ci_show_how_to_replay_what_did_not_end(tmp_path: Path) -> None:
    text = (DOCS / "ci.md").read_text()
    (line,) = re.findall(r"^ +run: (grep .*)$", text, re.MULTILINE)
    shell = ["bash", "-e", "-c", line]

    def printed() -> str:
        return subprocess.run(
            shell, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert printed() == ""  # no report at all
    (tmp_path / "report").mkdir()
    assert printed() == ""
    killed = failure.not_ended("vmemu run boot.vmemu.yaml --seed 7", [])
    (tmp_path / "report/killed.txt").write_text(killed)
    (tmp_path / "report/stuck.txt").write_text("stuck: vCPU 0 waits\n")
    assert printed() == killed


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
