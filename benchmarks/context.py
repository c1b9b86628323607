"""What rows measure with: CPUs, runs of vmemu through its command line, the floor's programs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from frame import Failed, NotHere, Side

HERE = Path(__file__).parent
_LIMIT_S = 300


@dataclass
class Context:
    """One call of the benchmarks: where files may lie, and how much time there is."""

    directory: Path
    """Temporary; gone when the benchmarks are over."""
    quick: bool = False
    began: float = field(default_factory=time.monotonic)
    _refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def all_cpus(self) -> frozenset[int]:
        return frozenset(os.sched_getaffinity(0))

    @cached_property
    def one_cpu(self) -> frozenset[int]:
        """The last one: interrupts of devices tend to be served on the first."""
        return frozenset({max(self.all_cpus)})

    def run(self, command: Iterable[str | Path], cpus: Collection[int]) -> str:
        """Standard output of a command on these CPUs.

        Raises ``NotHere`` when it ends with 3 (this host can't), ``Failed`` for any other end.
        """
        words = [str(word) for word in command]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
            with _on(cpus):
                process = subprocess.Popen(words, stdout=out, stderr=said)
            # Popen.wait with a limit looks at it in intervals, on the CPU that it may run on.
            timer = threading.Timer(_LIMIT_S, process.kill)
            timer.start()
            try:
                process.wait()
            finally:
                timer.cancel()
                process.kill()
                process.wait()
            if process.returncode:
                raise _refusal(words, process.returncode, said)
            out.seek(0)
            return out.read()

    # ---- vmemu ----

    def vmemu(
        self, scenario: Mapping[str, Any], cpus: Collection[int], *settings: str
    ) -> dict[str, Any]:
        """The result document of one ``vmemu run``; ``settings`` as those of --set."""
        return self.vmemu_file(self.scenario(scenario), cpus, *settings)

    def vmemu_file(self, file: Path, cpus: Collection[int], *settings: str) -> dict[str, Any]:
        return self._result(["-m", "vmemu"], file, cpus, *settings)

    def vmemu_with_peak(self, scenario: Mapping[str, Any], cpus: Collection[int]) -> dict[str, Any]:
        """The same with ``peak_bytes``, the peak of the process's resident memory."""
        peak = self.directory / "peak"
        document = self._result([HERE / "peak.py", peak], self.scenario(scenario), cpus)
        return {**document, "peak_bytes": int(peak.read_text())}

    def _result(
        self, program: list[str | Path], file: Path, cpus: Collection[int], *settings: str
    ) -> dict[str, Any]:
        result = self.directory / "result.json"
        sets = [word for setting in settings for word in ("--set", setting)]
        self.run([sys.executable, "-P", *program, "run", file, *sets, "--json", result], cpus)
        document: dict[str, Any] = json.loads(result.read_text())
        return document

    def scenario(self, scenario: Mapping[str, Any]) -> Path:
        """A file of it; JSON is YAML."""
        file = self.directory / "scenario.yaml"
        file.write_text(json.dumps(scenario))
        return file

    def needs(self, scenario: Mapping[str, Any], *settings: str) -> None:
        """Raises ``NotHere`` when this vmemu refuses one of the settings, which it may not have."""
        self.needs_of(self.scenario(scenario), *settings)

    def needs_of(self, file: Path, *settings: str) -> None:
        """``needs``, of the scenario in a file."""
        for setting in settings:
            if setting not in self._refused:
                self._refused[setting] = _refused(file, setting)
            if self._refused[setting]:
                raise NotHere(f"this vmemu refuses {setting}: {self._refused[setting]}")

    # ---- the floor ----

    def floor(self, cpus: Collection[int], *words: str | int | Path) -> dict[str, float]:
        """The figures of one run of the floor, see floor/main.c; compiled when first used."""
        figures: dict[str, float] = json.loads(
            self.run([self._floor_program, *map(str, words)], cpus)
        )
        return figures

    @cached_property
    def _floor_program(self) -> Path:
        return self.compiled("floor", sorted((HERE / "floor").glob("*.c")))

    def compiled(self, name: str, sources: Iterable[Path]) -> Path:
        """A program made of C files. Raises ``NotHere`` without a compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise NotHere("no C compiler: apt-get install gcc libc6-dev")
        program = self.directory / name
        options = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-pthread", "-o", program]
        done = subprocess.run(
            [compiler, *options, *sources], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Failed(f"cc: {done.stderr.strip()}")
        return program


@contextmanager
def _on(cpus: Collection[int]) -> Iterator[None]:
    """What is started meanwhile inherits these CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _refused(file: Path, setting: str) -> str:
    """Why; empty: it is taken."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vmemu", "config", "show", file, "--set", setting],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.strip().splitlines() or ["nothing said"]
    # The field is named already, and so is what would be taken instead.
    return said[0].rpartition(": ")[2].partition("; ")[0] if done.returncode else ""


def _refusal(words: list[str], code: int, stderr: IO[str]) -> Exception:
    stderr.seek(0)
    lines = stderr.read().strip().splitlines() or ["nothing said"]
    program = " ".join(Path(word).name for word in words[:4])
    if code == -signal.SIGKILL:
        return Failed(f"{program}: killed, or not done after {_LIMIT_S} s")
    kind = NotHere if code == 3 else Failed
    return kind(f"{program} ended with {code}: {lines[0]}")


class Rounds:
    """Rounds in which each of several programs runs once, one behind the other.

    Rows share them: each takes its two figures of the same rounds, made when the first row needs
    them. So what one run tells in several figures is measured once, and always in turn.
    """

    def __init__(self, **programs: Callable[[], Mapping[str, Any]]) -> None:
        self._programs = programs
        self._done: list[dict[str, Mapping[str, Any]]] = []

    def figure(self, program: str, of: Callable[[Mapping[str, Any]], float]) -> Side:
        """A side that gives a figure of this program of each round."""
        taken = 0

        def side() -> float:
            nonlocal taken
            if taken == len(self._done):
                self._done.append({name: run() for name, run in self._programs.items()})
            taken += 1
            return of(self._done[taken - 1][program])

        return side
