"""Where the C core was not built all imports work, and a call says plainly what is missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs/quickstart.yaml"
HIDE = """
import sys
sys.modules["vmemu._core._vmemu"] = None  # import then raises ImportError
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDE + code], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "module",
    ["vmemu", "vmemu.cli", "vmemu.migration", "vmemu.config", "vmemu.plan", "vmemu.source_loader"],
)
def test_the_package_imports_without_its_core(module):
    done = run(f"import {module}")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "call",
    [
        "from vmemu.userfault import Userfaultfd; Userfaultfd()",
        "from vmemu import core; core.lib.vm_uffd_open",
        "from vmemu import core; core.ffi.new('int *')",
        "from vmemu.ramblock import *; RAMBlock('a', Backing.ANONYMOUS, 4096, 4096).map()",
    ],
)
def test_a_call_says_that_the_core_is_missing(call):
    done = run(
        "from vmemu.errors import HostError\n"
        f"try:\n    {call}\nexcept HostError as error:\n    print(error)\n"
    )
    assert done.stderr == ""
    assert "vmemu needs Linux and its C core, which does not load here" in done.stdout


def test_a_clone_that_hides_what_is_installed_is_named_with_what_to_do(tmp_path):
    shutil.copytree(ROOT / "vmemu", tmp_path / "vmemu", ignore=shutil.ignore_patterns("_vmemu*"))
    code = "from vmemu import core; core.lib.vm_uffd_open"
    command = [sys.executable, "-S", "-c", HIDE + code]  # -S: an editable install comes first
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "pip install" not in done.stderr
    (tmp_path / "pyproject.toml").touch()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"`pip install -e {tmp_path}`, or go to another directory" in done.stderr


def test_a_run_ends_as_this_host_cannot():
    done = run(
        f"from vmemu.cli import main\nsys.argv = ['vmemu', 'run', {str(QUICKSTART)!r}]\nmain()\n"
    )
    assert done.returncode == 3
    assert "its C core" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_does_not_need_the_core():
    done = run("from vmemu.cli import main\nsys.argv = ['vmemu', '--help']\nmain()\n")
    assert done.returncode == 0
    assert "run" in done.stdout
