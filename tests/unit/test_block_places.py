"""Where a block's memory can't lie: what is said, and a remedy that harms nobody."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support import HUGE, MIB, anonymous, huge, shared

from vmemu import hugepages, ramblock
from vmemu.errors import CoreError, HostError, HugepageShortage, InputError, VmemuError
from vmemu.ramblock import RAMBlock


def refused(block: RAMBlock) -> VmemuError:
    with pytest.raises(VmemuError) as caught:
        block.map()
    assert not block.address
    assert caught.value.block == block.name
    return caught.value


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """The mounts that are seen, for a test to add to; a directory stands for each."""
    seen = [("ext4", "/")]
    monkeypatch.setattr(hugepages, "_mounts", lambda: iter(seen))
    monkeypatch.setattr(hugepages, "pool", lambda size: None)
    sizes = {"small": 4096, "huge": HUGE, "full": HUGE}

    def statvfs(path: str) -> os.statvfs_result:
        name = os.path.basename(path)
        blocks, free = (4, 0) if name == "full" else (0, 0)
        return os.statvfs_result((sizes.get(name, 4096), 4096, blocks, free, free, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    for name in sizes:
        (tmp_path / name).mkdir()
    return seen


def test_nothing_is_mounted_over_a_directory_that_holds_anything(
    mounts: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing: dict[str, list[str]] = {}

    def listdir(path: str) -> list[str]:
        if path not in listing:
            raise FileNotFoundError(path)
        return listing[path]

    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(os.path, "ismount", lambda path: False)
    error = refused(huge(path="/tmp/hugefile"))
    assert isinstance(error, HostError)
    assert "/tmp/hugefile lies on ext4, not on hugetlbfs" in error.what
    assert "use 'path: /dev/hugepages-2M/hugefile', or leave path out for a memfd" in error.what
    assert error.remedy == (
        "mkdir -p /dev/hugepages-2M && mount -t hugetlbfs -o pagesize=2048K none /dev/hugepages-2M"
    )
    assert error.key == "path"
    listing |= {"/dev/hugepages-2M": ["somebody's"], "/dev/hugepages-2M-2": []}
    assert hugepages.mount_command(HUGE)[1] == "/dev/hugepages-2M-2"


def test_a_directory_that_is_a_mount_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listdir", lambda path: [])
    monkeypatch.setattr(os.path, "ismount", lambda path: path == "/dev/hugepages-1G")
    assert hugepages.mount_command(1 << 30)[1] == "/dev/hugepages-1G-2"


def test_a_mount_that_would_do_is_named(mounts: list[tuple[str, str]], tmp_path: Path) -> None:
    mounts += [("hugetlbfs", str(tmp_path / name)) for name in ("small", "full", "huge")]
    for wrong in ("/tmp/hugefile", tmp_path / "small/hugefile", tmp_path / "full/hugefile"):
        error = refused(huge(path=str(wrong)))
        assert isinstance(error, HostError)
        assert f"use 'path: {tmp_path}/huge/hugefile'" in error.what
        assert error.remedy == ""


def test_a_path_that_is_not_on_a_tmpfs_has_words_and_no_command() -> None:
    error = refused(shared(path="/proc/x"))
    assert isinstance(error, HostError)
    assert error.what.endswith("use 'path: /dev/shm/x', or leave path out for a memfd")
    assert "mend it with" not in str(error)


def test_a_directory_that_is_not_there() -> None:
    error = refused(shared(path="/dev/shm/vmemu not there/x"))
    assert isinstance(error, HostError)
    assert "there is no such directory" in error.what
    assert error.remedy == "mkdir -p '/dev/shm/vmemu not there'"


def test_a_path_that_is_taken_is_named(tmp_path: Path) -> None:
    taken = Path(f"/dev/shm/vmemu-test-places-{os.getpid()}")
    taken.touch()
    try:
        error = refused(shared(path=str(taken)))
    finally:
        taken.unlink()
    assert isinstance(error, InputError)
    assert (error.block, error.key) == ("vram", "path")


@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs"])
def test_permission_denied(
    kind: str, mounts: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts.append((kind, str(tmp_path / "huge")))

    def deny(path: str, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", deny)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path = str(tmp_path / "huge/x")
    error = refused(huge(path=path) if kind == "hugetlbfs" else shared(path=path))
    assert isinstance(error, HostError)
    assert "Permission denied" in error.what
    assert "leave path out for a memfd" in error.what
    own = f"{tmp_path}/huge/vmemu-1000"
    if kind == "hugetlbfs":
        assert f"'path: {own}/x'" in error.what
        assert error.remedy == f"install -d -m 700 -o 1000 {own}"
    else:
        assert "'path: /dev/shm/x'" in error.what
        assert error.remedy == ""


def test_too_little_memory_says_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise CoreError("mmap", errno.ENOMEM)

    monkeypatch.setattr(ramblock.core, "call", full)
    monkeypatch.setattr(ramblock, "meminfo", lambda name: {"MemAvailable:": 3 * MIB}.get(name, 0))
    error = refused(anonymous(pages=1024))
    assert "4MiB can't be mapped: Cannot allocate memory; " in str(error)
    assert error.key == "size"
    limits = (64 * MIB, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    error = refused(anonymous(pages=1024))
    assert "Cannot allocate memory; RLIMIT_AS of this process leaves 0B" in error.what
    assert error.remedy == "ulimit -S -v unlimited"


CROWDED = """
import mmap
from support import HUGE, block_of
from vmemu.errors import HostError
block = block_of(sys.argv[1])
kept = []
try:
    while True:
        kept.append(mmap.mmap(-1, 4096))
except OSError:
    pass
try:
    block.map()
except HostError as error:
    kept.clear()
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("backing", ["anonymous", "hugetlbfs"])
def test_a_process_with_as_many_mappings_as_it_may_have_is_told_so(backing: str) -> None:
    """No memory is short, and no hugepages: ENOMEM is the kernel's word for this as well."""
    if backing == "hugetlbfs" and HUGE not in hugepages.page_sizes():
        pytest.skip("this host has no hugepages of 2 MiB")
    words = [sys.executable, "-c", "import sys\n" + CROWDED, backing]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert said.startswith("HostError block ")
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    assert f"mappings, and vm.max_map_count allows {most:,}" in said
    assert said.endswith(f"; mend it with: sysctl vm.max_map_count={2 * most}\n")


def test_a_shortage_names_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> int:
        raise CoreError("mmap", errno.ENOMEM)

    few = hugepages.Pool(HUGE, 4, 1, 0, 0)
    monkeypatch.setattr(ramblock.core, "call", short)
    monkeypatch.setattr(hugepages, "pool", lambda size: few)
    monkeypatch.setattr(os, "memfd_create", lambda *_: os.open("/dev/null", os.O_RDWR))
    monkeypatch.setattr(os, "ftruncate", lambda *_: None)
    error = refused(huge(pages=3))
    assert isinstance(error, HugepageShortage)
    assert (error.block, error.key) == ("huge", "size")
