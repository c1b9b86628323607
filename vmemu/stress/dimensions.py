"""What of a scenario varies, one function a dimension: each gives overrides, or none.

A dimension draws what is likely to fit and proves nothing: ``variations`` does that, and draws
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vmemu._config import dump
from vmemu._config.models import COLLAPSE_REGION
from vmemu.config import (
    Block,
    Phases,
    RecordedPace,
    Scenario,
    SeededContent,
    SyntheticTrace,
)
from vmemu.stress.draw import Draw
from vmemu.stress.kinds import HostKinds
from vmemu.units import MIB, format_duration, format_size

Overrides = Iterator[tuple[str, str]]
"""(path, YAML text), as ``vmemu.config.load`` takes them."""

MOST_VCPUS = 16
MOST_MEMORY = 128 * MIB
"""Bytes to which a block may grow; one that has more already may keep them."""

_MS = 1_000_000


@dataclass(frozen=True)
class Choice:
    """What a dimension sees: the scenario as its user gave it, the host, and the dice."""

    base: Scenario
    kinds: HostKinds
    draw: Draw

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(block.size for block in self.base.blocks)

    def flag(self, path: str, now: bool) -> Overrides:
        """A flag that is thrown like a coin."""
        if self.draw.chance(0.5) != now:
            yield path, "false" if now else "true"

    def sending(self) -> str:
        """A rate at which all memory would take from 0.2 to 2 seconds."""
        rate = self.size * 1000 // self.draw.between(200, 2000)
        return f"{max(rate // MIB, 1)}MiB/s"


# ---- memory ----


def blocks(choice: Choice) -> Overrides:
    """Backing, page size, size, share of zeros, and whether small pages are collapsed; of several
    blocks some at a time."""
    base = choice.base
    shared = {client.block for client in base.clients}
    for index, block in enumerate(base.blocks):
        if choice.draw.chance(max(0.9 / len(base.blocks), 0.4)):
            yield from _block(choice, f"blocks[{index}]", block, block.name in shared)


def _block(choice: Choice, path: str, block: Block, shared: bool) -> Overrides:
    draw = choice.draw
    now = block.backing, block.page_size
    kinds = [kind for kind in choice.kinds.memory if not (shared and kind[0] == "anonymous")]
    backing, page_size = draw.pick(kinds) if kinds and draw.chance(0.6) else now
    changed: dict[str, Any] = {}
    if (backing, page_size) != now:
        changed = {"backing": backing, "page_size": format_size(page_size)}
    size = _size(draw, block.size, page_size)
    if size != block.size:
        changed["size"] = format_size(size)
    if isinstance(block.content, SeededContent) and draw.chance(0.5):
        share = draw.pick([0.0, 1.0, draw.between(1, 99) / 100])
        changed["content"] = {"kind": "seeded", "zero_share": share}
    collapse = _collapse(draw, backing, size)
    if collapse != block.collapse:
        changed["collapse"] = collapse
    if block.path is not None and "backing" in changed:
        # A key can't be taken away by itself, and the file system of the path has other pages.
        whole = dump.plain(block) | changed
        del whole["path"]
        yield path, dump.in_one_line(whole)
        return
    for key, value in changed.items():
        text = dump.in_one_line(value) if isinstance(value, dict) else value
        yield f"{path}.{key}", text


def _collapse(draw: Draw, backing: str, size: int) -> str:
    possible = backing != "hugetlbfs" and size >= COLLAPSE_REGION
    return "on_complete" if possible and draw.chance(0.4) else "never"


def _size(draw: Draw, size: int, page_size: int) -> int:
    """Whole pages: as now, about that, or anything from one page on."""
    pages = -(-size // page_size)
    most = max(pages, min(2 * size, MOST_MEMORY) // page_size)
    match draw.between(0, 2):
        case 0:
            pages = draw.between(max(pages // 2, 1), most)
        case 1:
            pages = draw.magnitude(1, most)
    return pages * page_size


def memory_lock(choice: Choice) -> Overrides:
    """Locked memory; a balloon could give none of it back."""
    base = choice.base
    if base.guest.balloon is None and (base.memory.lock or choice.kinds.lockable != 0):
        yield from choice.flag("memory.lock", base.memory.lock)


def balloon(choice: Choice) -> Overrides:
    """A balloon with half a second of work at most."""
    if not choice.base.memory.lock:
        limit = choice.draw.magnitude(1, max(choice.size // 4096, 1))
        rate = min(limit * choice.draw.between(2, 20), 1_000_000)
        yield "guest.balloon", f"{{rate: {rate}, limit: {min(limit, rate // 2)}}}"


# ---- the guest ----


def vcpus(choice: Choice) -> Overrides:
    """The guest's vCPUs."""
    yield "guest.vcpus", str(choice.draw.between(1, MOST_VCPUS))


def clients(choice: Choice) -> Overrides:
    """The threads of each client."""
    for index in range(len(choice.base.clients)):
        yield f"clients[{index}].vcpus", str(choice.draw.between(1, 4))


def accesses(choice: Choice) -> Overrides:
    """How much a synthetic trace writes, and how many bytes at a time."""
    draw, given = choice.draw, choice.base.guest.trace
    several = isinstance(given, tuple)
    for index, trace in enumerate(given if isinstance(given, tuple) else (given,)):
        if isinstance(trace, SyntheticTrace) and not isinstance(trace.synthetic, Phases):
            path = f"guest.trace[{index}].synthetic" if several else "guest.trace.synthetic"
            yield f"{path}.write_share", str(draw.pick([0.0, 1.0, draw.between(1, 99) / 100]))
            if draw.chance(0.5):
                yield f"{path}.access_size", str(1 << draw.between(0, 9))


def recorded_pace(choice: Choice) -> Overrides:
    """Faster than recorded; a pace of another kind is for ``variations`` to choose, who knows how
    many accesses there are."""
    pace = choice.base.guest.pace
    if isinstance(pace, RecordedPace):
        yield "guest.pace.factor", str(pace.factor * choice.draw.between(1, 8))


# ---- the migration ----


def channel(choice: Choice) -> Overrides:
    """Pages in pipes, or in memory that both sides have mapped."""
    yield "channel.kind", choice.draw.pick(["pipe", "shm"])


def preempt(choice: Choice) -> Overrides:
    """Urgent pages on a channel of their own, or not."""
    yield from choice.flag("migration.postcopy.preempt", choice.base.migration.postcopy.preempt)


def push(choice: Choice) -> Overrides:
    """The push, or demand faults alone."""
    yield from choice.flag("migration.postcopy.push", choice.base.migration.postcopy.push)


def placement(choice: Choice) -> Overrides:
    """Where threads run: most races need them side by side."""
    if isinstance(choice.base.placement, str):
        yield "placement", choice.draw.pick(["auto", "colocate", "spread", "none"])


def release_ram(choice: Choice) -> Overrides:
    """Whether the source frees what it has sent."""
    now = choice.base.migration.postcopy.release_ram
    yield from choice.flag("migration.postcopy.release_ram", now)


def fault_threads(choice: Choice) -> Overrides:
    """Threads that read userfaultfd."""
    yield "migration.postcopy.fault_threads", str(choice.draw.between(1, 4))


def delivery(choice: Choice) -> Overrides:
    """Each vCPU fetches its pages itself, in the place of what goes together with a fault thread
    alone. Every kernel that tells threads of faults (4.14) can do both."""
    if choice.draw.chance(0.5):
        yield "migration.postcopy.delivery", "thread"
        return
    yield "migration.postcopy.delivery", "sigbus"
    for key, value in (
        ("preempt", "true"),
        ("fault_threads", "1"),
        ("fault_around", "0"),
        ("prefetch", "none"),
    ):
        yield f"migration.postcopy.{key}", value


def bandwidth(choice: Choice) -> Overrides:
    """A limit of the push."""
    limited = choice.draw.chance(0.7)
    yield "migration.postcopy.bandwidth", choice.sending() if limited else "unlimited"


def fault_around(choice: Choice) -> Overrides:
    """The window around a page that is asked for."""
    yield "migration.postcopy.fault_around", str(choice.draw.magnitude(2, 256))


def prefetch(choice: Choice) -> Overrides:
    """Pages ahead of vCPUs, or none."""
    now = choice.base.migration.postcopy.prefetch
    yield "migration.postcopy.prefetch", "none" if now == "adaptive" else "adaptive"


def push_order(choice: Choice) -> Overrides:
    """What is pushed first."""
    order = choice.draw.pick(["sequential", "around_faults", "recorded"])
    yield "migration.postcopy.push_order", order


def precopy(choice: Choice) -> Overrides:
    """Rounds, how they end, and how fast they are."""
    draw, path = choice.draw, "migration.precopy"
    yield f"{path}.rounds", str(draw.between(0, 4))
    if draw.chance(0.4):
        yield f"{path}.switch", draw.pick(["at_once", "converged"])
        yield f"{path}.max_downtime", format_duration(draw.magnitude(1, 300) * _MS)
    if draw.chance(0.3):
        yield f"{path}.bandwidth", choice.sending()
    if draw.chance(0.3):
        yield f"{path}.max_time", format_duration(draw.magnitude(1, 500) * _MS)


def dirty_tracking(choice: Choice) -> Overrides:
    """Who notes what is written during pre-copy."""
    yield "migration.precopy.dirty_tracking", choice.draw.pick(choice.kinds.tracking)


def flip_at(choice: Choice) -> Overrides:
    """When the guest moves: at a share of its trace, its very ends too, or after a time."""
    draw = choice.draw
    share = f"{draw.pick([0, 100, draw.between(1, 99)])}%"
    after = format_duration(draw.magnitude(1, 300) * _MS)
    yield "migration.flip_at", draw.pick([share, share, after])


DIMENSIONS: tuple[tuple[Callable[[Choice], Overrides], float], ...] = (
    (blocks, 0.8),
    (memory_lock, 0.2),
    (balloon, 0.2),
    (vcpus, 0.7),
    (clients, 0.5),
    (accesses, 0.3),
    (recorded_pace, 0.5),
    (preempt, 1.0),
    (push, 0.6),
    (release_ram, 0.4),
    (fault_threads, 0.4),
    (bandwidth, 0.2),
    (fault_around, 0.3),
    (prefetch, 0.3),
    (push_order, 0.4),
    (delivery, 0.4),  # behind what it is in the place of
    (precopy, 0.5),
    (dirty_tracking, 0.4),
    (flip_at, 0.5),
    (placement, 0.5),
    (channel, 0.5),
)
"""Each dimension, and in what share of the variations it is drawn."""
