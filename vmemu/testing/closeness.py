"""Which marks are a test's own, and which of two is the closer one.

pytest has the marks of a base class before those of the class itself, those of a test before those
of its parameters, and what a conftest.py adds among the test's own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.nodes import Node


def closest_last(item: pytest.Item, name: str) -> list[pytest.Mark]:
    """The marks called ``name`` of a test: of its module, its classes, a base class before those
    made from it, then what a conftest.py adds, the test's own, and those of its parameters."""
    return [mark for node in item.listchain() for mark in _ordered(node) if mark.name == name]


def has_own(item: pytest.Item, name: str) -> bool:
    """Whether such a mark is written at the test itself, or at its parameters."""
    return any(mark.name == name for place in _places(item) for mark in place)


def _ordered(node: Node) -> list[pytest.Mark]:
    rank = {id(mark): nth for nth, place in enumerate(_places(node)) for mark in place}
    # Of those in one place pytest has the closest first.
    marks = node.own_markers[::-1]
    return sorted(marks, key=lambda mark: rank.get(id(mark), -1))


def _places(node: Node) -> Iterator[list[pytest.Mark]]:
    """Where marks of a test or of a class are written, the closest last."""
    if isinstance(node, pytest.Class):
        yield from map(_written, reversed(node.obj.__mro__))
    elif isinstance(node, pytest.Function):
        yield _written(node.obj)
        callspec = getattr(node, "callspec", None)
        yield list(callspec.marks) if callspec else []


def _written(at: object) -> list[pytest.Mark]:
    """The marks of one function, or of one class without those of its bases."""
    marks = getattr(at, "__dict__", {}).get("pytestmark", [])
    listed: list[pytest.Mark | pytest.MarkDecorator] = marks if isinstance(marks, list) else [marks]
    return [one.mark if isinstance(one, pytest.MarkDecorator) else one for one in listed]
