"""What the tests of the pytest plugin share: a project that tests with it, in sessions of their
own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SCENARIO = """\
seed: 7
blocks: [{name: ram, backing: anonymous, size: 1MiB}]
guest: {vcpus: 2, trace: {synthetic: {kind: uniform, accesses: 2000, write_share: 0.4}}}
migration: {postcopy: {push: false}}
"""
SLOW = SCENARIO.replace("vcpus: 2", "vcpus: 1, pace: {kind: rate, accesses_per_second: 10}")
PLAIN = ("-p", "no:hypothesispytest")
"""At the end of a session it imports all of hypothesis, which takes longer than the session."""
FLIP = 'inject=["loader.flip@block=ram,offset=4097"]'
READS = "guest.trace.synthetic.write_share=0"


def write(project: pytest.Pytester, name: str, text: str) -> Path:
    file = project.path / name
    file.write_text(text)
    return file


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess(*PLAIN, *arguments)


def output(result: pytest.RunResult) -> str:
    return result.stdout.str()


def section(result: pytest.RunResult, name: str) -> str:
    """What is said of one failed test."""
    return re.split(
        r"^_+ .* _+$|^=+ .* =+$", output(result).partition(f"_ {name} _")[2], flags=re.M
    )[0]


def kept(text: str, name: str) -> Path:
    """The file that a failure names."""
    found = re.search(rf"^{name}:  (.*)$", text, re.MULTILINE)
    assert found is not None, text
    return Path(found[1])
