"""Memory that others fill while a run is under way: what is told, and that it mends it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from support import BASE_PAGE, MIB, Footprint, anonymous, huge, scenario, shared

from vmemu import core, hugepages, refusedpage
from vmemu.errors import CoreError, HostError, PageRefused
from vmemu.host import room
from vmemu.host.cgroups import GroupLimit
from vmemu.images import Images
from vmemu.manager import MemoryManager
from vmemu.migration import Migration
from vmemu.postcopy import IncomingPostcopy
from vmemu.refusedpage import explained
from vmemu.results.document import build
from vmemu.userfault import Feature, Userfaultfd
from vmemu.verification import Verification


@pytest.fixture
def tmpfs(own_mounts: None, tmp_path: Path) -> Path:
    """A tmpfs of 4 MiB, mounted for this test alone."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", tmp_path], check=True)
    return tmp_path


def fill(directory: Path) -> None:
    """As somebody else would who writes there: all but one page."""
    with (directory / "somebodys").open("wb", buffering=0) as file:
        room_left = os.statvfs(directory)
        file.write(bytes((room_left.f_bavail - 1) * room_left.f_bsize))


def before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, then: Callable[[], None]
) -> None:
    """Have ``then`` called when the method of that name is, once."""
    real = getattr(owner, name)

    def method(self: Any, *arguments: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        then()
        return real(self, *arguments)

    monkeypatch.setattr(owner, name, method)


def on(tmpfs: Path, zero_share: float, **sections: Any) -> Any:
    content = {"kind": "seeded", "zero_share": zero_share}
    at = {"backing": "shared", "path": f"{tmpfs}/vram"}
    return scenario([{"name": "vram", "size": "1MiB", "content": content} | at], **sections)


WAYS = {
    "postcopy": (IncomingPostcopy, "run", 0.0, {}, "UFFDIO_COPY"),
    "postcopy, zeros": (IncomingPostcopy, "run", 1.0, {}, "UFFDIO_ZEROPAGE"),
    "precopy": (IncomingPostcopy, "receive_precopy", 0.0, {"rounds": 1}, "main channel"),
    "precopy, zeros": (
        IncomingPostcopy,
        "receive_precopy",
        1.0,
        {"rounds": 1},
        "MADV_POPULATE_READ",
    ),
}


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize("way", WAYS)
def test_a_tmpfs_that_others_fill_is_named_with_the_page_and_what_makes_room(
    tmpfs: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    owner, step, zero_share, precopy, operation = WAYS[way]
    before(monkeypatch, owner, step, lambda: fill(tmpfs))
    made = on(tmpfs, zero_share, migration={"precopy": precopy})
    resource_tracker.ensure_running()  # multiprocessing's own, which stays
    footprint = Footprint.now()
    run = Migration(made).run()
    assert (run.status, type(run.error)) == ("failed", PageRefused)
    assert isinstance(run.error, PageRefused)
    text, remedy = str(run.error), f"mount -o remount,size={5 * MIB} {tmpfs}"
    assert "block vram: page " in text and " got no memory: " in text
    assert f"{tmpfs}/vram lies on {tmpfs}, a tmpfs with 0B free of 4MiB" in text
    assert f"({operation}: " in text
    assert text.endswith(f"; mend it with: {remedy}")
    assert footprint.left_by(Footprint.now()) == {}
    assert build(run)["error"]["remedy"] == remedy
    subprocess.run(remedy, shell=True, check=True)
    again = Migration(made).run()
    assert again.status == "completed", again.error


SHM = {"kind": "shm"}


@pytest.mark.usefixtures("userfault")
def test_an_image_on_a_tmpfs_that_others_fill_has_its_pages_by_then(
    tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, IncomingPostcopy, "run", lambda: fill(tmpfs))
    run = Migration(on(tmpfs, 0.5, channel=SHM, migration={"precopy": {"rounds": 1}})).run()
    assert run.status == "completed", run.error


@pytest.mark.usefixtures("userfault")
def test_an_image_on_a_tmpfs_that_is_full_is_refused_before_the_source_makes_it(
    tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, Images, "make", lambda: fill(tmpfs))
    resource_tracker.ensure_running()
    footprint = Footprint.now()
    with pytest.raises(HostError, match="block vram: its image can't be shared: No space left"):
        Migration(on(tmpfs, 0.0, channel=SHM)).run()
    assert footprint.left_by(Footprint.now()) == {}


@pytest.mark.usefixtures("userfault")
def test_what_a_balloon_gave_back_and_others_took_is_no_crash_of_the_verification(
    tmpfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, Verification, "run", lambda: fill(tmpfs))
    guest = {
        "vcpus": 1,
        "trace": {"synthetic": {"kind": "uniform", "accesses": 100}},
        "balloon": {"rate": 100000, "limit": 16},
    }
    run = Migration(on(tmpfs, 0.0, guest=guest)).run()
    assert isinstance(run.error, PageRefused), run.error
    assert "a tmpfs with 0B free of 4MiB" in str(run.error)


# ---- what else may be full ----


def refused(block: Any, offset: int = BASE_PAGE) -> str:
    with MemoryManager([block]) as memory:
        memory.map()
        error = CoreError("UFFDIO_COPY", errno.ENOMEM, block.address + offset)
        told = explained(error, memory.blocks)
        assert isinstance(told, PageRefused)
        assert (told.errno, told.address) == (errno.ENOMEM, error.address)
        return str(told)


@pytest.mark.parametrize("make", [anonymous, shared])
def test_memory_of_a_control_group_is_named_by_its_file(make: Any, monkeypatch: Any) -> None:
    limit = room.Room(4096, "/sys/fs/cgroup/x/memory.max", "echo max > /sys/fs/cgroup/x/memory.max")
    monkeypatch.setattr(room, "memory_room", lambda: limit)
    text = refused(make())
    had = "page 1 (at 0x1000) got no memory: 4KiB of memory can be had here now"
    assert f"{had}, limited by {limit.limited_by} (" in text
    assert text.endswith(f"mend it with: {limit.remedy}")
    monkeypatch.setattr(room, "memory_room", lambda: room.Room(4096))  # the machine's own
    assert f"{had} (" in refused(make())


@pytest.mark.usefixtures("hugetlb")
def test_hugepages_that_a_control_group_keeps_are_named_by_its_file(monkeypatch: Any) -> None:
    file = "/sys/fs/cgroup/x/hugetlb.2MB.max"
    limit = GroupLimit(file, 2 * MIB, 2 * MIB, 0, "max")
    monkeypatch.setattr(refusedpage, "hugetlb_tightest", lambda files, size: limit)
    text = refused(huge(), offset=2 * MIB)
    assert f"page 1 (at 0x200000) got no memory: {file} allows 2MiB of 2MiB hugepages" in text
    assert text.endswith(f"mend it with: echo max > {file}")
    monkeypatch.setattr(refusedpage, "hugetlb_tightest", lambda files, size: None)
    total = hugepages.pool(2 * MIB).total
    assert f"the pool of 2MiB hugepages has {total} in all" in refused(huge(), offset=2 * MIB)


@pytest.mark.parametrize("gone", [FileNotFoundError("the mount"), HostError("no such pool")])
def test_what_can_not_be_explained_stays_as_it_is(gone: Exception, monkeypatch: Any) -> None:
    monkeypatch.setattr(room, "memory_room", Mock(side_effect=gone))
    block = anonymous()
    with MemoryManager([block]) as memory:
        memory.map()
        error = CoreError("UFFDIO_COPY", errno.ENOMEM, block.address)
        assert explained(error, memory.blocks) is error


def test_what_is_no_lack_of_memory_stays_as_it_is() -> None:
    block = anonymous()
    with MemoryManager([block]) as memory:
        memory.map()
        for error in (
            CoreError("UFFDIO_COPY", errno.EINVAL, block.address),
            CoreError("UFFDIO_COPY", errno.ENOMEM, block.address + block.size),
            CoreError("poll", errno.ENOMEM),
        ):
            assert explained(error, memory.blocks) is error


def test_two_channels_bring_a_page_for_which_there_is_room_once(tmpfs: Path) -> None:
    """The kernel takes another page of the tmpfs before it sees that there is one already."""
    block = shared(pages=1, path=str(tmpfs / "vram"))
    with MemoryManager([block]) as memory, Userfaultfd(Feature.MISSING_SHMEM) as uffd:
        memory.map()
        block.discard()
        fill(tmpfs)
        memory.register(uffd)
        page = core.ffi.new("char[]", BASE_PAGE)
        with ThreadPoolExecutor(2) as channels:
            for _ in range(3000):
                block.discard()
                both = [
                    channels.submit(uffd.copy, block.address, page, BASE_PAGE, BASE_PAGE)
                    for _ in range(2)
                ]
                assert [one.result() for one in both] == [True, True]
        memory.unregister()
