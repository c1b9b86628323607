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


@pytest.mark.parametrize("name", ["t.vmtrace", "t.vmtrace.zst", "t.csv"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_while_it_waits_for_input(
    name: str, number: signal.Signals, tmp_path: Path
) -> None:
    process = converting("-", tmp_path / name, stdin=subprocess.PIPE)
    assert process.stdin is not None
    for _ in range(20_000):
        process.stdin.write(" L 1000,8\n")
    process.stdin.flush()
    wait_until(lambda: os.listdir(tmp_path) != [], process)
    process.send_signal(number)
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


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = converting("-", tmp_path / "t.vmtrace", stdin=subprocess.PIPE, preexec_fn=ignore)
    wait_until(lambda: catches_sigint(process.pid), process)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(" L 1000,8\n" * 10, timeout=60)[1] == ""
    assert (process.returncode, os.listdir(tmp_path)) == (0, ["t.vmtrace"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_of_the_start_is_no_traceback(
    number: signal.Signals, tmp_path: Path
) -> None:
    for step in range(12):
        process = converting(GPA, tmp_path / "t.vmtrace", "--force", "-q")
        # Python catches SIGINT before any line of ours has run, but not SIGTERM.
        wait_until(lambda pid=process.pid: catches(pid, signal.SIGTERM), process)
        time.sleep(step * 0.02)
        process.send_signal(number)
        code, error = ended(process)
        assert (code, error.strip()) in ((130, "vmemu: interrupted"), (0, ""), (-number, ""))
        assert set(os.listdir(tmp_path)) <= {"t.vmtrace"}


@pytest.mark.parametrize("name", ["t.vmtrace", "t.vmtrace.zst", "t.csv"])
def test_of_two_conversions_to_one_name_the_late_one_is_refused(name: str, tmp_path: Path) -> None:
    late = converting("-", tmp_path / name, stdin=subprocess.PIPE)
    assert late.stdin is not None
    late.stdin.write(" L 1000,8\n" * 20_000)
    late.stdin.flush()
    wait_until(lambda: os.listdir(tmp_path) != [], late)
    assert ended(converting(GPA, tmp_path / name))[0] == 0
    there = (tmp_path / name).stat()
    _, error = late.communicate(" L 1000,8\n" * 10, timeout=60)
    assert (late.returncode, error.count("\n")) == (2, 1)
    assert f"{name}: exists already; name another" in error
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).stat().st_ino == there.st_ino


def test_quiet_tells_what_could_not_be_read_and_not_what_was_left_out(tmp_path: Path) -> None:
    recording = tmp_path / "r.csv"
    recording.write_text("address,kind\n" + "4096,load\n" * 50 + "nonsense,load\n")
    code, error = ended(converting(GPA, tmp_path / "a.vmtrace"))
    assert (code, "left out: to devices" in error) == (0, True)
    assert ended(converting(GPA, tmp_path / "b.vmtrace", "-q")) == (0, "")
    code, error = ended(converting(recording, tmp_path / "c.vmtrace", "-q"))
    assert (code, error) == (0, "note: 1 line or record means nothing; line 52: 'nonsense,load'\n")


# ---- standard streams ----

STREAMS = {"full": "exec {0} > /dev/full", "closed": "exec {0} >&-"}


@pytest.mark.parametrize("how", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_what_can_not_be_printed_is_told_in_one_line(
    how: str, unbuffered: str, tmp_path: Path
) -> None:
    trace = tmp_path / "t.vmtrace"
    assert ended(converting(GPA, trace))[0] == 0
    scenario = Path(__file__).parents[2] / "configs/quickstart.yaml"
    for verb in (
        f"trace info {trace}",
        f"trace info {trace} --json -",
        f"trace convert {trace} {tmp_path / 'u.csv'} --force",
        f"trace map {trace} --block ram=256MiB",
        f"config show {scenario}",
        f"check {scenario} --json -",
        "--version",
        "trace --help",
    ):
        done = subprocess.run(
            ["sh", "-c", how.format(f"{sys.executable} -m vmemu {verb}")],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            check=False,
            timeout=60,
        )
        said = done.stderr.replace("note: 16,555 accesses left out: io\n", "")
        assert (done.returncode, said.count("\n")) == (1, 1), (verb, done.stderr)
        assert said.startswith("standard output can't be written: ")


def catches_sigint(pid: int) -> bool:
    waiting = Path(f"/proc/{pid}/wchan").read_text()
    return catches(pid, signal.SIGINT) and "pipe" in waiting


def catches(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


def wait_until(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
