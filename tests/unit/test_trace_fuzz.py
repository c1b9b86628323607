"""Whatever is given to ``vmemu trace``: figures or one clear message, never anything else.

Inputs are bytes at random and real recordings of every format, mutated. They are given to a process
of its own whose address space is limited, so that an input that asks for all memory shows.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trace_native import mutated

from vmemu.cli.trace import trace as trace_command
from vmemu.traces.opening import open_stream

DATA = Path(__file__).parent.parent / "data"
RECORDINGS = sorted(path for path in DATA.iterdir() if path.suffix not in (".json", ".md"))
HEAD = 40_000

ADDRESS_SPACE = 2 << 30
"""Bytes; numpy and pyarrow reserve hundreds of MiB of it without using them."""


def beginning(path: Path) -> bytes:
    """The first bytes of a recording, not compressed."""
    with open_stream(path) as stream:
        return stream.read(HEAD)


BEGINNINGS = {path.name: beginning(path) for path in RECORDINGS}
PACKED = {path.name: path.read_bytes()[:HEAD] for path in RECORDINGS}


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """Bytes at random, or a real recording with some damage, packed or not."""
    kind = draw(st.sampled_from(["random", "plain", "plain", "packed", "spliced"]))
    if kind == "random":
        return draw(st.binary(max_size=3000))
    name = draw(st.sampled_from(sorted(BEGINNINGS)))
    raw = (PACKED if kind == "packed" else BEGINNINGS)[name]
    for _ in range(draw(st.integers(1, 4))):
        raw = mutated_at(draw, raw)
    if kind == "spliced":
        other = BEGINNINGS[draw(st.sampled_from(sorted(BEGINNINGS)))]
        raw = raw[: draw(st.integers(0, len(raw)))] + other[draw(st.integers(0, len(other))) :]
    return raw


def mutated_at(draw: st.DrawFn, raw: bytes) -> bytes:
    return mutated(_Drawn(draw), raw)  # type: ignore[arg-type]


class _Drawn:
    """What ``mutated`` draws from."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw


def judge(raw: bytes) -> None:
    """``info`` and ``convert`` of an input: both 0, or 2 and one message, and nothing left."""
    with tempfile.TemporaryDirectory() as directory:
        path, out = Path(directory) / "x", Path(directory) / "t.vmtrace"
        path.write_bytes(raw)
        for arguments in (["info", str(path)], ["convert", str(path), str(out)]):
            result = CliRunner().invoke(trace_command, arguments, standalone_mode=False)
            error = result.exception
            code = 0 if error is None else getattr(error, "exit_code", None)
            assert code in (0, 2), (arguments[0], error, raw[:200])
            assert error is None or "\n" not in str(error), str(error)
        left = {file.name for file in Path(directory).iterdir()}
        assert left <= {"x", "t.vmtrace"}, left
        assert out.exists() == (code == 0)


def run(examples: int) -> None:
    """The test itself, in the process with the limit."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    check = settings(max_examples=examples, deadline=None, database=None)(given(inputs())(judge))
    check()


def test_any_input() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_trace_fuzz as t; t.run(400)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
