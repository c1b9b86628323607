"""What is told of a run that does not end: who waits for which page, where its threads stand."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from supervised import NOTED_S, STALL, gone, pid_of, scenario_file, stalling, waits
from support import HUGE, accesses_of, await_true

from vmemu import holders, hugepages, reservation, status
from vmemu.config import load
from vmemu.errors import HostError, HugepageShortage, VmemuError
from vmemu.jobs import stuck
from vmemu.jobs.supervised import Job, Outcome, SupervisedRun
from vmemu.migration import Migration

pytestmark = pytest.mark.usefixtures("userfault")
WAITS = "vCPU 0 waits for ram+0x3"
ONE_VCPU = "{vcpus: 1, trace: {synthetic: {kind: permutation, write_share: 0.4}}}"


def stuck_outcome(run: SupervisedRun) -> Outcome:
    """Its time is over as soon as it stands still."""
    pid = pid_of(run)
    await_true(lambda: waits(pid))
    outcome = run.wait(0)
    assert outcome.status == "stuck"
    assert outcome.exit_code is None and not outcome.ok
    assert gone(pid)
    return outcome


@pytest.mark.parametrize("preempt", ["true", "false"])
@pytest.mark.parametrize("push", ["true", "false"])
def test_who_waits_for_what_is_told(preempt, push, tmp_path):
    modes = (f"migration.postcopy.preempt={preempt}", f"migration.postcopy.push={push}")
    with SupervisedRun(stalling(tmp_path, *modes, guest=ONE_VCPU), tmp_path) as run:
        run.start()
        outcome = stuck_outcome(run)
    (stopped,) = outcome.stopped
    assert stopped.startswith(WAITS)
    assert "(page 3) for " in stopped
    assert stopped.endswith("s, asked for")
    assert stopped in outcome.message
    assert "not done after" in outcome.message
    assert "in _run_guest" in outcome.stacks  # Python's stack of the main thread
    assert "vCPU 0: " in outcome.stacks
    if os.geteuid() == 0:
        assert "handle_userfault" in outcome.stacks


def test_what_a_stuck_run_had_done_is_kept(tmp_path):
    """It is told to end before it is killed, so that there is more than its name."""
    with SupervisedRun(stalling(tmp_path, guest=ONE_VCPU), tmp_path) as run:
        run.start()
        outcome = stuck_outcome(run)
    assert outcome.result is not None
    assert outcome.result["status"] == "interrupted"
    assert "fault_thread_request" in outcome.events_file.read_text()


def test_a_client_that_waits_is_told(tmp_path):
    client = "{name: net, block: vram, trace: {synthetic: {kind: sequential, accesses: 64}}}"
    job = Job(
        scenario_file(
            tmp_path,
            "{name: ram, backing: anonymous, size: 16KiB}, "
            "{name: vram, backing: shared, size: 64KiB}",
            more=f"clients: [{client}]\n",
        ),
        inject=("loader.stall@block=vram,offset=0",),
    )
    with SupervisedRun(job, tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: client_waits(pid))
        outcome = run.wait(0)
    (stopped,) = (one for one in outcome.stopped if "client" in one)
    assert stopped.startswith("vCPU 0 of client net waits for vram+0x")
    assert "(page 0)" in stopped
    assert stopped.endswith("asked for")
    assert "vCPU 0 of client net: " in outcome.stacks


def client_waits(pid: int) -> bool:
    try:
        found = status.read(pid).waiting
    except VmemuError:
        return False
    return any(one.client == "net" and one.requested and one.seconds > NOTED_S for one in found)


TRAP = """
import sys
if "run" in sys.orig_argv:
    import ctypes, time
    from vmemu.guest_worker import GuestWorker
    from vmemu.watch import Watch
    wait, waits = Watch.wait, GuestWorker.waiting
    def hold_the_gil(self, over):
        if self.phase == "guest":
            while not any(one and one.seconds > 0.2 for one in map(waits, self._run.workers)):
                time.sleep(0.01)
            address = self._incoming.blocks[0].address + 3 * 4096
            ctypes.c_uint8.from_address(address).value
        wait(self, over)
    Watch.wait = hold_the_gil
"""


def test_a_run_that_holds_its_own_gil_for_ever(tmp_path, monkeypatch):
    """No Python runs in it any more: all is found out from outside, and it is killed."""
    (tmp_path / "sitecustomize.py").write_text(TRAP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with SupervisedRun(stalling(tmp_path, guest=ONE_VCPU), tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: waits(pid))
        await_true(lambda: asleep(pid))
        outcome = stuck_outcome(run)
    (stopped,) = outcome.stopped
    assert stopped.startswith(WAITS)
    assert "in hold_the_gil" in outcome.stacks
    assert outcome.result is None


def asleep(pid: int) -> bool:
    """Whether the main thread stands in the trap: it waits for a page, not in a system call."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return stat[0] == "S" and Path(f"/proc/{pid}/syscall").read_text().startswith("-1 ")


def test_a_run_whose_source_stands_still(tmp_path):
    """And one of whose processes no signal but SIGKILL reaches."""
    with SupervisedRun(Job(scenario_file(tmp_path), inject=(STALL,)), tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: waits(pid))
        for member in stuck.group.members(pid):
            os.kill(member, signal.SIGSTOP)
        outcome = stuck_outcome(run)
    assert any(one.startswith("vCPU") for one in outcome.stopped)
    assert "Python stacks" not in outcome.stacks
    assert f"Threads of process {pid} " in outcome.stacks
    assert ": T" in outcome.stacks


def test_a_run_that_finds_out_by_itself_tells_the_same(tmp_path):
    job = stalling(tmp_path, "limits.stall=300ms", guest=ONE_VCPU)
    with SupervisedRun(job, tmp_path) as run:
        run.start()
        outcome = run.wait(60)
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    (stopped,) = outcome.stopped
    assert stopped.startswith(WAITS)
    assert "(page 3) for " in stopped


def test_a_run_that_has_not_yet_begun_is_not_hurt_by_the_question(tmp_path):
    """The signal for the stacks would end a process that does not know it yet."""
    asleep_at_once = "import sys, time\nif 'run' in sys.orig_argv:\n    time.sleep(600)\n"
    (tmp_path / "sitecustomize.py").write_text(asleep_at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        with SupervisedRun(stalling(tmp_path), tmp_path) as run:
            run.start()
            pid = pid_of(run)
            assert stuck.look(pid) is None
            assert stuck.python_stacks(pid, tmp_path / "run.err") == ""
            time.sleep(0.1)
            assert run.poll() is None
            outcome = run.wait(0)
    assert (outcome.status, outcome.stopped, outcome.result) == ("timeout", (), None)
    assert outcome.message.endswith(": it starts, or reads its traces")


def test_a_run_that_is_slow_is_not_called_stuck(tmp_path):
    """It says how far it is; what a vCPU waits for just now is nothing that stands."""
    with SupervisedRun(Job(scenario_file(tmp_path, guest=paced(20))), tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: accesses_of(pid) > 3)
        outcome = run.wait(0)
    assert (outcome.status, outcome.stopped) == ("timeout", ())
    assert re.search(
        r"not done after .*s: in phase guest for .*s, \d+ of 64 accesses, \d+ of 64 pages$",
        outcome.message,
    )


def paced(rate: int) -> str:
    pace = f"{{kind: rate, accesses_per_second: {rate}}}"
    return f"{{vcpus: 1, pace: {pace}, trace: {{synthetic: {{kind: permutation}}}}}}"


def test_a_run_in_which_nothing_moves_is_stuck(tmp_path, monkeypatch):
    """Though no vCPU waits for a page."""
    monkeypatch.setattr(stuck, "STILL_S", 0.1)
    with SupervisedRun(Job(scenario_file(tmp_path, guest=paced(1))), tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: accesses_of(pid) > 0)
        outcome = run.wait(0)
    assert (outcome.status, outcome.stopped) == ("stuck", ())
    assert re.search(r": nothing has moved for .*s in phase guest for ", outcome.message)


@pytest.mark.timeout(600)  # other tests may have the pool
def test_a_run_that_waits_for_hugepages_says_who_has_them(tmp_path, pool_alone):
    pool_alone.resize(4)
    blocks = "{name: ram, backing: hugetlbfs, page_size: 2MiB, size: 6MiB}"
    job = Job(scenario_file(tmp_path, blocks, more="on_unavailable: {wait: 60min}\n"))
    with reservation.hold({HUGE: 2}), SupervisedRun(job, tmp_path) as run:
        run.start()
        pid = pid_of(run)
        await_true(lambda: (found := stuck.look(pid)) and found.hugepages_s is not None)
        outcome = run.wait(0)
    assert outcome.status == "timeout"
    waits = r"it waits for 3 hugepages of 2MiB for [\d.]+m?s"
    held = rf"2 of 4 are held, 2 by process {os.getpid()} \(.*\)"
    assert re.search(f": {waits}; {held}$", outcome.message), outcome.message


@pytest.mark.timeout(600)
def test_a_run_that_has_waited_in_vain_says_how_long_and_who_has_them(tmp_path, pool_alone):
    pool_alone.resize(2)
    blocks = "{name: ram, backing: hugetlbfs, page_size: 2MiB, size: 4MiB}"
    job = Job(scenario_file(tmp_path, blocks, more="on_unavailable: {wait: 300ms}\n"))
    with reservation.hold({HUGE: 1}), SupervisedRun(job, tmp_path) as run:
        run.start()
        outcome = run.wait(60)
    assert outcome.status == "refused"
    held = rf"; waited [\d.]+m?s for that; 1 of 2 are held, 1 by process {os.getpid()} \(.*\)"
    assert re.search(f"{held}; mend it with: sysctl", outcome.message), outcome.message
    assert "on_unavailable" not in outcome.message  # it did wait


def test_a_run_that_may_not_wait_is_told_how_the_scenario_says_that_it_may(tmp_path, pool_alone):
    pool_alone.resize(2)
    blocks = "{name: ram, backing: hugetlbfs, page_size: 2MiB, size: 4MiB}"
    with reservation.hold({HUGE: 1}):
        with pytest.raises(HugepageShortage) as caught:
            Migration(load(scenario_file(tmp_path, blocks))).run()
        with pytest.raises(HugepageShortage) as alone, reservation.hold({HUGE: 2}):
            pass
    wait = "others hold 1 and may give them back; 'on_unavailable: {wait: 30s}' in the scenario"
    assert f"{wait} waits for that; mend it with: sysctl" in str(caught.value)
    assert "others hold 1 and may give them back; mend it with: sysctl" in str(alone.value)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("/usr/bin/python3 -P -m vmemu run a.yaml", "vmemu run a.yaml"),
        ("/v/bin/python /v/bin/vmemu run a.yaml", "vmemu run a.yaml"),
        ("python -u -c import", "python -u -c import"),
        ("/usr/bin/qemu-system-x86_64 -m 4G", "qemu-system-x86_64 -m 4G"),
        ("python3", "python3"),
    ],
)
def test_a_holder_is_named_by_what_it_runs(command, shown, tmp_path):
    (tmp_path / "cmdline").write_text(command.replace(" ", "\0") + "\0")
    assert holders._command(tmp_path) == shown


@pytest.mark.parametrize("gone", [OSError(24, "Too many open files"), HostError("no such pool")])
def test_who_holds_a_pool_that_can_not_be_looked_at_is_left_out(gone, monkeypatch):
    """It explains a shortage, and must not take its place."""
    monkeypatch.setattr(hugepages, "pool", Mock(side_effect=gone))
    assert holders.held(HUGE) == ""


def test_pages_are_counted_once_and_named_by_who_maps_them(hugetlb):
    with reservation.hold({HUGE: 3}, wait_s=60):
        found = {one.pid: one.pages for one in holders.holders(HUGE)}
    assert found[os.getpid()] >= 3
    assert os.getpid() not in {one.pid for one in holders.holders(HUGE)}


def test_what_is_gone_is_no_error(tmp_path):
    (tmp_path / "said").touch()
    assert stuck.look(1 << 30) is None
    assert stuck.standing(1 << 30, None, 1.0).stopped == ()
    assert stuck.stacks(1 << 30, tmp_path / "said", {}) == ""
