"""The sections of a scenario as frozen pydantic models; to add a field or a section, start here.

Every field says in its ``description`` what it means and in which unit; sizes are bytes and
durations nanoseconds once they are read.
"""

from __future__ import annotations

import os
import stat
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationInfo, field_validator

from vmemu import hugepages, units
from vmemu._config import wording
from vmemu._config.types import (
    MOST_ACCESSES,
    AbsolutePath,
    Duration,
    ExistingPath,
    Flag,
    FlipAt,
    FlipPoint,
    Name,
    Position,
    Rate,
    RegionText,
    Share,
    Size,
    TracePosition,
    Whole,
    by_kind,
)
from vmemu._config.wording import refuse
from vmemu.units import format_size

LARGEST_BLOCK = 1 << 46
SMALLEST_HUGEPAGE = 64 * units.KIB
LARGEST_HUGEPAGE = 16 * units.GIB
MOST_VCPUS = 256


class Section(BaseModel):
    """A mapping of a scenario: unknown keys are errors, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- RAM blocks ---------------------------------------------------------------------------------


class SeededContent(Section):
    """Bytes made from the seed, the block and the offset."""

    kind: Literal["seeded"] = Field(default="seeded", description="Bytes made from the seed.")
    zero_share: Share = Field(
        default=0.0, description="Share of the pages that are all zeros, 0.0 to 1.0."
    )


class FileContent(Section):
    """Bytes of a file from the start of the block; what is left of the block is zeros."""

    kind: Literal["file"] = Field(description="Bytes of a file.", examples=["file"])
    path: ExistingPath = Field(
        description="The file; a relative path starts at the scenario's directory.",
        examples=["dump.raw"],
    )


Content = Annotated[
    Annotated[SeededContent, Tag("seeded")] | Annotated[FileContent, Tag("file")], by_kind("seeded")
]
Backing = Literal["anonymous", "hugetlbfs", "shared"]


def base_page_size() -> int:
    """The host's base page size, bytes."""
    return os.sysconf("SC_PAGESIZE")


def smallest_hugepage_size() -> int:
    """The smallest hugepage size that the host lists, bytes; 2 MiB if it lists none."""
    return min(hugepages.page_sizes(), default=2 * units.MIB)


def _default_page_size(data: dict[str, Any]) -> int:
    return smallest_hugepage_size() if data.get("backing") == "hugetlbfs" else base_page_size()


class Block(Section):
    """One block of guest RAM (a RAMBlock)."""

    # Each field is checked against those before it, hence the order: backing, page size, size.
    name: Name = Field(
        description="Its name (QEMU's idstr), 1 to 255 bytes, unique in the scenario.",
        examples=["pc.ram"],
    )
    backing: Backing = Field(
        description="What holds it: anonymous memory, hugetlbfs, or shared memory (memfd, tmpfs).",
        examples=["anonymous"],
    )
    page_size: Size = Field(
        default_factory=_default_page_size,
        description="Bytes in a host page, a power of two. By default the base page size, and no"
        " other for anonymous and shared memory; for hugetlbfs (64KiB to 16GiB) the smallest that"
        " the host lists.",
    )
    size: Size = Field(
        description="Its used length in bytes, a multiple of page_size, at most 64TiB.",
        examples=["128MiB"],
    )
    path: AbsolutePath | None = Field(
        default=None,
        description="A file to be made on a mounted hugetlbfs, or for shared memory on a tmpfs such"
        " as /dev/shm, to hold the block; left out: a memfd. Not for anonymous memory.",
    )
    content: Content = Field(
        default=SeededContent(), description="What its bytes are before the guest runs."
    )

    @field_validator("page_size")
    @classmethod
    def _check_page_size(cls, value: int, info: ValidationInfo) -> int:
        backing = info.data.get("backing")
        base = base_page_size()
        if value < 1 or value & (value - 1):
            raise refuse(f"{format_size(value)} is no power of two", _nearest_powers(value, base))
        if backing in ("anonymous", "shared") and value != base:
            raise refuse(
                f"{format_size(value)} pages are impossible for {backing} memory",
                f"leave page_size out ({format_size(base)} here), or use 'backing: hugetlbfs'",
            )
        if backing == "hugetlbfs" and not SMALLEST_HUGEPAGE <= value <= LARGEST_HUGEPAGE:
            raise refuse(
                f"{format_size(value)} is no size of a hugepage",
                "use a size of the host, such as 2MiB or 1GiB",
            )
        return value

    @field_validator("size")
    @classmethod
    def _check_size(cls, value: int, info: ValidationInfo) -> int:
        if value > LARGEST_BLOCK:
            raise refuse(
                f"{format_size(value)} is more than a block can have",
                f"use at most {format_size(LARGEST_BLOCK)}",
            )
        # Where the page size is wrong itself, the size must at least fit the one by default.
        given: int | None = info.data.get("page_size")
        page = given or _default_page_size(info.data)
        if value == 0:
            raise refuse("a block can't be empty", f"use {format_size(max(page, 4096))} or more")
        if value % page:
            low = value - value % page
            fitting = [format_size(size) for size in (low, low + page) if size]
            raise refuse(
                f"{format_size(value)} is no multiple of its page size, {format_size(page)}"
                + ("" if given else " by default"),
                f"use {' or '.join(fitting)}",
            )
        return value

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("backing") == "anonymous":
            raise refuse(
                "anonymous memory has no file",
                "leave path out, or use 'backing: shared' or 'backing: hugetlbfs'",
            )
        return value

    @field_validator("content")
    @classmethod
    def _check_content(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, FileContent):
            _check_content_file(value.path, info.data.get("size"))
        return value


def _nearest_powers(value: int, smallest: int) -> str:
    low = max(smallest, 1 << max(0, value.bit_length() - 1))
    return f"use {format_size(low)} or {format_size(low * 2)}, if the host has it"


def _check_content_file(path: Path, block_size: int | None) -> None:
    shown = units.printable(str(path), 300)
    try:
        status = path.stat()
    except OSError:  # removed since it was looked up
        raise refuse(f"{shown} is gone", "give an existing file", "path") from None
    if not stat.S_ISREG(status.st_mode):
        raise refuse(f"{shown} is no ordinary file", "give a file with the bytes", "path")
    if not os.access(path, os.R_OK):
        raise refuse(f"{shown} may not be read", f"make it readable: chmod u+r {shown}", "path")
    if block_size is not None and status.st_size > block_size:
        raise refuse(
            f"{shown} has {status.st_size} bytes, more than the block's {block_size}",
            "use a larger block, or cut the file",
            "path",
        )


# --- The guest ----------------------------------------------------------------------------------


class CompactMap(Section):
    """Touched pages lie in the blocks one behind the other, in the order of their addresses."""

    kind: Literal["compact"] = Field(default="compact", description="By the order of addresses.")
    block: Name | None = Field(
        default=None,
        description="The one block to fill; left out: all blocks, each full before the next.",
    )


class RegionMap(Section):
    """Ranges of recorded addresses are given to blocks one by one."""

    kind: Literal["regions"] = Field(description="Range by range.", examples=["regions"])
    regions: tuple[RegionText, ...] = Field(
        min_length=1,
        description="START-END=block[+OFFSET]: END exclusive, numbers in decimal, 0x hexadecimal"
        " or with a unit, all multiples of 4 KiB.",
        examples=['["0x0-128MiB=pc.ram"]'],
    )
    outside: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="What to do with accesses outside: refuse the run, or drop and count.",
    )


Map = Annotated[
    Annotated[CompactMap, Tag("compact")] | Annotated[RegionMap, Tag("regions")], by_kind("compact")
]


class Window(Section):
    """The part of a trace that is replayed."""

    start: TracePosition = Field(
        default=Position(accesses=0), description="First access: a number from 0, or a percentage."
    )
    stop: TracePosition = Field(
        default=Position(share=Fraction(1)),
        description="End, exclusive: a number, or a percentage.",
    )

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: Position, info: ValidationInfo) -> Position:
        start = info.data.get("start")
        if start is not None and (
            (
                start.accesses is not None
                and value.accesses is not None
                and start.accesses >= value.accesses
            )
            or (start.share is not None and value.share is not None and start.share >= value.share)
            or value in (Position(accesses=0), Position(share=Fraction(0)))
        ):
            raise refuse(
                f"the window from {start} to {value} holds nothing", "give a stop above the start"
            )
        return value


class Sequential(Section):
    """Accesses of 8 bytes at a fixed distance. All blocks lie one behind the other and each vCPU
    walks a part of them, from its beginning again at its end."""

    kind: Literal["sequential"] = Field(description="One after another.", examples=["sequential"])
    accesses: Whole = Field(
        ge=1, le=MOST_ACCESSES, description="Accesses of all vCPUs together.", examples=[100000]
    )
    write_share: Share = Field(
        default=0.5, description="Share of the accesses that write, 0.0 to 1.0."
    )
    stride: Size = Field(
        default=64, ge=1, le=LARGEST_BLOCK, description="Bytes from one access to the next."
    )


class Uniform(Section):
    """Accesses of 8 bytes at random, each place in RAM as likely as any other."""

    kind: Literal["uniform"] = Field(description="At random.", examples=["uniform"])
    accesses: Whole = Field(
        ge=1, le=MOST_ACCESSES, description="Accesses of all vCPUs together.", examples=[100000]
    )
    write_share: Share = Field(
        default=0.5, description="Share of the accesses that write, 0.0 to 1.0."
    )


class Permutation(Section):
    """Accesses of 8 bytes: every host page once, shuffled; then all again, otherwise."""

    kind: Literal["permutation"] = Field(description="Each page once.", examples=["permutation"])
    accesses: Whole | None = Field(
        default=None,
        ge=1,
        le=MOST_ACCESSES,
        description="Accesses of all vCPUs together; left out: each page once.",
    )
    write_share: Share = Field(
        default=0.5, description="Share of the accesses that write, 0.0 to 1.0."
    )


Synthetic = Annotated[
    Annotated[Sequential, Tag("sequential")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[Permutation, Tag("permutation")],
    by_kind(),
]


class RecordedTrace(Section):
    """A recorded trace, replayed."""

    file: ExistingPath = Field(
        description="A native trace, as `vmemu trace convert` makes it of a recording; a relative"
        " path starts at the scenario's directory.",
        examples=["traces/linux-boot.vmtrace"],
    )
    map: Map = Field(
        default=CompactMap(), description="How recorded addresses become bytes of blocks."
    )
    window: Window = Field(default=Window(), description="The part of the trace that is replayed.")


class SyntheticTrace(Section):
    """A trace made from the seed, without a file."""

    synthetic: Synthetic = Field(description="How the accesses are made.", examples=["{kind: ...}"])


def _trace_kind(value: Any) -> str | None:
    if isinstance(value, dict):
        given = [kind for kind in ("file", "synthetic") if kind in value]
        return given[0] if len(given) == 1 else None
    if isinstance(value, RecordedTrace):
        return "file"
    return "synthetic" if isinstance(value, SyntheticTrace) else None


Trace = Annotated[
    Annotated[RecordedTrace, Tag("file")] | Annotated[SyntheticTrace, Tag("synthetic")],
    wording.choice(
        _trace_kind,
        "needs exactly one of 'file' (a recording) and 'synthetic'",
        "write {file: PATH} or {synthetic: {kind: uniform, accesses: 100000}}",
    ),
]


class BalloonConfig(Section):
    """A balloon: it gives host pages back, but for hugepages, in an order made from the seed."""

    rate: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = Field(
        default=1000, description="Pages a second; what is refused is tried again."
    )
    limit: Whole = Field(
        ge=1, description="Pages to give back; refused until post-copy is over.", examples=[100]
    )


class Memory(Section):
    """The destination's memory as a whole."""

    lock: Flag = Field(default=False, description="Lock it (mlock); unlocked while post-copy runs.")


class Guest(Section):
    """The guest's vCPUs and what they touch."""

    vcpus: Whole = Field(
        default=1, ge=1, le=MOST_VCPUS, description="Threads that replay the trace, 1 to 256."
    )
    trace: Trace = Field(
        description="What the guest touches: a recording or a synthetic trace.",
        examples=["{file: traces/linux-boot.vmtrace}"],
    )
    balloon: BalloonConfig | None = Field(
        default=None, description="A worker that gives pages back once post-copy is over."
    )


class ClientConfig(Section):
    """A process beside the guest that has mapped one block, as a vhost-user back end has."""

    name: Name = Field(
        description="Its name, 1 to 255 bytes, unique among the clients.", examples=["vhost0"]
    )
    block: Name = Field(
        description="The block that it maps: shared memory or hugepages.", examples=["pc.ram"]
    )
    vcpus: Whole = Field(
        default=1, ge=1, le=MOST_VCPUS, description="Its threads, which replay the trace."
    )
    trace: Trace = Field(
        description="What it touches, as 'guest.trace', laid on its block alone.",
        examples=["{synthetic: {kind: uniform, accesses: 100000}}"],
    )


# --- The migration ------------------------------------------------------------------------------


class Source(Section):
    """The process that holds the pages before they move."""

    startup_timeout: Duration = Field(
        default=30_000_000_000,
        gt=0,
        serialization_alias="startup_timeout_ns",
        description="How long the source process may take to come up.",
    )


class Channel(Section):
    """What source and destination are connected by."""

    kind: Literal["pipe"] = Field(
        default="pipe", description="Pipes between two processes of one host."
    )


class Postcopy(Section):
    """The post-copy phase."""

    preempt: Flag = Field(
        default=True,
        description="Urgent pages on a channel of their own, ahead of the background push.",
    )
    push: Flag = Field(
        default=True,
        description="Push pages in the background; without, only demand faults bring them"
        " until the guest is done.",
    )
    bandwidth: Rate = Field(
        default=0,
        serialization_alias="bandwidth_bytes_per_second",
        description="Limit of the background push; requests are never held back by it.",
    )
    fault_threads: Whole = Field(
        default=1, ge=1, le=64, description="Threads that read userfaultfd, for many vCPUs."
    )
    release_ram: Flag = Field(
        default=False, description="The source frees the pages that were sent."
    )


class Precopy(Section):
    """What is sent while the guest still runs on the source."""

    rounds: Whole = Field(
        default=0, ge=0, le=1000, description="Passes over the dirty pages, at most."
    )
    bandwidth: Rate = Field(
        default=0,
        serialization_alias="bandwidth_bytes_per_second",
        description="Limit of pre-copy.",
    )
    max_time: Duration | None = Field(
        default=None,
        serialization_alias="max_time_ns",
        description="Cut pre-copy off after this time, also within a round; left out: never.",
    )
    max_downtime: Duration = Field(
        default=300_000_000,
        gt=0,
        serialization_alias="max_downtime_ns",
        description="With 'switch: converged': flip when what is dirty could be sent in this time.",
    )
    switch: Literal["at_once", "converged"] = Field(
        default="at_once",
        description="Flip when the rounds are over, or as soon as they have converged.",
    )
    dirty_tracking: Literal["auto", "kernel", "replay"] = Field(
        default="auto",
        description="Who notes which pages are written: the kernel (by write protection, from Linux"
        " 6.7 on), the replay, or the kernel where it can.",
    )


class Migration(Section):
    """How the pages move."""

    precopy: Precopy = Field(default=Precopy(), description="The pre-copy phase.")
    flip_at: FlipAt = Field(
        default=FlipPoint(position=Position(share=Fraction(0))),
        description="How much of the trace runs on the source before the guest moves: a share,"
        " a number of accesses, or a time such as 2s.",
    )
    postcopy: Postcopy = Field(default=Postcopy(), description="The post-copy phase.")


class Verify(Section):
    """What is compared with what it must be."""

    reads: Flag = Field(default=True, description="Check what every read of the guest finds.")
    final: Flag = Field(default=True, description="Compare every byte of every block at the end.")


class Wait(Section):
    """Wait for a missing resource before giving up."""

    wait: Duration = Field(
        gt=0, serialization_alias="wait_ns", description="How long to wait.", examples=["30s"]
    )


def _unavailable_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "word"
    return "wait" if isinstance(value, dict | Wait) else None


Unavailable = Annotated[
    Annotated[Literal["fail", "skip"], Tag("word")] | Annotated[Wait, Tag("wait")],
    wording.choice(
        _unavailable_kind, "must be a word or {wait: DURATION}", "use fail, skip or {wait: 30s}"
    ),
]


class Limits(Section):
    """What ends a run that gets nowhere."""

    stall: Duration = Field(
        default=30_000_000_000,
        gt=0,
        serialization_alias="stall_ns",
        description="How long no page may arrive while a vCPU waits for one.",
    )
