"""Files of blocks never have a name, so that two runs can't meet on one and none is left."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from support import shared

from vmemu.cthread import Bell, CThread
from vmemu.errors import HostError, InputError
from vmemu.ramblock import RAMBlock

SHM = Path("/dev/shm")


@pytest.fixture
def path() -> str:
    return str(SHM / f"vmemu-names-{os.getpid()}")


def names() -> set[str]:
    return {name for name in os.listdir(SHM) if "vmemu" in name}


def test_two_blocks_may_have_the_same_path_at_the_same_moment(path: str) -> None:
    first, second = shared("a", path=path), shared("b", path=path)
    try:
        first.map()
        second.map()
        first.write(0, b"first")
        second.write(0, b"other")
        assert (first.read(0, 5), second.read(0, 5)) == (b"first", b"other")
        assert not os.path.exists(path)
    finally:
        first.unmap()
        second.unmap()


def test_many_that_map_one_path_never_meet(path: str) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        for _ in range(50):
            block = shared(path=path)
            try:
                block.map()
            except BaseException as error:
                failures.append(error)
            finally:
                block.unmap()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def without_tmpfile(monkeypatch: pytest.MonkeyPatch, error: int) -> list[str]:
    """A file system that has no O_TMPFILE; the names that are made instead."""
    real, made = os.open, []

    def refuse(name: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(error, os.strerror(error))
        if flags & os.O_CREAT:
            assert flags & os.O_EXCL
            made.append(str(name))
        return real(name, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    return made


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT])
def test_without_nameless_files_there_is_a_hidden_name_for_a_moment(
    path: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names()
    made = without_tmpfile(monkeypatch, error)
    blocks: list[RAMBlock] = [shared("a", path=path), shared("b", path=path)]
    for block in blocks:
        block.map()
        block.write(0, b"x")
    assert len(set(made)) == 2
    assert all(os.path.basename(name).startswith(".vmemu-") for name in made)
    assert names() == before
    for block in blocks:
        block.unmap()


def test_a_hidden_name_that_stays_is_told_and_the_file_closed(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = without_tmpfile(monkeypatch, errno.EISDIR)
    before = os.listdir("/proc/self/fd")

    def refuse(name: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(HostError, match="Input/output error"):
            shared(path=path).map()
    assert os.listdir("/proc/self/fd") == before
    for name in made:
        os.unlink(name)


@pytest.mark.parametrize("error", [errno.EISDIR, errno.ENOENT])
def test_a_directory_that_is_not_there_is_still_told(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_tmpfile(monkeypatch, error)
    with pytest.raises(HostError, match="there is no directory ") as caught:
        shared(path="/dev/shm/vmemu/none/x").map()
    assert caught.value.remedy == "mkdir -p /dev/shm/vmemu/none"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_has_the_name_is_somebodys(path: str, kind: str) -> None:
    if kind == "file":
        Path(path).touch()
    else:
        os.symlink("nowhere", path)
    try:
        with pytest.raises(InputError, match="exists already on this host and may be"):
            shared(path=path).map()
        assert os.path.lexists(path)
    finally:
        os.unlink(path)


def test_no_thread_is_an_error_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bell = Bell()
    thread = CThread("vcpu0", lambda: None, bell)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(HostError, match="thread vcpu0 can't be started: can't start new thread"):
        thread.start()
    assert thread.join(0)
    bell.close()
