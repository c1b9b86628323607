"""What a field's annotation says: its model, its members if it is a union."""

from __future__ import annotations

import types
from typing import Annotated, Any, Union, get_args, get_origin

from vmemu.model.base import Model
from vmemu.model.fields import Tag


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Model)


def bare(annotation: Any) -> Any:
    """``annotation`` without Annotated[...] around it and without '| None'."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if len(rest) == 1:
            return bare(rest[0])
    return annotation


def members(annotation: Any) -> dict[str, Any]:
    """The members of a union by their tags."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return {}
    return {
        extra.tag: member
        for member in get_args(annotation)
        for extra in getattr(member, "__metadata__", ())
        if isinstance(extra, Tag)
    }
