"""Where a block's memory can't lie: what is said, and a remedy that harms nobody."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import HUGE, MIB, anonymous, huge, shared

from vmemu import hugepages, ramblock
from vmemu.errors import CoreError, HostError, HugepageShortage, InputError, Setting, VmemuError
from vmemu.ramblock import Backing, RAMBlock


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
    assert "/tmp/hugefile lies on ext4 (/) on this host, not on hugetlbfs" in error.what
    assert error.what.endswith("; mount one and use 'path: /dev/hugepages-2M/hugefile'")
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
        assert error.remedy == Setting(f"path: {tmp_path}/huge/hugefile")
        assert str(error).endswith(f"; use 'path: {tmp_path}/huge/hugefile'")


def test_a_path_that_is_not_on_a_tmpfs_has_words_and_no_command() -> None:
    error = refused(shared(path="/proc/x"))
    assert isinstance(error, HostError)
    assert "/proc/x lies on proc (/proc) on this host, not on tmpfs" in error.what
    assert str(error).endswith("; use 'path: /dev/shm/x'")
    # Nobody makes a directory there.
    assert "/dev/hugepages" in str(refused(huge(path="/proc/no/x")))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pc.ram", "path: /dev/shm/pc.ram"),
        ("a b", "path: /dev/shm/a b"),
        ("/rom@etc", "path: /dev/shm/_rom@etc"),
        ("$(x): y", "path: '/dev/shm/$(x): y'"),
        ("it's", "path: '/dev/shm/it''s'"),
    ],
)
def test_a_directory_is_no_file_and_one_in_it_is_named(name: str, line: str) -> None:
    error = refused(RAMBlock(name, Backing.SHARED, 4096, 4096, "/dev/shm"))
    assert isinstance(error, HostError)
    assert "/dev/shm is a directory on this host, and a block needs a file" in error.what
    assert error.remedy == Setting(line)
    path = line.removeprefix("path: ")
    assert yaml.safe_load(line) == {"path": f"/dev/shm/{name.replace('/', '_')}"}, path


def test_a_directory_on_a_disk_is_none_either(tmp_path: Path) -> None:
    error = refused(shared(path=str(tmp_path)))
    assert isinstance(error, HostError)
    assert "is a directory" in error.what
    assert error.remedy == Setting("path: /dev/shm/vram")
    error = refused(huge(path=str(tmp_path)))
    assert isinstance(error, HostError)
    assert "is a directory" in error.what and str(tmp_path) not in error.remedy


@pytest.mark.usefixtures("mounts")
def test_a_directory_that_is_not_there_hides_nothing(tmp_path: Path) -> None:
    error = refused(huge(path=str(tmp_path / "not there/yet/x")))
    assert isinstance(error, HostError)
    made = f"'{tmp_path}/not there/yet'"
    assert error.remedy == f"mkdir -p {made} && mount -t hugetlbfs -o pagesize=2048K none {made}"
    assert "use 'path" not in error.what
    (tmp_path / "empty").mkdir()
    error = refused(huge(path=str(tmp_path / "empty/x")))
    assert isinstance(error, HostError)
    assert str(tmp_path) not in error.remedy


def test_a_page_size_that_is_absent_has_one_in_its_place() -> None:
    absent = next(s << 20 for s in (16, 4, 64) if s << 20 not in hugepages.page_sizes())
    error = refused(RAMBlock("h", Backing.HUGETLBFS, 64 << 20, absent))
    assert isinstance(error, HostError)
    assert f"this host has no hugepages of {absent >> 20}MiB (it has: " in error.what
    assert error.key == "page_size"
    if HUGE in hugepages.page_sizes():
        assert error.remedy == Setting("page_size: 2MiB")


def test_a_directory_that_is_not_there() -> None:
    error = refused(shared(path="/dev/shm/vmemu not there/x"))
    assert isinstance(error, HostError)
    assert "there is no directory /dev/shm/vmemu not there on this host" in error.what
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
    assert f"{tmp_path}/huge may not be written to on this host" in error.what
    own = f"{tmp_path}/huge/vmemu-1000"
    if kind == "hugetlbfs":
        assert f"'path: {own}/x'" in error.what
        assert error.remedy == f"install -d -m 700 -o 1000 {own}"
    else:
        assert error.remedy == Setting("path: /dev/shm/x")


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
