"""``vmemu run``: a scenario migrates by post-copy; the figures are shown and, if asked, kept."""

from __future__ import annotations

import math
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from vmemu.cli import progress
from vmemu.cli.signals import SIGNALS
from vmemu.cli.streams import refuse_one_place

if TYPE_CHECKING:
    from vmemu.config import Scenario
    from vmemu.migration import Migration
    from vmemu.runstate import Progress, Run
    from vmemu.source_loader import SourceProcess
    from vmemu.testing.faultpoints import Injected

EXIT_CODES = {"completed": 0, "skipped": 0, "failed": 1, "interrupted": 130}
_FILES_FOR_EVERYTHING = 1024
_DESCRIPTOR = click.IntRange(0, (1 << 31) - 1)


@click.command()
@click.argument("scenario_file", metavar="SCENARIO.yaml")
@click.option("--json", "json_file", metavar="FILE", help="Write the result; - for stdout.")
@click.option("--seed", type=int, metavar="N", help="In the place of the scenario's seed.")
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="In the place of the scenario's value, such as guest.vcpus=4; may be repeated.",
)
@click.option(
    "--events",
    metavar="FILE",
    help="Log events under QEMU's names: JSON lines, or text like QEMU's for a FILE.log.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show nothing unless something is wrong.")
@click.option("--inject", multiple=True, metavar="POINT", hidden=True)
@click.option(
    "--owner-fd", type=_DESCRIPTOR, hidden=True, help="End when the pipe's other end closes."
)
def run(
    scenario_file: str,
    *,
    json_file: str | None,
    seed: int | None,
    overrides: tuple[str, ...],
    quiet: bool,
    events: str | None,
    inject: tuple[str, ...],
    owner_fd: int | None,
) -> int:
    """Run a scenario: a guest migrates by post-copy, and every byte is checked.

    Ends with 0 when it completed or was skipped, 1 when it failed, 2 when the input is wrong, 3
    when this host can't, 130 when it was interrupted; the result of what ran is kept then, too.
    """
    if owner_fd is not None:
        _live_under(owner_fd)
    with _VerbSignals() as interrupts:
        from vmemu.config import load, split_override

        scenario = load(scenario_file, map(split_override, overrides), seed)
        injected = _injected(scenario, inject)
        result = _run_and_keep(
            interrupts,
            scenario,
            injected=injected,
            json_file=json_file,
            events=events,
            show_progress=not quiet,
        )
        stream = sys.stderr if "-" in (json_file, events) else sys.stdout
        _show(result, stream, quiet)
    return EXIT_CODES[result["status"]]


def _live_under(owner_fd: int) -> None:
    from vmemu.errors import InputError
    from vmemu.jobs.lifeline import live_under

    try:
        live_under(owner_fd)
    except OSError as error:
        raise InputError(f"--owner-fd {owner_fd}: {error.strerror}; it has to be a pipe") from None


def _run_and_keep(
    interrupts: _VerbSignals,
    scenario: Scenario,
    *,
    injected: Injected,
    json_file: str | None,
    events: str | None,
    show_progress: bool,
) -> dict[str, Any]:
    # numpy starts a thread a CPU for linear algebra, of which neither end of a run has any.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    source = _source_ahead(scenario)
    from vmemu.migration import Migration
    from vmemu.results import document

    for file in (json_file, events):
        if file is not None:
            document.check_place(file, *_files_read(scenario))
    refuse_one_place(("--json", json_file), ("--events", events))
    with _progress(scenario, show_progress) as callback:
        migration = Migration(scenario, progress=callback, events=events, source=source, **injected)
        interrupts.run_begins(migration.run_state)
        state = _migrate(migration)
    result = document.build(state)
    if json_file is not None:
        document.write(result, json_file)
    interrupts.run_is_kept()
    return result


def _source_ahead(scenario: Scenario) -> SourceProcess | None:
    """Its interpreter comes up while this one imports what a run takes. None where it can't be
    started: the run says why, in its turn; nor where the run will count what it may have open."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _FILES_FOR_EVERYTHING:
        return None
    from vmemu.channel import channels_of
    from vmemu.errors import HostError
    from vmemu.source_loader import SourceProcess

    try:
        source = SourceProcess(channels_of(scenario))
        source.start()
    except (HostError, OSError):
        return None
    return source


def _files_read(scenario: Scenario) -> list[Path]:
    """The scenario, and the guest's traces."""
    traces = scenario.guest.trace if isinstance(scenario.guest.trace, tuple) else ()
    files = [getattr(trace, "file", None) for trace in traces or (scenario.guest.trace,)]
    return [file for file in (scenario.path, *files) if file is not None]


def _injected(scenario: Scenario, inject: tuple[str, ...]) -> Injected:
    if not inject:
        return {}
    from vmemu.testing import faultpoints

    return faultpoints.injected(inject, scenario)


def _migrate(migration: Migration) -> Run:
    """Run it. A Ctrl-C that came while it was giving everything back leaves its result all the
    same."""
    try:
        return migration.run()
    except KeyboardInterrupt as error:
        state = migration.run_state
        if state.status == "failed" and state.error is None:
            state.status, state.error = "interrupted", error
        return state


def _command() -> str:
    """This run's command line, to be run again."""
    return shlex.join(["vmemu", *sys.argv[1:]])


def _show(result: dict[str, Any], stream: TextIO, quiet: bool) -> None:
    """Show the figures, or with ``quiet`` only what is wrong."""
    from vmemu.errors import VmemuError
    from vmemu.results import document, terminal

    try:
        if not quiet:
            terminal.show(result, stream, _command())
        elif result["status"] != "completed":
            stream = sys.stderr
            terminal.write_text(terminal.verdict(result) + "\n", stream)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk behind a redirection
        document.silence(stream)
        raise VmemuError(f"the figures can't be shown: {error.strerror}") from None


# ---- signals ----


class _VerbSignals:
    """What Ctrl-C, SIGTERM and SIGHUP do, which differs from one part of the verb to the next.

    Before the run nothing is there to give back, and an exception in the middle of an import would
    be taken for that import's failure: the process ends at once. While it runs they raise
    KeyboardInterrupt, unless the outcome is settled or one was raised just now: a second one must
    not cut short how the first is dealt with. When the result is kept, they raise again.

    A signal that is ignored stays so: it is how a shell keeps Ctrl-C from its background jobs.
    """

    PATIENCE_S = 1.0

    def __init__(self) -> None:
        self._settled: Callable[[], bool] | None = None
        self._raised_at = -math.inf
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before.append((number, signal.signal(number, self._handle)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self._settled is None:
            os.write(2, b"vmemu: interrupted\n")
            os._exit(EXIT_CODES["interrupted"])
        if self._settled() or time.monotonic() - self._raised_at < self.PATIENCE_S:
            return
        self._raised_at = time.monotonic()
        raise KeyboardInterrupt(f"interrupted by {signal.Signals(number).name}")

    def run_begins(self, state: Run) -> None:
        """From here on they raise, until the run is settled one way or the other."""
        self._settled = lambda: state.status != "failed" or state.error is not None

    def run_is_kept(self) -> None:
        """From here on they raise again."""
        self._settled = lambda: False
        self._raised_at = -math.inf


# ---- progress ----


@contextmanager
def _progress(scenario: Scenario, wanted: bool) -> Iterator[Callable[[Progress], None] | None]:
    """What Migration calls as it goes; None unless stderr is a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    size = sum(block.size for block in scenario.blocks)
    with progress.bar() as bar:
        task = bar.add_task("starting", total=None, detail=scenario.name)
        bar.refresh()
        yield lambda now: _draw(bar, task, now, size)


def _draw(bar: Any, task: Any, now: Progress, size: int) -> None:
    """Each phase has its own measure: accesses of the guest, pages, bytes compared."""
    from vmemu.units import counted

    if now.phase == "verify":
        done, total = now.bytes_checked, size
        detail = f"{counted(done, 'byte')} compared"
    elif now.phase == "drain":
        done, total, detail = now.pages, now.pages_total, counted(now.pages, "page")
    else:
        done, total = now.accesses, now.accesses_total
        pages = f"{now.pages:,} of {counted(now.pages_total, 'page')}"
        detail = f"{counted(done, 'access')}, {pages}"
    bar.update(task, description=now.phase, completed=done, total=total, detail=detail)
    bar.refresh()
