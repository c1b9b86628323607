"""A control group of its own for a test, in which processes get little memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import MIB, await_true

LIMIT_BYTES = 128 * MIB


@contextmanager
def small_control_group() -> Iterator[Path]:
    """The file of its limit, 128 MiB, of whichever version counts memory here."""
    for parent, name in (
        (Path("/sys/fs/cgroup"), "memory.max"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    ):
        group = parent / f"vmemu-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / name).exists():
                continue
            (group / name).write_text(str(LIMIT_BYTES))
            yield group / name
            return
        finally:
            # The tracker of multiprocessing ends a moment after the process that had it.
            await_true(lambda empty=group: _removed(empty))
    pytest.skip("no control group for memory can be made here")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
