"""A run in a process of its own, with a time limit: whatever happens to it, its owner goes on.

::

    with SupervisedRun(Job(Path("guest.yaml"), seed=7), directory, "guest-7") as run:
        run.start()
        outcome = run.wait(60)

The process is ``vmemu run`` itself, so that the command that replays a failure is the command that
failed. It leads a process group and is killed as a whole: by ``kill``, when its time is over, and
by the kernel when its owner ends (``lifeline.py``). Many can be waited for at once, as each is a
file to ``select``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmemu import unfinished
from vmemu.childprocess import signal_name
from vmemu.jobs import group, stuck
from vmemu.jobs.lifeline import Lifeline
from vmemu.units import format_seconds

LAST_WORDS_S = 3.0
"""How long a run whose time is over may take to write its result and its event log."""
PATIENCE_S = 10.0
"""How long a process that was killed may take to be gone; it has memory to give back."""
SAID_MOST = 1 << 15
"""Bytes of the first and of the last that a run says on standard error that are read."""
SHOWN_MOST = 4
"""vCPUs that wait which a message names; ``Outcome.stopped`` has them all."""
_LONGEST_POLL_S = 1e6
_EXIT_CODES = {"completed": 0, "skipped": 0, "failed": 1, "interrupted": 130}
_MEANINGS = {
    signal.SIGKILL: "not by its owner; maybe the OOM killer: see dmesg",
    signal.SIGBUS: "memory that it had mapped was not to be had: hugepages, /dev/shm, a file cut",
    signal.SIGSEGV: "a crash, perhaps of the C core",
    signal.SIGABRT: "a crash, perhaps of the C library",
}


@dataclass(frozen=True)
class Job:
    """What to run: a scenario file with its seed and overrides (``guest.vcpus=4``), and on which
    CPUs (none: all that this process may use). ``inject`` are fault points."""

    scenario: Path
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    inject: tuple[str, ...] = ()
    cpus: frozenset[int] = frozenset()

    def arguments(self) -> list[str]:
        """Of ``vmemu``."""
        return self._words(Path())

    def _words(self, start: Path) -> list[str]:
        words = ["run", _as_argument(self.scenario, start)]
        words += [] if self.seed is None else ["--seed", str(self.seed)]
        words += [word for override in self.overrides for word in ("--set", override)]
        return words + [word for point in self.inject for word in ("--inject", point)]

    def command(self, start: Path = Path(), program: Sequence[str] = ("vmemu",)) -> str:
        """What replays it in a shell, from the directory ``start``: by default the one that this
        process is in. ``program`` is how vmemu is called there."""
        return shlex.join([*program, *self._words(start)])


def _as_argument(path: Path, start: Path) -> str:
    """A path as it is written in the directory ``start``, which no option can be taken for."""
    with contextlib.suppress(ValueError, OSError):  # elsewhere; no such directory any more
        path = path.relative_to(start.absolute())
    return f"./{path}" if str(path).startswith("-") else str(path)


@dataclass(frozen=True)
class Outcome:
    """What became of a job. ``status`` is completed, skipped, failed, interrupted, as in the
    result; ``refused`` when there was no run (wrong input, or this host can't); when its time was
    over ``stuck`` if it stood still, and ``timeout`` if it was slow, or waited for hugepages;
    ``died`` when it ended without a result, or not as its result says.

    ``message`` says why it did not complete, in its first line; ``result`` is the result document,
    if it left a whole one. ``stacks`` is where its threads stood when its time was over, or when a
    process of it crashed.
    """

    job: Job
    status: str
    exit_code: int | None
    message: str
    result: dict[str, Any] | None
    result_file: Path
    events_file: Path
    seconds: float
    stacks: str = ""
    stopped: tuple[str, ...] = field(default=())
    """Of a run that did not end by itself: each vCPU that waited, with its block and page."""

    @property
    def ok(self) -> bool:
        """Whether it completed, or was skipped for the reason in ``message``."""
        return self.status in ("completed", "skipped")


class SupervisedRun:
    """One job as it runs; its result and event log go to ``directory``, which must exist.

    A context manager: at its end the run is killed, unless it has ended. ``keep=False`` deletes
    what a run leaves that was ``ok``.
    """

    def __init__(self, job: Job, directory: Path, name: str = "run", *, keep: bool = True) -> None:
        self.job = job
        self.result_file = directory / f"{name}.json"
        self.events_file = directory / f"{name}.events.jsonl"
        self._errors_file = directory / f"{name}.err"
        self._keep = keep
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._lifeline: Lifeline | None = None
        self._started = 0.0
        self._outcome: Outcome | None = None

    # ---- its life ----

    def start(self) -> None:
        """Start the process, once. Raises OSError when that can't be, and then nothing is left."""
        assert self._process is None
        for file in self._files():  # of a run before, and never to be taken for this one's
            _remove(file, *unfinished.left_of(file))
        self._started = time.monotonic()
        self._lifeline = Lifeline()
        try:
            self._spawn(self._lifeline.theirs)
        except BaseException:
            self._lifeline.cut()
            process, self._process = self._process, None
            if process is not None:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):  # what is told is why it can't be started
                _remove(*self._files())
            raise
        self._lifeline.handed_over()

    def _spawn(self, lifeline: int) -> None:
        kept = ["--quiet", "--json", str(self.result_file), "--events", str(self.events_file)]
        words = [*self.job.arguments(), *kept, "--owner-fd", str(lifeline)]
        with self._errors_file.open("wb") as errors, _on_cpus(self.job.cpus):
            self._process = subprocess.Popen(
                # -P: no module of the directory that we are in, as with the command `vmemu`.
                [sys.executable, "-P", "-m", "vmemu", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | {"PYTHONFAULTHANDLER": "1"},  # for all processes of the run
                pass_fds=[lifeline],
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """A descriptor that is readable once the process has ended, and closed when ``poll``,
        ``wait`` or ``kill`` has told so. Raises ValueError while there is none."""
        if self._pidfd < 0:
            raise ValueError("the run has not been started, or is over")
        return self._pidfd

    def wait(self, timeout_s: float) -> Outcome:
        """Wait for its end, kill it when the time is over, and say what became of it.

        ``math.inf`` is for ever. Whatever ends the waiting, such as Ctrl-C, ends the run.
        """
        if self._outcome is not None:
            return self._outcome
        try:
            if not self._ends_within(timeout_s):
                return self._give_up()
        except BaseException:
            self.kill()
            raise
        return self._ended()

    def poll(self) -> Outcome | None:
        """What became of it; None while it runs."""
        if self._outcome is None and self._ends_within(0):
            return self._ended()
        return self._outcome

    def kill(self) -> None:
        """End it and all it has started, whatever it is doing. Safe to call twice, and before it
        was started. Its outcome is that it was interrupted."""
        if self._process is None or self._outcome is not None:
            return
        if self._ends_within(0):
            self._ended()
            return
        self._end_all()
        self._settle("interrupted", None, "killed by its owner")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    # ---- its end ----

    def _ends_within(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = min(max(deadline - time.monotonic(), 0), _LONGEST_POLL_S)
            if poll.poll(math.ceil(left_s * 1000)):
                return True
            if time.monotonic() >= deadline:
                return False

    def _end_all(self) -> int | None:
        """No process of the group is left; the exit code, or None of one that can't be killed."""
        assert self._process is not None and self._lifeline is not None
        if self._process.returncode is None:
            # Not yet waited for, the leader keeps the group's number from being anybody else's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._lifeline.cut()
        code = self._process.wait() if self._ends_within(PATIENCE_S) else None
        group.await_end(self._process.pid, PATIENCE_S)
        for file in self._files():
            _remove(*unfinished.left_of(file))
        return code

    def _give_up(self) -> Outcome:
        """Its time is over: say where it stands, let it write what it has, and kill it."""
        assert self._process is not None
        pid = self._process.pid
        first, looked = stuck.look(pid), time.monotonic()
        stacks = ""
        with contextlib.suppress(OSError):  # what is told must not hide that it is stuck
            stacks = stuck.stacks(pid, self._errors_file, first.threads if first else {})
        if self._ends_within(max(stuck.STANDS_S - (time.monotonic() - looked), 0)):
            return self._ended()  # at the last moment, and by itself
        found = stuck.standing(pid, first, time.monotonic() - looked)
        message = f"not done after {format_seconds(time.monotonic() - self._started)}"
        os.kill(pid, signal.SIGTERM)  # the leader alone: the others end with it
        self._ends_within(LAST_WORDS_S)
        if self._end_all() is None:
            message += ", and can't be killed"
        more = len(found.stopped) - SHOWN_MOST
        words = [found.text, *found.stopped[:SHOWN_MOST], f"and {more} more" if more > 0 else ""]
        message += f": {'; '.join(filter(None, words))}"
        return self._settle(
            "stuck" if found.stuck else "timeout",
            None,
            message,
            result=self._result(),
            stacks=stacks,
            stopped=found.stopped,
        )

    def _ended(self) -> Outcome:
        """It has ended by itself: say how."""
        code = self._end_all()
        assert code is not None
        said, result = self._said(), self._result()
        stacks = said if code >= 0 and "Fatal Python error" in said else ""
        if result is not None and code == _EXIT_CODES.get(result["status"]):
            message = (result["error"] or {}).get("message", "")
            return self._settle(
                result["status"],
                code,
                message,
                result=result,
                stacks=stacks,
                stopped=_stopped(result),
            )
        if code in (2, 3) and result is None:
            return self._settle("refused", code, said.partition("\n")[0])
        if code == _EXIT_CODES["interrupted"] and result is None:
            return self._settle("interrupted", code, said.partition("\n")[0])
        how = _how_it_died(code, result is not None)
        message = (how + (": " if code >= 0 else "\n") + said) if said else how
        return self._settle("died", code, message, result=result)

    def _said(self) -> str:
        """Its standard error: all of it, or its beginning and its end."""
        try:
            file = self._errors_file.open("rb")
        except OSError:
            return ""
        with file:
            first = file.read(SAID_MOST)
            left = os.fstat(file.fileno()).st_size - SAID_MOST
            if left > SAID_MOST:
                file.seek(-SAID_MOST, os.SEEK_END)
                first += b"\n[...]\n"
            return (first + file.read(SAID_MOST)).decode(errors="replace").strip()

    def _result(self) -> dict[str, Any] | None:
        """The result document, if there is a whole one."""
        try:
            document = json.loads(self.result_file.read_bytes())
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) and "status" in document else None

    def _settle(
        self,
        status: str,
        code: int | None,
        message: str,
        *,
        result: dict[str, Any] | None = None,
        stacks: str = "",
        stopped: Iterable[str] = (),
    ) -> Outcome:
        files = self.result_file, self.events_file
        seconds = time.monotonic() - self._started
        self._outcome = Outcome(
            self.job, status, code, message, result, *files, seconds, stacks, tuple(stopped)
        )
        fd, self._pidfd = self._pidfd, -1
        os.close(fd)
        if self._outcome.ok and not self._keep:
            _remove(*self._files())
        elif self._errors_file.exists() and self._errors_file.stat().st_size == 0:
            self._errors_file.unlink()
        return self._outcome

    def _files(self) -> tuple[Path, ...]:
        return self.result_file, self.events_file, self._errors_file


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _stopped(result: dict[str, Any]) -> Iterator[str]:
    """Each vCPU that waited when a run had found out by itself that it stood still."""
    waiting = (result["error"] or {}).get("waiting", ())
    if not waiting:
        return
    from vmemu.status import Stopped

    page_sizes = {block["name"]: block["page_size"] for block in result["blocks"]}
    for one in waiting:
        page = one["offset"] // page_sizes[one["block"]]
        who = one["vcpu"], one.get("client", "")
        yield str(Stopped(*who, one["block"], one["offset"], page, one["waited_ns"] / 1e9))


def _how_it_died(code: int, with_result: bool) -> str:
    if code >= 0:
        left = "left a result that says otherwise" if with_result else "left no result"
        return f"ended with exit code {code} and {left}"
    meaning = _MEANINGS.get(signal.Signals(-code)) if -code in set(signal.Signals) else None
    return f"killed by {signal_name(-code)}" + (f" ({meaning})" if meaning else "")


@contextlib.contextmanager
def _on_cpus(cpus: Iterable[int]) -> Iterator[None]:
    """What is started inside begins its life on these CPUs alone."""
    before = os.sched_getaffinity(0)
    wanted = before & set(cpus) or before
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
