"""The sections of a scenario as frozen models; to add a field or a section, start here.
What the guest does is in ``guest``, and below it in ``maps`` and ``synthetics``.

Every field says in its ``description`` what it means and in which unit; sizes are bytes and
durations nanoseconds once they are read.
"""

import os
import stat
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from vmemu import units
from vmemu._config import wording
from vmemu._config.guest import MOST_VCPUS, Traces
from vmemu._config.judging import base_page, misfit, smallest_hugepage
from vmemu._config.section import Section
from vmemu._config.types import (
    AbsolutePath,
    Duration,
    ExistingPath,
    Flag,
    FlipAt,
    FlipPoint,
    Name,
    Position,
    Rate,
    Share,
    Size,
    Whole,
    by_kind,
)
from vmemu._config.wording import refuse
from vmemu.inputfile import denied
from vmemu.model.fields import Field, Tag, ValidationInfo, field_validator
from vmemu.units import format_size

LARGEST_BLOCK = 1 << 46
MOST_AROUND = 256
"""Pages of 4 KiB in the longest window of fault-around."""
SMALLEST_HUGEPAGE = 64 * units.KIB
LARGEST_HUGEPAGE = 16 * units.GIB
COLLAPSE_REGION = 2 * units.MIB


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


def _left_to_the_host(data: dict[str, Any]) -> Any:
    """The default of a page size: only a validator knows for which host the scenario is read."""
    return None


def _smallest_page_size(info: ValidationInfo) -> int:
    hugetlb = info.data.get("backing") == "hugetlbfs"
    return SMALLEST_HUGEPAGE if hugetlb else base_page(info)


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
        default_factory=_left_to_the_host,
        validate_default=True,
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
        " as /dev/shm, to hold the block, without a name there while it lasts; left out: a memfd."
        " Not for anonymous memory.",
    )
    content: Content = Field(
        default=SeededContent.model_construct(),
        description="What its bytes are before the guest runs.",
    )
    collapse: Literal["never", "on_complete"] = Field(
        default="never",
        description="Whether memory that comes in small pages is made transparent hugepages: each"
        " 2MiB as soon as all of it is there, or never. Not for hugetlbfs, and from Linux 6.1 on.",
        examples=["on_complete"],
    )

    @property
    def hugetlb(self) -> bool:
        """Whether its pages come from a pool of hugepages."""
        return self.backing == "hugetlbfs"

    @property
    def pages(self) -> int:
        """Host pages; of a size that does not fit, the whole ones."""
        return self.size // self.page_size

    @field_validator("page_size", mode="before")
    @classmethod
    def _choose_page_size(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None:
            return value
        hugetlb = info.data.get("backing") == "hugetlbfs"
        return smallest_hugepage(info) if hugetlb else base_page(info)

    @field_validator("page_size")
    @classmethod
    def _check_page_size(cls, value: int, info: ValidationInfo) -> int:
        backing = info.data.get("backing")
        base = base_page(info)
        if value < 1 or value & (value - 1):
            raise refuse(f"{format_size(value)} is no power of two", _nearest_powers(value, base))
        if backing in ("anonymous", "shared") and value != base:
            misfit(
                info,
                "page_size_impossible",
                f"{format_size(value)} pages are impossible for {backing} memory",
                f"leave page_size out ({format_size(base)} here), or use 'backing: hugetlbfs'",
            )
        if backing == "hugetlbfs" and not SMALLEST_HUGEPAGE <= value <= LARGEST_HUGEPAGE:
            misfit(
                info,
                "page_size_impossible",
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
        # Where the page size is wrong itself, the size must at least fit the smallest of all.
        given: int | None = info.data.get("page_size")
        page = given or _smallest_page_size(info)
        if value == 0:
            raise refuse("a block can't be empty", f"use {format_size(max(page, 4096))} or more")
        if value % page:
            low = value - value % page
            fitting = [format_size(size) for size in (low, low + page) if size]
            misfit(
                info,
                "misaligned",
                f"{format_size(value)} is no multiple of its page size, {format_size(page)}"
                + ("" if given else ", the smallest there is"),
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

    @field_validator("collapse")
    @classmethod
    def _check_collapse(cls, value: str, info: ValidationInfo) -> str:
        size: int | None = info.data.get("size")
        if value == "on_complete" and info.data.get("backing") == "hugetlbfs":
            raise refuse("hugetlbfs has hugepages already", "leave collapse out")
        if value == "on_complete" and size is not None and size < COLLAPSE_REGION:
            raise refuse(
                f"no hugepage of {format_size(COLLAPSE_REGION)} fits in {format_size(size)}",
                "leave collapse out, or use a larger block",
            )
        return value

    @field_validator("content")
    @classmethod
    def _check_content(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, FileContent):
            _check_content_file(value.path, info)
        return value


def _nearest_powers(value: int, smallest: int) -> str:
    low = max(smallest, 1 << max(0, value.bit_length() - 1))
    return f"use {format_size(low)} or {format_size(low * 2)}, if the host has it"


def _check_content_file(path: Path, info: ValidationInfo) -> None:
    block_size: int | None = info.data.get("size")
    shown = units.printable(str(path), 300)
    try:
        status = path.stat()
    except OSError:  # removed since it was looked up
        raise refuse(f"{shown} is gone", "give an existing file", "path") from None
    if not stat.S_ISREG(status.st_mode):
        raise refuse(f"{shown} is no ordinary file", "give a file with the bytes", "path")
    if not os.access(path, os.R_OK):
        what, remedy = denied(str(path))
        raise refuse(f"{shown}: {what}", remedy, "path")
    if block_size is not None and status.st_size > block_size:
        misfit(
            info,
            "content",
            f"{shown} has {units.counted(status.st_size, 'byte')},"
            f" more than the block's {block_size:,}",
            "use a larger block, or cut the file",
            "path",
        )


# --- Beside the guest -----------------------------------------------------------------------------


class Memory(Section):
    """The destination's memory as a whole."""

    lock: Flag = Field(default=False, description="Lock it (mlock); unlocked while post-copy runs.")


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
    trace: Traces = Field(
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

    kind: Literal["pipe", "shm"] = Field(
        default="pipe",
        description="Between two processes of one host: pipes that carry the pages, or memory that"
        " both have mapped, with pipes that only say which pages may be taken from it.",
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
    delivery: Literal["thread", "sigbus"] = Field(
        default="thread",
        description="Who fetches a missing page: a fault thread for all vCPUs, or with `sigbus`"
        " each vCPU for itself, on channels of its own, with `preempt` and without `fault_around`"
        " and `prefetch`.",
    )
    release_ram: Flag = Field(
        default=False, description="The source frees the pages that were sent."
    )
    fault_around: Whole = Field(
        default=0,
        ge=0,
        le=MOST_AROUND,
        description="Pages of the aligned window around one that a vCPU waits for: those of them"
        " that are still missing follow it. At most 1MiB, so 2MiB pages bring none; 0: off.",
        examples=[64],
    )
    prefetch: Literal["none", "adaptive"] = Field(
        default="none",
        description="Have the pages that a vCPU is going to follow the one that it waits for, more"
        " of them the longer it goes on: side by side or at a stride.",
    )
    push_order: Literal["sequential", "around_faults", "recorded"] = Field(
        default="around_faults",
        description="Push from the first page on, from behind the last one that was asked for, or"
        " in the order in which the guest will touch them for the first time.",
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

    precopy: Precopy = Field(default=Precopy.model_construct(), description="The pre-copy phase.")
    flip_at: FlipAt = Field(
        default=FlipPoint(position=Position(share=Fraction(0))),
        description="How much of the trace runs on the source before the guest moves: a share,"
        " a number of accesses, or a time such as 2s (or its end, if that comes earlier).",
    )
    postcopy: Postcopy = Field(
        default=Postcopy.model_construct(), description="The post-copy phase."
    )


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
