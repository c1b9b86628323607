"""What sessions of pytest leave behind: reports, however many workers and tries there are, and
nothing of what was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from plugin_project import PLAIN, READS, SCENARIO, SLOW, kept, output, run, write
from support import HUGE

from vmemu import hugepages
from vmemu.reservation import Resizer
from vmemu.results import schema

pytest_plugins = ["pytester"]
HUGE_SCENARIO = (
    SCENARIO.replace("anonymous, size: 1MiB", "hugetlbfs, size: 2MiB")
    + "on_unavailable: {wait: 60min}\n"
)
pytestmark = pytest.mark.usefixtures("userfault")


def test_a_report_has_every_run_of_all_workers(project: pytest.Pytester) -> None:
    write(project, "limited.vmemu.yaml", SCENARIO)
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("vmemu_limits = limited*: p99=1ns\n")
    project.makepyfile(
        test_it="""
        def test_two(vmemu_run):
            cpus = vmemu_run("boot.vmemu.yaml").result["host"]["cpus"]
            vmemu_run("boot.vmemu.yaml", seed=1)
            assert cpus == 1
        """
    )
    arguments = ("--vmemu-report", "out/report", "--vmemu-seeds", "2")
    result = run(project, "-n", str(len(os.sched_getaffinity(0))), *arguments)
    result.assert_outcomes(passed=3, failed=2)
    names = sorted(file.name for file in (project.path / "out/report").iterdir())
    assert len(names) == 6 * 2 + 2  # a result and an event log each, what is wrong with two
    for file in (project.path / "out/report").glob("*[0-9a-f].json"):
        assert schema.validate(json.loads(file.read_text())).status == "completed"
    (first, _) = sorted((project.path / "out/report").glob("limited*.txt"))
    assert first.read_text().startswith("limit exceeded: p99 is ")
    assert str(kept(first.read_text(), "result")) in output(result)


def test_workers_that_run_the_same_tests_have_files_of_their_own(
    project: pytest.Pytester,
) -> None:
    result = run(project, "-n", "2", "--dist", "each", "--vmemu-report", "out")
    result.assert_outcomes(passed=2)
    assert len(list((project.path / "out").glob("*gw0.json"))) == 1
    assert len(list((project.path / "out").glob("*gw1.json"))) == 1


def test_tests_of_one_name_in_two_places_have_files_of_their_own(
    project: pytest.Pytester,
) -> None:
    """Outside of the rootdir an id says nothing of the directory."""
    here, places = project.mkdir("here"), [project.mkdir("one"), project.mkdir("two")]
    for place in places:
        shutil.copy(project.path / "boot.vmemu.yaml", place)
    ini = ("--rootdir", here, "-c", project.path / "tox.ini")
    os.chdir(here)
    run(project, *map(str, (*ini, *places, "--vmemu-report", "out"))).assert_outcomes(passed=2)
    assert len(list((here / "out").glob("*.json"))) == 2


def test_each_try_of_a_test_keeps_its_files(project: pytest.Pytester) -> None:
    """As pytest-rerunfailures tries again, in one session; and a second session replaces all."""
    project.makeconftest(
        """
        import pytest
        from _pytest.runner import runtestprotocol

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                item._initrequest()
                reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            return True
        """
    )
    project.makepyfile(
        test_it="""
        from pathlib import Path

        def test_flaky(vmemu_run):
            limit = Path("tried")
            flip = [] if limit.exists() else ["loader.flip@block=ram,offset=4097"]
            limit.touch()
            vmemu_run("boot.vmemu.yaml", inject=flip, overrides="WRITES")
        """.replace("WRITES", READS)
    )
    run(project, "test_it.py", "--vmemu-report", "out").assert_outcomes(passed=1)
    results = {file.name: json.loads(file.read_text()) for file in project.path.glob("out/*.json")}
    assert sorted(one["status"] for one in results.values()) == ["completed", "failed"]
    (said,) = (project.path / "out").glob("*.txt")
    assert results[said.with_suffix(".json").name]["status"] == "failed"
    run(project, "test_it.py", "--vmemu-report", "out").assert_outcomes(passed=1)
    assert not list((project.path / "out").glob("*.txt"))


@pytest.mark.timeout(600)  # other tests may have the pool
def test_nothing_is_left_of_a_run_whose_worker_was_killed(
    project: pytest.Pytester, pool_alone: Resizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool_alone.resize(2)
    write(project, "slow.yaml", SLOW.replace("anonymous, size: 1MiB", "hugetlbfs, size: 4MiB"))
    project.makepyfile(
        test_it="""
        import os

        def test_killed(vmemu_run):
            if not os.path.exists("worker"):
                with open("worker", "w") as file:
                    file.write(str(os.getpid()))
                vmemu_run("slow.yaml")
        """
    )
    monkeypatch.setenv("VMEMU_TEST_OF", str(project.path))
    words = ["-n1", "--max-worker-restart=1", "--vmemu-report=out", "test_it.py"]
    session = subprocess.Popen(
        [sys.executable, "-m", "pytest", *PLAIN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=project.path,
    )
    try:
        until(lambda: hugepages.pool(HUGE).available == 0, session)
        os.kill(int((project.path / "worker").read_text()), signal.SIGKILL)
        said = session.communicate(timeout=60)[0].decode()
    finally:
        session.kill()
        session.wait()
    assert "worker 'gw0' crashed while running 'test_it.py::test_killed'" in said
    until(lambda: not processes_of(project), None)
    assert hugepages.pool(HUGE).available == 2
    (said,) = (project.path / "out").glob("test_it.py_test_killed-*.txt")
    text = said.read_text()
    assert text.startswith(
        "not ended: its worker, or the whole session, ended before it did; begun 2"
    )
    assert "called:  test_it.py:7 in test_killed: vmemu_run(" in text
    assert "replay:  vmemu run slow.yaml\n" in text


@pytest.mark.timeout(600)
@pytest.mark.parametrize("without", ["", "--vmemu-set on_unavailable=skip"])
def test_the_files_for_ci_run_as_they_stand(
    project: pytest.Pytester, without: str, hugetlb: None
) -> None:
    """Their commands, where the environment they make is this one."""
    text = (Path(__file__).parents[2] / "docs/ci.md").read_text()
    github, gitlab, _ = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    steps = {step.get("name"): step.get("run") for step in github["jobs"]["migrations"]["steps"]}
    project.mkdir("tests")
    (project.path / "boot.vmemu.yaml").rename(project.path / "tests/boot.vmemu.yaml")
    write(project, "tests/huge.vmemu.yaml", HUGE_SCENARIO)
    write(project, "test_not_mine.py", "def test_it(): assert False\n")
    (project.path / ".venv").symlink_to(sys.prefix)
    for command in (steps["Migrate"], gitlab["migrations"]["script"][0]):
        shutil.rmtree(project.path / "report", ignore_errors=True)
        done = subprocess.run(
            ["bash", "-e", "-c", command],
            env=os.environ | {"WITHOUT": without},
            cwd=project.path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        report = project.path / "report"
        cases = list(ET.parse(report / "junit.xml").iter("testcase"))
        skipped = [case for case in cases if case.find("skipped") is not None]
        assert len(cases) == 6
        assert without or not skipped
        assert len(list(report.glob("*.events.jsonl"))) >= 6 - len(skipped)


def until(reached: object, session: subprocess.Popen[bytes] | None) -> None:
    assert callable(reached)
    deadline = time.monotonic() + 60
    while not reached():
        assert session is None or session.poll() is None, session.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(project: pytest.Pytester) -> list[str]:
    """Whatever that session has started and is still there."""
    wanted, found = f"VMEMU_TEST_OF={project.path}".encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except (OSError, UnicodeDecodeError):
            continue
    return found


@pytest.mark.timeout(600)
def test_eight_workers_share_a_pool_for_two(project: pytest.Pytester, pool_alone: Resizer) -> None:
    """The project's own stress suite; every run passes, and the pool is as it was."""
    pool_alone.resize(4)
    (project.path / "boot.vmemu.yaml").unlink()
    for file in (Path(__file__).parents[1] / "stress").glob("*.vmemu.yaml"):
        shutil.copy(file, project.path)
    result = run(project, "-n", "8", "--vmemu-seeds", "3")
    result.assert_outcomes(passed=15)
    pool = hugepages.pool(HUGE)
    assert (pool.total, pool.available) == (4, 4)
