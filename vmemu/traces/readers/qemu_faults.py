"""What the readers of QEMU's trace events share: a page fault of post-copy as an access."""

from __future__ import annotations

from collections.abc import Iterable

from vmemu.core import lib
from vmemu.errors import TraceError
from vmemu.traces.reader import BlockBase

REQUEST = "postcopy_ram_fault_thread_request"
"""A fault by block, offset and thread."""
BEGINS = ("mark_postcopy_blocktime_begin", "postcopy_blocktime_begin")
"""The same fault by address and vCPU, where blocktime is on: until QEMU 10.0, and from 10.1 on."""
SHARED = "postcopy_request_shared_page"
"""A fault of another process on memory of the guest."""

BLOCK_SHIFT: int = lib.VM_TEXT_BLOCK_SHIFT
"""Block i, in the order of first sight, is laid at i << BLOCK_SHIFT."""
MAX_BLOCKS: int = lib.VM_TEXT_BLOCKS

DROPPED_TWICE = "logged_twice"
DROPPED_SHARED = "other_processes"

_RECORDED_BY = (
    f"the log of the destination has them, recorded with -trace {REQUEST} -msg timestamp=on"
)


def missing(*, times: bool, threads: bool) -> tuple[str, ...]:
    """What the recording of faults can't say."""
    never = ("sizes", "writes", "repeats", "instruction_fetches")
    return (*(() if times else ("times",)), *(() if threads else ("threads",)), *never)


def laid(names: Iterable[str]) -> tuple[BlockBase, ...]:
    """The blocks, in the order of first sight, at their addresses."""
    return tuple(BlockBase(name, number << BLOCK_SHIFT) for number, name in enumerate(names))


def no_faults(name: str) -> TraceError:
    """What to say of a recording without any fault."""
    return TraceError(f"{name}: no page fault of post-copy is in it: {_RECORDED_BY}")


def too_many_blocks(name: str) -> TraceError:
    """What to say of a recording whose blocks have no room in the address space."""
    return TraceError(f"{name}: more than {MAX_BLOCKS} RAM blocks")
