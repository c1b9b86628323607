"""The processes of a process group, as /proc tells them."""

from __future__ import annotations

import os
import time
from pathlib import Path

_PAUSE_S = 0.005
_ZOMBIES = "ZX"


def members(leader: int) -> list[int]:
    """The processes of the group that ``leader`` leads or led; those that have ended, and were not
    yet waited for, are none."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text(errors="replace")
            except OSError:  # gone, or somebody else's where /proc is mounted with hidepid
                continue
            state, _, group = stat.rpartition(")")[2].split()[:3]
            if int(group) == leader and state not in _ZOMBIES:
                found.append(int(entry))
    return found


def await_end(leader: int, patience_s: float) -> bool:
    """Wait until no process of a group that was killed is left: only then is its memory given back.
    False when the patience is over."""
    deadline = time.monotonic() + patience_s
    while _is_there(leader) and members(leader):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def _is_there(leader: int) -> bool:
    """Whether anything is in the group, be it a zombie: saves to go through a large /proc."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
