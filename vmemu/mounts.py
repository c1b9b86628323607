"""What is mounted where, from ``/proc/self/mountinfo`` (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = "/proc/self/mountinfo"
KERNELS_OWN = frozenset(
    {"autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts"}
    | {"efivarfs", "fusectl", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs"}
    | {"selinuxfs", "sysfs", "tracefs"}
)
"""Windows into the kernel, in which nobody makes a file."""


@dataclass(frozen=True)
class Mounted:
    """One mount: ``root`` is what of its file system is seen there, ``device`` its (major, minor),
    ``options`` those of the mount and of the file system."""

    path: str
    type: str
    root: str
    device: tuple[int, int]
    options: frozenset[str]


def mounted() -> list[Mounted]:
    """Every mount that this process sees, in the order in which they were made. Raises OSError."""
    return list(parse(os.fsdecode(Path(MOUNTINFO).read_bytes())))


def parse(text: str) -> Iterator[Mounted]:
    """The mounts in the text of a mountinfo file."""
    # Not splitlines(): names are any bytes, and only blank, tab, newline and backslash are escaped.
    for line in text.split("\n"):
        if not line:
            continue
        left, _, right = line.partition(" - ")
        _, _, device, root, path, options, *_ = left.split(" ")
        kind, *source_and_options = right.split(" ")
        own_options = source_and_options[-1] if source_and_options else ""
        major, _, minor = device.partition(":")
        words = frozenset([*options.split(","), *own_options.split(",")])
        yield Mounted(_unescaped(path), kind, _unescaped(root), (int(major), int(minor)), words)


def _unescaped(name: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda escape: chr(int(escape[1], 8)), name)
