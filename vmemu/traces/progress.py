"""How work on traces says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, int, int | None], None]
"""Called now and then, a few times a second at least while there is work: what is being done, how
much of it is done, and of how much, if that is known. It may raise, which ends the work."""


def silent(what: str, done: int, total: int | None) -> None:
    """Tells nobody."""
