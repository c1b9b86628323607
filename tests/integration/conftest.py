"""What the tests on real memory need of the host: without it they are skipped, with the reason.

``VMEMU_REQUIRE=userfault,hugetlb,valgrind,perf,qemu`` turns each skip for want of the named
resource into a failure, so that a machine that is meant to have it can't pass by skipping.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from control_group import small_control_group
from plugin_project import SCENARIO, write
from private_mounts import private_mounts
from support import HUGE, Footprint, missing

from vmemu import hugepages
from vmemu.errors import HostError
from vmemu.traces.record import lackey
from vmemu.traces.record import perf as perf_tool
from vmemu.userfault import Userfaultfd


@pytest.fixture(scope="session")
def _userfault_refused() -> str:
    """Why userfaultfd can't be opened here; empty when it can."""
    try:
        with Userfaultfd():
            return ""
    except HostError as error:
        return str(error)


@pytest.fixture
def userfault(_userfault_refused: str) -> None:
    """userfaultfd can be opened."""
    if _userfault_refused:
        missing("userfault", _userfault_refused)


@pytest.fixture
def hugetlb(userfault: None, pool_lock: None) -> None:
    """There are hugepages of 2 MiB; other tests may use some of them, so scenarios should wait."""
    try:
        total = hugepages.pool(HUGE).total
    except HostError as error:
        missing("hugetlb", str(error))
    if total == 0:
        missing("hugetlb", "the pool of 2 MiB hugepages is empty: sysctl vm.nr_hugepages=64")


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """After the test no process, descriptor, thread or mapping of a migration is left."""
    resource_tracker.ensure_running()  # multiprocessing's own; it stays as long as we do
    before = Footprint.now()
    yield
    assert before.left_by(Footprint.now()) == {}


@pytest.fixture
def own_mounts() -> Iterator[None]:
    """What a test mounts or unmounts, nobody else sees; nothing of it is left, not even by a test
    that is killed."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(private_mounts())
        except PermissionError:
            pytest.skip("file systems can't be mounted here")
        yield


@pytest.fixture
def memory_limit() -> Iterator[Path]:
    """The limit of a control group of its own, which may have 128 MiB."""
    with small_control_group() as limit:
        yield limit


@pytest.fixture(scope="session")
def valgrind() -> None:
    """valgrind, and with it lackey, is installed."""
    try:
        lackey.find()
    except HostError as error:
        missing("valgrind", str(error))


@pytest.fixture(scope="session")
def perf() -> None:
    """perf is installed and may record page faults."""
    try:
        perf_tool.find()
    except HostError as error:
        missing("perf", str(error))


@pytest.fixture(scope="session")
def qemu() -> None:
    """QEMU for x86 and a C compiler for its plugin are installed."""
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("cc", "gcc")):
        if shutil.which(program) is None:
            missing("qemu", f"{program} is not installed: apt-get install {package}")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with a scenario; warnings are errors there, marks must be registered, and
    ``vmemu`` is on PATH."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    write(
        pytester,
        "tox.ini",
        "[pytest]\n"
        "addopts = --strict-markers --strict-config -p no:cacheprovider\n"
        "filterwarnings =\n"
        "    error\n"
        "    ignore:Module already imported so cannot be rewritten\n",
    )
    write(pytester, "boot.vmemu.yaml", SCENARIO)
    return pytester
