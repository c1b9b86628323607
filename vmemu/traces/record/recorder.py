"""A command runs under a recorder, and a native trace is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from vmemu.errors import HostError, TraceError, VmemuError
from vmemu.traces.convert import checked_output, convert
from vmemu.traces.native.meta import Meta
from vmemu.traces.opening import ByteStream
from vmemu.traces.record import lackey, perf
from vmemu.traces.record.command import Running, check_command


class Tool(Protocol):
    """One that works here."""

    @property
    def title(self) -> str:
        """What people call it."""

    @property
    def not_in_it(self) -> str:
        """What its recordings leave out, beside what the trace says itself."""

    def recording(
        self, command: Sequence[str], running: Running, directory: Path
    ) -> AbstractContextManager[ByteStream]: ...


TOOLS: dict[str, Callable[[], Tool]] = {"perf": perf.find, "lackey": lackey.find}
"""By name; the first that works here is the default. Each raises ``HostError``."""


class Interrupted(VmemuError):
    """A signal ended the command before there was a trace to keep."""

    exit_code = 130
    kind = "interrupted"


@dataclass(frozen=True)
class Recorded:
    """What was recorded, and how the command ended."""

    meta: Meta
    tool: Tool
    notes: tuple[str, ...]
    status: int
    """Of the command, as ``Popen.returncode``: negative when a signal ended it."""
    interrupted: bool
    """Whether it was this process that was told to end (SIGINT, SIGTERM, SIGHUP)."""


def record(
    command: Sequence[str],
    out: str | os.PathLike[str],
    *,
    tool: str | None = None,
    replace: bool = False,
) -> Recorded:
    """Runs ``command`` (program and arguments) under a tool; ``out`` is as of ``convert``.

    The command has the standard input, output and error of this process. ``tool``: a key of
    ``TOOLS``; None: the first that works here. Raises ``InputError`` and ``HostError`` before the
    command has run, ``TraceError`` and ``OutputError`` when no trace could be made of it, and
    ``Interrupted`` when that is due to a signal; then nothing is left.
    """
    out = Path(out)
    check_command(command)
    checked_output(out, replace=replace)
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise TraceError(f"{out}: can't be written: {out.parent} is no directory we may write to")
    found = _find(tool)
    with Running() as running, TemporaryDirectory(prefix="vmemu-record-") as directory:
        try:
            with found.recording(command, running, Path(directory)) as stream:
                meta = convert(stream, out, replace=replace)
        except TraceError as error:
            # The tool may be told to end while it has not begun, or is in the middle of its title.
            if running.interrupted:
                raise Interrupted(f"vmemu: interrupted; there is no trace: {error}") from error
            raise
        status = running.wait()
        return Recorded(meta, found, tuple(running.notes), status, running.interrupted)


def _find(name: str | None) -> Tool:
    if name is not None:
        return TOOLS[name]()
    reasons = []
    for find in TOOLS.values():
        try:
            return find()
        except HostError as error:
            reasons.append(error.what)
    raise HostError("; ".join(reasons), f"apt-get install {lackey.PACKAGE} {perf.PACKAGE}")
