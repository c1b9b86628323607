"""A run in a process of its own, with a time limit: whatever happens to it, its owner goes on.

The process is ``vmemu run`` itself, so that the command that replays a failure is the command that
failed. It leads a process group, and is killed as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
        words = ["run", str(self.scenario)]
        words += [] if self.seed is None else ["--seed", str(self.seed)]
        words += [word for override in self.overrides for word in ("--set", override)]
        return words + [word for point in self.inject for word in ("--inject", point)]

    def command(self) -> str:
        """What replays it."""
        return shlex.join(["vmemu", *self.arguments()])


@dataclass(frozen=True)
class Outcome:
    """What became of a job. ``status`` is completed, skipped, failed, interrupted, as in the
    result; ``refused`` when there was no run (wrong input, or this host can't); ``stuck`` when its
    time was over; ``died`` when it ended without a result.

    ``message`` says why it did not complete; ``result`` is the result document, if it left one.
    ``stacks`` is where its threads stood when its time was over.
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
    """Of a stuck run: each vCPU that waits, with its block and page."""

    @property
    def ok(self) -> bool:
        """Whether it completed, or was skipped for the reason in ``message``."""
        return self.status in ("completed", "skipped")


class SupervisedRun:
    """One job as it runs; its result and event log go to ``directory``, which must exist."""

    def __init__(self, job: Job, directory: Path, name: str = "run") -> None:
        self.job = job
        self.result_file = directory / f"{name}.json"
        self.events_file = directory / f"{name}.events.jsonl"
        self._errors_file = directory / f"{name}.err"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def start(self) -> None:
        """Start the process."""
        kept = ["--quiet", "--json", str(self.result_file), "--events", str(self.events_file)]
        command = [sys.executable, "-m", "vmemu", *self.job.arguments(), *kept]
        self._started = time.monotonic()
        with self._errors_file.open("wb") as errors, _on_cpus(self.job.cpus):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def wait(self, timeout_s: float) -> Outcome:
        """Wait for its end, kill it when the time is over, and say what became of it."""
        assert self._process is not None
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._outcome("stuck", None, f"not done after {timeout_s:g} s")
        return self._ended(code)

    def kill(self) -> None:
        """End it and all it has started, whatever it is doing. Safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _ended(self, code: int) -> Outcome:
        said = self._errors_file.read_text(errors="replace").strip()
        result = self._result()
        if result is not None:
            error = result["error"] or {}
            return self._outcome(result["status"], code, error.get("message", ""), result)
        return self._outcome("refused" if code in (2, 3) else "died", code, said)

    def _result(self) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads(self.result_file.read_bytes())
        except (OSError, ValueError):
            return None
        return document

    def _outcome(
        self, status: str, code: int | None, message: str, result: dict[str, Any] | None = None
    ) -> Outcome:
        seconds = time.monotonic() - self._started
        files = self.result_file, self.events_file
        return Outcome(self.job, status, code, message, result, *files, seconds)


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
