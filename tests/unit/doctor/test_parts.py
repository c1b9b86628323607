"""Files that are absent, forbidden or odd; pools, limits, THP and CPUs from their text."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vmemu.host import pools, settings
from vmemu.host.document import NodePool, Pool, Unknown
from vmemu.host.files import HostFiles
from vmemu.host.identity import Identity
from vmemu.host.places import mounts

MIB = 1 << 20


def test_what_need_not_be_there_is_no_note_and_what_must_be_is(tree) -> None:
    files = tree({})
    assert files.optional("/proc/misc", "devices") is None
    assert files.unknown == []
    assert files.text("/proc/self/status", "who") is None
    (note,) = files.unknown
    assert note == Unknown(what="who", why="/proc/self/status: No such file or directory")


def test_what_is_forbidden_is_a_note_with_who_may_read_it(
    tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    files = tree({"/proc/misc": "x"})
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert files.optional("/proc/misc", "devices") is None
    (note,) = files.unknown
    assert (note.why, note.remedy) == ("/proc/misc: Permission denied", "")  # root has no more
    monkeypatch.setattr("vmemu.privilege.is_root", lambda: False)
    assert files.optional("/proc/self", "devices") is None
    why, as_root = files.unknown[1].why, files.unknown[1].remedy
    assert (why, as_root) == (
        "/proc/self: Permission denied",
        'sudo "$(command -v vmemu)" doctor',
    )


def test_a_number_that_is_none_is_a_note(tree) -> None:
    files = tree({"/sys/kernel/it": "lots\n"})
    assert files.number("/sys/kernel/it", "how many") is None
    assert files.unknown[0].why == "/sys/kernel/it says 'lots', which is no number"


def test_without_sys_there_is_one_note(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    files = HostFiles(tmp_path)
    assert pools.pools(files) == ()
    assert settings.thp(files).enabled is None
    (note,) = files.unknown
    assert note.remedy == "mount -t sysfs sysfs /sys"


def pool_files(directory: str, **figures: int) -> dict[str, str]:
    return {f"{directory}/{name}_hugepages": f"{value}\n" for name, value in figures.items()}


def test_pools_of_the_machine_and_its_nodes(tree) -> None:
    name = "hugepages-2048kB"
    machine = f"/sys/kernel/mm/hugepages/{name}"
    nodes = {
        number: f"/sys/devices/system/node/node{number}/hugepages/{name}" for number in (0, 10)
    }
    files = tree(
        {"/proc/meminfo": "Hugepagesize:       2048 kB\n"}
        | pool_files(machine, nr=8, free=6, resv=2, surplus=1, nr_overcommit=4)
        | pool_files(nodes[10], nr=3, free=2, surplus=1)
        | pool_files(nodes[0], nr=5, free=4, surplus=0)
    )
    found = (
        NodePool(node=0, total=5, free=4, surplus=0),
        NodePool(node=10, total=3, free=2, surplus=1),
    )
    assert pools.pools(files) == (
        Pool(page_size=2 * MIB, total=8, free=6, reserved=2, surplus=1, overcommit=4, nodes=found),
    )
    assert pools.default_page_size(files) == 2 * MIB
    assert files.unknown == []


def test_a_pool_without_one_of_its_figures_is_left_out_and_noted(tree) -> None:
    files = tree(pool_files("/sys/kernel/mm/hugepages/hugepages-2048kB", nr=8, free=6, resv=2))
    assert pools.pools(files) == ()
    assert "surplus_hugepages" in files.unknown[0].why


def test_a_kernel_without_hugetlb_has_no_pools(tree) -> None:
    files = tree({"/proc/meminfo": "MemTotal: 1 kB\n"})
    assert (pools.pools(files), pools.default_page_size(files)) == ((), None)
    assert files.unknown == []


def test_the_word_in_brackets_is_chosen(tree) -> None:
    base = "/sys/kernel/mm/transparent_hugepage"
    files = tree(
        {
            f"{base}/enabled": "always [madvise] never\n",
            f"{base}/shmem_enabled": "always within_size advise [never] deny force\n",
            f"{base}/defrag": "always defer [defer+madvise] madvise never\n",
            f"{base}/hpage_pmd_size": "2097152\n",
        }
    )
    thp = settings.thp(files)
    assert (thp.enabled, thp.shmem_enabled) == ("madvise", "never")
    assert (thp.defrag, thp.page_size) == ("defer+madvise", 2 * MIB)
    assert settings.chosen("always never") is None


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0\n", [0]), ("0-3,8\n", [0, 1, 2, 3, 8]), ("", []), ("0-", []), ("all", [])],
)
def test_lists_of_cpus(text: str, cpus: list[int]) -> None:
    assert settings.cpu_list(text) == cpus


def test_limits_of_pipes(tree) -> None:
    files = tree(
        {"/proc/sys/fs/pipe-max-size": "65536\n", "/proc/sys/fs/pipe-user-pages-soft": "16384\n"}
    )
    limits = settings.limits(files, Identity(("CAP_IPC_LOCK",), True, None, ""))
    assert (limits.pipe_max_size, limits.pipe_user_pages_soft) == (65536, 16384)
    assert limits.ipc_lock
    assert not settings.limits(files, Identity(("CAP_IPC_LOCK",), False, None, "")).ipc_lock


def test_of_mounts_windows_into_the_kernel_and_hidden_ones_are_left_out(tree, tmp_path) -> None:
    lines = (
        "22 27 0:21 / /proc rw - proc proc rw\n"
        f"30 27 0:50 / {tmp_path} rw - tmpfs none rw\n"  # hidden: its device is another one
        "31 27 8:1 / /srv ro,relatime - ext4 /dev/sda1 rw\n"
        "32 27 8:2 / /srv rw - xfs /dev/sda2 rw\n"
    )
    files = tree({"/proc/self/mountinfo": lines})
    (found,) = mounts(files)
    assert (found.path, found.type, found.writable) == ("/srv", "xfs", True)


def test_of_a_tmpfs_room_mode_and_owner_are_told() -> None:
    files = HostFiles()
    found = {mount.path: mount for mount in mounts(files)}
    if "/dev/shm" not in found:
        pytest.skip("no /dev/shm here")
    shm = found["/dev/shm"]
    assert shm.type == "tmpfs"
    assert len(shm.mode) == 4
    assert ":" in shm.owner
    assert shm.size is None or (shm.free or 0) <= shm.size
