"""The status of a run: what is written is read, and nothing that is read can hurt the reader."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import anonymous, shared

from vmemu import core, status
from vmemu.errors import CoreError
from vmemu.status import RunStatus, StatusClient, StatusError

CLIENTS = [StatusClient("vhost-net", 1, 2), StatusClient("vhost-blk", 0, 1)]


@pytest.fixture
def running() -> Iterator[RunStatus]:
    blocks = [anonymous("pc.ram", pages=16), shared("vram", pages=8)]
    run = RunStatus(blocks, CLIENTS, vcpus=2)
    yield run
    run.close()
    run.close()


def wait_at(run: RunStatus, slot: int, block: int, offset: int) -> None:
    place = run.waiting(slot)
    place.tid = 1000 + slot
    place.block, place.offset, place.since_ns = block, offset, 1


def test_what_is_written_is_read(running):
    running.enter("guest")
    wait_at(running, 1, 0, 0x3004)
    wait_at(running, 3, 0, 0x1000)  # the second vCPU of the first client
    found = status.read(os.getpid())
    assert (found.pid, found.phase) == (os.getpid(), "guest")
    assert found.threads == {1001: "vCPU 1", 1003: "vCPU 1 of client vhost-net"}
    places = [(one.who, one.block, one.offset, one.page) for one in found.waiting]
    assert places == [
        ("vCPU 1", "pc.ram", 0x3004, 3),
        ("vCPU 1 of client vhost-net", "vram", 0x1000, 1),
    ]
    assert all(one.requested is None for one in found.waiting)  # no bitmaps yet
    running.waiting(1).since_ns = 0
    assert [one.vcpu for one in status.read(os.getpid()).waiting] == [1]


def test_what_was_asked_for_and_what_is_there_is_told(running):
    ram = core.owned(core.lib.vm_ram_create(2), core.lib.vm_ram_destroy)
    for index, pages in enumerate((16, 8)):
        assert core.lib.vm_ram_set(ram, index, b"ram", 0, pages << 12, 12, False) == 0
    running.show_bitmaps(ram)
    for slot in range(2):
        wait_at(running, slot, 0, (8 + slot) << 12)
    ram.block[0].requested[0] = 1 << 9
    first, second = status.read(os.getpid()).waiting
    assert (first.requested, second.requested, second.received) == (False, True, False)
    assert str(first).endswith(", not asked for")
    assert str(second).startswith("vCPU 1 waits for pc.ram+0x9000 (page 9) for ")
    assert str(second).endswith(", asked for")
    ram.block[0].received[0] = 1 << 9
    assert str(status.read(os.getpid()).waiting[1]).endswith("asked for, though it is there")


def test_a_client_writes_to_the_status_of_the_run(running):
    theirs = RunStatus.attached(os.dup(running.fd))
    wait_at(theirs, 4, 0, 0)
    theirs.close()
    assert [str(one.client) for one in status.read(os.getpid()).waiting] == ["vhost-blk"]


def test_a_wait_that_begins_while_it_is_read_has_the_place_of_its_own(running, monkeypatch):
    """One read may see when it began before it sees where."""
    running.waiting(0).tid = 1000
    real, reads = os.pread, []

    def torn(fd: int, size: int, at: int) -> bytes:
        data = real(fd, size, at)
        if size != core.ffi.sizeof("struct vm_waiting"):
            return data
        place = core.ffi.new("struct vm_waiting *")
        core.ffi.memmove(place, data, size)
        if place.tid == 1000:
            reads.append(at)
            place.since_ns = 7
            place.offset = 0x1000 if len(reads) == 1 else 0x2000
        return bytes(core.ffi.buffer(place))

    monkeypatch.setattr(os, "pread", torn)
    (stopped,) = status.read(os.getpid()).waiting
    assert stopped.offset == 0x2000


def test_who_has_no_status_is_said_to_have_none():
    with pytest.raises(StatusError, match="is no run of vmemu, or has not mapped its memory yet"):
        status.read(os.getpid())
    with pytest.raises(StatusError, match="can't be looked at: No such file"):
        status.read(1 << 30)


def test_a_client_is_not_taken_for_the_run_whose_status_it_has(running):
    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[running.fd])
    with cat, pytest.raises(StatusError, match=f"{cat.pid} is a client of a run of vmemu, not"):
        status.read(cat.pid)


IN_A_NAMESPACE = """
import os
from vmemu.status import RunStatus
run = RunStatus([], [], vcpus=1)
run.enter("guest")
print(os.getpid(), flush=True)
input()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a PID namespace")
def test_a_run_in_a_container_is_read_from_outside():
    """It knows itself by another number."""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", IN_A_NAMESPACE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as unshare:
        assert unshare.stdout is not None
        assert unshare.stdout.readline() == b"1\n"
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
        assert status.read(int(children[0])).phase == "guest"
        unshare.communicate(b"\n")


def test_no_memory_for_it_is_told():
    before, fds = resource.getrlimit(resource.RLIMIT_FSIZE), os.listdir("/proc/self/fd")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        with pytest.raises(CoreError, match="memory for the status: File too large"):
            RunStatus([anonymous(pages=4)], [], vcpus=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir("/proc/self/fd") == fds


STRANGER = """
import os, sys
from vmemu import core, status
core.ffi.sizeof("struct vm_status")
os.setuid(65534)
try:
    status.read(os.getppid())
except status.StatusError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_status_of_somebody_else_is_not_ours_to_read(running):
    done = subprocess.run(
        [sys.executable, "-c", STRANGER], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"process {os.getpid()} is somebody else's: be root to read it\n"


def overwritten(run: RunStatus, at: int, data: bytes) -> None:
    os.pwrite(run.fd, data, at)


def test_another_version_says_so(running):
    overwritten(running, 8, b"\x63\0\0\0")
    with pytest.raises(StatusError, match="version 99, which is not 2: read it with the vmemu"):
        status.read(os.getpid())


@pytest.mark.parametrize("size", [0, 8, 100, 400])
def test_one_that_is_cut_short_says_so(size):
    fd = os.memfd_create(status.NAME)
    try:
        blocks = [anonymous(pages=4)]
        run = RunStatus(blocks, [], vcpus=1)
        os.pwrite(fd, os.pread(run.fd, size, 0), 0)
        run.close()
        with pytest.raises(StatusError, match=r"cut short|can't be right"):
            status.read(os.getpid())
    finally:
        os.close(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(16, 1200), st.binary(min_size=1, max_size=64))
def test_nothing_that_is_read_hurts_the_reader(running, at, data):
    before = os.pread(running.fd, 1 << 16, 0)
    # Without the reader's own addresses: those are looked up in this very process.
    overwritten(running, at, data[: len(before) - at])
    try:
        status.read(os.getpid())
    except StatusError:
        pass
    finally:
        overwritten(running, 0, before)
