"""The runs of one test: each in a process of its own, judged, its files kept where needed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from vmemu.errors import HostError, InputError
from vmemu.jobs.cpus import share_of_xdist
from vmemu.jobs.program import program
from vmemu.jobs.supervised import Job, Outcome, SupervisedRun
from vmemu.testing import failure, where
from vmemu.testing.closeness import has_own
from vmemu.testing.limits import Limit, not_kept
from vmemu.testing.marks import limits_of, timeout_of
from vmemu.testing.migrationrun import MigrationRun
from vmemu.testing.stash import RUNS, WORKER

SHOWN_AS_PROPERTIES = ("p50", "p99", "max", "blocktime", "downtime")


class Runs:
    """What one test runs, and what of it stays; a test that is tried again has others."""

    @classmethod
    def begin(cls, item: pytest.Item) -> Runs:
        """Those of the try that begins."""
        before = item.stash.get(RUNS, None)
        item.stash[RUNS] = made = cls(item, before.attempt + 1 if before else 1)
        return made

    def __init__(self, item: pytest.Item, attempt: int) -> None:
        self.attempt = attempt
        self.made: list[MigrationRun] = []
        self.judged = 0
        self.failed = False
        self._item = item
        self._begun = time.monotonic()
        self._temporary: Path | None = None
        report: str | None = item.config.getoption("vmemu_report")
        self._report = item.config.invocation_params.dir / report if report else None
        self._told: set[int] = set()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._raised_elsewhere: list[BaseException] = []
        self._caller: tuple[str, int] | None = None

    def run(
        self,
        scenario: Path,
        *,
        seed: int | None,
        overrides: Sequence[str],
        timeout_s: float | None = None,
        inject: Sequence[str] = (),
    ) -> MigrationRun:
        """Run a scenario to its end, or until its time is over: ``timeout_s``, or the default."""
        everything = (*overrides, *self._item.config.getoption("vmemu_set"))
        job = Job(scenario, seed, everything, tuple(inject), share_of_xdist())
        start = self._item.config.invocation_params.dir
        command, called = job.command(start, program(start)), where.calling(start)
        self._caller = where.caller()
        with SupervisedRun(job, self._directory(), self._next_name()) as supervised:
            said = _said_of(supervised.result_file)
            with contextlib.suppress(OSError):
                said.unlink(missing_ok=True)  # in a session before
            # Before it ends: whoever would tell more may be killed.
            self._say(said, failure.not_ended(command, called))
            try:
                supervised.start()
            except OSError as error:
                what = f"a run can't be started, with its files in {said.parent}: {error}"
                text = failure.without_outcome(what, command, called)
                self._say(said, text)
                failure.fail(text)
            spent_s = time.monotonic() - self._begun
            outcome = supervised.wait(timeout_of(self._item, timeout_s, spent_s))
        with contextlib.suppress(OSError):
            said.unlink(missing_ok=True)
        run = MigrationRun(outcome, command, called)
        self.made.append(run)
        self._note(run)
        return run

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """What fails or skips the test inside is known to ``require_judged`` if it is raised in
        another thread than the test's, where nobody notices."""
        try:
            yield
        except (pytest.fail.Exception, pytest.skip.Exception) as raised:
            if threading.get_ident() != self._thread:
                self._raised_elsewhere.append(raised)
            raise

    def limits(self) -> list[Limit]:
        """The limits on its runs; the test fails when they can't be read."""
        try:
            return limits_of(self._item)
        except InputError as error:
            failure.fail(str(error))

    def judge(self, run: MigrationRun, limits: Sequence[Limit]) -> None:
        """Fail or skip the test as the run's end and the limits demand."""
        self.judged += 1
        if run.status == "skipped" or _refused_by_a_host_to_be_skipped(run.outcome):
            pytest.skip(failure.why_skipped(run, self._item.path))
        if not run.ok:
            self._fail(run, failure.headline(run.status, run.message), failure.elsewhere(run))
        if what := not_kept(limits, run.result):
            self._fail(run, what, failure.without_limit(run), with_worst=True)

    def require_judged(self) -> None:
        """Fail a test that has limits of its own, and no run that they were held against; fail or
        skip one that was failed or skipped in a thread of its own."""
        raised = self._raised_elsewhere
        for failed in (one for one in raised if isinstance(one, pytest.fail.Exception)):
            failure.fail(str(failed))
        for skipped in raised:
            pytest.skip(str(skipped))
        if not self.judged and has_own(self._item, "vmemu_limit") and self.limits():
            failure.fail(failure.NOT_JUDGED)

    def attend(self, report: pytest.TestReport) -> None:
        """Add to a report of the test what is to be known of its runs; clean up after the last."""
        if report.failed:
            self.failed = True
            self._point_at_test(report)
            if untold := self._untold():
                report.sections.append(("vmemu", untold))
        elif report.skipped and isinstance(report.longrepr, tuple):
            path, line, _ = self._item.reportinfo()
            if report.longrepr[0] == __file__:  # who skips is the test, not this file
                report.longrepr = (str(path), (line or 0) + 1, report.longrepr[2])
        if report.when == "teardown":
            self._finish()

    def _point_at_test(self, report: pytest.TestReport) -> None:
        """For whoever wants a line of the test, such as --tb=line: not where it was noticed."""
        crash = getattr(report.longrepr, "reprcrash", None)
        if self._caller and crash is not None and crash.path == failure.__file__:
            crash.path, crash.lineno = self._caller

    def _untold(self) -> str:
        """Of a test that failed by itself: its runs, for whoever wants to see one again."""
        untold = [run for run in self.made if id(run) not in self._told]
        self._told.update(map(id, untold))
        lines = (failure.headline(run.status, run.message) for run in untold)
        return "\n\n".join(map(failure.describe, untold, lines))

    def _finish(self) -> None:
        """Delete the files of a test that passed, unless a report is wanted."""
        if self._temporary and not self.failed:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary = None

    def _fail(
        self, run: MigrationRun, what: str, note: str, *, with_worst: bool = False
    ) -> NoReturn:
        text = failure.describe(run, what, note, with_worst=with_worst)
        self._told.add(id(run))
        self._say(_said_of(run.result_file), text)
        failure.fail(text)

    def _say(self, file: Path, text: str) -> None:
        """For a report: what is wrong with a run."""
        if self._report:
            with contextlib.suppress(OSError):  # a full disk must not hide what is wrong
                file.write_text(text + "\n", "utf-8")

    def _next_name(self) -> str:
        """Of the next run's files: no other run of this session has it, in whichever worker."""
        worker: str = self._item.config.stash.get(WORKER, "")
        attempt = f"try{self.attempt}" if self.attempt > 1 else ""
        number = next(self._numbers)  # not how many have ended: a test may run some at once
        parts = file_name(_identity(self._item)), worker, attempt, str(number) if number > 1 else ""
        return "-".join(filter(None, parts))

    def _directory(self) -> Path:
        if self._report:
            self._report.mkdir(parents=True, exist_ok=True)
            return self._report
        with self._lock:
            if self._temporary is None:
                self._temporary = _temporary(self._item)
            return self._temporary

    def _note(self, run: MigrationRun) -> None:
        """For JUnit: a property a figure."""
        properties = self._item.user_properties
        properties.append(("vmemu_command", run.command))
        if run.measured:
            properties += [
                (f"vmemu_{name}_ns", getattr(run, f"{name}_ns")) for name in SHOWN_AS_PROPERTIES
            ]


def _refused_by_a_host_to_be_skipped(outcome: Outcome) -> bool:
    """Whether a run could not even begin here, and its scenario wants to be skipped then."""
    if outcome.exit_code != HostError.exit_code:
        return False
    from vmemu.config import load, split_override

    scenario = load(outcome.job.scenario, map(split_override, outcome.job.overrides))
    return scenario.on_unavailable == "skip"


def _identity(item: pytest.Item) -> str:
    """The id of a test, and where its file is if that is outside of the rootdir, as the id says
    nothing of it then."""
    if item.path.is_relative_to(item.config.rootpath):
        return item.nodeid
    return f"{item.path.parent}/{item.nodeid}"


def _said_of(result_file: Path) -> Path:
    """Where a report has what was wrong with a run."""
    return result_file.with_suffix(".txt")


def file_name(nodeid: str) -> str:
    """A file name of a test's own: two tests whose ids differ in odd characters only have two."""
    readable = re.sub(r"[^\w.-]+", "_", nodeid, flags=re.ASCII).strip("_")[-120:]
    return f"{readable}-{hashlib.sha256(os.fsencode(nodeid)).hexdigest()[:8]}"


def _temporary(item: pytest.Item) -> Path:
    """A new directory among those of ``tmp_path``, which pytest gives up after some sessions."""
    factory: pytest.TempPathFactory | None = getattr(item.config, "_tmp_path_factory", None)
    name = re.sub(r"\W", "_", item.name)[:30]
    if factory is None:
        return Path(tempfile.mkdtemp(prefix=f"vmemu-{name}-"))
    return factory.mktemp(f"vmemu-{name}", numbered=True)
