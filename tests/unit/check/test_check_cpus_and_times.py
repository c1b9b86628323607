"""Rules on CPUs, on limits in time, and on settings that do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checking import Judging, guest, only, ram, reasons, scenario
from recorded_hosts import GIB, host, memory

from vmemu.check.codes import Code
from vmemu.check.judge import judge
from vmemu.check.verdict import ScenarioReport
from vmemu.host.document import Cpus

pytestmark = pytest.mark.usefixtures("somewhere_else")


@pytest.mark.parametrize(
    ("size", "sections", "remedy"),
    [
        ("1MiB", {"limits": {"stall": "1s"}}, "limits: {stall: 2s}"),
        ("1MiB", {"source": {"startup_timeout": "1ms"}}, "source: {startup_timeout: 2s}"),
        ("8176MiB", {}, "source: {startup_timeout: 34s}"),
    ],
)
def test_short_limits_in_time_are_unknown(
    tmp_path: Path, size: str, sections: dict[str, Any], remedy: str
) -> None:
    there = host(memory=memory(64 * GIB))

    def judged(sections: dict[str, Any]) -> ScenarioReport:
        path = scenario(tmp_path, ram(size), **sections)
        return judge(path, source=there, destination=there)

    found = only(Code.TIME_LIMIT, judged(sections))
    assert (found["verdict"], found["remedy"]) == ("unknown", remedy)
    longer = {"limits": {"stall": "2s"}, "source": {"startup_timeout": "34s"}}
    assert judged(longer).verdict == "ok"


NAMED = {"vcpus": "0-1", "urgent": "2-3", "push": 9}


@pytest.mark.parametrize(
    ("leaving", "arriving", "migration", "fields"),
    [
        ((0, 1, 2, 3, 9), (0, 1), {}, []),
        ((0, 1), (0, 1), {}, ["urgent", "push"]),
        ((2, 3, 9), (0, 1), {}, []),
        ((2, 3, 9), (0, 1), {"flip_at": "50%"}, ["vcpus"]),
        ((0, 1, 2, 3), (2, 3), {}, ["push", "vcpus"]),
    ],
)
def test_named_cpus_are_those_of_the_end_that_uses_them(
    judged: Judging,
    leaving: tuple[int, ...],
    arriving: tuple[int, ...],
    migration: dict[str, Any],
    fields: list[str],
) -> None:
    source, destination = (host(cpus=Cpus(online=10, allowed=a)) for a in (leaving, arriving))
    report = judged(ram(), source=source, on=destination, placement=NAMED, migration=migration)
    found = [reason for reason in reasons(report) if reason["code"] == Code.CPUS]
    assert {reason["place"].rpartition(".")[2] for reason in found} == set(fields)
    assert report.verdict == ("incompatible" if fields else "ok")


def test_named_cpus_within_one_host_are_all_its_own(judged: Judging) -> None:
    found = only(Code.CPUS, judged(ram(), placement={"listen": 1, "push": "1-2"}))
    assert "CPU 2 is not among those that vmemu on" in found["message"]
    assert found["message"].endswith("may use (0-1)")


def test_spread_over_too_few_cpus_is_degraded(judged: Judging) -> None:
    found = only(Code.CPUS, judged(ram(), placement="spread", guest=guest(vcpus=3)))
    assert (found["verdict"], found["remedy"]) == ("degraded", "placement: auto")
    assert "spread has 2 CPUs for 3 vCPUs" in found["message"]
    assert judged(ram(), placement="colocate", guest=guest(vcpus=3)).verdict == "ok"


def test_a_setting_without_effect_is_degraded(judged: Judging) -> None:
    postcopy = {"push": False, "push_order": "recorded"}
    found = only(Code.NO_EFFECT, judged(ram(), migration={"postcopy": postcopy}))
    assert (found["verdict"], found["remedy"]) == ("degraded", "push: true")
    assert "push_order does nothing: nothing is pushed" in found["message"]
