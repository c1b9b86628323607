"""pyarrow, imported when a table is read or written, and what such tables carry of a trace."""

from __future__ import annotations

from typing import Any

from vmemu.errors import HostError

META_KEY = b"vmemu-trace"
"""Of the schema's metadata: the ``meta.json`` of the trace that was written."""


def pyarrow(what: str) -> Any:
    """The library, with its readers and writers. ``what`` needs it: for the HostError without."""
    try:
        import pyarrow as library
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise HostError(
            f"{what} needs pyarrow, which is not installed", "pip install pyarrow"
        ) from None
    return library
