"""A recorded Linux boot with the push throttled: how often and how long its guest stands still."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from context import HERE, Context, Rounds
from frame import Row

_BOOT = HERE.parent / "configs" / "quickstart.yaml"
_THROTTLED = "migration.postcopy.bandwidth=20MiB/s"
_NONE = "migration.postcopy.push_order=sequential"
_FEWER = (
    "migration.postcopy.fault_around=64",
    "migration.postcopy.prefetch=adaptive",
    "migration.postcopy.push_order=recorded",
)


def rows(context: Context) -> Iterable[Row]:
    def run(*settings: str) -> Mapping[str, Any]:
        context.needs_of(_BOOT, *settings)
        return context.vmemu_file(_BOOT, context.all_cpus, _THROTTLED, *settings)

    rounds = Rounds(fewer=lambda: run(*_FEWER), none=lambda: run(_NONE))
    yield Row(
        "boot-faults",
        "faults that stopped a vCPU, with fault-around, prefetch and the push in recorded order",
        "faults",
        "all CPUs",
        rounds.figure("fewer", lambda result: result["faults"]["count"]),
        rounds.figure("none", lambda result: result["faults"]["count"]),
        "ours without them",
        target=1 / 5,
    )
    yield Row(
        "boot-blocktime",
        "how long all vCPUs were stopped together, with fault-around, prefetch and the push in"
        " recorded order",
        "ms",
        "all CPUs",
        rounds.figure("fewer", lambda result: result["blocktime"]["total_ns"] / 1e6),
        rounds.figure("none", lambda result: result["blocktime"]["total_ns"] / 1e6),
        "ours without them",
        target=1 / 4,
    )
