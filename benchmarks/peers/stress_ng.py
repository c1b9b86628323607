"""stress-ng's stressor ``userfaultfd``: threads of one process, and no source."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection

from context import Context
from frame import Failed, NotHere

INSTALL = "apt-get install stress-ng"
_FAULTS = 100_000
_BYTES = 64 << 20
_FIGURE = re.compile(r"([0-9.]+)\s+nanosec\w* per page fault")


def needed() -> None:
    """Raises ``NotHere`` where stress-ng is not installed."""
    if shutil.which("stress-ng") is None:
        raise NotHere(f"stress-ng is not installed: {INSTALL}")


def fault_us(context: Context, cpus: Collection[int]) -> float:
    """What a fault takes on average in us: it tells no quantile."""
    needed()
    command = ["stress-ng", "--userfaultfd", "1", "--userfaultfd-bytes", str(_BYTES)]
    # Its metrics go to standard output with this option, and everything else to standard error.
    command += ["--userfaultfd-ops", str(_FAULTS), "--metrics", "--stdout"]
    found = _FIGURE.search(context.run(command, cpus))
    if found is None:
        raise Failed("stress-ng told no time a page fault")
    return float(found[1]) / 1e3
