"""One-dimensional little-endian ``.npy`` columns: written in pieces, opened without trusting them.

The files are numpy's format 1.0 and ``numpy.load`` reads them. The header is written here and not
by numpy, whose padding has changed from version to version, and is matched here as a whole, because
numpy's own reader evaluates it as a Python literal.
"""

from __future__ import annotations

import io
import mmap
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.units import counted

_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGNMENT = 64
_HEADER_LIMIT = 1024
_HEADER = re.compile(
    rb"\{'descr': '([<|]u[1248])', 'fortran_order': False, 'shape': \(([0-9]{1,18}),\), \} *\n"
)

Column = NDArray[Any]


def header(dtype: np.dtype[Any], count: int) -> bytes:
    """The bytes before the values of a column."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}".encode()
    fixed = len(_MAGIC) + 2 + 1
    text += b" " * (-(fixed + len(text)) % _ALIGNMENT) + b"\n"
    return _MAGIC + len(text).to_bytes(2, "little") + text


def write_values(file: IO[bytes], values: Column) -> None:
    """Appends values to a column whose header has been written."""
    file.write(np.ascontiguousarray(values).data.cast("B") if len(values) else b"")


def map_column(path: Path, dtypes: tuple[str, ...]) -> Column:
    """A column mapped read-only from its file. Raises ``TraceError``.

    ``dtypes``: what it may be, such as ``("<u4", "<u8")``. The file must hold exactly the values
    that its header promises. Whoever cuts the file while it is mapped kills the process that reads
    it.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            raw = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except FileNotFoundError:
        raise TraceError(f"{path}: is missing") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise TraceError(f"{path}: can't be opened: {reason or error}") from None
    return parse_column(str(path), raw, dtypes)


def forget(column: Column) -> None:
    """Lets go of the memory of a mapped column until it is looked at again.

    What was looked at would else count as memory of this process for as long as it is mapped.
    """
    mapping = _mapping(column)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def is_mapped(column: Column) -> bool:
    """Whether a column is mapped from its file, so that memory which it lets go of comes back."""
    return _mapping(column) is not None


def _mapping(column: Column) -> mmap.mmap | None:
    base: Any = column
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return base if isinstance(base, mmap.mmap) else None


def parse_column(name: str, raw: mmap.mmap | memoryview | bytes, dtypes: tuple[str, ...]) -> Column:
    """A column in a buffer, without a copy; see ``map_column``."""
    dtype, count, start = _parse_header(name, raw[:_HEADER_LIMIT], len(raw))
    if dtype.str not in dtypes:
        raise TraceError(f"{name}: holds {dtype.str} and not {' or '.join(dtypes)}")
    size = len(raw) - start
    promised = count * dtype.itemsize
    if size != promised:
        state = "is cut off" if size < promised else "has bytes too many"
        raise TraceError(
            f"{name}: {state}: {counted(count, 'value')} promised ({counted(promised, 'byte')}),"
            f" {size // dtype.itemsize:,} there ({counted(size, 'byte')})"
        )
    values = np.frombuffer(raw, dtype, count, start)
    values.flags.writeable = False
    return values


def _parse_header(name: str, head: bytes | memoryview, size: int) -> tuple[np.dtype[Any], int, int]:
    """Type, number of values, and where they start."""
    head = bytes(head)
    fixed = len(_MAGIC) + 2
    if not head.startswith(_MAGIC) or size < fixed:
        raise TraceError(f"{name}: not a .npy file of format 1.0")
    start = fixed + int.from_bytes(head[len(_MAGIC) : fixed], "little")
    match = _HEADER.fullmatch(head[fixed:start])
    if match is None or start > size:
        raise TraceError(f"{name}: the .npy header is damaged or not that of a column of numbers")
    # C reads the values in place, so they must lie as their type wants it.
    if start % 8:
        raise TraceError(f"{name}: the values start at byte {start}, which is no multiple of 8")
    return np.dtype(match[1].decode()), int(match[2]), start
