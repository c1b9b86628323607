"""Figures of a host document that contradict each other: no host has them, so no verdict may rest
on them."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.host.document import HostDocument, Pool


def contradictions(host: HostDocument) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with its value) of each that was written by hand; a doctor's own figures
    are of one moment each, and agree, but for a pool that was resized just then."""
    for number, pool in enumerate(host.pools):
        yield from _of_pool(f"pools[{number}]", pool)
    memory = host.memory
    if memory.available > memory.total:
        yield "memory.available", f"{memory.available} is more than the total of {memory.total}"
    most = memory.total + memory.swap_free
    if memory.room > most:
        yield "memory.room", f"{memory.room} is more than memory and free swap, {most}"
    working = [way.how for way in host.userfault.ways if way.works]
    if host.userfault.how is None and working:
        yield "userfault.how", f"null contradicts userfault.ways, of which {working[0]} works"


def _of_pool(key: str, pool: Pool) -> Iterator[tuple[str, str]]:
    most = pool.total + pool.surplus
    if pool.free > most:
        yield f"{key}.free", f"{pool.free} is more than the {most} pages that the pool has"
    elif pool.reserved > pool.free:
        yield f"{key}.reserved", f"{pool.reserved} is more than the {pool.free} pages that are free"
