"""A bar on a terminal that shows how far a verb is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def bar(*, detail: bool = True) -> Progress:
    """A bar on standard error, gone when it ends; with ``detail``, each task has that in words.

    It has no refresh thread: it is drawn when there is news, by ``refresh``, and never takes a CPU
    in between. The import takes long, so ask for one on a terminal only.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
    if detail:
        columns.append(TextColumn("{task.fields[detail]}"))
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
