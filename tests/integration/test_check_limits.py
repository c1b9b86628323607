"""Reasons of `vmemu check` that need another process: users, limits, cgroups, kernels that can't.

As in test_check_reasons.py a run agrees with each verdict, and the remedy makes it ok.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checking import (
    SUDO,
    TESTS,
    codes,
    command,
    elsewhere,
    guest,
    huge,
    ram,
    reasons,
    scenario,
    shared,
    the,
)

from vmemu.config import load
from vmemu.migration import Migration
from vmemu.userfault import Feature

pytestmark = pytest.mark.usefixtures("userfault")

AS_NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
READING = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
NOT_LOCKING = ["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"]
Found = dict[str, Any]


def agrees(found: Found, verdict: str) -> None:
    """The verdict is that one, and the run came to what it says."""
    assert found["verdict"] == verdict, reasons(found)
    assert (found["ran"] == "completed") == (verdict in {"ok", "degraded"}), found["ran"]


def shell(*lines: str) -> list[str]:
    """A command that does these lines first, in the process that it becomes."""
    return ["sh", "-ec", "\n".join([*lines, 'exec "$@"']), "sh"]


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root with setpriv can become somebody else")


# ---- who asks ----


@pytest.fixture
def only_user_mode() -> Iterator[Path]:
    """A host on which ordinary users get faults of user mode alone."""
    setting = Path("/proc/sys/vm/unprivileged_userfaultfd")
    if not setting.exists() or setting.read_text().strip() != "0":
        pytest.skip("ordinary users get all faults here, or vm.unprivileged_userfaultfd is absent")
    device = Path("/dev/userfaultfd")
    if device.exists() and device.stat().st_mode & 0o006:
        pytest.skip("everybody may open /dev/userfaultfd here")
    yield setting
    setting.write_text("0")


@pytest.mark.usefixtures("root")
def test_faults_from_user_mode_alone_are_degraded(only_user_mode: Path, tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), shared())
    found = elsewhere(path, *AS_NOBODY, *READING)
    agrees(found, "degraded")
    reason = the("user_mode_only", found)
    assert "EFAULT" in reason["message"]
    assert reason["remedy"] == "sudo sysctl vm.unprivileged_userfaultfd=1"
    command(reason["remedy"])
    agrees(elsewhere(path, *AS_NOBODY, *READING), "ok")


@pytest.mark.usefixtures("root")
def test_a_directory_that_may_not_be_written_to(tmp_path: Path) -> None:
    directory = Path(f"/dev/shm/vmemu-check-{os.getpid()}")
    directory.mkdir(mode=0o755)
    try:
        path = scenario(tmp_path, shared(path=str(directory / "vram")))
        found = elsewhere(path, *AS_NOBODY, *READING)
        agrees(found, "incompatible")
        reason = the("path_not_writable", found)
        assert f"{directory} may not be written to" in reason["message"]
        assert reason["remedy"] == "path: /dev/shm/vram"
        beside = scenario(tmp_path, shared(path=f"/dev/shm/vmemu-check-{os.getpid()}-vram"))
        assert elsewhere(beside, *AS_NOBODY, *READING)["ran"] == "completed"
    finally:
        directory.rmdir()


# ---- limits ----


@pytest.mark.usefixtures("root")
def test_a_limit_on_locked_memory(tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), shared(), memory={"lock": True})
    low = "ulimit -S -l 64"
    found = elsewhere(path, *NOT_LOCKING, *shell(low))
    agrees(found, "incompatible")
    reason = the("memlock", found)
    assert "blocks ram, vram can't be locked in memory, 512KiB: 64KiB" in reason["message"]
    assert "memory.lock" in reason["place"]
    assert reason["remedy"] == "ulimit -S -l 512"
    agrees(elsewhere(path, *NOT_LOCKING, *shell(low, reason["remedy"])), "ok")


@pytest.mark.usefixtures("root")
def test_a_hard_limit_on_locked_memory_is_raised_by_root(tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), memory={"lock": True})
    low = "ulimit -l 64"
    found = elsewhere(path, *NOT_LOCKING, *shell(low))
    agrees(found, "incompatible")
    reason = the("memlock", found)
    if subprocess.run([*shell(low, "ulimit -l 256"), "true"], check=False).returncode:
        assert "not even root may raise it here, without CAP_SYS_RESOURCE" in reason["message"]
        assert reason["remedy"] == "" and "prlimit" not in found["ran"]
        return
    assert reason["remedy"].removeprefix("sudo ") == "prlimit --pid $$ --memlock=262144"
    agrees(elsewhere(path, *NOT_LOCKING, *shell(low, SUDO + reason["remedy"])), "ok")


@pytest.mark.usefixtures("root")
def test_a_process_that_locks_all_its_memory_is_degraded_and_unlocked(tmp_path: Path) -> None:
    lock = "from vmemu import core\ncore.call(core.lib.vm_mlockall)"
    found = elsewhere(scenario(tmp_path, ram(), shared()), first=lock)
    agrees(found, "degraded")
    assert "mlockall" in the("locked", found)["message"]
    assert the("locked", found)["remedy"].startswith("call munlockall()")


@pytest.mark.parametrize("block", [ram(), shared()], ids=["anonymous", "shared"])
def test_a_balloon_can_not_give_back_what_such_a_process_locks(
    tmp_path: Path, block: dict[str, Any]
) -> None:
    lock = "from vmemu import core\ncore.call(core.lib.vm_mlockall)"
    wanted = guest(balloon={"limit": 4, "rate": 1_000_000})
    found = elsewhere(scenario(tmp_path, block, guest=wanted), first=lock)
    agrees(found, "incompatible")
    assert "balloon" in the("locked", found)["message"] and "balloon" in found["ran"]
    assert the("locked", found)["remedy"].startswith("call munlockall()")


@pytest.mark.parametrize("mib", [192, 800, 1200, 1450, 1600])
def test_a_limit_on_address_space_is_each_process_s_own(mib: int, tmp_path: Path) -> None:
    """The source's image and the destination's memory are in two processes."""
    path = scenario(tmp_path, ram("768MiB", content={"zero_share": 1.0}), guest=guest())
    found = elsewhere(path, *shell(f"ulimit -S -v {mib << 10}"))
    agrees(found, "incompatible" if mib < 1300 else "ok")
    if mib < 1300:
        reason = the("memory", found)
        assert "a process of the run maps 1." in reason["message"]
        assert "limited by RLIMIT_AS of this process" in reason["message"]
        assert reason["remedy"] == "ulimit -S -v unlimited" and reason["remedy"] in found["ran"]


def test_a_limit_on_address_space(tmp_path: Path) -> None:
    path = scenario(tmp_path, ram("2GiB", content={"zero_share": 1.0}))
    low = f"ulimit -S -v {2 << 20}"
    found = elsewhere(path, *shell(low))
    agrees(found, "incompatible")
    reason = the("memory", found)
    assert "RLIMIT_AS" in reason["message"] and reason["remedy"] == "ulimit -S -v unlimited"
    agrees(elsewhere(path, *shell(low, reason["remedy"])), "ok")


@pytest.mark.parametrize(
    ("clients", "kind", "delivery"),
    [
        (0, "pipe", "thread"),
        (0, "pipe", "sigbus"),
        (3, "pipe", "thread"),
        (0, "shm", "sigbus"),
        (3, "shm", "thread"),
    ],
)
def test_a_limit_on_open_files(clients: int, kind: str, delivery: str, tmp_path: Path) -> None:
    blocks = [shared(name=f"s{number}") for number in range(8)]
    trace = guest()["trace"]
    sections = [{"name": f"c{n}", "block": "s0", "trace": trace} for n in range(clients)]
    more = {"clients": sections} if clients else {}
    more |= {"channel": {"kind": kind}, "migration": {"postcopy": {"delivery": delivery}}}
    path = scenario(tmp_path, *blocks, **more)
    low = "ulimit -S -n 20"
    found = elsewhere(path, *shell(low))
    agrees(found, "incompatible")
    reason = the("open_files", found)
    assert "20 is what a process may have on this host (RLIMIT_NOFILE)" in reason["message"]
    assert reason["message"] in found["ran"] and reason["remedy"] in found["ran"]
    words, most = reason["remedy"].rsplit(maxsplit=1)
    assert words == "ulimit -S -n"
    agrees(elsewhere(path, *shell(low, reason["remedy"])), "ok")
    one_less = elsewhere(path, *shell(f"{words} {int(most) - 1}"))
    agrees(one_less, "incompatible")


@pytest.mark.parametrize("limit", range(8, 20, 2))
def test_a_limit_on_open_files_that_is_met_in_the_middle_is_named(
    limit: int, tmp_path: Path
) -> None:
    """As where the whole machine has no more, or the embedding program opens some meanwhile."""
    unasked = "from vmemu import processlimits\nprocesslimits.require = lambda *a, **k: None"
    path = scenario(tmp_path, *(shared(name=f"s{number}") for number in range(8)))
    found = elsewhere(path, *shell(f"ulimit -S -n {limit}"), first=unasked)
    assert found["ran"].startswith("HostError: ") or "PostcopyUnsupported: " in found["ran"]
    assert "oo many open files" in found["ran"] or "(RLIMIT_NOFILE)" in found["ran"]
    assert "ulimit -S -n " in found["ran"]


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    low = "ulimit -S -f 100"
    agrees(elsewhere(scenario(tmp_path, ram()), *shell(low)), "ok")  # which is no file
    path = scenario(tmp_path, ram(), shared())
    found = elsewhere(path, *shell(low))
    agrees(found, "incompatible")
    reason = the("file_size", found)
    assert "256KiB, and 50KiB is what a process may make a file" in reason["message"]
    assert reason["remedy"] == "ulimit -S -f 512"
    assert reason["message"] in found["ran"] and reason["remedy"] in found["ran"]
    agrees(elsewhere(path, *shell(low, reason["remedy"])), "ok")


def test_a_control_group_with_too_little_memory(memory_limit: Path, tmp_path: Path) -> None:
    path = scenario(tmp_path, ram("128MiB"), guest=guest())
    into = shell(f"echo $$ > {memory_limit.with_name('cgroup.procs')}")
    found = elsewhere(path, *into)
    agrees(found, "incompatible")
    reason = the("memory", found)
    assert str(memory_limit) in reason["message"]
    command(reason["remedy"])
    agrees(elsewhere(path, *into), "ok")


# ---- kernels that can't ----


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[tuple[str, str]]]:
    """The environment of a process whose kernel lacks features, or userfaultfd."""
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("cc is not installed: apt-get install gcc")
    shim = tmp_path_factory.mktemp("shim") / "shim.so"
    source = TESTS / "data/uffd_shim.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)

    def environment(*lacks: Feature, does: str = "") -> list[tuple[str, str]]:
        variables = [("LD_PRELOAD", str(shim)), ("SHIM_MASK", str(int(sum(lacks))))]
        return [*variables, (does, "1")] if does else variables

    return environment


def test_no_userfaultfd_at_all(kernel: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), shared())
    found = elsewhere(path, environment=kernel(does="SHIM_DENY"))
    agrees(found, "incompatible")
    assert codes(found) == {"userfaultfd"}
    assert "can't be opened on this host: syscall: " in the("userfaultfd", found)["message"]
    agrees(elsewhere(path, environment=kernel()), "ok")


def test_shared_memory_without_its_feature(kernel: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), shared())
    found = elsewhere(path, environment=kernel(Feature.MISSING_SHMEM))
    agrees(found, "incompatible")
    assert [block["verdict"] for block in found["blocks"]] == ["ok", "incompatible"]
    reason = the("feature", found)
    assert "lacks UFFD_FEATURE_MISSING_SHMEM, which shared memory needs" in reason["message"]
    assert reason["remedy"] == "backing: anonymous"
    agrees(elsewhere(scenario(tmp_path, ram()), environment=kernel(Feature.MISSING_SHMEM)), "ok")


def test_what_no_figure_tells_is_found_by_doing_it(kernel: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), shared())
    found = elsewhere(path, environment=kernel(does="SHIM_REFUSE"))
    agrees(found, "incompatible")
    assert [block["verdict"] for block in found["blocks"]] == ["incompatible"] * 2
    assert "block ram: UFFDIO_REGISTER" in the("proof", found)["message"]


def test_no_thread_ids(kernel: Any, tmp_path: Path) -> None:
    path = scenario(tmp_path, ram())
    found = elsewhere(path, environment=kernel(Feature.THREAD_ID))
    agrees(found, "incompatible")
    assert "UFFD_FEATURE_THREAD_ID" in the("feature", found)["message"]


@pytest.mark.parametrize(("wanted", "verdict"), [("kernel", "incompatible"), ("auto", "degraded")])
def test_dirty_tracking_that_the_kernel_has_not(
    kernel: Any, tmp_path: Path, wanted: str, verdict: str
) -> None:
    def path(tracking: str) -> Path:
        precopy = {"rounds": 2, "dirty_tracking": tracking}
        return scenario(tmp_path, ram(), migration={"flip_at": "50%", "precopy": precopy})

    found = elsewhere(path(wanted), environment=kernel(Feature.WP_ASYNC))
    agrees(found, verdict)
    reason = the("dirty_tracking", found)
    assert "lacks UFFD_FEATURE_WP_ASYNC" in reason["message"]
    mended = reason["remedy"].removesuffix("}}").rpartition(": ")[2]
    assert mended == ("auto" if wanted == "kernel" else "replay")
    better = elsewhere(path(mended), environment=kernel(Feature.WP_ASYNC))
    agrees(better, "degraded" if wanted == "kernel" else "ok")
    agrees(elsewhere(path(wanted), environment=kernel()), "ok")


def test_hugepages_where_no_sysfs_tells_of_them_are_unknown(tmp_path: Path) -> None:
    path = scenario(tmp_path, huge("2MiB", page_size="2MiB"))
    without = ["unshare", "-m", *shell("umount -l /sys")]
    if subprocess.run([*without, "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root may unmount /sys, in a mount namespace of its own")
    found = elsewhere(path, *without)
    agrees(found, "unknown")
    reason = the("unproven", found)
    assert "no sysfs is mounted on /sys" in reason["message"]
    assert reason["remedy"].removeprefix("sudo ") == "mount -t sysfs sysfs /sys"


def test_a_hugepage_s_size_goes_with_its_backing(kernel: Any, tmp_path: Path) -> None:
    lacking = kernel(Feature.MISSING_HUGETLBFS)
    found = elsewhere(scenario(tmp_path, huge("2MiB", page_size="2MiB")), environment=lacking)
    agrees(found, "incompatible")
    assert the("feature", found)["remedy"] == "use 'backing: anonymous', without page_size"
    agrees(elsewhere(scenario(tmp_path, ram("2MiB")), environment=lacking), "ok")


def test_a_source_that_has_no_time_to_come_up_is_told_of_the_field(tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), source={"startup_timeout": "1ms"})
    run = Migration(load(path)).run()
    assert run.status == "failed"
    assert "source.startup_timeout is 1ms; use 'source: {startup_timeout: 30s}'" in str(run.error)
