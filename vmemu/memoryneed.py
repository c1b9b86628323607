"""What a scenario takes of memory, on each side.

The source has its images in ordinary memory, whatever the blocks are made of; only the destination
takes hugepages. With channel shm the image of shared memory is that memory, and counts once. A page
of zeros costs the destination nothing in anonymous memory, where all of them are one, and a page in
shared memory.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vmemu import hugepages
from vmemu.config import Block, ClientConfig, FileContent, Scenario, SyntheticTrace
from vmemu.errors import Advice, HostError, InputError
from vmemu.host import room
from vmemu.host.files import HostFiles
from vmemu.pagefit import HERE, Beside
from vmemu.units import format_size

PROCESS = 16 << 20
"""Bytes of its own that each process takes beside the guest's memory: about what a source has."""
MARK_SHARE = 8
"""Marks of writes are a byte for so many bytes of RAM."""

PLANNED_SHARE = 256
"""A synthetic trace can touch every page, and has a table of them all: 12 bytes each of 4 KiB, and
16 where it lies once the blocks are mapped. It takes a byte for so many bytes of RAM, at least."""

_OWN = 32 << 20
"""Address space of heaps of a run, beyond its program: measured, as is the next."""
_BUFFERS = 176 << 20
"""Address space of what is as large as the blocks, but no larger than this."""

_EXPECTED = 16 << 20
"""What reads must find, kept ready for a guest that touches no more than this."""

_RUN = 256 << 10
"""Bytes that a message may carry, if no page is larger."""

_NO_STACK_LIMIT = 2 << 20
"""A thread's stack where nothing limits it, as glibc has it."""


@dataclass(frozen=True)
class Need:
    """Bytes of ordinary memory, and pages of each pool at the destination.

    ``source`` and ``destination`` are what a run takes for sure; ``together`` is the most that both
    have at one time on one host. ``extra`` is what may come on top, and can't be known before it
    has run: pages of zeros that the guest writes to, marks of what was written, zeros in an image
    that lies in transparent hugepages. ``source_mapped`` and ``destination_mapped`` are bytes of
    address space in the process that has most of it; ``committed`` is what the kernel promises to
    both where it counts that. ``planned`` of the destination's memory is taken before anything is
    mapped: it matters for blocks of zeros alone, which take no other. ``huge_images`` are the bytes
    of ``source`` that are images of hugepages. ``tables`` are mapped beside the blocks: plans,
    marks of writes, and what a process takes for itself.
    """

    source: int
    destination: int
    together: int
    extra: int
    source_mapped: int
    destination_mapped: int
    committed: int
    planned: int
    tables: int = 0
    hugepages: dict[int, int] = field(default_factory=dict)
    huge_images: int = 0

    @property
    def mapped(self) -> int:
        """Address space of the process that has most, beyond its program."""
        return max(self.source_mapped, self.destination_mapped) + self.tables

    def beside_hugepages(self) -> Beside:
        """What a run within one host takes of other memory with its hugepages."""
        size = sum(page_size * pages for page_size, pages in self.hugepages.items())
        if not size:
            return Beside(self.together)
        images = min(self.huge_images, self.together)
        return Beside(self.together - images, images / size)


@dataclass(frozen=True)
class MemoryShortage:
    """Why a run would not get through: figures in words, and what would do; ``never`` if the host
    has not so much memory at all."""

    what: str
    remedy: str
    never: bool = False


def memory_needed(scenario: Scenario, *, in_place: bool | None = None) -> Need:
    """What the scenario takes. Reads no trace, and of files of content only how long they are.
    ``in_place``: whether shared memory can be the source's image; None: as it is on this host.

    Raises InputError for a file that is gone.
    """
    blocks = scenario.blocks
    once = _counted_once(scenario, in_place)
    source = sum(map(_image, blocks)) + PROCESS + sum(_references_at_source(scenario))
    destination = sum(map(_placed, blocks)) + sum(map(_reference, blocks))
    destination += sum(_client(scenario, client) for client in scenario.clients)
    whole = sum(block.size for block in blocks)
    ordinary = sum(block.size for block in blocks if block.backing != "hugetlbfs")
    return Need(
        source=source,
        destination=destination,
        together=_together(scenario, source, destination, once),
        extra=_extra(scenario, once),
        source_mapped=whole,
        destination_mapped=whole + _mapped_images(scenario, once) + _stacks(scenario),
        committed=whole + ordinary,
        planned=whole // PLANNED_SHARE if _any_synthetic(scenario) else 0,
        tables=_tables(scenario),
        hugepages=hugepages.pages_of(blocks),
        huge_images=sum(_image(block) for block in blocks if block.backing == "hugetlbfs"),
    )


def memory_shortage(need: Need) -> MemoryShortage | None:
    """Why this host can't give both sides what they need now; None when it can."""
    machine = room.machine(HostFiles())
    memory = room.memory_room()
    taken = f" (source {_shown(need.source)}, destination {_shown(need.destination)})"
    wants = f"the run needs {_shown(need.together)} of memory on {HERE}{taken}"
    short = too_much(wants, need.together, machine.total, machine.swap_free)
    plans = f"a table of all pages of {_shown(need.source_mapped)} takes {_shown(need.planned)}"
    checks = [
        (wants, need.together, memory),
        (f"{plans} of memory on {HERE}", need.planned, memory),
    ]
    committed, address = room.commit_room(), room.address_room(of_run=True)
    if committed is not None:
        maps = f"the run maps {_shown(need.committed)} on {HERE}"
        checks.append((maps, need.committed, committed))
    if address is not None:
        checks.append((f"{maps_of(need)} on {HERE}", need.mapped, address))
    return short or next(filter(None, (too_little(*check) for check in checks)), None)


def beyond_memory(need: Need) -> bool:
    """Whether there are blocks of more hugepages than memory could ever hold."""
    beside = need.beside_hugepages()
    known = hugepages.page_sizes()
    return any(
        size in known and hugepages.growth(size, pages, beside).never
        for size, pages in need.hugepages.items()
    )


@contextmanager
def planning(scenario: Scenario) -> Iterator[None]:
    """Nothing runs yet inside; what is laid out by the page may be more than there is. Raises
    HostError in the place of MemoryError."""
    try:
        yield
    except MemoryError:
        size = format_size(sum(block.size for block in scenario.blocks))
        what = f"{HERE} has too little memory to plan a run on {size}"
        raise HostError(what, room.LESS) from None


def maps_of(need: Need) -> str:
    """Who meets a limit of address space, which is each process's own."""
    return f"a process of the run maps {_shown(need.mapped)}"


def too_much(wants: str, wanted: int, total: int, swap_free: int) -> MemoryShortage | None:
    """Of who ``wants`` more than a host has at all."""
    if wanted <= total + swap_free:
        return None
    what = f"{wants}, and it has {_shown(total)} in all"
    return MemoryShortage(what, Advice("use smaller blocks"), never=True)


def too_little(wants: str, wanted: int, given: room.Room) -> MemoryShortage | None:
    """Of who ``wants`` more than a host can give now."""
    if wanted <= given.size:
        return None
    limit = f", limited by {given.limited_by}" if given.limited_by else ""
    what = f"{wants}, and {_shown(given.size)} are free{limit}"
    return MemoryShortage(what, given.remedy or room.LESS)


def _shown(size: int) -> str:
    return format_size(size, digits=3)


# ---- what is taken for sure ----


def _filled(block: Block) -> int:
    """Bytes that are no zeros, as far as can be told without reading them."""
    if isinstance(block.content, FileContent):
        status = _status(block.content)
        return min(status.st_size, status.st_blocks * 512)  # what of a file is a hole is zeros
    return int(block.size // block.page_size * (1 - block.content.zero_share)) * block.page_size


def _image(block: Block) -> int:
    """A file is read to its end, holes too."""
    if isinstance(block.content, FileContent):
        return _status(block.content).st_size
    return _filled(block)


def _status(content: FileContent) -> os.stat_result:
    try:
        return os.stat(content.path)
    except OSError as error:  # it was there when the scenario was read
        raise InputError(f"content file {content.path}: {error.strerror}") from None


def _placed(block: Block) -> int:
    if block.backing == "hugetlbfs":
        return 0
    return block.size if _takes_zeros(block) else _filled(block)


def _takes_zeros(block: Block) -> bool:
    """Whether pages of zeros take memory: in a file, and as parts of hugepages."""
    return block.backing == "shared" or block.collapse == "on_complete"


def _reference(block: Block) -> int:
    """Content from a file is kept by whoever compares with it; the seed needs no memory."""
    return _image(block) if isinstance(block.content, FileContent) else 0


def _references_at_source(scenario: Scenario) -> Iterator[int]:
    if not scenario.migration.flip_at.at_once:
        yield from map(_reference, scenario.blocks)


def _client(scenario: Scenario, client: ClientConfig) -> int:
    block = next(block for block in scenario.blocks if block.name == client.block)
    return PROCESS + _reference(block)


def _any_synthetic(scenario: Scenario) -> bool:
    traces = scenario.guest.trace
    every = traces if isinstance(traces, tuple) else (traces,)
    return any(isinstance(trace, SyntheticTrace) for trace in every)


def _together(scenario: Scenario, source: int, destination: int, once: list[Block]) -> int:
    """A source that frees what it has sent gives it to the destination; not what it sent before
    the flip. An image that is the destination's memory is there once."""
    migration = scenario.migration
    if migration.postcopy.release_ram and not migration.precopy.rounds:
        return max(source, destination)
    return source + destination - sum(map(_image, once))


def _counted_once(scenario: Scenario, in_place: bool | None) -> list[Block]:
    """The blocks whose memory is the source's image."""
    shared = [block for block in scenario.blocks if block.backing == "shared"]
    if scenario.channel.kind != "shm" or not shared:
        return []
    if in_place is None:
        from vmemu.images import in_place_works

        in_place = in_place_works()
    return shared if in_place else []


def _mapped_images(scenario: Scenario, once: list[Block]) -> int:
    """Bytes of images that the destination has mapped beside the blocks."""
    if scenario.channel.kind != "shm":
        return 0
    return sum(block.size for block in scenario.blocks) - sum(block.size for block in once)


def _stacks(scenario: Scenario) -> int:
    """Address space of the threads at the destination that run at one time."""
    threads = scenario.guest.vcpus + scenario.migration.postcopy.fault_threads + 1
    threads += any(block.collapse == "on_complete" for block in scenario.blocks)
    size = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return threads * (_NO_STACK_LIMIT if size == resource.RLIM_INFINITY else size)


def _tables(scenario: Scenario) -> int:
    """Marks are of whole blocks, whatever is written to them."""
    sizes = [block.size for block in scenario.blocks]
    verify = scenario.verify
    marks = sum(sizes) // MARK_SHARE if verify.reads or verify.final else 0
    marks += max(sizes) // MARK_SHARE if verify.final else 0
    marks += sum(sizes) // MARK_SHARE if not scenario.migration.flip_at.at_once else 0
    expected = min(sum(sizes), _EXPECTED) if verify.reads else 0
    planned = 2 * (sum(sizes) // PLANNED_SHARE)
    return _OWN + marks + expected + min(sum(sizes), _BUFFERS) + planned + 2 * _staging(scenario)


def _staging(scenario: Scenario) -> int:
    """Where vCPUs that serve themselves read their pages to; zeros of the same size lie beside it,
    which take address space alone."""
    own = scenario.guest.vcpus if scenario.migration.postcopy.delivery == "sigbus" else 0
    return own * max(_RUN, *(block.page_size for block in scenario.blocks))


# ---- what may come on top ----


def _extra(scenario: Scenario, once: list[Block]) -> int:
    verify, blocks = scenario.verify, scenario.blocks
    sizes = [block.size for block in blocks]
    extra = sum(b.size - _filled(b) for b in blocks if not (b.hugetlb or _takes_zeros(b)))
    extra += _staging(scenario)
    at_source = not scenario.migration.flip_at.at_once
    if at_source or _in_huge_images():
        # Of those that count once all is counted at the destination.
        extra += sum(block.size - _image(block) for block in blocks if block not in once)
    if verify.reads or verify.final:
        extra += sum(sizes) // MARK_SHARE
        extra += sum(sizes) // MARK_SHARE if at_source else 0
    if verify.reads:
        extra += min(sum(sizes), _EXPECTED) * (2 if at_source else 1)
    if verify.final:
        extra += max(sizes) // MARK_SHARE  # the marks of one block at a time, put in its order
    return extra


def _in_huge_images() -> bool:
    """Whether zeros between the bytes of an image may be filled by a transparent hugepage."""
    try:
        words = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False
    return "[never]" not in words
