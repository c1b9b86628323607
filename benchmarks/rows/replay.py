"""Accesses a second on memory that is there: a run whose pages all came before the guest moved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from accesses import PAGES, write_trace
from context import Context, Rounds
from frame import Of, Row, Target
from workloads import (
    access_ns,
    block,
    demand,
    floor_access_ns,
    resident,
)

_LONG = 10**9
_LOOKED_AT = (
    "1.1 ns an access, and 1 ms for the phase: size, kind and alignment of each access, and whether"
    " its page is a plain one, are looked at before it is made; the floor's loop, 0.95 to 1 ns,"
    " takes all but the kind for given"
)
_CHECKED = (
    "each word is compared with one of an image of what it must hold, beside a loop that checks"
    " nothing; replay-checked-both has one that does"
)


def rows(context: Context) -> Iterable[Row]:
    yield from _rates(context)
    yield from _long(context)


def _rates(context: Context) -> Iterable[Row]:
    count, cpus = (20 if context.quick else 100) * 10**6, context.one_cpu

    @cache
    def trace() -> Path:
        return write_trace(context.directory / "resident.vmtrace", count)

    def ours(*, reads: bool) -> Mapping[str, Any]:
        return context.vmemu(resident(str(trace()), PAGES, reads=reads), cpus)

    rounds = Rounds(
        plain=lambda: ours(reads=False),
        floor=lambda: context.floor(cpus, "resident", trace()),
        checked=lambda: ours(reads=True),
        checked_floor=lambda: context.floor(cpus, "resident", trace(), "--checked"),
    )
    for name, what, side, other, other_is, target, held_by in (
        ("replay", "with verification off", "plain", "floor", "floor's loop", 0.9, _LOOKED_AT),
        (
            "replay-checked",
            "with every read checked",
            "checked",
            "floor",
            "floor's loop",
            0.5,
            _CHECKED,
        ),
        (
            "replay-checked-both",
            "with every read checked, by both",
            "checked",
            "checked_floor",
            "floor's loop, checked",
            None,
            "",
        ),
    ):
        yield Row(
            name,
            f"resident accesses of a mapped trace, {what}",
            "1e6/s",
            "one CPU",
            rounds.figure(side, lambda result: 1e3 / access_ns(result)),
            rounds.figure(other, lambda result: 1e3 / floor_access_ns(result)),
            other_is,
            target=target,
            comparison=Target.AT_LEAST,
            held_by=held_by,
        )


def _long(context: Context) -> Iterable[Row]:
    cpus = context.one_cpu

    @cache
    def trace() -> Path:
        return write_trace(context.directory / "long.vmtrace", _LONG)

    rounds = Rounds(
        long=lambda: context.vmemu_with_peak(resident(str(trace()), PAGES, reads=False), cpus),
        small=lambda: context.vmemu_with_peak(demand(block(PAGES * 4096)), cpus),
        floor=lambda: context.floor(cpus, "resident", trace()),
    )
    yield Row(
        "replay-1e9",
        "10^9 resident accesses of a mapped trace of 5 GB",
        "1e6/s",
        "one CPU",
        rounds.figure("long", lambda result: 1e3 / access_ns(result)),
        rounds.figure("floor", lambda result: 1e3 / floor_access_ns(result)),
        "floor's loop",
        target=0.9,
        comparison=Target.AT_LEAST,
        held_by=_LOOKED_AT,
        repeats=2,
        full_only=True,
    )
    yield Row(
        "replay-1e9-memory",
        "peak resident memory of the run with 10^9 accesses, beyond that of one without a trace",
        "MiB",
        "one CPU",
        rounds.figure("long", lambda result: float(result["peak_bytes"]) / (1 << 20)),
        rounds.figure("small", lambda result: float(result["peak_bytes"]) / (1 << 20)),
        "ours, 4096 synthetic accesses",
        target=256,
        of=Of.DIFFERENCE,
        repeats=2,
        full_only=True,
    )
