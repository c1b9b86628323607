"""``vmemu stress`` as its users run it: real runs beside each other, and nothing left of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from support import HUGE

from vmemu import hugepages
from vmemu.stress.document import StressDocument

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
SMALL = REPOSITORY / "tests/data/stress-small.yaml"
READING = ("--set", "guest.trace.synthetic.write_share=0.0")
FLIP = (*READING, "--inject", "loader.flip@block=pc.ram,offset=0x10")

# Variations run on hugepages where there are some, so nobody may resize their pool meanwhile.
pytestmark = pytest.mark.usefixtures("userfault", "pool_lock")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which directories of runs are made where the test can see them."""
    (tmp_path / "tmp").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PATH": path}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vmemu", "stress", *map(str, arguments)]


def stress(
    environment: dict[str, str], *arguments: object, stdin: IO[Any] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        stdin=stdin,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def document_of(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    StressDocument.model_validate(loaded)
    return loaded


def left_in(environment: dict[str, str]) -> list[str]:
    return os.listdir(environment["TMPDIR"])


# ---- runs ----


def test_variations_of_a_scenario_complete(environment: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "stress.json"
    before = set(os.listdir("/dev/shm"))
    config = CONFIGS / "phases.yaml"
    done = stress(environment, config, "--runs", 8, "--jobs", 4, "--seed", 1, "--json", kept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("completed: 8 runs in ")
    result = document_of(kept)
    assert result["status"] == "completed"
    assert [ran["variation"] for ran in result["runs"]] == list(range(8))
    assert {ran["status"] for ran in result["runs"]} == {"completed"}
    assert result["totals"]["completed"] == 8
    assert result["totals"]["bytes_checked"] == sum(r["bytes_checked"] for r in result["runs"]) > 0
    assert result["totals"]["faults"] > 0
    assert result["runs"][0]["bytes_checked"] == 40 << 20
    assert left_in(environment) == []
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "vmemu" in name}


def test_the_same_seed_makes_the_same_variations(
    environment: dict[str, str], tmp_path: Path
) -> None:
    lists = []
    for jobs in (1, 3):
        kept = tmp_path / f"stress-{jobs}.json"
        done = stress(environment, SMALL, "--runs", 6, "--jobs", jobs, "--seed", 9, "--json", kept)
        assert done.returncode == 0, done.stdout + done.stderr
        runs = document_of(kept)["runs"]
        lists.append([(r["variation"], r["seed"], r["overrides"], r["command"]) for r in runs])
    assert lists[0] == lists[1]
    assert len({seed for _, seed, _, _ in lists[0]}) == 6


def test_without_a_seed_one_is_drawn_and_told(environment: dict[str, str]) -> None:
    done = stress(environment, SMALL, "--runs", 2, "--json", "-")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    StressDocument.model_validate(result)
    assert f"seed {result['seed']}\ndrawn from anonymous 4KiB, " in done.stderr
    assert "\ndrawn from    anonymous 4KiB, " in done.stderr
    assert "completed: 2 runs in " in done.stderr


def test_it_stops_when_its_time_is_over(environment: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "stress.json"
    done = stress(environment, SMALL, "--duration", "500ms", "--jobs", 2, "--json", kept)
    assert done.returncode == 0, done.stdout + done.stderr
    result = document_of(kept)
    assert {ran["status"] for ran in result["runs"]} == {"completed"}
    assert result["duration_ns"] >= 500_000_000


@pytest.mark.usefixtures("hugetlb")
def test_runs_share_a_pool_of_hugepages(environment: dict[str, str], tmp_path: Path) -> None:
    """A pool that has enough for one of them at a time."""
    kept = tmp_path / "stress.json"
    pages = hugepages.pool(HUGE).total
    block = f"blocks=[{{name: huge, backing: hugetlbfs, page_size: 2MiB, size: {pages * HUGE}}}]"
    few = "guest.trace.synthetic={kind: permutation, access_size: 64}"
    done = stress(
        environment, SMALL, "--runs", 4, "--jobs", 4, "--set", block, "--set", few, "--json", kept
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = document_of(kept)
    assert {ran["status"] for ran in result["runs"]} <= {"completed", "skipped"}
    assert result["runs"][0]["status"] == "completed"
    assert result["seen"]["page_sizes"] == {str(HUGE): result["totals"]["completed"]}


# ---- failures ----


def test_a_failure_stops_it_and_its_command_fails_the_same_way(
    environment: dict[str, str], tmp_path: Path
) -> None:
    kept, report = tmp_path / "stress.json", tmp_path / "report"
    numbers = ("--seed", 4, "--first", 3, "--runs", 50, "--jobs", 2)
    done = stress(environment, SMALL, *FLIP, *numbers, "--json", kept, "--report", report)
    assert done.returncode == 1, done.stdout + done.stderr
    result = document_of(kept)
    failure = result["failure"]
    assert failure["variation"] in (3, 4)
    assert len(result["runs"]) <= 4
    assert done.stdout.startswith(f"failed: variation {failure['variation']} of seed 4, after ")
    assert "first pc.ram+0x10" in failure["reason"]

    name = f"stress-small-seed-4-variation-{failure['variation']}"
    assert failure["result_file"] == f"{report}/{name}.json"
    assert failure["events_file"] == f"{report}/{name}.events.jsonl"
    assert {file.name for file in report.iterdir()} == {
        f"{name}.{kind}" for kind in ("json", "events.jsonl", "err")
    }
    wrong = json.loads(Path(failure["result_file"]).read_text())
    assert wrong["status"] == "failed"

    (line,) = re.findall(r"^  run it again  (vmemu run .*)$", done.stdout, re.MULTILINE)
    assert line == failure["command"]
    replayed = subprocess.run(
        f"{line} --json {tmp_path}/replayed.json",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert replayed.returncode == 1, replayed.stderr
    again = json.loads((tmp_path / "replayed.json").read_text())
    assert again["verify"]["mismatches"] == wrong["verify"]["mismatches"]
    assert again["scenario"] == wrong["scenario"]

    repeated = subprocess.run(
        failure["again"], shell=True, capture_output=True, text=True, check=False, env=environment
    )
    assert repeated.returncode == 1
    assert f"\n{failure['reason']}\n" in repeated.stdout
    (directory,) = left_in(environment)
    assert directory.startswith("vmemu-stress-")
    assert directory in repeated.stdout


def test_a_run_that_is_slow_is_out_of_time(environment: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "stress.json"
    endless = f"guest.trace.synthetic={{kind: uniform, accesses: {1 << 50}}}"
    done = stress(
        environment, SMALL, "--set", endless, "--timeout", "2s", "--jobs", 2, "--json", kept
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.startswith("timeout: variation ")
    failure = document_of(kept)["failure"]
    assert failure["status"] == "timeout"
    assert failure["again"].endswith(" --runs 1")
    assert " --timeout 2s " in failure["again"]  # longer, it would wait for nothing new


def test_of_a_stuck_run_it_says_who_waits_for_what(
    environment: dict[str, str], tmp_path: Path
) -> None:
    kept = tmp_path / "stress.json"
    stall = "loader.stall@block=pc.ram,offset=0"
    only = ("--runs", 1, "--set", "migration.postcopy.push=false")
    arguments = (*only, "--inject", stall, "--timeout", "3s", "--json", kept)
    done = stress(environment, SMALL, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    failure = document_of(kept)["failure"]
    assert failure["status"] == "stuck"
    assert any("pc.ram" in one for one in failure["stopped"])
    assert "  stopped       vCPU " in done.stdout
    assert failure["stacks"] and failure["stacks"].splitlines()[0] in done.stdout


def test_wrong_input_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    for arguments, said in (
        ((tmp_path / "nowhere.yaml",), "no such file"),
        ((SMALL, "--set", "guest.cpus=3"), "guest.cpus"),
        ((SMALL, "--duration", "60"), "--duration: '60' has no unit of time"),
        ((SMALL, "--duration", "0s"), "--duration: there is no time"),
        ((SMALL, "--timeout", "soon"), "--timeout: 'soon' is no duration"),
        ((SMALL, "--runs", "0"), "'--runs'"),
        ((SMALL, "--jobs", "0"), "'--jobs'"),
        ((SMALL, "--seed", "x"), "'--seed': 'x' is no whole number; give one from 0 to 184467"),
        (
            (SMALL, "--report", "/nowhere/report"),
            "--report /nowhere/report: /nowhere is not there; make it with: mkdir -p /nowhere/repo",
        ),
        ((SMALL, "--report", "/etc/passwd"), "a file is in the way; name another directory"),
        ((SMALL, "--report", "/etc/passwd/x"), "a file is in the way; name another directory"),
        ((SMALL, "--json", "/nowhere/stress.json"), "/nowhere is no directory"),
        ((SMALL, "--inject", "loader.flop"), "no fault point is called 'loader.flop'"),
        ((SMALL, "--inject", "loader.stall@page=99999999"), "loader.stall: offset 0x5f5e0ff000"),
    ):
        done = stress(environment, *arguments)
        assert done.returncode == 2, (arguments, done)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert left_in(environment) == []


def test_a_scenario_that_can_be_read_only_once_is_refused(
    environment: dict[str, str], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("/dev/stdin")
    read, write = os.pipe()
    os.close(write)
    with SMALL.open() as file, open(read, "rb") as pipe:
        for name, stdin, said in (
            (tmp_path / "pipe.yaml", None, "it is a pipe"),
            ("/dev/stdin", pipe, "it is a pipe"),
            ("/dev/stdin", file, "only this process has it under that name"),
            (tmp_path / "link.yaml", file, "only this process has it under that name"),
        ):
            done = stress(environment, name, "--runs", "1", stdin=stdin)
            assert done.returncode == 2, (name, done)
            assert f"{name}: the scenario can't be read once more: {said}" in done.stderr
            assert done.stderr.endswith("; write it to a file, and name that\n")
    assert left_in(environment) == []


def test_a_scenario_that_this_host_can_not_run(environment: dict[str, str]) -> None:
    size = (hugepages.pool(HUGE).total + 1) * HUGE
    more = f"blocks=[{{name: huge, backing: hugetlbfs, page_size: 2MiB, size: {size}}}]"
    done = stress(environment, SMALL, "--set", more, "--set", "on_unavailable=skip")
    assert done.returncode == 3
    assert done.stderr.startswith("--set: blocks[0].size: the scenario needs ")
    assert "sysctl vm.nr_hugepages=" in done.stderr


def test_a_scenario_that_takes_more_memory_than_there_is(
    environment: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "large.yaml"
    file.write_text(
        "name: large\nblocks:\n  - {name: ram, backing: anonymous, size: 64TiB}\n"
        "guest: {trace: {synthetic: {kind: uniform, accesses: 10}}}\n"
    )
    done = stress(environment, file)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.match(rf"{re.escape(str(file))}:[23]:\d+: blocks: the run needs ", done.stderr)
    assert "seed" not in done.stderr  # nothing was begun


# ---- signals ----


def family(pid: int) -> set[int]:
    """A process's children, and theirs."""
    found: set[int] = set()
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found |= {int(child), *family(int(child))}
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that are neither gone nor waiting for their parent to ask how they ended."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


@contextmanager
def endless(
    environment: dict[str, str], *arguments: object
) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A stress run of two runs without end, both with their source; and the processes of both."""
    words = [SMALL, "--jobs", 2, "--set"]
    words += [f"guest.trace.synthetic={{kind: uniform, accesses: {1 << 50}}}", *arguments]
    with subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            # Each run has its source process and the tracker of multiprocessing.
            while len(family(process.pid)) < 6:
                assert process.poll() is None
                time.sleep(0.01)
            yield process, family(process.pid)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_all_runs_and_shows_the_summary(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    kept = tmp_path / "stress.json"
    with endless(environment, "--json", kept) as (process, runs):
        process.send_signal(number)
        out, err = process.communicate()
        assert process.returncode == 130, err
    assert alive(runs) == set()
    assert out.startswith("interrupted: 2 runs in ")
    assert "Traceback" not in err
    result = document_of(kept)
    assert result["status"] == "interrupted"
    assert [(r["variation"], r["status"]) for r in result["runs"]] == [(0, "ended"), (1, "ended")]
    assert left_in(environment) == []


def test_nothing_runs_on_after_sigkill(environment: dict[str, str]) -> None:
    with endless(environment) as (process, runs):
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while alive(runs):
            assert time.monotonic() < deadline, alive(runs)
            time.sleep(0.01)
