"""Where a scenario has a key, for who knows its name and not its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from vmemu._config.annotations import bare, is_model, members
from vmemu.spelling import written_alike

_MOST = 4


def paths(annotation: Any, at: str = "") -> Iterator[str]:
    """Every key below what an annotation allows, as ``blocks[].content.kind``."""
    annotation = bare(annotation)
    if get_origin(annotation) is tuple:
        yield from paths(get_args(annotation)[0], f"{at}[]")
    elif is_model(annotation):
        for name, field in annotation.model_fields.items():
            below = f"{at}.{name}".lstrip(".")
            yield below
            yield from paths(field.annotation, below)
    for member in members(annotation).values():
        yield from paths(member, at)


def ending_in(name: str, known: Iterable[str]) -> list[str]:
    """Those of ``known`` paths whose end is ``name``: one key or several with dots between."""
    found = dict.fromkeys(path for path in known if f".{path}".endswith(f".{name}"))
    return list(found)[:_MOST]


def ending_alike(name: str, known: Iterable[str]) -> list[str]:
    """Those of ``known`` paths whose last key is written much like that of ``name``."""
    known = list(known)
    keys = {path.rpartition(".")[2] for path in known}
    near = written_alike(name.rpartition(".")[2], sorted(keys), likeness=0.75)
    return ending_in(near[0], known) if near else []


def asked(found: list[str]) -> str:
    """The remedy that asks whether one of these was meant."""
    return f"did you mean {' or '.join(repr(path) for path in found)}?"
