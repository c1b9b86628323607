"""What tests mount is seen by nobody else, and ends with them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from private_mounts import private_mounts

from vmemu.mounts import mounted

TESTS = Path(__file__).parents[1]

MOUNTS_AND_STAYS = """
import subprocess, sys
from private_mounts import private_mounts
with private_mounts():
    subprocess.run(["mount", "-t", "tmpfs", "none", sys.argv[1]], check=True)
    print("mounted", flush=True)
    sys.stdin.read()
"""


def places(pid: object = "self") -> set[str]:
    return {line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}


@pytest.mark.usefixtures("own_mounts")
def test_a_mount_is_seen_by_the_test_and_its_children(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    assert str(tmp_path) in {mount.path for mount in mounted()}
    seen = subprocess.run(["cat", "/proc/self/mountinfo"], capture_output=True, check=True)
    assert str(tmp_path).encode() in seen.stdout


@pytest.mark.usefixtures("own_mounts")
def test_nobody_else_sees_it_and_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MOUNTS_AND_STAYS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(TESTS)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        assert str(tmp_path) in places(process.pid)
        assert str(tmp_path) not in places()
        process.kill()
    assert str(tmp_path) not in places()


def test_afterwards_all_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = places()
    started = threading.Event()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(private_mounts())
        except PermissionError:
            pytest.skip("file systems can't be mounted here")
        subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
        stays = threading.Thread(target=started.wait)
        stays.start()
    assert (places(), Path.cwd()) == (before, tmp_path)
    started.set()
    stays.join()
