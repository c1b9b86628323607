"""The processes of a group, as /proc tells them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from vmemu.jobs import group

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def ended(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_group_is_there_until_its_last_process_has_ended():
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        assert group.members(process.pid) == [process.pid]
        assert not group.await_end(process.pid, 0)
        os.killpg(process.pid, signal.SIGKILL)
        assert group.await_end(process.pid, 60)  # a zombie, not yet waited for
    finally:
        ended(process)
    assert group.await_end(process.pid, 0)


def test_processes_that_are_hidden_are_none_of_the_group(monkeypatch):
    """/proc mounted with hidepid=1 lists them, and says EPERM of all that they have."""
    process = subprocess.Popen(SLEEPER, start_new_session=True)
    real = Path.read_text

    def hidden(path: Path, **how: str) -> str:
        if path == Path(f"/proc/{os.getpid()}/stat"):
            raise PermissionError(1, "Operation not permitted", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "read_text", hidden)
    try:
        assert group.members(process.pid) == [process.pid]
    finally:
        ended(process)
