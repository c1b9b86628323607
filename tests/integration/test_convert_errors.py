"""Conversions that can't end: full disks, wrong places, Ctrl-C. Nothing is left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
GPA = DATA / "gpa-boot-excerpt.bin.zst"


def converting(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vmemu", "trace", "convert", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said on standard error."""
    _, error = process.communicate(timeout=60)
    return process.returncode, error


def small_files() -> None:
    """No file of more than 20 KB, as if the disk were full: EFBIG in the place of ENOSPC."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("name", ["t.vmtrace", "t.vmtrace.zst"])
def test_no_room(name: str, tmp_path: Path) -> None:
    code, error = ended(converting(GPA, tmp_path / name, preexec_fn=small_files))
    assert (code, error.count("\n")) == (1, 1)
    assert f"{name}: can't be written: File too large; nothing of it was kept" in error
    assert os.listdir(tmp_path) == []


def test_no_room_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "t.vmtrace"
    assert ended(converting(DATA / "lackey-sort-excerpt.txt.zst", out))[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert ended(converting(GPA, out, "--force", preexec_fn=small_files))[0] == 1
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert os.listdir(tmp_path) == ["t.vmtrace"]


@pytest.mark.parametrize("name", ["no/t.vmtrace", "no/t.vmtrace.zst", "file/t.vmtrace"])
def test_wrong_place(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, error = ended(converting(GPA, tmp_path / name))
    assert (code, error.count("\n")) == (2, 1)
    assert f"{name}: can't be written: " in error
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["t.vmtrace", "t.vmtrace.zst"])
def test_directory_that_not_even_root_may_write(name: str) -> None:
    code, error = ended(converting(GPA, Path("/sys") / name))
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"/sys/{name}: can't be written: ")


@pytest.mark.parametrize("name", ["t.vmtrace", "t.vmtrace.zst"])
def test_interrupted_while_it_waits_for_input(name: str, tmp_path: Path) -> None:
    process = converting("-", tmp_path / name, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for _ in range(20_000):
        process.stdin.write(" L 1000,8\n")
    process.stdin.flush()
    wait_until(lambda: os.listdir(tmp_path) != [], process)
    process.send_signal(signal.SIGINT)
    code, error = ended(process)
    assert (code, error.strip()) == (130, "vmemu: interrupted")
    assert os.listdir(tmp_path) == []


def test_interrupted_before_there_is_any_input(tmp_path: Path) -> None:
    process = converting("-", tmp_path / "t.vmtrace", stdin=subprocess.PIPE)
    wait_until(lambda: catches_sigint(process.pid), process)
    process.send_signal(signal.SIGINT)
    code, error = ended(process)
    assert (code, error.strip()) == (130, "vmemu: interrupted")
    assert os.listdir(tmp_path) == []


def catches_sigint(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    waiting = Path(f"/proc/{pid}/wchan").read_text()
    return bool(caught >> (signal.SIGINT - 1) & 1) and "pipe" in waiting


def wait_until(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
