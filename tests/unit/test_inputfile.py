"""Inputs that are no files: pipes are read, and nobody is waited for who never comes."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from vmemu import inputfile
from vmemu.config import load
from vmemu.doctor.reading import read
from vmemu.errors import ConfigError, InputError, TraceError
from vmemu.eventfile import open_events
from vmemu.inputfile import denied, open_input
from vmemu.traces.opening import open_stream

SCENARIO = """\
blocks: [{name: pc.ram, backing: anonymous, size: 64KiB}]
guest: {trace: {synthetic: {kind: uniform, accesses: 10}}}
"""


@pytest.fixture
def fifo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A named pipe, for whose writer nobody waits long."""
    monkeypatch.setattr(inputfile, "WRITER_PATIENCE_S", 0.05)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.fixture
def writers() -> Iterator[list[threading.Thread]]:
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join()


def write(path: Path, *parts: bytes, pause_s: float = 0.0) -> threading.Thread:
    """Writes to a pipe from beside."""

    def writing() -> None:
        with open(path, "wb", buffering=0) as stream:
            for part in parts:
                time.sleep(pause_s)
                stream.write(part)

    thread = threading.Thread(target=writing)
    thread.start()
    return thread


def test_a_pipe_to_which_nobody_writes_is_refused_by_every_reader(fifo: Path) -> None:
    words = "it is a pipe to which nobody writes"
    with pytest.raises(ConfigError, match=rf"{fifo}: the file can't be read: {words}; "):
        load(fifo)
    with pytest.raises(InputError, match=rf"{fifo}: {words}; write one with: vmemu doctor"):
        read(str(fifo))
    for opening in (open_events, open_stream):
        with pytest.raises(TraceError, match=words):
            opening(fifo)


def test_a_pipe_is_read_to_its_end_however_slow_its_writer_is(
    fifo: Path, writers: list[threading.Thread]
) -> None:
    half = len(SCENARIO) // 2
    text = SCENARIO.encode()
    writers.append(write(fifo, text[:half], text[half:], pause_s=0.3))
    assert load(fifo).blocks[0].size == 64 << 10
    writers.append(write(fifo, b""))
    with open_input(fifo) as stream:
        assert stream.read() == b""


def test_a_pipe_without_a_name_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    os.write(writing, SCENARIO.encode())
    os.close(writing)
    try:
        assert load(f"/dev/fd/{reading}").guest.vcpus == 1
        with open_input(f"/dev/fd/{reading}") as stream:
            assert (stream.read(), stream.read(), stream.fileno() > 0) == (b"", b"", True)
    finally:
        os.close(reading)


def test_what_is_no_file_is_not_even_opened(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        with pytest.raises(ConfigError, match="it is a socket, no file"):
            load(place)
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(ConfigError, match="it is a device, no file"):
            load(device)
        with pytest.raises(InputError, match=f"{device}: it is a device, no file"):
            read(device)
    with pytest.raises(IsADirectoryError):
        open_input(tmp_path)


def test_names_that_are_none() -> None:
    with pytest.raises(ConfigError, match=r"^'': this names no file; name a scenario"):
        load("")
    with pytest.raises(ConfigError, match=r"^-: no such file; name /dev/stdin for standard input"):
        load("-")
    with pytest.raises(InputError, match=r"^'': No such file"):
        read("")
    with pytest.raises(TraceError, match="null byte"):
        open_stream("a\0b")


def test_a_descriptor_is_closed_with_its_stream(fifo: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "file").write_text("x")
    for path in (fifo, tmp_path / "file"):
        stream = open_input(path)
        assert stream.readable()
        stream.close()
        stream.close()
    assert len(os.listdir("/proc/self/fd")) == before


AS_NOBODY = """
import json, os, sys
from vmemu.inputfile import denied
os.setgroups([]), os.setgid(65534), os.setuid(65534)
print(json.dumps([denied(path) for path in sys.argv[1:]]))
"""


def test_what_may_not_be_read_is_named_with_who_may_allow_it(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    file = Path("/tmp") / f"vmemu-test-{os.getpid()}"
    file.touch(mode=0o600)
    try:
        words = [str(closed / "deep/x.yaml"), str(file)]
        argv = [sys.executable, "-c", AS_NOBODY, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    finally:
        file.unlink()
    inside, itself = json.loads(done.stdout)
    assert inside[0].startswith("permission to look into /")
    assert inside[1] == "ask its owner to allow it, or use another user or a copy"
    assert itself[0] == "permission to read the file is denied"
    own = denied(str(closed))
    assert own == ("permission to read the directory is denied", f"allow it: chmod u+rX {closed}")


def test_files_that_a_scenario_names_are_told_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read all: that somebody else may not is told here by those who would refuse."""

    def refuse(path: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    (tmp_path / "content").touch(mode=0o600)
    monkeypatch.setattr("vmemu.traces.opening.open_input", refuse)
    with pytest.raises(TraceError) as of_trace:
        open_stream(tmp_path / "content")
    monkeypatch.setattr("vmemu._config.models.os.access", lambda path, mode: mode != os.R_OK)
    content = "content: {kind: file, path: content}"
    (tmp_path / "a.yaml").write_text(SCENARIO.replace("size: 64KiB", f"size: 64KiB, {content}"))
    with pytest.raises(ConfigError) as of_content:
        load(tmp_path / "a.yaml")
    for error in (of_trace.value, of_content.value):
        assert "permission to read the file is denied; allow it: chmod u+rX" in str(error)
