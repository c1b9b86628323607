"""Checks of ``migration.postcopy.delivery`` against what stands beside it."""

from __future__ import annotations

from typing import Any

from vmemu._config import yamlfile
from vmemu._config.ranges import Found

_POSTCOPY: yamlfile.Path = ("migration", "postcopy")


def across_delivery(data: Any) -> list[Found]:
    """What makes no sense where the vCPUs serve themselves."""
    postcopy = yamlfile.value_at(data, _POSTCOPY)
    if not isinstance(postcopy, dict) or postcopy.get("delivery") != "sigbus":
        return []
    found: list[Found] = []
    if postcopy.get("preempt") is False:
        what = "with 'delivery: sigbus' each vCPU has a channel of its own for urgent pages"
        remedy = "leave out 'preempt: false', or use 'delivery: thread'"
        found.append(((*_POSTCOPY, "preempt"), what, remedy))
    threads = postcopy.get("fault_threads", 1)
    if isinstance(threads, int) and threads > 1:
        what = "with 'delivery: sigbus' each vCPU serves itself: nobody else reads its faults"
        remedy = "leave out fault_threads, or use 'delivery: thread'"
        found.append(((*_POSTCOPY, "fault_threads"), what, remedy))
    placed = yamlfile.value_at(data, ("placement", "fault"))
    if placed is not None and not yamlfile.value_at(data, ("clients",)):
        what = "with 'delivery: sigbus' each vCPU serves itself: there is no fault thread"
        remedy = "leave out fault, or use 'delivery: thread'"
        found.append((("placement", "fault"), what, remedy))
    around = postcopy.get("fault_around", 0)
    carried = {
        "fault_around": isinstance(around, int) and around > 1,
        "prefetch": postcopy.get("prefetch") == "adaptive",
    }
    # A vCPU that serves itself reads the page that it waits for, and then goes on.
    what = "with 'delivery: sigbus' nobody reads what comes behind the page that a vCPU waits for"
    found += [
        ((*_POSTCOPY, name), what, f"leave out {name}, or use 'delivery: thread'")
        for name, given in carried.items()
        if given
    ]
    return found
