"""SIGKILL at any moment, of a run or of a process that it has started, while another run waits for
its hugepages: nothing is left of it, and the other one goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import HUGE, PATIENCE_S, await_true

from vmemu import hugepages
from vmemu.reservation import Resizer

MARK = "VMEMU_TEST_KILLED"
ON_HUGEPAGES = "backing: hugetlbfs, page_size: 2MiB"
SCENARIO = """
name: killed
blocks:
  - {{name: huge, {huge}, size: 6MiB}}
  - {{name: placed, {huge}, size: 4MiB, path: {places}/huge/placed}}
  - {{name: vram, backing: shared, size: 1MiB}}
  - {{name: shm, backing: shared, size: 1MiB, path: {places}/shm/shm}}
  - {{name: ram, backing: anonymous, size: 1MiB}}
guest:
  vcpus: 2
  trace: {{synthetic: {{kind: uniform, accesses: 20000, write_share: 0.4}}}}
clients:
  - {{name: one, block: vram, trace: {{synthetic: {{kind: uniform, accesses: 2000}}}}}}
migration: {{precopy: {{rounds: 2}}, flip_at: 30%}}
on_unavailable: {{wait: 100s}}
"""


@pytest.fixture
def places(own_mounts: None, tmp_path: Path) -> Path:
    """A hugetlbfs and a tmpfs, whose directories show every file that has a name."""
    for name, words in (("huge", ["hugetlbfs", "-o", "pagesize=2M"]), ("shm", ["tmpfs"])):
        (tmp_path / name).mkdir()
        subprocess.run(["mount", "-t", *words, "none", tmp_path / name], check=True)
    text = SCENARIO.format(huge=ON_HUGEPAGES, places=tmp_path)
    (tmp_path / "killed.yaml").write_text(text)
    return tmp_path


def started(places: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "vmemu", "run", str(places / "killed.yaml"), "--quiet"],
        env=os.environ | {MARK: str(places)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def processes(places: Path) -> list[int]:
    """All that these runs have started, wherever they are now; what has ended has no environment
    any more."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                environment = Path(f"/proc/{entry}/environ").read_bytes()
                if f"{MARK}={places}".encode() in environment.split(b"\0"):
                    found.append(int(entry))
    return found


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def length_s(places: Path) -> float:
    begin = time.monotonic()
    with started(places) as run:
        assert run.wait() == 0
    return time.monotonic() - begin


@pytest.mark.usefixtures("userfault")
def test_who_is_killed_leaves_nothing_and_keeps_nobody_waiting(
    pool_alone: Resizer, places: Path
) -> None:
    pool_alone.resize(8)  # for one of two runs
    whole_s = length_s(places)
    choice = random.Random(7)
    killed = []
    for turn in range(8):
        with started(places) as victim, started(places) as other:
            time.sleep(whole_s * (turn + choice.random()) / 6)
            target = choice.choice([victim.pid, *children(victim.pid)]) if turn % 2 else victim.pid
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, signal.SIGKILL)
            assert victim.stderr is not None and other.stderr is not None
            said = victim.stderr.read().decode()
            killed.append(victim.wait(PATIENCE_S))
            assert "internal error" not in said
            if target != victim.pid or "spawn_main" not in said:
                assert "Traceback" not in said
            else:  # the interpreter of its child had not yet been told what it is for
                assert said.rstrip().endswith("EOFError: Ran out of input")
            assert other.wait(PATIENCE_S) == 0, other.stderr.read().decode()
        await_true(lambda: not processes(places))
        assert os.listdir(places / "huge") == os.listdir(places / "shm") == []
        await_true(lambda: hugepages.pool(HUGE).free == hugepages.pool(HUGE).available == 8)
    assert -signal.SIGKILL in killed
