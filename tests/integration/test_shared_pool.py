"""Many processes on one pool of hugepages: real reservations, real migrations, real kills."""

from __future__ import annotations

import json
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
        assert "on_unavailable: {wait: 30s}" in str(caught.value)
    assert hugepages.pool(HUGE).available == 4
    assert before.left_by(Footprint.now()) == {}


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
    sizes = [size for size in hugepages.page_sizes() if size != HUGE]
    if not sizes:
        pytest.skip("this host has one size of hugepages")
    with python(KILLED["resizing"].replace("HUGE", str(sizes[0]))) as process:
        assert heard(process) == "in"
        soon = reservation.using(sizes[:1], wait_s=0)
        with pytest.raises(HostError, match="still used or resized"), soon:
            pass
        killed(process)
    with reservation.using(sizes[:1], wait_s=60):
        pass


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


# ---- who resizes ----


def test_who_resizes_waits_for_a_run_that_has_its_memory(pool_alone: Resizer):
    """Shown on a pool of another size, as this one is held by the test."""
    sizes = [size for size in hugepages.page_sizes() if size != HUGE]
    if not sizes:
        pytest.skip("this host has one size of hugepages")
    run = reservation.Tenancy()
    run.begin(sizes[:1])
    with pytest.raises(HostError, match="still used"), reservation.resizing(sizes[0], wait_s=0):
        pass
    run.end()
    with reservation.resizing(sizes[0], wait_s=60):
        pass


def test_a_run_that_has_its_memory_holds_the_pools_size(pool_alone: Resizer, monkeypatch):
    pool_alone.resize(2)
    begun: list[list[int]] = []
    monkeypatch.setattr(reservation.Tenancy, "begin", lambda self, sizes: begun.append([*sizes]))
    with MemoryManager([huge(pages=2), anonymous()]) as memory:
        memory.map()
    assert begun == [[HUGE]]
