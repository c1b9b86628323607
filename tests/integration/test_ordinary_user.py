"""The check of the host, a migration, locks and the balloon for a user without any privilege."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmemu.host.containers import with_limit
from vmemu.host.files import HostFiles
from vmemu.host.identity import identify
from vmemu.host.raising import NOT_HERE
from vmemu.userfault import How

CHECK = """
import json, os
from support import anonymous, shared
from vmemu.hostcheck import postcopy_supported
found = postcopy_supported([anonymous(), shared()])
print(json.dumps([os.geteuid(), [str(problem) for problem in found]]))
"""

LOCK = """
import json, resource
from support import anonymous, shared
from vmemu.errors import HostError
from vmemu.manager import MemoryManager
from vmemu.memlock import MemoryLock, locked_bytes
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536 * 16))
with MemoryManager([anonymous(), shared()]) as memory:
    memory.map()
    lock = MemoryLock(memory.blocks)
    try:
        lock.lock()
    except HostError as error:
        refused, left = error, locked_bytes()
    raised = int(refused.remedy.split()[-1]) * 1024
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (raised, 65536 * 16))
    lock.lock()
    mended = locked_bytes()
    lock.unlock()
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    warnings = lock.relock()
    result = [refused.what, refused.remedy, left, mended, warnings, locked_bytes()]
print(json.dumps(result))
"""

BALLOON = """
import json
from support import anonymous, shared
from vmemu.balloon import Balloon, BalloonInhibitor
from vmemu.manager import MemoryManager
with MemoryManager([anonymous(), shared()]) as memory:
    memory.map()
    balloon = Balloon(memory.blocks, BalloonInhibitor())
    for index, block in enumerate(memory.blocks):
        block.write(0, b"x" * block.size)
        balloon.inflate(index, 4096, 4096)
    found = [[b.read(4095, 2).hex(), b.read(8191, 2).hex()] for b in memory.blocks]
print(json.dumps(found))
"""

MIGRATE = """
import json, os
from support import scenario
from vmemu.migration import Migration
run = Migration(scenario([
    {"name": "ram", "backing": "anonymous", "size": "256KiB"},
    {"name": "vram", "backing": "shared", "size": "64KiB"},
])).run()
print(json.dumps([os.geteuid(), run.status, str(run.error), run.incoming.uffd.how.name]))
"""


def as_ordinary_user(code: str) -> Any:
    """What the code prints, as JSON, as nobody. The interpreter may lie where only root can
    read."""
    if os.geteuid() != 0:
        pytest.skip("only root can become an ordinary user")
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    read = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": tests, "PYTHONDONTWRITEBYTECODE": "1"}
    run: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 110}
    run |= {"env": environment, "cwd": "/"}
    where = [sys.executable, "-c", "import sys, support; print(sys.base_prefix)"]
    if subprocess.run([*drop, *where], check=False, **run).stdout.strip() != sys.base_prefix:
        drop += read
    done = subprocess.run([*drop, sys.executable, "-c", code], check=False, **run)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.usefixtures("userfault")
def test_post_copy_is_supported_for_an_ordinary_user():
    assert as_ordinary_user(CHECK) == [65534, []]


def test_a_limit_on_locked_memory_is_told_and_its_remedy_mends_it():
    what, remedy, left, mended, warnings, in_the_end = as_ordinary_user(LOCK)
    assert "blocks ram, vram can't be locked in memory (128KiB)" in what
    assert "this process may lock 64KiB (RLIMIT_MEMLOCK)" in what
    assert remedy == "ulimit -S -l 128"
    assert (left, mended) == (0, 128 * 1024)
    # The first block alone fits below the limit, and is locked again.
    assert in_the_end == 64 * 1024
    assert len(warnings) == 1
    assert "blocks vram" not in warnings[0] and "block vram can't be locked" in warnings[0]
    raised = "mend it with: sudo prlimit --pid $$ --memlock=131072"
    here = identify(HostFiles())
    if not here.raises_limits:
        raised = with_limit(here.container, "memlock", 128 * 1024) or NOT_HERE
    assert warnings[0].endswith(raised)


def test_an_ordinary_user_gives_pages_back():
    assert as_ordinary_user(BALLOON) == [["7800", "0078"], ["7800", "0078"]]


@pytest.mark.usefixtures("userfault")
def test_an_ordinary_user_migrates_through_faults_in_user_mode():
    try:
        switch = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip()
    except FileNotFoundError:
        pytest.skip("this kernel has no vm.unprivileged_userfaultfd")
    uid, status, error, how = as_ordinary_user(MIGRATE)
    assert (uid, status, error) == (65534, "completed", "None")
    if switch == "0" and not os.path.exists("/dev/userfaultfd"):
        assert how == How.USER_MODE_ONLY.name
    elif switch == "0":
        assert how in (How.USER_MODE_ONLY.name, How.DEVICE.name)
