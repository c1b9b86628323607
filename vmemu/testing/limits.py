"""Limits that a test sets on the figures of a run: ``@pytest.mark.vmemu_limit(p99="2ms")``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmemu.errors import InputError


@dataclass(frozen=True)
class Figure:
    """A figure of a result that can be limited: ``read`` takes it from the document, and gives None
    where it was not measured; a ``time`` is nanoseconds, anything else a count. ``needs`` is what
    a scenario has that is measured."""

    meaning: str
    read: Callable[[Mapping[str, Any]], int | None]
    time: bool = True
    needs: str = ""

    def parse(self, value: object) -> int:
        """A limit as a test writes it: ``"2ms"``, or a count. Raises ValueError saying what would
        do."""
        from vmemu.units import parse_duration

        if self.time and isinstance(value, str):
            return parse_duration(value)
        if not self.time and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if not self.time and isinstance(value, str) and value.isdecimal():
            return int(value)
        raise ValueError("write a time with its unit, such as '2ms'" if self.time else "a count")

    def show(self, value: int) -> str:
        """The figure for people."""
        from vmemu.units import format_duration

        return format_duration(value, digits=3) if self.time else f"{value:,}"


def _lag(result: Mapping[str, Any]) -> int | None:
    lags = [vcpu["lag_ns"]["max"] for vcpu in result["vcpus"] if vcpu["lag_ns"]]
    return max(map(int, lags), default=None)


def _latency(name: str) -> Callable[[Mapping[str, Any]], int]:
    return lambda result: int(result["faults"]["latency_ns"][name])


FIGURES = {
    "p50": Figure("half of the faults took no longer", _latency("p50")),
    "p90": Figure("90 % of the faults took no longer", _latency("p90")),
    "p99": Figure("99 % of the faults took no longer", _latency("p99")),
    "p999": Figure("99.9 % of the faults took no longer", _latency("p999")),
    "max": Figure("the longest fault", _latency("max")),
    "mean": Figure("a fault on average", _latency("mean")),
    "blocktime": Figure(
        "all vCPUs were stopped at once", lambda result: int(result["blocktime"]["overlapped_ns"])
    ),
    "vcpu_blocktime": Figure(
        "faults stopped the vCPU that they stopped longest",
        lambda result: max(int(vcpu["blocktime_ns"]) for vcpu in result["vcpus"]),
    ),
    "downtime": Figure("the guest ran on neither side", lambda result: int(result["downtime_ns"])),
    "lag": Figure("an access came this late, with a pace", _lag, needs="guest.pace"),
    "faults": Figure(
        "accesses that were stopped", lambda result: int(result["faults"]["count"]), time=False
    ),
}
"""Every figure that can be limited, by the name that marks and ini files use."""


@dataclass(frozen=True)
class Limit:
    """No more than ``most`` of the figure called ``name``."""

    name: str
    most: int

    def exceeded(self, result: Mapping[str, Any]) -> str:
        """How a result exceeds it, or an empty string; also where nothing was measured."""
        figure = FIGURES[self.name]
        measured = figure.read(result)
        if measured is None or measured <= self.most:
            return ""
        shown = f"{self.name} is {figure.show(measured)}, the limit {figure.show(self.most)}"
        return f"{shown} ({figure.meaning})"

    def unmeasured(self, result: Mapping[str, Any]) -> str:
        """Why a result says nothing of it, or an empty string."""
        figure = FIGURES[self.name]
        if figure.read(result) is not None:
            return ""
        return f"{self.name} was not measured: the scenario has no {figure.needs}"


def not_kept(wanted: Sequence[Limit], result: Mapping[str, Any]) -> str:
    """What is wrong with a result, or an empty string when it keeps to all limits."""
    exceeded = [text for limit in wanted if (text := limit.exceeded(result))]
    unmeasured = [text for limit in wanted if (text := limit.unmeasured(result))]
    kinds = ("limit exceeded", exceeded), ("limit on nothing", unmeasured)
    return "; ".join(f"{kind}: {'; '.join(texts)}" for kind, texts in kinds if texts)


def limits(wanted: Mapping[str, object], where: str) -> list[Limit]:
    """The limits in ``{"p99": "2ms"}``. Raises InputError that names ``where`` it was said."""
    found = []
    for name, value in wanted.items():
        if name not in FIGURES:
            raise InputError(f"{where}: no figure is called '{name}'; known: {', '.join(FIGURES)}")
        try:
            found.append(Limit(name, FIGURES[name].parse(value)))
        except ValueError as error:
            raise InputError(f"{where}: {name}={value!r}: {error}") from None
    return found


def parse_line(line: str) -> tuple[str, dict[str, object]]:
    """A line of the ini option ``vmemu_limits``: ``boot*.vmemu.yaml: p99=2ms blocktime=50ms``.

    Returns (pattern, limits as ``limits`` takes them). Raises InputError.
    """
    pattern, colon, text = line.rpartition(":")
    pairs = [word.partition("=") for word in text.replace(",", " ").split()]
    if not colon or not pattern.strip() or not all(equals for _, equals, _ in pairs) or not pairs:
        raise InputError(
            f"vmemu_limits: '{line}': write 'boot*.vmemu.yaml: p99=2ms blocktime=50ms'"
        )
    return pattern.strip(), {name: value for name, _, value in pairs}
