"""Giving things back: every step is tried, whatever happened to those before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def run_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step even when some fail, then raise the first failure; others are its notes."""
    first: Exception | None = None
    for step in steps:
        try:
            step()
        except Exception as error:
            if first is None:
                first = error
            else:
                first.add_note(f"after that: {error}")
    if first is not None:
        raise first
