"""What ``vmemu check`` reads its scenarios from, and what it shows of the verdicts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu.check import junit, paths, terminal
from vmemu.check.verdict import BlockReport, Reason, ScenarioReport, Verdict
from vmemu.errors import Advice, ConfigError, HostError, InputError, Problem, Setting

SHORT = Reason(
    "pool",
    "the pool of 2MiB pages has 0 pages, and this block needs 32",
    "sysctl vm.nr_hugepages=32",
    place="boot.yaml:4:11",
)
SLOW = Reason("thp", "transparent hugepages are off", "", Verdict.DEGRADED)
UNTOLD = Reason("proof", "nobody tried", "run vmemu doctor as root", Verdict.UNKNOWN)


def block(name: str = "pc.ram", *reasons: Reason) -> BlockReport:
    return BlockReport(name, "hugetlbfs", 2 << 20, 64 << 20, reasons)


def report(*blocks: BlockReport, whole: tuple[Reason, ...] = (), path: str = "boot.yaml"):
    return ScenarioReport(path, blocks, whole)


class TestPaths:
    @pytest.fixture(autouse=True)
    def fleet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in (
            "b.yaml",
            "a.yml",
            "deep/er/c.yaml",
            "notes.txt",
            ".hidden.yaml",
            ".git/d.yaml",
        ):
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        (tmp_path / "empty").mkdir()

    def test_a_directory_is_all_below_it_but_what_is_hidden(self) -> None:
        assert paths.scenarios(["."]) == ["a.yml", "b.yaml", "deep/er/c.yaml"]

    def test_a_pattern_is_expanded_with_directories_between(self) -> None:
        assert paths.scenarios(["**/*.yaml"]) == ["b.yaml", "deep/er/c.yaml"]
        assert paths.scenarios(["?.y*"]) == ["a.yml", "b.yaml"]

    def test_a_file_comes_once_and_where_it_is_named_first(self) -> None:
        assert paths.scenarios(["b.yaml", ".", "./b.yaml"]) == [
            "b.yaml",
            "a.yml",
            "deep/er/c.yaml",
        ]

    def test_a_file_of_several_names_comes_once(self) -> None:
        Path("link.yaml").symlink_to("b.yaml")
        Path("there").symlink_to("deep")
        absolute = str(Path("a.yml").resolve())
        assert paths.scenarios(["link.yaml", "*.yaml", "a.yml", absolute]) == ["link.yaml", "a.yml"]
        assert paths.scenarios(["deep", "there"]) == ["deep/er/c.yaml"]

    def test_relative_paths_in_a_scenario_start_where_a_link_to_it_is(self) -> None:
        Path("deep/b.yaml").symlink_to("../b.yaml")
        assert paths.scenarios(["b.yaml", "deep/b.yaml"]) == ["b.yaml", "deep/b.yaml"]

    def test_a_file_whose_name_is_a_pattern_is_that_file(self) -> None:
        Path("[ab].yaml").touch()
        assert paths.scenarios(["[ab].yaml"]) == ["[ab].yaml"]

    def test_a_file_that_is_not_there_is_for_its_reader_to_refuse(self) -> None:
        assert paths.scenarios(["gone.yaml"]) == ["gone.yaml"]

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("empty", "empty: no scenario is below this directory; name one that has"),
            ("x*.yaml", r"x\*.yaml: no file matches; name a scenario"),
            ("empty/**", r"empty/\*\*: no file matches"),
        ],
    )
    def test_where_there_is_none_says_so(self, path: str, said: str) -> None:
        with pytest.raises(InputError, match=said):
            paths.scenarios([path])

    def test_a_directory_that_may_not_be_read_is_no_empty_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(path: object) -> None:
            raise PermissionError(13, "Permission denied", path)

        monkeypatch.setattr(os, "scandir", refused)
        words = "deep: permission to read the directory is denied; allow it: chmod"
        with pytest.raises(InputError, match=words):
            paths.scenarios(["deep"])
        monkeypatch.setattr(os, "listdir", refused)
        with pytest.raises(InputError, match=words):
            paths.scenarios(["deep/x*.yaml"])


class TestTable:
    def test_a_block_has_its_verdict_why_and_what_mends_it(self) -> None:
        shown = list(terminal.lines(report(block(), block("huge0", SHORT), whole=(SLOW,))))
        assert shown == [
            "boot.yaml: incompatible",
            "  degraded: transparent hugepages are off",
            "  block   backing    page size   size  verdict",
            "  pc.ram  hugetlbfs       2MiB  64MiB  ok",
            "  huge0   hugetlbfs       2MiB  64MiB  incompatible",
            "      incompatible: boot.yaml:4:11: the pool of 2MiB pages has 0 pages, and this block"
            " needs 32",
            "        mend it with: sysctl vm.nr_hugepages=32",
        ]

    @pytest.mark.parametrize(
        "remedy", ["sysctl vm.nr_hugepages=32", Advice("use smaller blocks"), Setting("path: /a")]
    )
    def test_what_mends_it_is_in_the_words_of_a_run_that_refuses(self, remedy: str) -> None:
        shown = list(terminal.lines(report(block("b", Reason("code", "no room", remedy)))))
        assert f"no room; {shown[-1].strip()}" == str(HostError("no room", remedy))

    def test_messages_are_broken_at_100_columns_and_remedies_never(self) -> None:
        long = Reason("code", "word " * 60, "mkdir -p " + "/a" * 80)
        shown = list(terminal.lines(report(block("b", long))))
        told = [line for line in shown if "mend it with" not in line]
        assert max(map(len, told)) <= 100
        assert sum(line.count("word") for line in told) == 60
        assert [line for line in shown if "mend" in line] == [
            f"        mend it with: {long.remedy}"
        ]

    def test_words_fit_a_narrow_terminal_and_commands_are_whole(self) -> None:
        words = Reason("code", "word " * 30, Advice("smaller " * 30 + "blocks"))
        command = Reason("code", "no room", "mkdir -p " + "/a" * 80)
        shown = list(terminal.lines(report(block("b", words, command)), width=60))
        assert shown[-1].endswith("/a" * 80)
        assert max(map(len, shown[:-1])) <= 60
        assert sum(line.count("smaller") for line in shown) == 30

    def test_sizes_that_can_not_be_read_are_question_marks(self) -> None:
        shown = list(terminal.lines(report(BlockReport("b", "", None, None, (UNTOLD,)))))
        assert shown[2].split() == ["b", "?", "?", "?", "unknown"]

    def test_colours_change_nothing_else(self) -> None:
        one = report(block(), block("huge0", SHORT), block("x", SLOW), block("y", UNTOLD))
        coloured = "\n".join(terminal.lines(one, colour=True))
        assert coloured.count("\x1b[0m") == 5
        assert re.sub(r"\x1b\[\d+m", "", coloured) == "\n".join(terminal.lines(one))

    def test_the_summary_counts_each_verdict(self) -> None:
        reports = [report(), report(), report(block("b", SHORT)), report(block("b", SLOW))]
        said = terminal.summary(reports, 1)
        assert said == "5 scenarios: 2 ok, 1 degraded, 1 incompatible, 1 can't be read as one"
        assert terminal.summary(reports[:1], 0) == "1 scenario: 1 ok"


# As in the schema that Jenkins checks with, jenkinsci/xunit-plugin junit-10.xsd: which attributes
# an element must have, which it may have, and which children.
JUNIT: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"time", "disabled", "skipped", "timestamp", "hostname", "id", "package"},
        {"properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name"},
        {"classname", "assertions", "time", "status"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def parsed(text: str) -> ElementTree.Element:
    """The document, which has no element, attribute or count that JUnit has not."""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        needed, allowed, children = JUNIT[element.tag]
        assert needed <= set(element.keys()) <= needed | allowed, element.tag
        assert {child.tag for child in element} <= children
        if element.tag in ("testsuites", "testsuite"):
            for count, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
                assert int(element.attrib[count]) == len(list(element.iter(tag))), count
    return root


def case(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = [one for one in root.iter("testcase") if one.get("name") == name]
    return found


class TestJunit:
    def test_each_block_and_the_whole_is_a_case_of_its_scenario(self) -> None:
        root = parsed(junit.xml([report(block(), block("huge0")), report(block(), path="b.yaml")]))
        assert [(one.get("classname"), one.get("name")) for one in root.iter("testcase")] == [
            ("boot.yaml", "migration"),
            ("boot.yaml", "block pc.ram"),
            ("boot.yaml", "block huge0"),
            ("b.yaml", "migration"),
            ("b.yaml", "block pc.ram"),
        ]
        assert root.attrib["tests"] == "5"
        assert not list(root.iter("failure")) + list(root.iter("error"))

    def test_incompatible_is_a_failure_with_all_reasons_and_remedies(self) -> None:
        root = parsed(junit.xml([report(block("huge0", SLOW, SHORT))]))
        failure = case(root, "block huge0").find("failure")
        assert failure is not None and failure.text is not None
        assert failure.attrib == {"message": SHORT.message, "type": "pool"}
        assert failure.text.splitlines() == [
            "degraded: transparent hugepages are off",
            f"incompatible: boot.yaml:4:11: {SHORT.message}",
            "  mend it with: sysctl vm.nr_hugepages=32",
        ]

    def test_unknown_is_an_error(self) -> None:
        root = parsed(junit.xml([report(whole=(UNTOLD,))], strict=True))
        error = case(root, "migration").find("error")
        assert error is not None and error.get("message") == "nobody tried"

    def test_degraded_passes_unless_strict(self) -> None:
        passed = case(parsed(junit.xml([report(block("b", SLOW))])), "block b")
        assert [child.tag for child in passed] == ["system-out"]
        assert passed[0].text == "degraded: transparent hugepages are off"
        failed = case(parsed(junit.xml([report(block("b", SLOW))], strict=True)), "block b")
        assert [child.tag for child in failed] == ["failure"]

    def test_a_file_that_is_no_scenario_is_an_error_of_its_own(self) -> None:
        wrong = ConfigError([Problem("x.yaml", 3, 5, "seed", "is text", "give a number")])
        root = parsed(junit.xml([report()], [("x.yaml", wrong)]))
        error = case(root, "scenario").find("error")
        assert error is not None and error.text == "x.yaml:3:5: seed: is text; give a number"
        assert root.attrib["errors"] == "1"

    @given(st.text(), st.text())
    def test_any_text_is_held(self, name: str, message: str) -> None:
        root = parsed(junit.xml([report(block(name, Reason("c", message)), path=name)]))
        failure = next(root.iter("failure"))
        held = "".join(one for one in message if one.isprintable())
        assert set(held) <= set(failure.attrib["message"])

    def test_what_xml_can_not_hold_is_escaped(self) -> None:
        root = parsed(junit.xml([report(path="a\x00\x1b\udcff\ufffe.yaml")]))
        assert case(root, "migration").get("classname") == r"a\x00\x1b\udcff\ufffe.yaml"
