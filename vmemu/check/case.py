"""What the rules look at: a scenario between two hosts; and what they find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmemu import privilege
from vmemu.check.codes import Code
from vmemu.check.verdict import Reason, Verdict
from vmemu.config import Block, Scenario
from vmemu.host.document import HostDocument, Pool
from vmemu.pagefit import HERE, called


@dataclass(frozen=True)
class End:
    """One end of the migration: its host as it was seen, and whether that is this machine now.

    ``scenario`` is as this host reads it, with the page sizes that blocks without one get there.
    """

    role: str
    host: HostDocument
    here: bool
    scenario: Scenario

    @property
    def called(self) -> str:
        """For messages."""
        if self.here:
            return HERE
        return f"the {self.role} {self.host.hostname}".rstrip()

    def as_root(self, command: str) -> str:
        """What is typed to run a command on that host as root; who types it on another host is not
        known here."""
        return privilege.as_root(command) if self.here else command

    def pool(self, page_size: int) -> Pool | None:
        """The pool of hugepages of that size; None where the host knows no such size."""
        return next((pool for pool in self.host.pools if pool.page_size == page_size), None)


class Finding(NamedTuple):
    """A reason, and the number of the block that it is of; None for the migration as a whole."""

    block: int | None
    reason: Reason


class BlockOf(NamedTuple):
    """A block with its number."""

    number: int
    block: Block

    @property
    def pages(self) -> int:
        """Host pages; of a size that does not fit, those that it would need."""
        return -(-self.block.size // self.block.page_size)

    @property
    def hugetlb(self) -> bool:
        """Whether its pages come from a pool of hugepages."""
        return self.block.hugetlb


@dataclass(frozen=True)
class Case:
    """A scenario between a source and a destination; both may be one host (``same_host``).

    ``unfit`` are the numbers of blocks whose page size can't be: nothing more is said of them.
    """

    source: End
    destination: End
    unfit: frozenset[int] = frozenset()

    @property
    def scenario(self) -> Scenario:
        """As the destination reads it."""
        return self.destination.scenario

    @property
    def same_host(self) -> bool:
        """Whether both ends share one memory."""
        return self.source.host is self.destination.host

    @property
    def in_place(self) -> bool:
        """Whether shared memory can be the source's image there, with channel shm."""
        userfault = self.destination.host.userfault
        return "MINOR_SHMEM" in set(userfault.features) - set(userfault.refused)

    @property
    def ends(self) -> tuple[End, ...]:
        """The hosts, the destination first; one if it is the same."""
        return (self.destination,) if self.same_host else (self.destination, self.source)

    @property
    def common_page_sizes(self) -> list[int]:
        """Of hugepages that both ends have, the smallest first."""
        theirs = {pool.page_size for pool in self.source.host.pools}
        return sorted(theirs & {pool.page_size for pool in self.destination.host.pools})

    @property
    def blocks(self) -> list[BlockOf]:
        """The blocks that can be judged."""
        every = enumerate(self.scenario.blocks)
        return [BlockOf(n, block) for n, block in every if n not in self.unfit]

    def of_block(
        self,
        block: int,
        key: str,
        code: Code,
        message: str,
        remedy: str = "",
        *,
        verdict: Verdict = Verdict.INCOMPATIBLE,
    ) -> Finding:
        """A reason of a block, because of a ``key`` of it."""
        field = f"blocks[{block}].{key}"
        return Finding(block, Reason(code, message, remedy, verdict, self.place(field)))

    def of_all(
        self,
        field: str,
        code: Code,
        message: str,
        remedy: str = "",
        *,
        verdict: Verdict = Verdict.INCOMPATIBLE,
    ) -> Finding:
        """A reason of the migration as a whole, because of a field if there is one to blame."""
        place = self.place(field) if field else ""
        return Finding(None, Reason(code, message, remedy, verdict, place))

    def place(self, field: str) -> str:
        """Where that stands in the scenario."""
        return self.scenario.place_of(field)


def names(blocks: list[BlockOf]) -> str:
    """The blocks in words of a message."""
    return called([block.block.name for block in blocks])


def by_page_size(blocks: list[BlockOf]) -> Iterator[tuple[int, list[BlockOf]]]:
    """The blocks of hugetlbfs, those of a page size together."""
    sizes = dict.fromkeys(block.block.page_size for block in blocks if block.hugetlb)
    for size in sizes:
        yield size, [b for b in blocks if b.hugetlb and b.block.page_size == size]
