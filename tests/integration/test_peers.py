"""QEMU as a peer of the benchmarks: its guest really faults, and nothing of it is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import HUGE

from context import HERE, Context
from frame import Failed, NotHere
from peers import qemu
from peers.guest import Guest
from vmemu.reservation import Resizer

TIMEOUT_S = 60
CPUS = frozenset(os.sched_getaffinity(0))


def alive(pid: int) -> bool:
    """Whether it runs: one that its new parent has yet to wait for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def machines(directory: Path) -> list[int]:
    """The processes whose current directory this is."""
    found = []
    for one in Path("/proc").glob("[0-9]*"):
        try:
            if os.path.samefile(one / "cwd", directory) and alive(int(one.name)):
                found.append(int(one.name))
        except OSError:
            continue
    return found


@pytest.mark.usefixtures("qemu", "userfault")
@pytest.mark.parametrize("preempt", [False, True], ids=["classic", "preempt"])
def test_the_guest_faults_and_the_log_has_its_faults(tmp_path: Path, preempt: bool) -> None:
    migration = qemu.Migration(Guest(8192), preempt=preempt, traced=True)
    figures = qemu.latencies(migration, CPUS, tmp_path)
    assert 0 < figures["seen"] <= 8192
    assert 0 < figures["placed"] <= 8192 + 1024
    assert 0 < figures["placed_p50"] <= figures["placed_p99"]
    assert 0 < figures["seen_p50"] <= figures["seen_p99"]
    assert figures["blocktime_ms"] >= 0
    assert machines(tmp_path) == []


@pytest.mark.usefixtures("qemu", "userfault")
@pytest.mark.parametrize("memory", ["anonymous", "memfd"])
def test_the_push_brings_all_memory(tmp_path: Path, memory: str) -> None:
    migration = qemu.Migration(Guest(4096, touches=False), memory)
    assert qemu.push_rate(migration, CPUS, tmp_path) > 0
    assert machines(tmp_path) == []


@pytest.mark.usefixtures("qemu", "userfault")
def test_the_push_of_hugepages(tmp_path: Path, pool_alone: Resizer) -> None:
    migration = qemu.Migration(Guest(4, HUGE, touches=False), "hugetlb")
    pool_alone.resize(2 * migration.guest.ram // HUGE)
    assert qemu.push_rate(migration, CPUS, tmp_path) > 0


@pytest.mark.usefixtures("qemu", "userfault")
def test_a_guest_that_reads_something_else_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sector = Guest(64).boot_sector()
    at = sector.index(bytes.fromhex("89 F8 AB"))  # mov eax, edi; stosd
    wrong = sector[:at] + bytes.fromhex("31 C0") + sector[at + 2 :]  # xor eax, eax
    monkeypatch.setattr(Guest, "boot_sector", lambda _: wrong)
    with pytest.raises(Failed, match="another word than it had written"):
        qemu.latencies(qemu.Migration(Guest(64)), CPUS, tmp_path)
    assert machines(tmp_path) == []


@pytest.mark.usefixtures("qemu", "userfault")
def test_a_destination_that_is_gone_ends_the_migration_at_once(tmp_path: Path) -> None:
    with qemu.Pair(qemu.Migration(Guest(64)), CPUS, tmp_path) as pair:
        (tmp_path / "migration.sock").unlink()
        with pytest.raises(Failed, match=r"\(source\).*migration"):
            pair.flip()


@pytest.mark.usefixtures("qemu", "userfault")
def test_the_log_has_every_fault_of_demand_alone(tmp_path: Path) -> None:
    try:
        qemu.demand_needed()
    except NotHere as reason:
        pytest.skip(str(reason))
    guest = Guest(qemu.DEMAND_PAGES)
    migration = qemu.Migration(guest, preempt=True, demand_only=True, traced=True)
    figures = qemu.latencies(migration, CPUS, tmp_path)
    assert figures["seen"] == pytest.approx(figures["placed"], rel=0.1)


@pytest.mark.usefixtures("qemu")
def test_what_qemu_refuses_is_said_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(qemu.MEMORY, "anonymous", "memory-backend-none")
    with pytest.raises(Failed, match="memory-backend-none"):
        qemu.push_rate(qemu.Migration(Guest(64)), CPUS, tmp_path)
    assert machines(tmp_path) == []


@pytest.mark.usefixtures("qemu", "userfault")
def test_both_die_with_whoever_started_them(tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
from peers import qemu
from peers.guest import Guest
migration = qemu.Migration(Guest(64))
with qemu.Pair(migration, os.sched_getaffinity(0), Path({str(tmp_path)!r})) as pair:
    pair.flip()
    print("flipped", flush=True)
    time.sleep({TIMEOUT_S})
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "flipped\n"
        pids = machines(tmp_path)
        assert len(pids) == 2
        owner.send_signal(signal.SIGKILL)
        owner.wait(TIMEOUT_S)
    while any(alive(pid) for pid in pids):  # the test's own time limit ends it
        time.sleep(0.01)


@pytest.mark.parametrize("pattern", ["sequential", "random"])
def test_masims_loop_is_built_and_tells_its_figure(tmp_path: Path, pattern: str) -> None:
    context = Context(tmp_path)
    program = context.compiled("masim_pattern", [HERE / "peers" / "masim_pattern.c"])
    said = context.run([program, pattern, "1048576", "64", "100000"], CPUS)
    assert re.fullmatch(r'\{"ns_per_access": [0-9.]+\}\n', said)
