"""Where a run that does not end stands, found out from outside: it may hold its own GIL for ever.

* how far it is, and who waits for which page: the status that the run lays open (``vmemu.status``);
* the Python stacks of its threads: a signal that faulthandler answers, which takes no GIL;
* what each thread of each of its processes does in the kernel: /proc.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmemu.errors import VmemuError
from vmemu.jobs import group
from vmemu.jobs.lifeline import STACKS_SIGNAL
from vmemu.units import format_seconds

if TYPE_CHECKING:
    from vmemu.status import Status

STACKS_PATIENCE_S = 2.0
"""How long the stacks may take; a process that was stopped never writes them."""
STACKS_MOST = 1 << 18
"""Characters of stacks that are told."""
STANDS_S = 0.5
"""Between two looks at a run: who waits for one page all the while stands, who is slow does not."""
STILL_S = 10.0
"""How long nothing may move before that is no slowness any more; a paced guest moves rarely."""
LOST_S = 30.0
"""How long a page may be waited for while others move: one of 1 GiB takes long on a slow link."""
MOVING = ("guest", "drain", "verify")
"""The phases whose figures move; what others do, such as to make an image, is not counted."""
_QUIET_S = 0.1
_PAUSE_S = 0.01


@dataclass(frozen=True)
class Standing:
    """A run whose time is over: ``text`` is where it is. It is ``stuck`` when one of its vCPUs has
    waited for a page between two looks and nothing moved, or waits for one that seems lost, or when
    nothing moves for long. Otherwise it is slow, or waits for what others have. ``stopped`` are the
    vCPUs that have waited all the while, in words."""

    text: str = ""
    stuck: bool = False
    stopped: tuple[str, ...] = ()


def look(pid: int) -> Status | None:
    """The status of the run ``pid``; None of one that has not come that far, or is gone."""
    from vmemu import status

    with contextlib.suppress(VmemuError):
        return status.read(pid)
    return None


def standing(pid: int, first: Status | None, elapsed_s: float) -> Standing:
    """Where the run ``pid`` stands, which was ``first`` seen ``elapsed_s`` seconds ago."""
    now = look(pid) or first
    if now is None:
        return Standing("it starts, or reads its traces")
    if now.hugepages_s is not None:
        return Standing(_in_line(now))
    waiting = [one for one in now.waiting if first and one.seconds >= elapsed_s]
    words = tuple(map(str, waiting))
    patience_s = LOST_S if first and first.figures != now.figures else 0.0
    if any(one.seconds >= patience_s for one in waiting):
        return Standing("", True, words)
    still_s = now.still_s or 0.0
    if now.phase in MOVING and still_s >= STILL_S:
        text = f"nothing has moved for {format_seconds(still_s)} {_where(now)}"
        return Standing(text, True, words or tuple(map(str, now.waiting)))
    return Standing(_where(now), False, words)


def _where(now: Status) -> str:
    """The phase and how far it is."""
    at, parts = now.figures, [f"in phase {now.phase} for {format_seconds(now.phase_s)}"]
    if at["accesses_total"]:
        parts.append(f"{at['accesses']:,} of {at['accesses_total']:,} accesses")
    if at["pages_total"]:
        parts.append(f"{at['pages']:,} of {at['pages_total']:,} pages")
    if at["checked"]:
        parts.append(f"{at['checked']:,} bytes compared")
    return ", ".join(parts)


def _in_line(now: Status) -> str:
    from vmemu import holders
    from vmemu.units import counted, format_size

    wanted = [
        f"{counted(pages, 'hugepage')} of {format_size(size)}"
        for size, pages in now.hugepages.items()
    ]
    held = [text for size in now.hugepages if (text := holders.held(size))]
    waits = f"it waits for {' and '.join(wanted)} for {format_seconds(now.hugepages_s or 0)}"
    return "; ".join([waits, *held])


def stacks(pid: int, said: Path, vcpus: dict[int, str]) -> str:
    """The stacks of all processes of the run ``pid``, which writes its errors to ``said``."""
    parts = [python_stacks(pid, said)]
    parts += ["\n".join(kernel_stacks(member, vcpus)) for member in group.members(pid)]
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= STACKS_MOST else f"{text[:STACKS_MOST]}\n[...]"


def python_stacks(pid: int, said: Path) -> str:
    """What the run says when it is asked for its Python stacks; empty when it can't."""
    if not _catches(pid, STACKS_SIGNAL):  # not yet, and then the signal would end it
        return ""
    before = said.stat().st_size
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, STACKS_SIGNAL)
    size, since = before, time.monotonic()
    # Whole when nothing more comes, as it has no end of its own.
    while time.monotonic() - since < (_QUIET_S if size > before else STACKS_PATIENCE_S):
        time.sleep(_PAUSE_S)
        if said.stat().st_size != size:
            size, since = said.stat().st_size, time.monotonic()
    with said.open("rb") as file:
        file.seek(before)
        text = file.read().decode(errors="replace").strip()
    return f"Python stacks of process {pid}:\n{text}" if text else ""


def _catches(pid: int, number: signal.Signals) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    caught = next((line.split()[1] for line in lines if line.startswith("SigCgt:")), "0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def kernel_stacks(pid: int, vcpus: dict[int, str]) -> Iterator[str]:
    """A line for each thread of a process: its name, its state, and where in the kernel it waits;
    as root the functions above that, too."""
    command = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()
    yield f"Threads of process {pid} ({command[:120]}):"
    for thread in sorted(_threads(pid), key=lambda path: int(path.name)):
        name = vcpus.get(int(thread.name)) or _read(thread / "comm").strip()
        stat = _read(thread / "stat").rpartition(")")[2].split()
        state = stat[0] if stat else "?"
        wchan = _read(thread / "wchan").strip("0\n")
        lines = _read(thread / "stack").splitlines()
        frames = [line.rpartition(" ")[2].partition("+")[0] for line in lines]
        call = _read(thread / "syscall").split()
        known = [f"in {wchan}"] if wchan else []
        known += [f"system call {call[0]}"] if call and call[0] not in ("running", "-1") else []
        known += [f"stack {' < '.join(frames)}"] if frames else []
        yield f"  {thread.name} {name}: {'; '.join([state, *known])}"


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _read(file: Path) -> str:
    """What /proc says; nothing where we may not look, and of what has ended."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
