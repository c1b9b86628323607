"""What is wrong with data: what validators raise, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Loc = tuple[int | str, ...]
"""Leads to a value: names of fields, numbers of list entries, and the tag of each union's member
that was chosen on the way."""


class Refusal(ValueError):
    """A validator's error: its ``type`` for programs, and what belongs to it."""

    def __init__(self, type_: str, message: str, context: Mapping[str, Any] | None = None) -> None:
        self.type = type_
        self.context = dict(context or {})
        super().__init__(message)


class Fault(NamedTuple):
    """One thing wrong with a value, and where that is."""

    type: str
    loc: Loc
    message: str
    value: Any
    context: Mapping[str, Any] = MappingProxyType({})


class ValidationError(ValueError):
    """Data is no such thing; ``faults`` has everything that is wrong with it."""

    def __init__(self, title: str, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        lines = (f"{'.'.join(map(str, one.loc))}: {one.message}" for one in self.faults)
        super().__init__("\n".join([f"this is no {title}:", *lines]))


class Wrong(Exception):
    """What is wrong with a value, on its way to whoever asked for it to be read."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults


def with_words(func: Callable[..., Any], *arguments: Any) -> Any:
    """What a validator makes of its arguments, of which the last two are the value and its place;
    what it refuses becomes Wrong."""
    *given, value, loc = arguments
    try:
        return func(*given)
    except Refusal as error:
        raise Wrong(Fault(error.type, loc, str(error), value, error.context)) from None
