"""The bar of a conversion: on a terminal only, and never where output is read by a program."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

GPA = Path(__file__).parents[1] / "data/gpa-boot-excerpt.bin.zst"


def on_a_terminal(*arguments: str | Path) -> tuple[str, str]:
    """Standard output, which is a pipe, and what the terminal got as standard error."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.run(
            [sys.executable, "-m", "vmemu", "trace", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            check=True,
            timeout=60,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
        )
        os.write(theirs, b"\0")
        shown = b""
        while not shown.endswith(b"\0"):
            shown += os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    return process.stdout, shown[:-1].decode()


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    out, shown = on_a_terminal("convert", GPA, tmp_path / "t.vmtrace.zst")
    assert out == f"{tmp_path}/t.vmtrace.zst: 29,801 accesses, 8,435 pages, 2 streams\n"
    assert "reading" in shown


@pytest.mark.parametrize("verb", ["convert", "info"])
def test_quiet(verb: str, tmp_path: Path) -> None:
    arguments = [GPA, tmp_path / "t.vmtrace"] if verb == "convert" else [GPA]
    out, shown = on_a_terminal(verb, "--quiet", *arguments)
    note = "note: 199 accesses left out: to devices, which are no RAM\r\n"
    assert shown == ("" if verb == "convert" else note)
    assert (out == "") == (verb == "convert")
