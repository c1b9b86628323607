"""Collapse against a model written out, and what conversion makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vmemu.cli.trace import trace as trace_command
from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.collapse import Collapse
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.native.trace import Trace
from vmemu.traces.reader import LOAD, MODIFY, STORE, Chunk

DATA = Path(__file__).parent.parent / "data"
CONFIGS = Path(__file__).parents[2] / "configs/traces"
REAL = [
    DATA / "lackey-sort-excerpt.txt.zst",
    DATA / "gpa-boot-excerpt.bin.zst",
    CONFIGS / "sort.vmtrace.zst",
]
PAGE = 4096

Access = tuple[int, int, int]  # address, kind, size


def pages_of(address: int, size: int) -> set[int]:
    return {address >> 12, address + size - 1 >> 12}


def model(accesses: list[Access]) -> list[Access]:
    touched: set[int] = set()
    written: set[int] = set()
    kept = []
    for address, kind, size in accesses:
        pages = pages_of(address, size)
        writes = pages if kind in (STORE, MODIFY) else set()
        if pages - touched or writes - written:
            kept.append((address, kind, size))
        touched |= pages
        written |= writes
    return kept


def chunk_of(stream: int, accesses: list[Access]) -> Chunk:
    return Chunk(
        stream,
        np.array([access[0] for access in accesses], np.uint64),
        np.array([access[1] for access in accesses], np.uint8),
        np.array([access[2] for access in accesses], np.uint16),
        np.arange(len(accesses), dtype=np.uint64),
    )


def access_lists() -> st.SearchStrategy[list[tuple[int, Access]]]:
    near = st.integers(0, 10 * PAGE)
    address = st.one_of(near, near.map(lambda a: a + (1 << 63)))
    access = st.tuples(address, st.integers(0, 3), st.sampled_from([1, 8, 64, 4096]))
    return st.lists(st.tuples(st.sampled_from([0, 5, 1 << 40]), access), max_size=120)


@given(access_lists(), st.integers(1, 60))
def test_keeps_what_the_model_keeps(accesses: list[tuple[int, Access]], cut: int) -> None:
    collapse = Collapse()
    for stream in (0, 5, 1 << 40):
        mine = [access for of, access in accesses if of == stream]
        kept: list[Access] = []
        for start in range(0, len(mine), cut):
            chunk = collapse(chunk_of(stream, mine[start : start + cut]))
            assert chunk.times is not None
            assert len(chunk.times) == len(chunk.addresses)
            columns = (chunk.addresses.tolist(), chunk.kinds.tolist(), chunk.sizes.tolist())
            kept += zip(*columns, strict=True)
        assert kept == model(mine)


def first_touches(trace: Trace) -> dict[int, list[tuple[int, bool]]]:
    """Of each stream, the pages in the order of their first touch, each with whether it is ever
    written."""
    found = {}
    for stream in trace.streams:
        sizes = trace.sizes[stream.what >> 2]
        kinds = stream.what & 3
        first = stream.where >> 12
        over = (stream.where & 0xFFF) + sizes > PAGE
        order = np.stack([first, np.where(over, first + 1, first)], axis=1).ravel()
        touched = list(dict.fromkeys(order.tolist()))
        writes = np.repeat((kinds == STORE) | (kinds == MODIFY), 2)
        written = set(order[writes].tolist())
        found[stream.id] = [(int(trace.pages[page]), page in written) for page in touched]
    return found


@pytest.mark.parametrize("recording", REAL, ids=lambda path: path.name.partition(".")[0])
@pytest.mark.parametrize("fetches", [False, True])
def test_real_recordings_keep_every_first_touch(
    recording: Path, fetches: bool, tmp_path: Path
) -> None:
    whole, less = tmp_path / "whole.vmtrace", tmp_path / "less.vmtrace"
    convert(recording, whole, fetches=fetches)
    meta = convert(recording, less, fetches=fetches, collapse=True)
    one, other = native.open(whole), native.open(less)
    assert first_touches(one) == first_touches(other)
    assert one.pages.tolist() == other.pages.tolist()
    assert other.accesses + meta.counts.dropped["repeats"] == one.accesses
    assert other.accesses < one.accesses / 2
    assert "repeats" in meta.missing


def test_a_native_trace_is_collapsed_too_and_once_is_enough(tmp_path: Path) -> None:
    recording = REAL[0]
    convert(recording, tmp_path / "whole.vmtrace")
    convert(recording, tmp_path / "t.vmtrace", collapse=True)
    convert(tmp_path / "whole.vmtrace", tmp_path / "u.vmtrace", collapse=True)
    convert(tmp_path / "u.vmtrace", tmp_path / "v.vmtrace.zst", collapse=True)
    packed = native.open(tmp_path / "v.vmtrace.zst")
    assert packed.meta == native.open(tmp_path / "t.vmtrace").meta
    assert packed.meta == native.open(tmp_path / "u.vmtrace").meta
    assert packed.meta.source.file == recording.name


def test_nothing_is_claimed_about_reuse_of_what_was_collapsed(tmp_path: Path) -> None:
    convert(REAL[0], tmp_path / "t.vmtrace", collapse=True)
    result = stats.stats_of(tmp_path / "t.vmtrace")
    assert (result.reuse, result.windows) == (None, [])
    assert result.dropped["repeats"] > 0


def test_the_command_says_what_it_dropped(tmp_path: Path) -> None:
    arguments = ["convert", str(REAL[0]), str(tmp_path / "t.vmtrace"), "--collapse"]
    result = CliRunner().invoke(trace_command, arguments)
    assert result.exit_code == 0
    kept = native.open(tmp_path / "t.vmtrace").accesses
    factor = round(11913 / kept)
    assert f"{11913 - kept:,} repeats left out: {factor} times fewer accesses" in result.stdout


def test_the_limit_counts_the_pages_of_each_stream() -> None:
    collapse = Collapse(groups=3)
    spread: list[Access] = [(n << 18, LOAD, 1) for n in range(2)]
    collapse(chunk_of(1, spread))
    with pytest.raises(TraceError, match="more than 3 different pieces"):
        collapse(chunk_of(2, spread))
