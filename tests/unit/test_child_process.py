"""Processes that a migration starts, where there is no starting them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker, set_executable
from pathlib import Path

import pytest

from vmemu.childprocess import ChildProcess
from vmemu.errors import HostError


@pytest.fixture(autouse=True)
def _interpreter_as_before() -> Iterator[None]:
    resource_tracker.ensure_running()  # by the interpreter that can be executed
    yield
    set_executable(sys.executable)


def child() -> ChildProcess:
    return ChildProcess("the source process", "vmemu-source", print, ())


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("nothing", "nothing can't be executed: No such file or directory; run vmemu with"),
        (".", "can't be executed: Permission denied"),
        ("text", "text can't be executed: Permission denied"),
        ("", "does not know its interpreter"),
    ],
)
def test_an_interpreter_that_can_not_be_executed_is_named(
    tmp_path: Path, program: str, why: str
) -> None:
    (tmp_path / "text").write_text("")
    set_executable(str(tmp_path / program) if program else "")
    with pytest.raises(HostError, match="the source process can't be started: ") as refused:
        child().start()
    assert why in str(refused.value)


def test_one_that_the_kernel_refuses_is_named_once_it_is_over(tmp_path: Path) -> None:
    program = tmp_path / "text"
    program.write_text("no program")
    program.chmod(0o755)
    set_executable(str(program))
    started = child()
    started.start()
    started.process.join(30)
    assert started.describe_end() == (
        f"the source process ended with exit code 255 ({program} can't be executed: Exec format"
        " error)"
    )
    started.stop(0)


def test_any_other_end_is_told_as_it_was() -> None:
    started = ChildProcess("the client", "c", sys.exit, (255,))
    started.start()
    started.process.join(30)
    assert started.describe_end() == "the client ended with exit code 255"
    started.stop(0)
