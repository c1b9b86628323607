"""REAP's trace of a working set: both layouts, and what must not be taken for one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.readers.reap import ReapReader
from vmemu.traces.recordings import open_recording


def addresses(path: Path) -> list[int]:
    found: list[int] = []
    with open_recording(path) as reader:
        for chunk in reader.chunks():
            assert chunk.stream == 0 and chunk.times is None
            assert (chunk.sizes == 1).all() and (chunk.kinds == 0).all()
            found += chunk.addresses.tolist()
    return found


@pytest.mark.parametrize("more", ["", ",0,17"])
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, (1 << 40) - 1), min_size=2, unique=True))
def test_order_and_offsets(more: str, pages: list[int]) -> None:
    pages = [0, *(page for page in pages if page)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace"
        path.write_text("".join(f"{page << 12:x}{more}\n" for page in pages))
        assert addresses(path) == [page << 12 for page in pages]
        found = stats.stats_of(path)
        assert (found.format, found.address_kind) == ("reap", "guest-physical")
        assert {"times", "threads", "sizes", "writes", "repeats"} <= set(found.missing)
        assert (found.pages_4k, found.unknown_lines) == (len(pages), 0)
        convert(path, Path(directory) / "t.vmtrace")
        assert native.open(Path(directory) / "t.vmtrace").accesses == len(pages)


def test_unknown_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    good = "".join(f"{page << 12:x}\n" for page in range(20000))
    path.write_text(good + "1234\n3000,x\n3000,1\n3000,1,2,3\n-1000\n3000 \n")
    found = stats.stats_of(path)
    assert (found.accesses, found.unknown_lines) == (20001, 5)
    assert found.first_unknown == "line 20001: '1234'"


@pytest.mark.parametrize(
    "text",
    [
        "1000\n2000\n3000\n",
        "0\n",
        "0\n1\n2\n",
        "0\n1000,0,1\n",
        "0,0\n1000,0\n",
        "0x0\n0x1000\n",
        "a000 \nb000 \n",
        "A000\nB000\n",
        "00001000\n0000a000\n",
        "offset\n0\n1000\n",
        "\n\n",
    ],
)
def test_no_trace_of_reap(text: str, tmp_path: Path) -> None:
    assert not ReapReader.sniff(text.encode())
    (tmp_path / "x").write_text(text)
    with pytest.raises(TraceError):
        open_recording(tmp_path / "x")


@pytest.mark.parametrize("text", ["0\n1000\n3f000\n", "7f000\n1000\n", "1000\nabc000\n"])
def test_trace_of_reap(text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(text)
    assert addresses(tmp_path / "x") == [int(line, 16) for line in text.split()]
