"""What the tests of supervised runs share: scenarios as files, processes that are seen to end."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

from vmemu import status
from vmemu.errors import VmemuError
from vmemu.jobs import group
from vmemu.jobs.supervised import Job, SupervisedRun

NOTED_S = 0.5
"""After which a run has noted how far it is, which it does a few times a second."""
STALL = "loader.stall@block=ram,offset=12KiB"
"""A guest of ``scenario_file`` waits for page 3 for ever."""


def scenario_file(directory: Path, blocks: str = "", guest: str = "", more: str = "") -> Path:
    """A scenario whose guest touches each of 64 pages, none of which comes by itself."""
    file = directory / "small.yaml"
    file.write_text(
        dedent(f"""\
        name: small
        blocks: [{blocks or "{name: ram, backing: anonymous, size: 256KiB}"}]
        guest: {guest or "{vcpus: 2, trace: {synthetic: {kind: permutation, write_share: 0.4}}}"}
        migration: {{postcopy: {{push: false}}}}
        limits: {{stall: 60min}}
        """)
        + more
    )
    return file


def stalling(directory: Path, *overrides: str, **how: str) -> Job:
    """A run that never ends by itself."""
    return Job(scenario_file(directory, **how), overrides=overrides, inject=(STALL,))


def pid_of(run: SupervisedRun) -> int:
    """The process of a run that was started, found as anybody would."""
    fields = Path(f"/proc/self/fdinfo/{run.fileno()}").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("Pid:"))


def waits(pid: int) -> bool:
    """Whether a vCPU of the run stands still on the page that is never sent."""
    try:
        found = status.read(pid).waiting
    except VmemuError:
        return False
    return any(one.page == 3 and one.requested and one.seconds > NOTED_S for one in found)


def gone(pid: int) -> bool:
    """Whether nothing is left of a run: no process of its group but those that have ended."""
    return not group.members(pid)


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))
