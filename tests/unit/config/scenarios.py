"""Scenarios to change, and what is found wrong with a changed one."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings

from vmemu import config
from vmemu.errors import ConfigError, Problem

# The machine may be busy: no example is judged by its time.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


SMALL = """\
blocks:
  - name: pc.ram
    backing: anonymous
    size: 1MiB
guest:
  trace: {synthetic: {kind: permutation}}
"""

BLOCK_LINE = "    size: 1MiB\n"
TRACE_LINE = "  trace: {synthetic: {kind: permutation}}\n"
"""Lines of SMALL that tests replace."""
FULL = """\
name: everything
seed: 18446744073709551615
blocks:
  - name: pc.ram
    backing: anonymous
    size: 128MiB
    page_size: 4KiB
    content: {kind: file, path: dump.raw}
  - {name: huge0, backing: hugetlbfs, size: 64MiB, page_size: 2MiB, path: /dev/hugepages/huge0}
  - {name: pc.bios, backing: shared, size: 262144, content: {kind: seeded, zero_share: 25%}}
guest:
  vcpus: 256
  trace:
    file: boot.vmtrace
    map:
      kind: regions
      regions: ["0x0-128MiB=pc.ram", "0x107fc0000-0x108000000=pc.bios+0"]
      outside: drop
    window: {start: 12.5%, stop: 1594333}
source: {startup_timeout: 1min}
channel: {kind: pipe}
migration: {postcopy: {preempt: false, push: false}}
verify: {reads: false, final: true}
on_unavailable: {wait: 1.5s}
limits: {stall: 250ms}
"""


def write(directory: Path, text: str) -> Path:
    file = directory / "s.yaml"
    file.write_text(text)
    return file


def found(file: Path, *overrides: tuple[str, str], seed: int | None = None) -> list[Problem]:
    """The problems of a scenario, none if it is right; each must be fit to be read."""
    problems: list[Problem] = []
    try:
        config.load(file, overrides, seed)
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        assert problem.what
        assert problem.remedy
        assert "\n" not in str(problem)
        assert "Input should" not in str(problem)
    return problems


def problems(file: Path, *overrides: tuple[str, str], seed: int | None = None) -> list[Problem]:
    """The problems of a scenario that has some."""
    some = found(file, *overrides, seed=seed)
    assert some
    return some
