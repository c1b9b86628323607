"""Commands that need root, as root and as others are told them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmemu import privilege
from vmemu.privilege import as_root, raise_limit

MIB = 1 << 20


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege, "is_root", lambda: False)


def test_root_is_told_the_command_itself() -> None:
    assert as_root("sysctl a.b=1") == "sysctl a.b=1"
    assert as_root("echo 1 > /a && c") == "echo 1 > /a && c"


@pytest.mark.usefixtures("ordinary")
def test_others_are_told_sudo() -> None:
    assert as_root("sysctl a.b=1") == "sudo sysctl a.b=1"
    assert as_root("echo 1 > '/a b'").startswith("sudo sh -c ")


@pytest.mark.usefixtures("ordinary")
def test_all_of_a_command_runs_as_root_and_the_shell_is_the_one_that_is_typed_in(
    tmp_path: Path,
) -> None:
    # In the place of sudo: notes what it is asked to run, and runs it.
    sudo = 'sudo() { echo "$*" >> asked; "$@"; }\n'
    script = "\n".join((as_root("echo 1 > 'a b' && cat 'a b' > c"), as_root("echo $$"), "echo $$"))
    run = ["/bin/sh", "-c", sudo + script]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    first, second = done.stdout.split()
    assert first == second
    assert (tmp_path / "c").read_text() == "1\n"
    assert (tmp_path / "asked").read_text().startswith("sh -c echo 1")


@pytest.mark.usefixtures("ordinary")
def test_from_a_user_namespace_it_is_told_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege, "of_the_machine", lambda: False)
    assert as_root("sysctl a.b=1") == "sudo sysctl a.b=1  # on the host"


@pytest.mark.parametrize(
    ("wanted", "hard", "command"),
    [
        (None, None, "ulimit -S -l unlimited"),
        (MIB, None, "ulimit -S -l 1024"),
        (MIB + 1, 2 * MIB, "ulimit -S -l 1025"),
        (None, MIB, "sudo prlimit --pid $$ --memlock=unlimited"),
        (2 * MIB, MIB, "sudo prlimit --pid $$ --memlock=2097152"),
    ],
)
@pytest.mark.usefixtures("ordinary")
def test_a_limit_is_raised_by_its_owner_as_far_as_that_goes(
    wanted: int | None, hard: int | None, command: str
) -> None:
    assert raise_limit("memlock", wanted, hard) == command
