"""``vmemu stress``: random variations of a scenario, run until one fails or the time is over."""

from __future__ import annotations

import os
import shlex
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmemu.cli import progress
from vmemu.cli.signals import EXIT_INTERRUPTED, strike
from vmemu.stress import TIMEOUT_S
from vmemu.units import format_duration, printable

if TYPE_CHECKING:
    from vmemu.stress.document import StressDocument
    from vmemu.stress.loop import Loop, Plan
    from vmemu.stress.variations import Variations

EXIT_CODES = {"completed": 0, "failed": 1, "interrupted": EXIT_INTERRUPTED}
DURATION = "60s"
TIMEOUT = format_duration(round(TIMEOUT_S * 1e9))
LINE_EVERY_S = 5.0


class _Whole(click.IntRange):
    """A whole number in a range, refused in plain words."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            int(value)
        except ValueError:
            most = "" if self.max is None else f" to {self.max}"
            self.fail(
                f"'{printable(value)}' is no whole number; give one from {self.min}{most}",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


@click.command()
@click.argument("scenario_file", metavar="SCENARIO.yaml")
@click.option("--duration", metavar="TIME", help="Start runs for so long, such as 10min.")
@click.option("--runs", type=_Whole(min=1), metavar="N", help="Run so many variations.")
@click.option("--jobs", type=_Whole(1, 1024), metavar="N", help="Runs at a time; one for each CPU.")
@click.option(
    "--seed",
    type=_Whole(0, (1 << 64) - 1),
    metavar="S",
    help="The same variations again, on a host with the same kinds of memory.",
)
@click.option(
    "--first", type=_Whole(min=0), default=0, metavar="I", help="The number to begin with."
)
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="In the place of the scenario's value, in all variations; may be repeated.",
)
@click.option("--timeout", default=TIMEOUT, metavar="TIME", help=f"Of each run; {TIMEOUT}.")
@click.option("--report", metavar="DIR", help="Where a failed run leaves its result and events.")
@click.option("--json", "json_file", metavar="FILE", help="Write the figures; - for stdout.")
@click.option("--inject", multiple=True, metavar="POINT", hidden=True)
def stress(
    scenario_file: str,
    *,
    duration: str | None,
    runs: int | None,
    jobs: int | None,
    seed: int | None,
    first: int,
    overrides: tuple[str, ...],
    timeout: str,
    report: str | None,
    json_file: str | None,
    inject: tuple[str, ...],
) -> int:
    """Run a scenario and random variations of it, each in a process of its own, every byte checked.

    Stops at the first failure and prints the command that replays it. Without --duration and
    --runs it goes on for 60 seconds; with both, until the first of them is reached.

    Ends with 0 when nothing failed, 1 when something did, 2 when the input is wrong, 3 when this
    host can't run the scenario itself, 130 when it was interrupted.
    """
    from vmemu.results import document
    from vmemu.stress.loop import Plan

    if json_file is not None:
        document.check_place(json_file, scenario_file)
    if duration is None and runs is None:
        duration = DURATION
    plan = Plan(
        jobs=jobs or len(os.sched_getaffinity(0)),
        first=first,
        runs=runs,
        duration_s=_seconds("--duration", duration) if duration else float("inf"),
        timeout_s=_seconds("--timeout", timeout),
        memory=_memory(),
        inject=inject,
    )
    variations = _variations(scenario_file, seed, overrides, inject)
    kept = _report(report)
    with _directory() as directory:
        result = _run(variations, plan, directory, kept)
    if json_file is not None:
        document.write(result.model_dump(by_alias=True), json_file)
    _show(result, sys.stderr if json_file == "-" else sys.stdout)
    return EXIT_CODES[result.status]


def _seconds(option: str, text: str) -> float:
    from vmemu import units
    from vmemu.errors import InputError

    try:
        duration_ns = units.parse_duration(text)
    except units.UnitError as error:
        raise InputError(f"{option}: {error}") from None
    if duration_ns == 0:
        raise InputError(f"{option}: there is no time to run anything in; give such as 60s")
    return duration_ns / 1e9


def _memory() -> int:
    """What all runs together may take: most of what there is room for now."""
    from vmemu.host.room import memory_room

    return memory_room().size * 9 // 10


def _variations(
    file: str, seed: int | None, overrides: tuple[str, ...], inject: tuple[str, ...]
) -> Variations:
    """Of a scenario that this host can run. Without a seed, of one that nobody has had yet."""
    from vmemu.config import load, split_override
    from vmemu.stress import base
    from vmemu.stress.kinds import HostKinds
    from vmemu.stress.variations import Variations

    _refuse_what_is_read_once(file)
    scenario = load(file, map(split_override, overrides))
    if inject:
        from vmemu.testing import faultpoints

        faultpoints.injected(inject, scenario)
    kinds = HostKinds.of_this_host()
    base.require(scenario, kinds)
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    return Variations(file, seed, kinds, overrides)


def _refuse_what_is_read_once(file: str) -> None:
    """Every run reads the scenario again, and the command that replays one does."""
    from vmemu.errors import InputError

    try:
        pipe = stat.S_ISFIFO(os.stat(file).st_mode)
    except (OSError, ValueError):  # whoever reads it says why that can't be
        return
    if not pipe and not _of_descriptor(file):
        return
    what = "it is a pipe" if pipe else "only this process has it under that name"
    why = f"the scenario can't be read once more: {what}, and each run reads it"
    raise InputError(f"{printable(file, 4096)}: {why}; write it to a file, and name that")


def _of_descriptor(file: str) -> bool:
    """Whether that is a name of an open file, such as /dev/stdin: it leads through /proc."""
    while not os.path.realpath(os.path.dirname(file)).startswith("/proc/"):
        if not os.path.islink(file):
            return False
        file = os.path.join(os.path.dirname(file), os.readlink(file))
    return True


def _report(directory: str | None) -> Path | None:
    """The directory, made if it is not there; a failure must not find that it can't be used."""
    from vmemu.errors import InputError

    if directory is None:
        return None
    made, another = Path(directory), "name another directory, such as --report failed"
    try:
        made.mkdir(exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--report {directory}: a file is in the way; {another}") from None
    except FileNotFoundError:
        make = f"make it with: mkdir -p {shlex.quote(directory)}"
        raise InputError(f"--report {directory}: {made.parent} is not there; {make}") from None
    except OSError as error:
        what = f"it can't be made: {error.strerror}"
        raise InputError(f"--report {directory}: {what}; {another}") from None
    if not os.access(made, os.W_OK | os.X_OK):
        raise InputError(f"--report {directory}: nothing may be written there; {another}")
    return made


@contextmanager
def _directory() -> Iterator[Path]:
    """Where runs leave their files; it stays when a failed one has left something in it."""
    import tempfile

    strike()
    made = Path(tempfile.mkdtemp(prefix="vmemu-stress-"))
    try:
        yield made
    finally:
        if not any(made.iterdir()):
            made.rmdir()


# ---- running ----


def _run(
    variations: Variations, plan: Plan, directory: Path, report: Path | None
) -> StressDocument:
    from vmemu.stress.loop import Loop
    from vmemu.stress.summary import drawn_from, host_of, summarise

    loop = Loop(variations, plan, directory, report)
    began = time.monotonic()
    print(f"seed {variations.seed}", file=sys.stderr)
    print(f"drawn from {drawn_from(host_of(variations.kinds))}", file=sys.stderr, flush=True)
    with _progress(loop, plan) as watch:
        status = loop.run(watch)
    seconds = time.monotonic() - began
    return summarise(loop.tally, variations, plan, status, seconds)


@contextmanager
def _progress(loop: Loop, plan: Plan) -> Iterator[Any]:
    """What the loop calls as it goes: a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines(loop)
        return
    with progress.bar() as bar:
        task = bar.add_task("stress", total=None, detail="")
        began = time.monotonic()

        def draw() -> None:
            now = time.monotonic() - began
            by_time = now / plan.duration_s
            by_runs = len(loop.tally.runs) / plan.runs if plan.runs else 0.0
            done = min(max(by_time, by_runs), 1.0)
            bar.update(task, completed=done * 100, total=100, detail=_so_far(loop))
            bar.refresh()

        yield draw


class _Lines:
    """A line every some seconds in which something has happened."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._last_s = time.monotonic()
        self._runs = 0

    def __call__(self) -> None:
        runs = len(self._loop.tally.runs)
        if runs > self._runs and time.monotonic() - self._last_s >= LINE_EVERY_S:
            self._last_s, self._runs = time.monotonic(), runs
            print(_so_far(self._loop), file=sys.stderr, flush=True)


def _so_far(loop: Loop) -> str:
    from vmemu.units import counted

    of = loop.tally.statuses
    done = f"{of['completed']:,} completed, {of['skipped']:,} skipped"
    now = ", ".join(map(str, loop.under_way))
    return f"{counted(of.total(), 'run')}: {done}" + (f"; now {now}" if now else "")


# ---- showing ----


def _show(result: StressDocument, stream: Any) -> None:
    from vmemu.errors import VmemuError
    from vmemu.results import document, terminal
    from vmemu.stress.summary import WIDTH, text

    try:
        terminal.write_text(text(result, terminal.columns(stream, WIDTH)), stream)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk behind a redirection
        document.silence(stream)
        raise VmemuError(f"the figures can't be shown: {error.strerror}") from None
