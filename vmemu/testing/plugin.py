"""The pytest plugin: scenario files are tests, and tests run scenarios.

pytest loads it in every session of everybody who has vmemu installed, so nothing is imported here
that takes time, and nothing is done to tests that do not ask for it. docs/testing.md describes it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vmemu.testing import SUFFIXES
from vmemu.testing.memory import ram_block, userfaultfd
from vmemu.testing.stash import BROKEN, RUNS, SCENARIO_USED, USERFAULTFD_USED, WORKER

if TYPE_CHECKING:
    from vmemu.config import Scenario
    from vmemu.testing.collecting import ScenarioFile
    from vmemu.testing.fixtures import Runner
    from vmemu.testing.runs import Runs

__all__ = ["ram_block", "userfaultfd", "vmemu_run", "vmemu_scenario", "vmemu_seed"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vmemu", "vmemu: migrations as tests")
    group.addoption(
        "--vmemu-seeds",
        type=_count,
        metavar="N",
        help="Run each scenario with N seeds: its own, and others made from it.",
    )
    group.addoption(
        "--vmemu-set",
        action="append",
        default=[],
        type=_override,
        metavar="PATH=VALUE",
        help="In the place of every scenario's value, such as on_unavailable=skip.",
    )
    group.addoption(
        "--vmemu-timeout",
        type=_seconds,
        metavar="TIME",
        help="How long one run may take, such as 90s or 1h (default: 120s); then it is killed.",
    )
    group.addoption(
        "--vmemu-report",
        metavar="DIR",
        help="Keep the result and the event log of every run there.",
    )
    parser.addini(
        "vmemu_limits",
        "Limits of scenario files, a line each: boot*.vmemu.yaml: p99=2ms blocktime=50ms",
        type="linelist",
        default=[],
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of runs; write such as 3")
    return int(text)


def _override(text: str) -> str:
    """What it means is for each scenario to say."""
    path, equals, _ = text.partition("=")
    if not path or not equals:
        what = f"'{text}' is no path=value; write such as on_unavailable=skip"
        raise argparse.ArgumentTypeError(what)
    return text


def _seconds(text: str) -> float:
    from vmemu.errors import InputError
    from vmemu.testing.marks import seconds

    try:
        return seconds(text, "time")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    for line in MARKS:
        config.addinivalue_line("markers", line)
    report: str | None = config.getoption("vmemu_report")
    if report is not None:
        _make_report(config.invocation_params.dir / report, f"--vmemu-report {report}")
    if config.getini("vmemu_limits"):
        _check_limits(config)
    config.stash[WORKER] = getattr(config, "workerinput", {}).get(_WORKER, "")


def _make_report(directory: Path, option: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(f"{option}: {error.strerror}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise pytest.UsageError(f"{option}: nothing may be written there")


def _check_limits(config: pytest.Config) -> None:
    from vmemu.errors import InputError
    from vmemu.testing.inilimits import limits_of_ini

    try:
        limits_of_ini(config)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None


_WORKER = "vmemu_worker"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist, for each worker: with ``--dist each`` all run the same tests."""
    if node.config.getoption("dist") == "each":
        node.workerinput[_WORKER] = node.workerinput["workerid"]


MARKS = (
    "vmemu(config, *, seeds=None, overrides=None, timeout=None): the scenario that vmemu_run runs"
    " and vmemu_scenario loads; seeds is how many or which ones",
    'vmemu_limit(**limits): fail when a figure of a run exceeds its limit, such as p99="2ms"',
    "vmemu_features(*names): features that the fixture userfaultfd must have",
)


# ---- collecting ----


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    if not file_path.name.endswith(SUFFIXES):
        return None
    from vmemu.testing.collecting import ScenarioFile

    collector: ScenarioFile = ScenarioFile.from_parent(parent, path=file_path)
    return collector


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test a seed, where there is more than the scenario's own."""
    mark = metafunc.definition.get_closest_marker("vmemu")
    if mark is None or "vmemu_seed" not in metafunc.fixturenames:
        return
    from vmemu.testing.collecting import seeds_of_test

    seeds = seeds_of_test(metafunc, mark)
    if seeds is not None:
        metafunc.parametrize("vmemu_seed", seeds, ids=[f"seed{n}" for n in seeds], indirect=True)


# ---- running ----


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    done = yield
    runs: Runs | None = item.stash.get(RUNS, None)
    if runs is not None:
        runs.require_judged()
    if any(mark.name in UNUSED for mark in item.own_markers):
        _require_used(item)
    return done


UNUSED = {
    "vmemu": "the test does not use it; take the fixture vmemu_run and call it, or vmemu_scenario",
    "vmemu_limit": "no run was judged by it; call vmemu_run() in the test",
    "vmemu_features": "the test does not use it; take the fixture userfaultfd",
}
"""What is said of a mark of the test's own that came to nothing: it would be green for ever."""


def _require_used(item: pytest.Item) -> None:
    """Fail a test one of whose own marks, not those of its class or module, has done nothing."""
    from vmemu.testing.closeness import has_own
    from vmemu.testing.failure import fail

    fixtures = getattr(item, "fixturenames", ())
    runs: Runs | None = item.stash.get(RUNS, None)
    used = {
        "vmemu": bool(runs and runs.made)
        or SCENARIO_USED in item.stash
        or ("vmemu_seed" in fixtures and "vmemu_run" not in fixtures),
        "vmemu_limit": runs is not None,
        "vmemu_features": USERFAULTFD_USED in item.stash,
    }
    for name, was_used in used.items():
        if not was_used and has_own(item, name):
            fail(f"mark {name}: {UNUSED[name]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    runs: Runs | None = item.stash.get(RUNS, None)
    if runs is not None:
        runs.attend(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which lines of the ini option are for no file at all."""
    if not terminalreporter.config.getini("vmemu_limits"):
        return
    from vmemu.testing.inilimits import unmatched

    for pattern in unmatched(terminalreporter.config):
        what = f"warning: vmemu_limits: no scenario or test file fits '{pattern}'"
        terminalreporter.write_line(what, yellow=True)


# ---- fixtures ----


@pytest.fixture
def vmemu_seed(request: pytest.FixtureRequest) -> int | None:
    """The seed of this test's runs; None: that of the scenario."""
    broken = request.config.stash.get(BROKEN, None)
    if broken:
        from vmemu.testing.collecting import require_whole_mark

        require_whole_mark(request.node, broken)
    seed: int | None = getattr(request, "param", None)
    return seed


@pytest.fixture
def vmemu_run(request: pytest.FixtureRequest, vmemu_seed: int | None) -> Runner:
    """Runs a scenario in a process of its own: ``run = vmemu_run()``."""
    from vmemu.testing.fixtures import Runner

    return Runner(request.node, vmemu_seed)


@pytest.fixture
def vmemu_scenario(request: pytest.FixtureRequest, vmemu_seed: int | None) -> Scenario:
    """The scenario of the mark ``vmemu``, with this test's seed."""
    from vmemu.testing.fixtures import load_scenario

    request.node.stash[SCENARIO_USED] = True
    return load_scenario(request.node, vmemu_seed)
