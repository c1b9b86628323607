"""vmemu as a command, and then the peak of its resident memory, in bytes, in a file.

    python peak.py FILE VERB...

What wait4 tells of a child is never less than its parent's memory, of which it was a copy. Only the
process itself can look at its own peak when it ends.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from vmemu.cli import main

_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


def peak_bytes() -> int:
    """The most that this process has had in memory since it is what it is."""
    found = _PEAK.search(Path("/proc/self/status").read_text())
    assert found is not None, "the kernel tells no VmHWM"
    return int(found[1]) * 1024


if __name__ == "__main__":
    file = Path(sys.argv[1])
    sys.argv = ["vmemu", *sys.argv[2:]]
    try:
        main()
    finally:
        file.write_text(str(peak_bytes()))
