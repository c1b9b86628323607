"""What the tests of `vmemu check` share: judge a scenario, run it, do what a remedy says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vmemu.check.codes import Code
from vmemu.check.judge import judge
from vmemu.check.verdict import ScenarioReport
from vmemu.config import load
from vmemu.errors import VmemuError
from vmemu.migration import Migration

TESTS = Path(__file__).parent
Document = dict[str, Any]
Judging = Callable[..., ScenarioReport]
"""Judges blocks between two hosts, or within one."""


def ram(size: str = "256KiB", **keys: Any) -> Document:
    """A block of anonymous memory, as a scenario has it."""
    return {"name": "ram", "backing": "anonymous", "size": size} | keys


def shared(size: str = "256KiB", **keys: Any) -> Document:
    return {"name": "vram", "backing": "shared", "size": size} | keys


def huge(size: str = "4MiB", **keys: Any) -> Document:
    return {"name": "huge", "backing": "hugetlbfs", "size": size} | keys


def scenario(directory: Path, *blocks: Document, **sections: Any) -> Path:
    """A small scenario as a file; JSON is YAML."""
    made = {"kind": "uniform", "accesses": 2000, "write_share": 0.4}
    data = {"blocks": blocks, "guest": {"vcpus": 2, "trace": {"synthetic": made}}} | sections
    path = directory / "scenario.yaml"
    path.write_text(json.dumps(data))
    return path


def guest(**keys: Any) -> Document:
    """The section of a small guest."""
    return {"trace": {"synthetic": {"kind": "uniform", "accesses": 2000}}} | keys


def only(code: Code, report: ScenarioReport) -> Document:
    """The reason that is there, and no other."""
    assert codes(report) == {code}, reasons(report)
    return the(code, report)


def ran(path: Path) -> str:
    """The status of a run, or why there was none."""
    try:
        run = Migration(load(path)).run()
    except VmemuError as error:
        return f"{type(error).__name__}: {error}"
    return run.status


def outcome(path: Path) -> Document:
    """What is judged, and what comes of a run."""
    return judge(path).document() | {"ran": ran(path)}


def elsewhere(
    path: Path, *before: str, first: str = "", environment: Sequence[tuple[str, str]] = ()
) -> Document:
    """``outcome`` in another process: ``before`` are commands that start it, such as setpriv;
    ``first`` is Python that it runs before."""
    code = f"import sys, json\n{first}\nfrom checking import outcome\n"
    code += "print(json.dumps(outcome(sys.argv[1])))"
    variables = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*before, sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd="/",
        env=variables | dict(environment),
    )
    assert done.returncode == 0, done.stderr
    document: Document = json.loads(done.stdout.splitlines()[-1])
    return document


def reasons(report: ScenarioReport | Document) -> list[Document]:
    """Those of the migration and of its blocks."""
    document = report if isinstance(report, dict) else report.document()
    return [*document["reasons"], *(r for b in document["blocks"] for r in b["reasons"])]


def codes(report: ScenarioReport | Document) -> set[str]:
    return {reason["code"] for reason in reasons(report)}


def the(code: str, report: ScenarioReport | Document) -> Document:
    """The first reason with that code."""
    found = [reason for reason in reasons(report) if reason["code"] == code]
    assert found, reasons(report)
    return found[0]


SUDO = 'sudo() { "$@"; }; '
"""In its place where tests, which are root's, run what ordinary users are told."""


def command(remedy: str) -> None:
    """Do what it says, as a person would in a shell."""
    done = subprocess.run(["sh", "-c", SUDO + remedy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (remedy, done.stderr)


def check_refused(path: Path, code: str, *words: str) -> Document:
    """It is incompatible because of ``code``, with ``words`` in its message, and does not run."""
    found = outcome(path)
    reason = the(code, found)
    assert found["verdict"] == reason["verdict"] == "incompatible"
    assert found["ran"] != "completed"
    for word in words:
        assert word in reason["message"]
    return reason


def check_runs(path: Path, verdict: str = "ok") -> Document:
    """It has that verdict, and a run completes."""
    found = outcome(path)
    assert (found["verdict"], found["ran"]) == (verdict, "completed"), (
        found["ran"],
        reasons(found),
    )
    return found
