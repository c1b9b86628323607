"""``vmemu check`` as a command: what it takes, shows, writes and ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from vmemu.cli.check import check
from vmemu.doctor.survey import survey
from vmemu.errors import InputError

SMALL = """\
blocks: [{name: pc.ram, backing: anonymous, size: 64KiB}]
guest: {trace: {synthetic: {kind: uniform, accesses: 10}}}
"""
MISALIGNED = SMALL.replace("64KiB", "65KiB")
TWO_KINDS = SMALL.replace("}]", "}, {name: vram, backing: shared, size: 64KiB, path: /dev/shm/x}]")
WRONG = SMALL.replace("anonymous", "flash")


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenarios by their verdicts, checked between two hosts on which nothing is tried."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"ok": SMALL, "bad": MISALIGNED, "wrong": WRONG}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    host = survey(version=False).model_dump(by_alias=True)
    host["userfault"]["how"] = "syscall"
    memory = host["memory"]
    memory |= dict.fromkeys(("total", "available", "room"), 8 << 30)
    host["proofs"] = [
        {"backing": backing, "page_size": 4096, "fault": "missing", "works": True}
        for backing in ("anonymous", "shared")
    ]
    (tmp_path / "host.json").write_text(json.dumps(host))


def checked(*words: str, hosts: bool = True) -> Result:
    between = ["--source", "host.json", "--destination", "host.json"] if hosts else []
    return CliRunner().invoke(
        check, [*between, *words], catch_exceptions=False, standalone_mode=False
    )


def code(result: Result) -> Any:
    return result.return_value


def test_all_that_will_migrate_ends_with_0() -> None:
    result = checked("ok.yaml")
    assert code(result) == 0, result.output
    assert result.stdout.splitlines() == [
        "ok.yaml: ok",
        "  block   backing    page size   size  verdict",
        "  pc.ram  anonymous       4KiB  64KiB  ok",
        "",
        "1 scenario: 1 ok",
    ]


def test_what_is_incompatible_ends_with_1_and_says_why() -> None:
    result = checked("ok.yaml", "bad.yaml")
    assert code(result) == 1
    assert "bad.yaml:1:51: blocks[0].size: 65KiB is no multiple of its page size" in result.stdout
    assert "  use 64KiB or 68KiB\n" in result.stdout
    assert result.stdout.endswith("\n2 scenarios: 1 ok, 1 incompatible\n")


def test_what_is_no_scenario_ends_with_2_and_hides_no_other() -> None:
    result = checked(".")
    assert code(result) == 2
    assert result.stderr.startswith("wrong.yaml:1:34: blocks[0].backing: 'flash' is not known here")
    assert "ok.yaml: ok" in result.stdout
    assert "bad.yaml: incompatible" in result.stdout
    assert result.stdout.endswith("3 scenarios: 1 ok, 1 incompatible, 1 can't be read as one\n")


def test_a_value_in_the_place_of_the_scenarios() -> None:
    assert code(checked("bad.yaml", "--set", "blocks[0].size=128KiB")) == 0
    wrong = checked("ok.yaml", "bad.yaml", "--set", "blocks[0].size")
    assert code(wrong) == 2
    assert wrong.stderr.count("is no path=value") == 1  # whatever the number of files


def change_host(**parts: dict[str, Any]) -> None:
    host = json.loads(Path("host.json").read_text())
    for name, values in parts.items():
        host[name] |= values
    Path("host.json").write_text(json.dumps(host))


def test_degraded_fails_under_strict_alone() -> None:
    change_host(userfault={"how": "user_mode_only"})
    result = checked("ok.yaml")
    assert (code(result), "1 degraded" in result.stdout) == (0, True), result.output
    assert code(checked("ok.yaml", "--strict")) == 1


def test_unknown_is_no_yes() -> None:
    """Pages of zeros may take memory and may not."""
    change_host(memory={"room": 128 << 20, "available": 128 << 20})
    zeros = ["--set", "blocks[0].size=1GiB", "--set", "blocks[0].content.zero_share=1.0"]
    result = checked("ok.yaml", *zeros)
    assert (code(result), "1 unknown" in result.stdout) == (1, True), result.output


def test_verdicts_for_programs() -> None:
    result = checked("ok.yaml", "bad.yaml", "wrong.yaml", "--json", "-")
    document = json.loads(result.stdout)
    assert document["schema"] == "vmemu-check/1"
    assert [(one["path"], one["verdict"]) for one in document["scenarios"]] == [
        ("ok.yaml", "ok"),
        ("bad.yaml", "incompatible"),
    ]
    (block,) = document["scenarios"][1]["blocks"]
    assert (block["name"], block["backing"]) == ("pc.ram", "anonymous")
    assert (block["page_size"], block["size"]) == (4096, 65 << 10)
    (reason,) = block["reasons"]
    assert reason["code"] == "misaligned"
    assert reason["remedy"] == "use 64KiB or 68KiB"
    (refused,) = document["refused"]
    assert refused["path"] == "wrong.yaml"
    assert refused["problems"][0] | {"what": ""} == {
        "file": "wrong.yaml",
        "line": 1,
        "column": 34,
        "field": "blocks[0].backing",
        "what": "",
        "remedy": "use one of anonymous, hugetlbfs, shared",
    }
    assert "3 scenarios:" in result.stderr


def test_verdicts_for_ci() -> None:
    checked(".", "--junit", "junit.xml")
    root = ElementTree.parse("junit.xml").getroot()
    assert dict(root.attrib) == {
        "name": "vmemu check",
        "tests": "5",
        "failures": "1",
        "errors": "1",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none*.yaml"], r"none\*.yaml: no file matches"),
        (["ok.yaml", "--json", "ok.yaml"], "ok.yaml: is read by this command"),
        (["ok.yaml", "--junit", "host.json"], "host.json: is read by this command"),
        (["ok.yaml", "--junit", "no/x.xml"], "no/x.xml: can't be written"),
        (["ok.yaml", "--json", "-", "--junit", "-"], "--json and --junit can't both be there"),
        (["ok.yaml", "--source", "gone.json"], "gone.json: No such file or directory"),
        (["ok.yaml", "--source", "ok.yaml"], "ok.yaml: not JSON"),
    ],
)
def test_what_is_wrong_with_the_command_itself_is_found_before_the_work(
    words: list[str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        checked(*words)


def test_a_file_that_is_not_there_is_no_scenario() -> None:
    result = checked("gone.yaml")
    assert code(result) == 2
    assert "gone.yaml: " in result.stderr


def modules_after(*words: str) -> set[str]:
    """What the whole command imports."""
    program = (
        "import sys\n"
        f"sys.argv = ['vmemu', *{words!r}]\n"
        "from vmemu.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


HEAVY = {
    "numpy",
    "rich",
    "email",
    "hashlib",
    "importlib.metadata",
    "multiprocessing",
    "subprocess",
    "tarfile",
}


def test_what_takes_long_to_come_up_stays_out_of_a_check() -> None:
    """The budget, 150 ms over a bare interpreter, is kept by what is not imported."""
    found = modules_after("check", "ok.yaml")
    assert "vmemu.check.judge" in found
    assert not found & HEAVY


def test_help_imports_no_verb() -> None:
    found = modules_after("--help")
    assert not found & (HEAVY | {"yaml", "vmemu.config", "vmemu.core"})
