"""The native trace format: what replay maps into memory. :mod:`.format` has it bit by bit."""

from vmemu.traces.native.format import (
    DEFAULT_LEVEL,
    PACKED_LIMIT,
    file_names,
    looking_into,
    open,
    pack,
    pack_files,
    unpack,
)
from vmemu.traces.native.placing import is_native
from vmemu.traces.native.trace import Trace
from vmemu.traces.native.writer import TraceWriter

__all__ = [
    "DEFAULT_LEVEL",
    "PACKED_LIMIT",
    "Trace",
    "TraceWriter",
    "file_names",
    "is_native",
    "looking_into",
    "open",
    "pack",
    "pack_files",
    "unpack",
]
