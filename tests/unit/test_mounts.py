"""What is mounted, from the text of mountinfo."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from vmemu import mounts

LINES = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
25 24 0:23 / /dev/shm rw,nosuid shared:4 master:1 - tmpfs tmpfs rw,size=24684084k
36 35 0:29 /docker/a1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
41 1 254:0 / / rw - ext4 /dev/vda rw,discard
"""


def test_the_fields_of_a_mount() -> None:
    proc, shm, memory, root = mounts.parse(LINES)
    assert (proc.path, proc.type, proc.device) == ("/proc", "proc", (0, 21))
    assert (shm.path, shm.type) == ("/dev/shm", "tmpfs")
    assert shm.options >= {"rw", "nosuid", "size=24684084k"}
    assert (memory.root, memory.options) == ("/docker/a1", frozenset({"ro", "rw", "memory"}))
    assert (root.path, root.device) == ("/", (254, 0))


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(
        lambda name: "/" + name
    )
)
def test_names_are_what_they_were_before_the_kernel_escaped_them(name: str) -> None:
    escaped = "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in name)
    line = f"25 24 0:23 / {escaped} rw - hugetlbfs none rw,pagesize=2M\n"
    (found,) = mounts.parse(line)
    assert (found.path, found.type) == (name, "hugetlbfs")


def test_this_process_sees_a_root_and_its_proc() -> None:
    seen = {mount.path: mount for mount in mounts.mounted()}
    assert "/" in seen
    status = os.stat("/proc")
    assert seen["/proc"].device == (os.major(status.st_dev), os.minor(status.st_dev))
