"""Checks of what comes along with the answers to faults, against who reads the answers."""

from __future__ import annotations

from typing import Any

from vmemu._config import yamlfile
from vmemu._config.ranges import Found

_POSTCOPY: yamlfile.Path = ("migration", "postcopy")


def across_carrying(data: Any) -> list[Found]:
    """A vCPU that serves itself reads the page that it waits for, and then goes on."""
    postcopy = yamlfile.value_at(data, _POSTCOPY)
    if not isinstance(postcopy, dict) or postcopy.get("delivery") != "sigbus":
        return []
    around = postcopy.get("fault_around", 0)
    wanted = {
        "fault_around": isinstance(around, int) and around > 1,
        "prefetch": postcopy.get("prefetch") == "adaptive",
    }
    what = "with 'delivery: sigbus' nobody reads what comes behind the page that a vCPU waits for"
    return [
        ((*_POSTCOPY, name), what, f"leave out {name}, or use 'delivery: thread'")
        for name, given in wanted.items()
        if given
    ]
