"""The Python face of the C core: the one place that loads it and turns its failures into
exceptions.

Every call releases the GIL for its whole length, which is what keeps a thread that waits for a page
from stopping the process. The core is absent on another operating system; the package imports all
the same and says so at the first call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmemu.errors import CoreError, HostError, PeerGone, ProtocolError

__all__ = ["call", "ffi", "lib", "owned", "raise_error", "text"]

try:
    from vmemu._core._vmemu import ffi, lib
except ImportError as error:
    _MISSING = str(error)

    class _Absent:
        """Stands in for ``ffi`` and ``lib`` where the core was not built."""

        def __getattr__(self, name: str) -> Any:
            raise HostError(
                f"vmemu needs Linux and its C core, which does not load here: {_MISSING}{_remedy()}"
            )

    def _remedy() -> str:
        """What to do in a clone, which Python finds there before what is installed."""
        clone = Path(__file__).parents[1]
        if not (clone / "pyproject.toml").is_file():
            return ""
        return (
            f" ({clone} has only its source: `pip install -e {clone}`, or go to another directory)"
        )

    ffi = lib = _Absent()


def text(array: Any) -> str:
    """A NUL-terminated C array of characters."""
    value: bytes = ffi.string(array)
    return value.decode(errors="replace")


def raise_error(error: Any) -> None:
    """Raise what a filled ``struct vm_error`` says."""
    operation, detail = text(error.operation), text(error.detail)
    if error.protocol == lib.VM_PEER_GONE:
        raise PeerGone(f"{operation}: {detail}")
    if error.protocol == lib.VM_PEER_BROKE_PROTOCOL:
        raise ProtocolError(f"{operation}: {detail}")
    raise CoreError(operation, error.errnum, error.address, detail)


def call(function: Any, *arguments: Any) -> int:
    """Call a function of the core that ends in ``struct vm_error *``; its result if that is not
    negative.

    Raises CoreError, ProtocolError or PeerGone with what the core filled in.
    """
    error = ffi.new("struct vm_error *")
    result: int = function(*arguments, error)
    if result < 0:
        raise_error(error)
    return result


def owned(pointer: Any, destroy: Any) -> Any:
    """A pointer from a ``_create`` function, destroyed with its last reference."""
    if pointer == ffi.NULL:
        raise MemoryError("the C core found no memory")
    return ffi.gc(pointer, destroy)
