"""Processes that a migration starts, where there is no starting them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let no process be started, with this error."""

    def refuse(number: int) -> None:
        def refused(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("subprocess.Popen", refused)
        monkeypatch.setattr("multiprocessing.util.spawnv_passfds", refused)

    return refuse


@pytest.mark.parametrize("doubtful", [True, False])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EAGAIN, "Resource temporarily unavailable; raise what limits this user's processes"),
        (errno.ENOMEM, "Cannot allocate memory; free memory"),
    ],
)
def test_no_room_for_a_process_is_no_fault_of_the_program(
    tmp_path: Path, no_room: Callable[[int], None], number: int, words: str, doubtful: bool
) -> None:
    if doubtful:
        set_executable(str(tmp_path))
    no_room(number)
    with pytest.raises(HostError) as refused:
        child().start()
    assert str(refused.value).startswith(f"the source process can't be started: {words}")


def test_no_descriptors_are_told_by_who_knows_their_limit(
    tmp_path: Path, no_room: Callable[[int], None]
) -> None:
    set_executable(str(tmp_path))
    no_room(errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        child().start()


def test_an_end_is_told_where_nothing_can_be_tried(no_room: Callable[[int], None]) -> None:
    started = ChildProcess("the client", "c", sys.exit, (255,))
    started.start()
    started.process.join(30)
    no_room(errno.EAGAIN)
    assert started.describe_end() == (
        f"the client ended with exit code 255 (whether {sys.executable} can be executed could not"
        " be tried: Resource temporarily unavailable)"
    )
    started.stop(0)


def test_any_other_end_is_told_as_it_was() -> None:
    started = ChildProcess("the client", "c", sys.exit, (255,))
    started.start()
    started.process.join(30)
    assert started.describe_end() == "the client ended with exit code 255"
    started.stop(0)
