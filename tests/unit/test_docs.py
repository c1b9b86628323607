"""The documentation names what there is: files, formats, keys, places in other pages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmemu.traces.figures.missing import MEANING
from vmemu.traces.recordings import known_readers

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def first_cells(page: Path) -> set[str]:
    """Every word in backquotes in the first cell of a table's row."""
    rows = re.findall(r"^\| ([^|]*)\|", page.read_text(), re.MULTILINE)
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def files_named(page: Path) -> set[str]:
    """Files of code, without their folders."""
    return {Path(name).name for name in re.findall(r"[\w/]+\.(?:py|c|h)\b", page.read_text())}


def with_source(header: str) -> str:
    """A header is named with the source of its name, if there is one."""
    return re.sub(r"\.h$", ".c", header)


def sources() -> Iterator[Path]:
    for file in sorted((ROOT / "vmemu").rglob("*")):
        if file.suffix in (".py", ".c", ".h") and file.name != "__init__.py":
            yield file.relative_to(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(prose(page)):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_the_design_names_every_file_and_no_other() -> None:
    there = {file.name for file in sources()}
    named = files_named(ROOT / "docs/design.md")
    assert {name for name in there if with_source(name) not in there - {name}} <= named
    for page in (ROOT / "docs/design.md", *(ROOT / "docs/design").glob("*.md")):
        assert files_named(page) <= there | {"Python.h"}, page


def test_every_format_has_its_row() -> None:
    assert {reader.format for reader in known_readers()} <= first_cells(ROOT / "docs/formats.md")


def test_every_key_of_what_is_missing_has_its_row() -> None:
    assert set(MEANING) <= first_cells(ROOT / "docs/traces.md")


def test_every_scenario_is_in_the_table() -> None:
    there = {file.name for file in (ROOT / "configs").glob("*.yaml")}
    cells = first_cells(ROOT / "README.md")
    assert there == {cell for cell in cells if cell.endswith(".yaml")}


def test_examples_of_verbs_have_only_options_that_there_are() -> None:
    """An option that was renamed is found in what the pages show of it."""
    shown = "\n".join(page.read_text() for page in PAGES)
    for verb in (
        "run",
        "doctor",
        "stress",
        "check",
        "compare",
        "trace convert",
        "trace info",
        "trace map",
        "trace record",
    ):
        help_text = subprocess.run(
            [sys.executable, "-m", "vmemu", *verb.split(), "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for line in re.findall(rf"^vmemu {verb} (.*)$", shown, re.MULTILINE):
            own = line.split(" -- ")[0].split("#")[0]
            for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", own):
                assert option in help_text, f"vmemu {verb} {line}"
