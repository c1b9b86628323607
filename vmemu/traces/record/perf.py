"""Recording with Linux perf: the page faults of the program, at nearly its full speed.

Where the kernel lets us, it is the tracepoints, which say what was a write; else the counter of
page faults, which doesn't. Whether either works here (tracefs mounted,
``kernel.perf_event_paranoid``, what a container allows) is found by trying it.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

from vmemu.errors import HostError, TraceError
from vmemu.interrupts import Interrupts
from vmemu.traces.opening import ByteStream
from vmemu.traces.record import held
from vmemu.traces.record.command import Running, fifo, how_it_ended

PACKAGE = "linux-perf"

_PROBE_TIMEOUT_S = 30.0
_REMEDY = "sysctl kernel.perf_event_paranoid=2 (as root), or take --tool lackey"


class _Event(NamedTuple):
    names: tuple[str, ...]
    fields: tuple[str, ...]
    """Options of ``perf script``, so that the address is in its text."""


_EVENTS = (
    _Event(("exceptions:page_fault_user", "exceptions:page_fault_kernel"), ()),
    _Event(("page-faults",), ("-F", "comm,pid,tid,time,period,event,addr,ip,sym,dso")),
)


@dataclass(frozen=True)
class Perf:
    """Records page faults: the first touch of each page, and later ones that fault again."""

    event: _Event
    title = "perf page faults"
    not_in_it = "the processes that the command started"

    @contextmanager
    def recording(
        self, command: Sequence[str], running: Running, directory: Path
    ) -> Iterator[ByteStream]:
        """Runs the command to its end; the stream is the text that perf makes of it then.

        ``directory``: an empty one, for perf's data. Raises ``TraceError`` when nothing was
        recorded.
        """
        data = directory / "perf.data"
        name = Path(command[0]).name
        with held.holding(command, running, directory) as holder:
            _record(self.event, data, holder, running)
        script = [*_perf_script(self.event, data), f"--pid={holder.pid}"]
        with (
            (directory / "errors").open("w+b") as errors,
            # In a group of its own: Ctrl-C of the terminal is no reason to lose what was recorded.
            subprocess.Popen(
                script,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,
            ) as process,
        ):
            stream = ByteStream(name, _Script(process, errors, running))
            if not stream.head(1):
                raise TraceError(f"{name}: perf recorded no page fault")
            yield stream


def find() -> Perf:
    """Raises ``HostError`` when perf is not installed, or can't record page faults here."""
    if shutil.which("perf") is None:
        raise HostError("perf is not installed", f"apt-get install {PACKAGE}")
    why = ""
    with (
        Interrupts() as interrupts,
        TemporaryDirectory(prefix="vmemu-perf-") as directory,
    ):
        for event in _EVENTS:
            with interrupts.allowed():
                why = _why_not(event, Path(directory) / "probe.data")
            if not why:
                return Perf(event)
    raise HostError(f"perf can't record page faults here: {why}", _REMEDY)


def _record(event: _Event, data: Path, holder: held.Holder, running: Running) -> None:
    """Attaches perf to the command that is held, and lets it run to its end.

    perf that starts a command itself ends it, with SIGTERM, when Ctrl-C reaches perf. Attached to
    one, in a process group of its own, perf hears nothing of the terminal's Ctrl-C.
    """
    control, acknowledged = (data.with_name(name) for name in ("control", "acknowledged"))
    arguments = [*_perf_record(event, data), *_controlled(control, acknowledged)]
    with (
        fifo(control) as to_perf,
        fifo(acknowledged) as from_perf,
        data.with_name("said").open("w+b") as said,
        subprocess.Popen(
            [*arguments, f"--pid={holder.pid}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            process_group=0,
        ) as perf,
    ):
        try:
            os.write(to_perf, b"enable\n")
            _wait_for_any(from_perf, perf.pid, holder.pid)
            if perf.poll() is None:
                holder.let_go()
                running.wait()
        finally:
            # Descendants of the command that go on would keep perf at work for as long.
            perf.send_signal(signal.SIGINT)
            perf.wait()
        said.seek(0)
        if perf.returncode not in (0, -signal.SIGINT):
            why = _first_line(said.read().decode(errors="replace"))
            raise TraceError(f"perf record failed: {why or how_it_ended(perf.returncode)}")


def _wait_for_any(fd: int, *pids: int) -> None:
    """Until there is something to read, or a process has ended."""
    with ExitStack() as stack:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        for pid in pids:
            process = os.pidfd_open(pid)
            stack.callback(os.close, process)
            poll.register(process, select.POLLIN)
        poll.poll()


class _Script:
    """The text of ``perf script`` from the command's first sample on. Its end is an error if perf
    failed; that samples were lost is noted."""

    def __init__(
        self, process: subprocess.Popen[bytes], errors: IO[bytes], running: Running
    ) -> None:
        self._process, self._errors, self._running = process, errors, running
        self._begun = False

    def read1(self, size: int, /) -> bytes:
        assert self._process.stdout is not None
        if not self._begun:
            self._begun = True
            if line := self._first_of_the_command(self._process.stdout):
                return line
        # The pipe of a Popen is a BufferedReader, which its type does not say.
        part: bytes = self._process.stdout.read1(size)  # type: ignore[attr-defined]
        if not part:
            self._ended()
        return part

    @staticmethod
    def _first_of_the_command(text: IO[bytes]) -> bytes:
        """Its first line: what it faulted on while it was held was not the command yet."""
        line = text.readline()
        while line.lstrip().startswith(held.NAME.encode() + b" "):
            line = text.readline()
        return line

    def _ended(self) -> None:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")
        if status != 0:
            raise TraceError(f"perf script failed: {_first_line(said) or how_it_ended(status)}")
        lost = next((line for line in said.splitlines() if " lost " in line), "")
        if lost:
            self._running.notes.append(f"perf could not keep up: {lost.strip()}")

    def close(self) -> None:
        """The process is its owner's."""


def _perf_record(event: _Event, data: Path) -> list[str]:
    # No list of build ids (-B): nobody asks which files the addresses of code were in.
    events = ",".join(event.names)
    return ["perf", "record", "-q", "-B", "-o", str(data), "-e", events, "-c", "1", "-d"]


def _controlled(control: Path, acknowledged: Path) -> list[str]:
    """Options with which it records nothing until it is told to, and says when it does."""
    return ["--delay=-1", f"--control=fifo:{control},{acknowledged}"]


def _perf_script(event: _Event, data: Path) -> list[str]:
    return ["perf", "script", "-i", str(data), *event.fields]


def _why_not(event: _Event, data: Path) -> str:
    """Why the event can't be recorded with addresses; empty when it can."""
    name = event.names[0]
    for arguments in ([*_perf_record(event, data), "--", "true"], _perf_script(event, data)):
        try:
            done = subprocess.run(
                arguments,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{name}: perf does not end"
        if done.returncode != 0:
            return f"{name}: {_first_line(done.stderr) or how_it_ended(done.returncode)}"
    return "" if name in done.stdout else f"{name}: no sample of a test was recorded"


def _first_line(said: str) -> str:
    """What perf says first; "Error:" stands alone in its line."""
    lines = (line.strip() for line in said.splitlines())
    return next((line for line in lines if line not in ("", "Error:")), "")
