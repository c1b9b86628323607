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

from vmemu.testing.memory import ram_block, userfaultfd
from vmemu.testing.stash import RUNS, WORKER

if TYPE_CHECKING:
    from vmemu.config import Scenario
    from vmemu.testing.collecting import ScenarioFile
    from vmemu.testing.fixtures import Runner

__all__ = ["ram_block", "userfaultfd", "vmemu_run", "vmemu_scenario", "vmemu_seed"]

SUFFIX = ".vmemu.yaml"


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
        metavar="PATH=VALUE",
        help="In the place of every scenario's value, such as on_unavailable=skip.",
    )
    group.addoption(
        "--vmemu-timeout",
        type=_seconds,
        metavar="TIME",
        help="How long one run may take, such as 90s (default: 120s); then it is killed.",
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
    from vmemu.testing.marks import limits_of_ini

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
    if not file_path.name.endswith(SUFFIX):
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
    runs = item.stash.get(RUNS, None)
    if runs is not None:
        runs.require_judged()
    elif any(mark.name == "vmemu_limit" for mark in item.own_markers):
        from vmemu.testing.failure import NOT_JUDGED, fail

        fail(NOT_JUDGED)
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (runs := item.stash.get(RUNS, None)) is not None:
        runs.attend(report)
    return report


# ---- fixtures ----


@pytest.fixture
def vmemu_seed(request: pytest.FixtureRequest) -> int | None:
    """The seed of this test's runs; None: that of the scenario."""
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

    return load_scenario(request.node, vmemu_seed)
