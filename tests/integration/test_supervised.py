"""Runs in processes of their own: each way in which one may end, and that nothing is left."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supervised import (
    STALL,
    gone,
    pid_of,
    scenario_file,
    shared_memory,
    stalling,
    waits,
)
from support import HUGE, PATIENCE_S, await_true

from vmemu import hugepages, unfinished
from vmemu.jobs import supervised
from vmemu.jobs.supervised import Job, Outcome, SupervisedRun
from vmemu.reservation import Resizer

pytestmark = pytest.mark.usefixtures("userfault")
TESTS = Path(__file__).parents[1]


def outcome_of(job: Job, directory: Path, timeout_s: float = PATIENCE_S, **how: bool) -> Outcome:
    with SupervisedRun(job, directory, **how) as run:
        run.start()
        pid = pid_of(run)
        outcome = run.wait(timeout_s)
    assert gone(pid)
    assert outcome is run.poll() is run.wait(0)
    return outcome


# ---- the ways out ----


def test_a_run_that_completes(tmp_path):
    outcome = outcome_of(Job(scenario_file(tmp_path), seed=9), tmp_path)
    assert (outcome.status, outcome.exit_code, outcome.message) == ("completed", 0, "")
    assert outcome.ok
    assert outcome.result == json.loads(outcome.result_file.read_text())
    assert outcome.result["seed"] == 9
    assert outcome.events_file.stat().st_size > 0
    names = {"small.yaml", "run.json", "run.events.jsonl"}
    assert set(os.listdir(tmp_path)) == names


def test_what_is_not_to_be_kept_is_deleted_when_all_went_well(tmp_path):
    scenario = scenario_file(tmp_path)
    assert outcome_of(Job(scenario), tmp_path, keep=False).result is not None
    assert os.listdir(tmp_path) == ["small.yaml"]
    flip = Job(scenario, inject=("loader.flip@block=ram,offset=9",), overrides=NO_WRITES)
    outcome = outcome_of(flip, tmp_path, keep=False)
    assert outcome.result_file.exists() and outcome.events_file.exists()


NO_WRITES = ("guest.trace.synthetic.write_share=0",)


def test_a_run_that_fails(tmp_path):
    flip = ("loader.flip@block=ram,offset=9",)
    outcome = outcome_of(Job(scenario_file(tmp_path), overrides=NO_WRITES, inject=flip), tmp_path)
    assert (outcome.status, outcome.exit_code, outcome.ok) == ("failed", 1, False)
    assert "first ram+0x9" in outcome.message


def test_a_run_that_is_skipped_says_why(tmp_path):
    blocks = "{name: vram, backing: shared, size: 64KiB, path: /proc/vmemu-test}"
    job = Job(scenario_file(tmp_path, blocks, more="on_unavailable: skip\n"))
    outcome = outcome_of(job, tmp_path)
    assert (outcome.status, outcome.exit_code, outcome.ok) == ("skipped", 0, True)
    assert "not on tmpfs" in outcome.message


def test_a_run_that_is_refused_says_why_in_a_line(tmp_path):
    outcome = outcome_of(Job(tmp_path / "none.yaml"), tmp_path)
    assert (outcome.status, outcome.exit_code, outcome.result) == ("refused", 2, None)
    assert outcome.message.startswith(f"{tmp_path}/none.yaml: no such file")
    wrong = Job(scenario_file(tmp_path), overrides=("guest.vcpus=no", "seed=no"))
    assert "\n" not in outcome_of(wrong, tmp_path).message
    blocks = "{name: vram, backing: shared, size: 64KiB, path: /proc/vmemu-test}"
    outcome = outcome_of(Job(scenario_file(tmp_path, blocks)), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("refused", 3)
    assert "not on tmpfs" in outcome.message


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, "killed by SIGSEGV (a crash"),
        (signal.SIGBUS, "killed by SIGBUS (memory that it had mapped was not to be had"),
        (signal.SIGABRT, "killed by SIGABRT (a crash"),
        (signal.SIGKILL, "killed by SIGKILL (not by its owner; maybe the OOM killer"),
        (signal.SIGQUIT, "killed by SIGQUIT"),
        (signal.SIGRTMIN + 1, "killed by signal"),
    ],
)
def test_a_run_that_is_killed_by_a_signal(number, words, tmp_path):
    with SupervisedRun(stalling(tmp_path), tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: waits(pid))
        os.kill(pid, number)
        outcome = run.wait(PATIENCE_S)
    assert gone(pid)
    assert (outcome.status, outcome.exit_code, outcome.result) == ("died", -number, None)
    first, _, rest = outcome.message.partition("\n")
    assert first.startswith(words)
    crash = number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
    assert ("in _run_guest" in rest) == crash  # the Python stack of the run


def test_a_source_that_crashes_leaves_its_stack(tmp_path):
    with SupervisedRun(stalling(tmp_path), tmp_path) as run:
        run.start()
        await_true(lambda: waits(pid_of(run)))
        os.kill(source_of(pid_of(run)), signal.SIGSEGV)
        outcome = run.wait(PATIENCE_S)
    assert outcome.status == "failed"
    assert "the source process was killed by SIGSEGV" in outcome.message
    assert "source_loader.py" in outcome.stacks


def source_of(pid: int) -> int:
    """The source process of a run: it reads the return path while the run waits."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    return next(child for child, command in commands.items() if "spawn_main" in command)


def test_a_run_that_ends_well_without_a_result_has_died(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'run' in sys.orig_argv:\n    os._exit(0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = outcome_of(Job(scenario_file(tmp_path)), tmp_path)
    assert (outcome.status, outcome.exit_code) == ("died", 0)
    assert outcome.message == "ended with exit code 0 and left no result"


def test_a_result_of_a_run_before_is_never_taken_for_this_ones(tmp_path):
    scenario = scenario_file(tmp_path)
    assert outcome_of(Job(scenario), tmp_path).status == "completed"
    outcome = outcome_of(Job(tmp_path / "none.yaml"), tmp_path)
    assert (outcome.status, outcome.result) == ("refused", None)
    assert not outcome.result_file.exists() and not outcome.events_file.exists()


def test_an_output_in_part_goes_with_its_run_and_nobody_elses_does(tmp_path):
    """A container that shares the directory may have a run of the same process number."""
    mine = [
        Path(unfinished.temporary(f"{tmp_path}/run{end}")) for end in (".json", ".events.jsonl")
    ]
    others = Path(unfinished.temporary(f"{tmp_path}/run2.json"))
    with SupervisedRun(Job(scenario_file(tmp_path)), tmp_path) as run:
        mine[1].touch()  # of a run before that was killed together with its owner
        run.start()
        assert run._process is not None
        same_number = tmp_path / f".vmemu-{run._process.pid}-00000000.tmp"
        for file in (mine[0], others, same_number):
            file.touch()
        run.kill()
    assert not any(file.exists() for file in mine)
    assert others.exists() and same_number.exists()


def test_a_result_in_part_is_none(tmp_path):
    run = SupervisedRun(Job(scenario_file(tmp_path)), tmp_path)
    for text in ("", '{"status": "compl', "[]", '"status"', "{}"):
        run.result_file.write_text(text)
        assert run._result() is None


def test_much_that_is_said_is_cut_in_the_middle(tmp_path):
    run = SupervisedRun(Job(scenario_file(tmp_path)), tmp_path)
    (tmp_path / "run.err").write_bytes(b"first\n" + bytes(10 * supervised.SAID_MOST) + b"\nlast")
    said = run._said()
    assert said.startswith("first\n") and said.endswith("\nlast")
    assert len(said) < 2 * supervised.SAID_MOST + 100
    (tmp_path / "run.err").write_bytes(b"x" * (supervised.SAID_MOST + 5))
    assert run._said() == "x" * (supervised.SAID_MOST + 5)


# ---- waiting and killing ----


def test_a_run_that_can_not_be_started_leaves_nothing(tmp_path):
    before = os.listdir("/proc/self/fd")
    run = SupervisedRun(Job(scenario_file(tmp_path)), tmp_path / "none")
    with pytest.raises(FileNotFoundError), run:
        run.start()
    with pytest.raises(ValueError, match="not been started"):
        run.fileno()
    assert os.listdir("/proc/self/fd") == before


def test_a_run_for_which_there_is_no_process_leaves_nothing(tmp_path, monkeypatch):
    job, before = Job(scenario_file(tmp_path)), set(tmp_path.iterdir())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError), SupervisedRun(job, tmp_path) as run:
        run.start()
    assert set(tmp_path.iterdir()) == before


def test_a_run_that_is_killed_was_interrupted(tmp_path):
    before = os.listdir("/proc/self/fd"), shared_memory()
    with SupervisedRun(stalling(tmp_path), tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: waits(pid))
        assert run.poll() is None
        run.kill()
        run.kill()
        assert gone(pid)
    assert (run.wait(0).status, run.wait(0).message) == ("interrupted", "killed by its owner")
    assert (os.listdir("/proc/self/fd"), shared_memory()) == before


def test_several_are_waited_for_at_once(tmp_path):
    scenario = scenario_file(tmp_path)
    runs = [SupervisedRun(Job(scenario, seed=n), tmp_path, f"run-{n}") for n in range(3)]
    runs.append(SupervisedRun(stalling(tmp_path), tmp_path, "stuck"))
    poll = select.poll()
    for run in runs:
        run.start()
        poll.register(run, select.POLLIN)
    numbers = {run.fileno(): run for run in runs}
    done = []
    while len(done) < 3:
        for fd, _ in poll.poll(PATIENCE_S * 1000):
            poll.unregister(fd)
            done.append(numbers[fd].poll())
    assert [outcome.status for outcome in done] == ["completed"] * 3
    assert sorted(outcome.result["seed"] for outcome in done) == [0, 1, 2]
    assert runs[3].poll() is None
    runs[3].kill()


def test_a_run_keeps_to_its_cpus(tmp_path):
    cpu = max(os.sched_getaffinity(0))
    job = stalling(tmp_path)
    with SupervisedRun(
        Job(job.scenario, inject=job.inject, cpus=frozenset({cpu})), tmp_path
    ) as run:
        run.start()
        assert os.sched_getaffinity(pid_of(run)) == {cpu}
        await_true(lambda: waits(pid_of(run)))
        assert os.sched_getaffinity(source_of(pid_of(run))) == {cpu}
    assert len(os.sched_getaffinity(0)) >= 1


OWNER = """
import math, signal, sys
from pathlib import Path
from supervised import pid_of
from vmemu.jobs.supervised import Job, SupervisedRun
scenario, directory, stall, count = sys.argv[1:]
runs = [
    SupervisedRun(Job(Path(scenario), inject=(stall,)), Path(directory), f"run-{n}")
    for n in range(int(count))
]
for run in runs:
    run.start()
    print(pid_of(run), flush=True)
for run in runs:
    run.wait(math.inf)
"""


@contextlib.contextmanager
def owner(
    scenario: Path, directory: Path, count: int, code: str = OWNER, stall: str = STALL
) -> Iterator[subprocess.Popen[str]]:
    environ = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS}/integration"}
    words = [str(scenario), str(directory), stall, str(count)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def started(process: subprocess.Popen[str], count: int) -> list[int]:
    """The runs of an owner, all of which stand still."""
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(count)]
    for pid in pids:
        await_true(lambda pid=pid: waits(pid))
    return pids


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_runs_end_with_their_owner(number, tmp_path):
    before = shared_memory()
    blocks = "{name: ram, backing: shared, size: 256KiB}"
    client = "{name: net, block: ram, trace: {synthetic: {kind: sequential, accesses: 999}}}"
    scenario = scenario_file(tmp_path, blocks, more=f"clients: [{client}]\n")
    with owner(scenario, tmp_path, 3) as process:
        pids = started(process, 3)
        process.send_signal(number)
        process.wait(PATIENCE_S)
        assert process.stderr is not None
        assert ("KeyboardInterrupt" in process.stderr.read()) == (number == signal.SIGINT)
    for pid in pids:
        await_true(lambda pid=pid: gone(pid))
    assert shared_memory() == before
    left = {name for name in os.listdir(tmp_path) if not name.endswith((".err", ".yaml"))}
    assert left == set()


@pytest.mark.parametrize("delay", [0, 0.1, 0.3, 0.6, 1, 1.5])
def test_runs_end_with_an_owner_that_is_killed_at_any_moment(delay, tmp_path):
    """While they start, map, migrate, give back: whatever is in time for this delay."""
    before = shared_memory()
    blocks = "{name: ram, backing: shared, size: 256KiB}"
    with owner(
        scenario_file(tmp_path, blocks), tmp_path, 2, stall="loader.stall@page=63"
    ) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        time.sleep(delay)
        process.kill()
    for pid in pids:
        await_true(lambda pid=pid: gone(pid))
    assert shared_memory() == before


FORKED = """
import os, time
forked = os.fork()
if forked == 0:
    time.sleep(600)
"""


def test_a_child_of_the_owner_does_not_keep_its_runs_alive(tmp_path):
    """One by fork, which has copies of all that the owner has open."""
    before, _, after = OWNER.rpartition("for run in runs:")
    code = f"{before}{FORKED}print(forked, flush=True)\nfor run in runs:{after}"
    with owner(scenario_file(tmp_path), tmp_path, 1, code) as process:
        (pid,) = started(process, 1)
        assert process.stdout is not None
        forked = int(process.stdout.readline())
        process.kill()
        try:
            await_true(lambda: gone(pid))
        finally:
            os.kill(forked, signal.SIGKILL)


def test_hugepages_come_back_when_an_owner_is_killed(tmp_path, pool_alone: Resizer):
    pool_alone.resize(8)
    huge = "{name: huge, backing: hugetlbfs, size: 8MiB}"
    blocks = f"{{name: ram, backing: anonymous, size: 256KiB}}, {huge}"
    with owner(scenario_file(tmp_path, blocks), tmp_path, 2) as process:
        pids = started(process, 2)
        assert hugepages.pool(HUGE).available == 0
        process.kill()
    for pid in pids:
        await_true(lambda pid=pid: gone(pid))
    # The memory goes with the last thread, a moment after the process is seen to be dead.
    await_true(lambda: hugepages.pool(HUGE).available == 8)


def test_a_run_that_is_owned_by_no_pipe_is_refused(tmp_path):
    command = [sys.executable, "-m", "vmemu", "run", str(scenario_file(tmp_path)), "--owner-fd"]
    said = {"0": "--owner-fd 0: ", "77": "--owner-fd 77: ", str(1 << 40): "Invalid value for"}
    for fd, words in said.items():
        done = subprocess.run(
            [*command, fd], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert words in done.stderr


def test_an_owner_that_was_gone_before_the_run_began(tmp_path):
    theirs, ours = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "vmemu", "run", str(scenario_file(tmp_path))]
    process = subprocess.Popen(
        [*command, "--owner-fd", str(theirs)], pass_fds=[theirs], start_new_session=True
    )
    os.close(theirs)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


# ---- the command that replays it ----


def replayed_words(command: str, tmp_path: Path) -> list[str]:
    """What ``vmemu`` is given when a shell runs the command."""
    fake = tmp_path / "vmemu"
    fake.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=environ, check=True)
    words: list[str] = json.loads(done.stdout)
    return words


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=3), st.lists(WORDS, max_size=2), st.none() | st.integers())
def test_a_command_survives_the_shell(tmp_path, overrides, inject, seed):
    job = Job(tmp_path / "it's a $scenario.yaml", seed, tuple(overrides), tuple(inject))
    assert replayed_words(job.command(), tmp_path) == job.arguments()


def test_a_command_names_the_scenario_as_seen_from_here(tmp_path, monkeypatch):
    below = tmp_path / "configs"
    below.mkdir()
    monkeypatch.chdir(tmp_path)
    assert Job(below / "a.yaml").command() == "vmemu run configs/a.yaml"
    assert Job(Path("configs/a.yaml")).command() == "vmemu run configs/a.yaml"
    assert Job(tmp_path / "-a.yaml").command() == "vmemu run ./-a.yaml"
    monkeypatch.chdir(below)
    assert Job(tmp_path / "a.yaml").command() == f"vmemu run {tmp_path}/a.yaml"


def test_a_command_replays_a_failure(tmp_path, monkeypatch):
    """With the same seed, the same wrong byte is found in the place of the same right one."""
    flip = ("loader.flip@block=ram,offset=0x1234",)
    overrides = (*NO_WRITES, "guest.vcpus=1")
    job = Job(scenario_file(tmp_path), seed=77, overrides=overrides, inject=flip)
    first = outcome_of(job, tmp_path)
    assert first.status == "failed"
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-m", "vmemu", *shlex.split(job.command())[1:], "--json", "again.json"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 1
    again = json.loads((tmp_path / "again.json").read_text())
    assert first.result is not None
    for key in ("seed", "scenario", "error", "verify"):
        assert again[key] == first.result[key]


def test_infinity_is_for_ever(tmp_path):
    with SupervisedRun(Job(scenario_file(tmp_path)), tmp_path) as run:
        run.start()
        assert run.wait(math.inf).status == "completed"


def test_time_that_is_over_at_once(tmp_path):
    began = time.monotonic()
    outcome = outcome_of(stalling(tmp_path), tmp_path, 0)
    assert outcome.status == "timeout"
    assert outcome.seconds <= time.monotonic() - began


def test_a_run_whose_result_has_no_place_says_so(tmp_path):
    with SupervisedRun(stalling(tmp_path), tmp_path, "a") as run:
        run.start()
        await_true(lambda: waits(pid_of(run)))
        run.result_file.mkdir()
        os.kill(pid_of(run), signal.SIGTERM)
        outcome = run.wait(PATIENCE_S)
    run.result_file.rmdir()
    assert (outcome.status, outcome.result) == ("refused", None)
    assert "a.json: the result can't be written" in outcome.message


class Interrupting(SupervisedRun):
    """Ctrl-C strikes in the middle of its end."""

    struck = False

    def _said(self) -> str:
        if not self.struck:
            self.struck = True
            raise KeyboardInterrupt
        return super()._said()


def test_an_end_that_is_interrupted_is_an_end(tmp_path):
    before = os.listdir("/proc/self/fd")
    with Interrupting(Job(scenario_file(tmp_path)), tmp_path) as run:
        run.start()
        with pytest.raises(KeyboardInterrupt):
            run.wait(PATIENCE_S)
    assert run.wait(0).status == "completed"
    assert os.listdir("/proc/self/fd") == before


def test_a_start_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    before = os.listdir("/proc/self/fd")
    started_pids = []

    def strike(pid: int) -> int:
        started_pids.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pidfd_open", strike)
    run = SupervisedRun(Job(scenario_file(tmp_path)), tmp_path)
    with pytest.raises(KeyboardInterrupt), run:
        run.start()
    assert gone(started_pids[0])
    assert os.listdir("/proc/self/fd") == before
