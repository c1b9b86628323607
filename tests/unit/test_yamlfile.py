"""YAML with places: what is read, and where each problem is said to stand."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmemu._config import yamlfile
from vmemu.errors import Problem

# The machine may be busy: no example is judged by its time.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(directory: Path, text: str | bytes) -> yamlfile.Document:
    file = directory / "s.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return yamlfile.read(str(file))


def only(document: yamlfile.Document) -> Problem:
    (problem,) = document.problems
    assert problem.what
    assert problem.remedy
    return problem


def test_plain_data_with_places(tmp_path: Path) -> None:
    document = read(
        tmp_path, "a: 1\nb:\n  - x: 0.5\n    y: true\n  - '010'\nc: 0x10\nd: plain text\n"
    )
    assert not document.problems
    assert document.data == {
        "a": 1, "b": [{"x": 0.5, "y": True}, "010"], "c": 16, "d": "plain text",
    }  # fmt: skip
    assert document.place(("b", 0, "y")) == (document.file, 4, 8)
    assert document.place(("b", 0, "y"), key=True) == (document.file, 4, 5)
    assert document.place(("b", 0, "missing")) == (document.file, 3, 5)
    assert document.place(("b", 1)) == (document.file, 5, 5)
    assert document.place(()) == (document.file, 1, 1)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    document = read(tmp_path, b"\xef\xbb\xbfa: 1\n")
    assert document.data == {"a": 1}
    assert document.place(("a",), key=True)[1:] == (1, 1)


TRAPS = [
    ("no", "truth value", "write false, or 'no' in quotes"),
    ("Yes", "truth value", "write true"),
    ("on", "truth value", "write true"),
    ("OFF", "truth value", "write false"),
    ("y", "truth value", "write true"),
    ("n", "truth value", "write false"),
    ("1e3", "a number to some", "write it out: 1000"),
    ("1.5E+2", "a number to some", "write it out: 150"),
    ("1e-3", "a number to some", "in digits"),
    ("1e999", "a number to some", "in digits"),
    ("010", "octal", "write 10 "),
    ("0o10", "octal", "write 10 "),
    ("0b11", "binary", "in decimal"),
    ("1_000", "a number to some", "without '_'"),
    ("1:30", "base 60", "90s"),
    ("1:30:00", "base 60", "90s"),
    ("~", "no value", "leave the key out"),
    ("null", "no value", "leave the key out"),
    ("", "no value", "leave the key out"),
    ("2024-05-01", "a date", "in quotes"),
    ("2024-05-01T10:00:00Z", "a date", "in quotes"),
    (".inf", "no number", "in digits"),
    (".NaN", "no number", "in digits"),
    ("9" * 100, "too long for a number", "in quotes"),
    ("&anchor 5", "anchor &anchor", "remove it"),
    ("*alias", "alias *alias", "write the value out"),
    ("!!str 5", "tag tag:yaml.org,2002:str", "remove it"),
    ("! 5", "tag !", "remove it"),
    ("{<<: {b: 1}}", "merge keys", "write the keys out"),
    ("{[1]: 2}", "not a word", "names"),
    ("{&x k: 2}", "a key with a tag or an anchor", "write the key alone"),
]


@pytest.mark.parametrize(("value", "what", "remedy"), TRAPS)
def test_a_trap_is_a_problem_at_its_place(
    tmp_path: Path, value: str, what: str, remedy: str
) -> None:
    document = read(tmp_path, f"first: 1\nouter:\n  k: {value}\nlast: 2\n")
    problem = only(document)
    assert what in problem.what
    assert remedy in problem.remedy
    assert problem.line == 3
    column = {"": 5, "{": 7}.get(value[:1], 6)
    assert problem.column == column
    assert problem.field.startswith("outer.k")
    assert (document.data["first"], document.data["last"]) == (1, 2)


@pytest.mark.parametrize("value", ["no", "1e3", "010", "1:30", "~", "2024-05-01", "", "0b1"])
def test_quotes_disarm_a_trap(tmp_path: Path, value: str) -> None:
    document = read(tmp_path, f"k: '{value}'\n")
    assert not document.problems
    assert document.data == {"k": value}


@pytest.mark.parametrize(
    "value", ["0x107fc0000-0x108000000=pc.bios+0", "2MiB", "0", "-5", "nobody"]
)
def test_what_is_no_trap(tmp_path: Path, value: str) -> None:
    assert not read(tmp_path, f"k: {value}\n").problems


def test_a_duplicate_key_names_the_first(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb: {c: 2}\na: {deep: [1, {x: no}]}\n")
    problem = only(document)
    assert (problem.line, problem.column, problem.field) == (3, 1, "a")
    assert "given twice, first on line 1" in problem.what
    assert document.data == {"a": 1, "b": {"c": 2}}


WHOLE_FILES: list[tuple[str | bytes, int, int, str]] = [
    ("", 1, 1, "the file is empty"),
    ("# only a comment\n", 1, 1, "the file is empty"),
    ("a: 1\n---\nb: 2\n", 2, 1, "a second document"),
    ("a: 1\nb: \xff\n".encode("latin-1"), 2, 4, "0xff is not UTF-8"),
    ("a:\n\tb: 1\n", 2, 1, "a tab in the indentation"),
    ("a: 1\nb: [1, 2\nc: 3\n", 3, 2, "YAML syntax"),
    ("a: 1\nb: 'open\n", 3, 1, "YAML syntax"),
    ("a: b: c\n", 1, 5, "YAML syntax"),
    ("a: 1\nb: x\x07y\n", 2, 5, "may not stand in YAML"),
    ("a: " + "[" * 100, 1, 36, "nested more than 32 levels"),
]


@pytest.mark.parametrize(("text", "line", "column", "what"), WHOLE_FILES)
def test_a_file_that_is_wrong_as_a_whole(
    tmp_path: Path, text: str | bytes, line: int, column: int, what: str
) -> None:
    problem = only(read(tmp_path, text))
    assert (problem.line, problem.column) == (line, column)
    assert what in problem.what


def test_problems_before_a_syntax_error_are_kept(tmp_path: Path) -> None:
    document = read(tmp_path, "a: no\nb: [\n")
    assert [problem.line for problem in document.problems] == [1, 3]
    assert document.data is yamlfile.UNREADABLE


def test_an_alias_bomb_is_not_expanded(tmp_path: Path) -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 30)]
    document = read(tmp_path, "\n".join(["l0: &l0 [x]", *levels]))
    assert len(document.problems) == 30 + 29 * 9


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    assert "no such file" in only(yamlfile.read(str(tmp_path / "nix"))).what
    assert "directory" in only(yamlfile.read(str(tmp_path))).what
    assert "can't be read" in only(yamlfile.read("a\0b")).what
    (tmp_path / "large").write_bytes(b"#" * (yamlfile.LONGEST_FILE + 1))
    assert "larger than" in only(yamlfile.read(str(tmp_path / "large"))).what


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may read everything, so the refusal is played.
    def refuse(*_: object) -> NoReturn:
        raise PermissionError

    monkeypatch.setattr(yamlfile, "open_input", refuse)
    document = yamlfile.read("closed.yaml")
    monkeypatch.undo()
    assert "permission" in only(document).what


BASE = """\
blocks:
  - {name: pc.ram, size: 1}
  - {name: vga, size: 2}
guest: {vcpus: 1}
word: fail
"""


@pytest.mark.parametrize(
    ("dotted", "text", "path", "value"),
    [
        ("guest.vcpus", "4", ("guest", "vcpus"), 4),
        ("blocks.1.size", "2MiB", ("blocks", 1, "size"), "2MiB"),
        ("blocks[1].size", "8", ("blocks", 1, "size"), 8),
        ("blocks[pc.ram].size", "8", ("blocks", 0, "size"), 8),
        ("blocks[0]", "{name: x}", ("blocks", 0), {"name": "x"}),
        ("guest", "{trace: [1, 2]}", ("guest",), {"trace": [1, 2]}),
        ("limits.stall", "1s", ("limits", "stall"), "1s"),
        ("word", "{wait: 3s}", ("word",), {"wait": "3s"}),
    ],
)
def test_overrides(
    tmp_path: Path, dotted: str, text: str, path: yamlfile.Path, value: object
) -> None:
    document = read(tmp_path, BASE)
    document.override(dotted, text)
    assert not document.problems
    assert yamlfile.value_at(document.data, path) == value
    assert document.place(path) == ("--set", 0, 0)


@pytest.mark.parametrize(
    ("dotted", "text", "what", "remedy"),
    [
        ("", "1", "is no path", "guest.vcpus"),
        ("[0]", "1", "is no path", "guest.vcpus"),
        ("a..b", "1", "is no path", "guest.vcpus"),
        ("a[", "1", "is no path", "guest.vcpus"),
        ("blocks.7.size", "1", "blocks has no entry 7", "it has 2, counted from 0"),
        ("blocks[nix].size", "1", "blocks has no entry nix", "named pc.ram, vga"),
        ("blocks.vga.size", "1", "blocks has no entry vga", "named pc.ram, vga"),
        ("guest[0]", "1", "guest is a mapping", "write guest.0"),
        ("word.wait", "3s", "word is a single value", "--set 'word={wait: ...}'"),
        ("guest.vcpus", "", "no value is given", "after the '='"),
        ("guest.vcpus", "~", "no value is given", "give a value"),
        ("guest.vcpus", "no", "truth value", "write false"),
        ("guest.vcpus", "[1", "YAML syntax", "check"),
        ("guest.vcpus", "x\0", "may not stand in YAML", "remove it"),
        ("guest.vcpus", "\udcff", "may not stand in YAML", "remove it"),
    ],
)
def test_overrides_that_can_not_be_made(
    tmp_path: Path, dotted: str, text: str, what: str, remedy: str
) -> None:
    document = read(tmp_path, BASE)
    document.override(dotted, text)
    problem = only(document)
    assert what in problem.what
    assert remedy in problem.remedy
    assert (problem.file, problem.line) == ("--set", 0)
    assert problem.field == dotted


@relaxed
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode(errors="replace")))
def test_no_bytes_raise_anything(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    document = read(tmp_path_factory.getbasetemp(), raw)
    for problem in document.problems:
        assert problem.what
        assert problem.remedy
        assert "\n" not in str(problem)
    assert document.problems or document.data is not yamlfile.UNREADABLE


@relaxed
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_override_raises_anything(
    tmp_path_factory: pytest.TempPathFactory, dotted: str, text: str
) -> None:
    document = read(tmp_path_factory.getbasetemp(), BASE)
    document.override(dotted, text)
    assert all(problem.remedy and "\n" not in str(problem) for problem in document.problems)
