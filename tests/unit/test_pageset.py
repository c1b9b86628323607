"""Sets of pages against Python's own sets, and the limit that bounds their memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu.errors import TraceError
from vmemu.traces.pageset import PageSet
from vmemu.traces.reader import LOAD, MODIFY, STORE

PAGE = 4096


def columns(accesses: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Addresses, sizes, kinds."""
    return (
        np.array([access[0] for access in accesses], np.uint64),
        np.array([access[1] for access in accesses], np.uint16),
        np.array([access[2] for access in accesses], np.uint8),
    )


def addresses() -> st.SearchStrategy[int]:
    near = st.integers(0, 200 * PAGE)
    return st.one_of(near, near.map(lambda a: a + (1 << 47)), st.integers(0, (1 << 64) - PAGE))


def access_lists() -> st.SearchStrategy[list[tuple[int, int, int]]]:
    return st.lists(st.tuples(addresses(), st.integers(1, PAGE), st.integers(0, 3)), max_size=80)


def pages_of(accesses: list[tuple[int, int, int]]) -> set[int]:
    return {a >> 12 for a, _, _ in accesses} | {a + size - 1 >> 12 for a, size, _ in accesses}


@given(access_lists(), st.integers(1, 50))
def test_dictionary_and_places(accesses: list[tuple[int, int, int]], cut: int) -> None:
    pages = PageSet()
    for start in range(0, len(accesses), cut):
        pages.add(*columns(accesses[start : start + cut])[:2], both=True)
    pages.sort()
    expected = sorted(pages_of(accesses))
    assert [page for piece in pages.pages() for page in piece.tolist()] == expected
    pages.rank()
    places = [expected.index(a >> 12) << 12 | a & 0xFFF for a, _, _ in accesses]
    for dtype in ("<u4", "<u8"):
        assert pages.where(columns(accesses)[0], np.dtype(dtype)).tolist() == places


@given(access_lists(), addresses(), addresses())
def test_counts_of_a_range(accesses: list[tuple[int, int, int]], one: int, other: int) -> None:
    pages = PageSet()
    pages.add(*columns(accesses))
    pages.sort()
    first, last = sorted((one >> 12, other >> 12))
    for low, high in ((first, last), (0, (1 << 52) - 1)):
        touched = sorted({a >> 12 for a, _, _ in accesses if low <= a >> 12 <= high})
        written = {a >> 12 for a, _, kind in accesses if kind in (STORE, MODIFY)} & set(touched)
        counts = pages.count(low, high)
        assert counts[:3] == (len(touched), len(written), len({page >> 9 for page in touched}))
        if touched:
            assert counts[3:] == (touched[0], touched[-1])


def test_many_pages_come_in_pieces() -> None:
    rng = np.random.default_rng(3)
    numbers = rng.integers(0, 1 << 22, 1_000_000, dtype=np.uint64)
    pages = PageSet()
    pages.add(numbers << np.uint64(12), np.ones(len(numbers), np.uint16))
    pages.sort()
    pieces = list(pages.pages())
    assert len(pieces) > 1
    assert np.concatenate(pieces).tolist() == np.unique(numbers).tolist()


def test_a_page_that_is_not_there() -> None:
    pages = PageSet()
    pages.add(*columns([(PAGE, 1, LOAD)])[:2])
    pages.sort()
    pages.rank()
    for address in (0, 2 * PAGE, 1 << 40):
        with pytest.raises(ValueError, match="not in the set"):
            pages.where(np.array([address], np.uint64), np.dtype("<u4"))


def test_the_limit_is_told_with_the_address() -> None:
    pages = PageSet(groups=100)
    spread = np.arange(200, dtype=np.uint64) << np.uint64(18)
    sizes = np.ones(200, np.uint16)
    pages.add(spread[:100], sizes[:100])
    pages.add(spread[:100], sizes[:100])
    with pytest.raises(TraceError, match=r"more than 100 different pieces .* at 0x1900000"):
        pages.add(spread, sizes)
