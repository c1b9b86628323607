"""Figures of /proc/meminfo."""

from __future__ import annotations

from pathlib import Path


def meminfo(name: str) -> int:
    """Bytes of one figure of this machine, such as ``MemAvailable``; 0 where it has none."""
    return here().get(name.rstrip(":"), 0)


def here() -> dict[str, int]:
    """All figures of this machine at one moment, in bytes."""
    return figures(Path("/proc/meminfo").read_text())


def figures(text: str) -> dict[str, int]:
    """All of them in bytes; those that count something else are left out."""
    found = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) == 3 and words[2] == "kB" and words[1].isdigit():
            found[words[0]] = int(words[1]) << 10
    return found
