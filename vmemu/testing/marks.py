"""What marks, options and ini files ask of a test, read and checked."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vmemu.errors import InputError
from vmemu.testing.closeness import closest_last
from vmemu.testing.inilimits import fits, limits_of_ini
from vmemu.testing.limits import Limit, limits

DEFAULT_TIMEOUT_S = 120.0
TO_TELL_S = 10.0
"""What it may take to ask a run that is stuck where it stands, and to kill it."""

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*|\d+(\.\d+)?(ns|us|ms|s|min|[KMGT]iB|%)")
_HOURS = re.compile(r"(\d+(?:\.\d+)?) ?h", re.ASCII)
_NO_TEXT = re.compile(r"(?i)true|false|yes|no|on|off|null|y|n")


@dataclass(frozen=True)
class Asked:
    """The mark ``vmemu`` of a test; ``config`` is where its scenario is."""

    config: Path
    seeds: int | tuple[int, ...] | None = None
    overrides: tuple[str, ...] = ()
    timeout_s: float | None = None


def read_mark(mark: pytest.Mark, path: Path) -> Asked:
    """One mark, of a test in the file ``path``. Raises InputError."""
    try:
        return _read(*mark.args, path=path, **mark.kwargs)
    except TypeError as error:
        text = str(error).removeprefix("_read() ")
        form = "vmemu(config, *, seeds=None, overrides=None, timeout=None)"
        raise InputError(f"mark vmemu: {text}; write {form}") from None


def _read(
    config: Any, *, path: Path, seeds: Any = None, overrides: Any = None, timeout: Any = None
) -> Asked:
    if not isinstance(config, str | os.PathLike):
        raise InputError(f"mark vmemu: a scenario is a path, not {config!r}")
    return Asked(
        path.parent / config,
        None if seeds is None else _seeds(seeds),
        override_texts(overrides),
        None if timeout is None else seconds(timeout, "mark vmemu: timeout"),
    )


def _seeds(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        found = tuple(value)
        if all(isinstance(seed, int) and seed >= 0 for seed in found):
            if len(set(found)) < len(found):
                raise InputError("mark vmemu: seeds has one twice")
            return found
    raise InputError(f"mark vmemu: seeds={value!r}: write how many runs, or a list of seeds")


def override_texts(overrides: Mapping[str, Any] | Sequence[str] | None) -> tuple[str, ...]:
    """Overrides as ``--set`` takes them: of a mapping whose values are those of Python, or of texts
    such as ``guest.vcpus=4``. Raises InputError."""
    if isinstance(overrides, Mapping):
        return tuple(f"{path}={_as_yaml(value)}" for path, value in overrides.items())
    if isinstance(overrides, str):
        return (overrides,)
    if overrides is None or isinstance(overrides, Sequence):
        return tuple(str(text) for text in overrides or ())
    raise InputError(f"overrides={overrides!r}: write a mapping, or texts such as 'guest.vcpus=4'")


def _as_yaml(value: Any) -> str:
    """JSON is YAML; a text that YAML reads as it stands is left alone, to be read by people."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _NO_TEXT.fullmatch(value):
        return value
    return json.dumps(value, default=str)


def seconds(value: Any, where: str) -> float:
    """A time limit: ``"90s"``, ``"1h"``, or a number of seconds. Raises InputError."""
    from vmemu.units import UnitError, parse_duration

    hours = _HOURS.fullmatch(str(value))
    try:
        found = float(hours[1]) * 3600 if hours else float(value)
    except (TypeError, ValueError):
        try:
            found = parse_duration(str(value)) / 1e9
        except UnitError as error:
            raise InputError(f"{where}: {error}") from None
    if not 0 < found < float("inf"):
        raise InputError(f"{where}: {value!r} is no time; write such as 90s")
    return found


def limits_of(item: pytest.Item) -> list[Limit]:
    """The limits on the runs of a test: of the ini option's lines that fit its file, the last of
    two alike, then of its marks, of which the closest counts. Raises InputError."""
    wanted: dict[str, object] = {}
    for pattern, found in limits_of_ini(item.config):
        if fits(item.nodeid.partition("::")[0], pattern):
            wanted |= found
    for mark in closest_last(item, "vmemu_limit"):
        if mark.args or not mark.kwargs:
            raise InputError('mark vmemu_limit: name what is limited, as p99="2ms"')
        wanted |= mark.kwargs
    return limits(wanted, "limit")


def timeout_of(item: pytest.Item, wanted_s: float | None = None, spent_s: float = 0.0) -> float:
    """How long one run of a test may take, seconds: what is wanted, or ``--vmemu-timeout``; and
    less than pytest-timeout leaves of the test, which would end the whole worker and tell nothing
    of the run. ``spent_s`` is how long the test has been going on."""
    given: float | None = item.config.getoption("vmemu_timeout")
    wanted = wanted_s or given or DEFAULT_TIMEOUT_S
    whole = _pytest_timeout(item)
    if whole <= 0:
        return wanted
    usable = max(whole - max(TO_TELL_S, 0.15 * whole), whole / 2)
    return min(wanted, max(usable - spent_s, 1.0))


def _pytest_timeout(item: pytest.Item) -> float:
    """The limit that pytest-timeout has for the test; 0 without one."""
    if not item.config.pluginmanager.hasplugin("timeout"):
        return 0.0
    mark = item.get_closest_marker("timeout")
    if mark is not None:
        value = mark.args[0] if mark.args else mark.kwargs.get("timeout")
    else:
        found = (item.config.getoption("timeout", None), os.environ.get("PYTEST_TIMEOUT"))
        value = next((one for one in found if one is not None), item.config.getini("timeout"))
    try:
        return float(value or 0)
    except (TypeError, ValueError):
        return 0.0
