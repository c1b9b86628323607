"""Fixtures of real memory in the process of the test: RAM blocks, an open userfaultfd.

Registered memory must not be touched by Python itself: a thread that waits for a page in numpy,
``memoryview`` or ctypes memory holds the GIL, and if the answer needs the GIL as well nothing ends
that. ``RAMBlock.read`` and ``write`` go through C without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from vmemu.testing.stash import USERFAULTFD_USED

if TYPE_CHECKING:
    from vmemu.manager import MemoryManager
    from vmemu.ramblock import RAMBlock
    from vmemu.userfault import Feature, Userfaultfd


@pytest.fixture
def ram_block(request: pytest.FixtureRequest) -> Iterator[Callable[..., RAMBlock]]:
    """Maps RAM blocks, which are unmapped after the test: ``ram_block("hugetlbfs", "4MiB")``.

    Arguments: ``backing`` (anonymous, shared, hugetlbfs), ``size``, ``page_size`` (by default the
    smallest of the backing), ``path`` of a file on hugetlbfs or a tmpfs, ``name``, and ``wait``,
    how long to wait for hugepages that others have. Where this host can't, the test is skipped
    with the reason; what is no block fails it.
    """
    from vmemu.cleanup import run_all
    from vmemu.testing import where
    from vmemu.testing.failure import fail

    start = request.config.invocation_params.dir
    managers: list[MemoryManager] = []

    def map_one(
        backing: str = "anonymous",
        size: str | int = "1MiB",
        *,
        page_size: str | int | None = None,
        path: str | None = None,
        name: str = "",
        wait: str = "30s",
    ) -> RAMBlock:
        from vmemu.errors import HostError, InputError
        from vmemu.manager import MemoryManager
        from vmemu.units import parse_duration

        __tracebackhide__ = True
        try:
            block = _block(backing, size, page_size, path, name or f"ram{len(managers)}")
            manager = MemoryManager([block], parse_duration(wait) / 1e9)
            manager.map()
        except (ValueError, InputError) as error:
            fail(f"{where.line(start)}ram_block: {error}")
        except HostError as error:
            pytest.skip(str(error))
        managers.append(manager)
        return block

    yield map_one
    run_all(manager.unmap for manager in managers)


@pytest.fixture
def userfaultfd(
    request: pytest.FixtureRequest, ram_block: Callable[..., RAMBlock]
) -> Iterator[Userfaultfd]:
    """An open userfaultfd, with the features of ``@pytest.mark.vmemu_features("MINOR_SHMEM")``.

    Where this host can't, the test is skipped with the reason. It is closed after the test and
    before blocks are unmapped, so that whoever still waits goes on.
    """
    from vmemu.errors import HostError, InputError
    from vmemu.testing.failure import fail
    from vmemu.userfault import Userfaultfd

    request.node.stash[USERFAULTFD_USED] = True
    try:
        wanted = _features(request.node)
    except InputError as error:
        fail(str(error))
    try:
        opened = Userfaultfd(wanted)
    except HostError as error:
        pytest.skip(str(error))
    with opened:
        try:
            opened.require(wanted)
        except HostError as error:
            pytest.skip(str(error))
        yield opened


def _block(
    backing: str, size: str | int, page_size: str | int | None, path: str | None, name: str
) -> RAMBlock:
    from vmemu import hugepages
    from vmemu.ramblock import BASE_PAGE, Backing, RAMBlock
    from vmemu.units import parse_size

    known = [kind.value for kind in Backing]
    if backing not in known:
        raise ValueError(f"backing={backing!r}; known: {', '.join(known)}")
    kind = Backing(backing)
    smallest = BASE_PAGE
    if kind is Backing.HUGETLBFS:
        smallest = min(hugepages.page_sizes(), default=2 << 20)
    page = smallest if page_size is None else parse_size(page_size)
    whole = parse_size(size)
    if page & (page - 1) or page < BASE_PAGE:
        raise ValueError(f"page_size={page_size!r} is no page size; write such as 2MiB")
    if whole <= 0 or whole % page:
        raise ValueError(f"size={size!r} is no whole number of pages of {page} bytes")
    return RAMBlock(name, kind, whole, page, path)


def _features(node: pytest.Item) -> Feature:
    from vmemu.errors import InputError
    from vmemu.userfault import NO_FEATURES, Feature

    wanted = NO_FEATURES
    for mark in node.iter_markers("vmemu_features"):
        for name in mark.args:
            if name not in Feature.__members__:
                known = ", ".join(Feature.__members__)
                raise InputError(f"mark vmemu_features: no feature is called '{name}'; {known}")
            wanted |= Feature[name]
    return wanted
