"""What moves with the guest at the flip, as the destination reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vmemu.dirty import Tracking
from vmemu.errors import ProtocolError
from vmemu.guest_worker import Mismatch
from vmemu.protocol import load_object
from vmemu.source_precopy import VCPU_FIGURES
from vmemu.units import counted


@dataclass(frozen=True)
class Flip:
    """The guest as it stopped at the source.

    ``stopped_ns`` is of CLOCK_MONOTONIC. ``vcpus`` has position and counters of each vCPU, or is
    empty when the guest did not run there, as ``dirty_tracking`` is None then. Pre-copied pages are
    target pages, each time they went.
    """

    stopped_ns: int
    rounds: int
    precopy_pages: int
    precopy_bytes: int
    dirty_tracking: Tracking | None
    vcpus: tuple[dict[str, int], ...]
    mismatches: tuple[Mismatch, ...]

    def total(self, name: str) -> int:
        """A counter of all vCPUs."""
        return sum(vcpu[name] for vcpu in self.vcpus)


def unpack_flip(payload: bytes, vcpus: int) -> Flip:
    """Read the payload of FLIP for a guest of that many vCPUs. Raises ProtocolError."""
    document = load_object(payload)
    try:
        flip = Flip(
            stopped_ns=_whole(document["stopped_ns"]),
            rounds=_whole(document["rounds"]),
            precopy_pages=_whole(document["precopy_pages"]),
            precopy_bytes=_whole(document["precopy_bytes"]),
            dirty_tracking=_tracking(document["dirty_tracking"]),
            vcpus=tuple(
                {name: _whole(vcpu[name]) for name in ("position", *VCPU_FIGURES)}
                for vcpu in _list(document["vcpus"])
            ),
            mismatches=tuple(
                Mismatch(str(block), _whole(offset), _whole(expected), _whole(found))
                for block, offset, expected, found in _list(document["mismatches"])
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"FLIP is not well formed: {error!r}") from None
    if len(flip.vcpus) not in (0, vcpus):
        raise ProtocolError(f"FLIP has {counted(len(flip.vcpus), 'vCPU')}, the guest has {vcpus}")
    return flip


def _tracking(value: Any) -> Tracking | None:
    return None if value is None else Tracking(str(value["method"]), str(value["reason"]))


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise TypeError(f"{value!r} is no list")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise TypeError(f"{value!r} is no count")
    return value
