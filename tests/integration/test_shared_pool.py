"""Many processes on one pool of hugepages: real reservations, real migrations, real kills."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import HUGE, Footprint, anonymous, huge

from vmemu import core, hugepages, reservation
from vmemu.errors import HostError, HugepageShortage
from vmemu.hostcheck import require_postcopy
from vmemu.manager import MemoryManager
from vmemu.reservation import Resizer

TESTS = Path(__file__).parents[1]
PREAMBLE = """
import json, sys, time
from support import HUGE, huge
from vmemu import hugepages, reservation
from vmemu.errors import HugepageShortage
from vmemu.hostcheck import require_postcopy
from vmemu.manager import MemoryManager

def say(*words):
    print(*words, flush=True)
"""
GO = "sys.stdin.readline()\n"


@contextmanager
def python(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own; it is killed if it is still there at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def other_size() -> int:
    """Of a pool that no test of the project uses."""
    sizes = [size for size in hugepages.page_sizes() if size != HUGE]
    if not sizes:
        pytest.skip("this host has one size of hugepages")
    return sizes[0]


def killed(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


# ---- holding ----


def test_what_is_held_is_nobody_elses_and_comes_back(pool_alone: Resizer):
    pool_alone.resize(4)
    before = Footprint.now()
    with reservation.hold({HUGE: 3}):
        assert hugepages.pool(HUGE).available == 1
        with pytest.raises(HugepageShortage) as caught, reservation.hold({HUGE: 2}):
            pass
        assert "4 in all, 4 free, 3 of these reserved; others hold 3" in str(caught.value)
        assert "on_unavailable" not in str(caught.value)  # no scenario to say it in
    assert hugepages.pool(HUGE).available == 4
    assert before.left_by(Footprint.now()) == {}


def test_what_is_held_is_not_kept_by_a_process_that_was_forked_meanwhile(pool_alone: Resizer):
    pool_alone.resize(4)
    reading, writing = os.pipe()
    try:
        with reservation.hold({HUGE: 3}):
            child = os.fork()
            if child == 0:  # lives on, with all that it was given
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
        assert hugepages.pool(HUGE).available == 4
    finally:
        os.close(writing)
        os.close(reading)
    os.waitpid(child, 0)


def test_waiting_is_no_advice_where_it_would_not_help(pool_alone: Resizer):
    pool_alone.resize(4)
    with reservation.hold({HUGE: 3}):
        for pages in (5, 50):
            with pytest.raises(HugepageShortage) as caught, reservation.hold({HUGE: pages}):
                pass
            assert "on_unavailable" not in str(caught.value)


def test_a_size_that_the_host_lacks_can_not_be_held():
    lacking = reservation.hold({8 * HUGE: 1})
    with pytest.raises(HostError, match="has no hugepages of 16MiB"), lacking:
        pass


def test_pages_that_the_kernel_makes_when_asked_are_taken_too(pool_alone: Resizer):
    pool_alone.resize(1)
    setting = hugepages.directory(HUGE) / "nr_overcommit_hugepages"
    before = setting.read_text()
    setting.write_text("2")
    try:
        with MemoryManager([huge(pages=3)], wait_s=60, pause=pytest.fail) as memory:
            require_postcopy(list(memory.blocks))
            memory.map()
            memory.blocks[0].write(2 * HUGE, b"x")
            made = "2 of 2 surplus ones made"
            with pytest.raises(HugepageShortage, match=made), reservation.hold({HUGE: 1}):
                pass
        with pytest.raises(HugepageShortage) as caught, reservation.hold({HUGE: 4}):
            pass
        subprocess.run(caught.value.remedy, shell=True, check=True, capture_output=True)
        with reservation.hold({HUGE: 4}):
            pass
    finally:
        setting.write_text(before)
    assert hugepages.pool(HUGE).surplus == 0


# ---- killed ----

KILLED = {
    "holding": "with reservation.hold({HUGE: 3}):\n  say('in'); sys.stdin.read()",
    "mapped": (
        "m = MemoryManager([huge(pages=3)]); m.map(); m.blocks[0].write(0, b'x')\n"
        "say('in'); sys.stdin.read()"
    ),
    "waiting": (
        "def pause(s):\n  say('in'); sys.stdin.read()\n"
        "with reservation.hold({HUGE: 4}, 60, pause):\n  say('got it')"
    ),
    "changing": "with reservation.changing([HUGE]):\n  say('in'); sys.stdin.read()",
    "resizing": "with reservation.resizing(HUGE) as pool:\n  say('in'); sys.stdin.read()",
}


@pytest.mark.parametrize("what", [name for name in KILLED if name != "resizing"])
def test_who_is_killed_leaves_all_to_the_others(pool_alone: Resizer, what):
    pool_alone.resize(4)
    with ExitStack() as stack, python(GO + KILLED[what]) as process:
        if what == "waiting":
            stack.enter_context(reservation.hold({HUGE: 1}))
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert heard(process) == "in"
        killed(process)
    with reservation.changing([HUGE], pytest.fail) as locked:
        assert locked
    with reservation.hold({HUGE: 4}, 60):  # the kernel may give pages back a moment later
        pass


def test_a_killed_resizer_lets_the_others_in(pool_alone: Resizer):
    """In a pool that nobody uses: the sizes that are not in use here have one as well."""
    size = other_size()
    with python(KILLED["resizing"].replace("HUGE", str(size))) as process:
        assert heard(process) == "in"
        soon = reservation.using([size], wait_s=0)
        with pytest.raises(HostError, match="still used or resized"), soon:
            pass
        killed(process)
    with reservation.using([size], wait_s=60):
        pass


# ---- stopped ----

WAITING = """
def pause(s):
    say('in')
    time.sleep(s)

with reservation.hold({HUGE: 4}, 600, pause):
    say('got it')
"""


def test_a_waiter_that_is_stopped_keeps_nobody_waiting_and_is_served_when_it_goes_on(
    pool_alone: Resizer,
):
    pool_alone.resize(4)
    with ExitStack() as stack:
        held = stack.enter_context(ExitStack())
        held.enter_context(reservation.hold({HUGE: 1}))
        process = stack.enter_context(python(WAITING))
        assert heard(process) == "in"
        os.kill(process.pid, signal.SIGSTOP)
        with reservation.hold({HUGE: 3}, wait_s=600):  # longer than the test may take
            pass
        os.kill(process.pid, signal.SIGCONT)
        held.close()
        while (said := heard(process)) == "in":
            pass
        assert said == "got it"
        assert process.wait() == 0


USER = "with reservation.using([int(sys.argv[1])], wait_s=60):\n  say('used')"
RESIZER = """
def pause(s):
    say('in')
    time.sleep(s)

with reservation.resizing(int(sys.argv[1]), pause=pause):
    say('got it')
"""


def test_a_resizer_that_is_stopped_while_it_waits_keeps_no_user_out(pool_alone: Resizer):
    size = other_size()
    with ExitStack() as stack:
        stack.enter_context(reservation.using([size]))
        process = stack.enter_context(python(RESIZER, str(size)))
        assert heard(process) == "in"
        os.kill(process.pid, signal.SIGSTOP)
        with python(USER, str(size)) as user:
            assert heard(user) == "used"


# ---- the moments in which pages change hands ----

THIEF = """
stolen = 0
say('ready')
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with reservation.hold({HUGE: 1}):
            stolen += 1
    except HugepageShortage:
        pass
say(stolen)
"""


def ended(process: subprocess.Popen[str]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return int(heard(process))


class SlowHoles:
    """The core, with time for others between a hole and what comes next."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def vm_punch_hole(self, *arguments: Any) -> int:
        result: int = self._real.vm_punch_hole(*arguments)
        time.sleep(0.02)
        return result


def test_a_discard_gives_its_pages_to_nobody(pool_alone: Resizer, monkeypatch):
    """Between the hole and the new reservation the pages are free, as far as the kernel knows."""
    pool_alone.resize(4)
    monkeypatch.setattr(core, "lib", SlowHoles(core.lib))
    block = huge(pages=4)
    with MemoryManager([block]) as memory:
        memory.map()
        with python(THIEF) as thief:
            assert heard(thief) == "ready"
            for turn in range(60):
                block.write(turn % 4 * HUGE, b"x")
                block.discard(*((turn % 4 * HUGE, HUGE) if turn % 3 else (0, None)))
            assert ended(thief) == 0
        for page in range(4):
            block.write(page * HUGE, b"x")


class Filling(SlowHoles):
    """The core, and somebody who takes what is free on a mount as soon as there is a hole."""

    def __init__(self, real: Any, mount: Path) -> None:
        super().__init__(real)
        self._file = mount / "somebodys"

    def vm_punch_hole(self, *arguments: Any) -> int:
        result: int = self._real.vm_punch_hole(*arguments)
        with self._file.open("x+b") as file:
            file.truncate(HUGE)
            with mmap.mmap(file.fileno(), HUGE):
                pass  # the file keeps the reservation
        return result


def test_a_mount_that_others_fill_is_told_where_the_pool_has_pages(
    own_mounts: None, pool_alone: Resizer, tmp_path: Path, monkeypatch
):
    pool_alone.resize(8)
    size = ["-o", f"pagesize=2M,size={4 * HUGE}"]
    subprocess.run(["mount", "-t", "hugetlbfs", *size, "none", tmp_path], check=True)
    monkeypatch.setattr(reservation, "PATIENCE_S", 0.05)
    with MemoryManager([huge(pages=4, path=f"{tmp_path}/huge")]) as memory:
        memory.map()
        for page in range(4):  # a hole where no page is keeps its reservation
            memory.blocks[0].write(page * HUGE, b"x")
        monkeypatch.setattr(core, "lib", Filling(core.lib, tmp_path))
        with pytest.raises(HostError) as caught:
            memory.blocks[0].discard()
    assert f"{tmp_path}/huge has lost pages to somebody who has filled {tmp_path}" in str(
        caught.value
    )
    assert "free of 8MiB" in str(caught.value)


PROVER = """
proved = 0
say('ready')
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        require_postcopy([huge(pages=1)])
        proved += 1
    except HugepageShortage:
        pass
say(proved)
"""


def test_who_may_not_wait_does_not_fail_because_another_proves(pool_alone: Resizer):
    pool_alone.resize(4)
    blocks = [huge(pages=4)]
    with python(PROVER) as prover:
        assert heard(prover) == "ready"
        for _ in range(100):
            with MemoryManager(blocks) as memory:
                memory.map(lambda: require_postcopy(blocks))
        assert ended(prover) > 0


# ---- parallel runs ----

RUNS = """
from support import scenario
from vmemu.errors import HostError
from vmemu.migration import Migration

for seed in range(3):
    blocks = [
        {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "8MiB"},
        {"name": "ram", "backing": "anonymous", "size": "1MiB"},
    ]
    migration = {"precopy": {"rounds": 1}, "flip_at": "20%"}
    mode = json.loads(sys.argv[1])
    made = scenario(blocks, seed=seed, on_unavailable=mode, migration=migration)
    try:
        run = Migration(made).run()
        ended, error = run.status, run.error
    except HostError as refused:
        ended, error = "refused", refused
    say(json.dumps([ended, type(error).__name__, str(error)]))
"""


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize("mode", [{"wait": "240s"}, "skip", "fail"], ids=str)
@pytest.mark.timeout(300)
def test_eight_at_once_on_a_pool_for_two(pool_alone: Resizer, mode):
    pool_alone.resize(8)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + RUNS, json.dumps(mode)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        )
        for _ in range(8)
    ]
    results = []
    for worker in workers:
        out, err = worker.communicate()
        assert worker.returncode == 0, err
        results += [json.loads(line) for line in out.splitlines()]
    assert len(results) == 24
    completed = [result for result in results if result[0] == "completed"]
    assert completed
    for ended, kind, text in results:
        if ended == "completed":
            continue
        assert ended == {"skip": "skipped", "fail": "refused"}.get(str(mode)), text
        assert kind in ("PostcopyShortage", "HugepageShortage"), text
        assert "8 in all" in text and "may give them back" in text
    pool = hugepages.pool(HUGE)
    assert (pool.free, pool.reserved, pool.surplus) == (8, 0, 0)


@pytest.mark.usefixtures("userfault")
def test_containers_that_share_their_mounts_never_meet_on_a_name(
    own_mounts: None, pool_alone: Resizer, tmp_path: Path
):
    """Each is process 1 of its own, with the same scenario and the same paths."""
    pool_alone.resize(8)
    for name, words in (("huge", ["hugetlbfs", "-o", "pagesize=2M"]), ("shm", ["tmpfs"])):
        (tmp_path / name).mkdir()
        subprocess.run(["mount", "-t", *words, "none", tmp_path / name], check=True)
    blocks = [
        {"name": "huge", "size": "4MiB", "backing": "hugetlbfs", "page_size": "2MiB"},
        {"name": "shm", "size": "1MiB", "backing": "shared"},
    ]
    for block in blocks:
        block["path"] = str(tmp_path / block["name"] / "same")
    trace = {"synthetic": {"kind": "uniform", "accesses": 2000}}
    document = {"name": "same", "blocks": blocks, "guest": {"vcpus": 1, "trace": trace}}
    (tmp_path / "same.yaml").write_text(json.dumps(document | {"on_unavailable": {"wait": "90s"}}))
    contained = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    vmemu = [sys.executable, "-P", "-m", "vmemu", "run", str(tmp_path / "same.yaml"), "--quiet"]
    runs = [
        subprocess.Popen([*contained, *vmemu], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for run in runs:
        assert run.communicate()[1] == ""
        assert run.returncode == 0
    assert os.listdir(tmp_path / "huge") == os.listdir(tmp_path / "shm") == []


# ---- who resizes ----


def test_who_resizes_waits_for_a_run_that_has_its_memory(pool_alone: Resizer):
    """Shown on a pool of another size, as this one is held by the test."""
    size = other_size()
    run = reservation.Tenancy()
    run.begin([size])
    with pytest.raises(HostError, match="still used"), reservation.resizing(size, wait_s=0):
        pass
    run.end()
    with reservation.resizing(size, wait_s=60):
        pass


def test_a_run_that_has_its_memory_holds_the_pools_size(pool_alone: Resizer, monkeypatch):
    pool_alone.resize(2)
    begun: list[list[int]] = []
    monkeypatch.setattr(reservation.Tenancy, "begin", lambda self, sizes: begun.append([*sizes]))
    with MemoryManager([huge(pages=2), anonymous()]) as memory:
        memory.map()
    assert begun == [[HUGE]]
