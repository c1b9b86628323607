"""The JSON schema of a model, for editors and other programs."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from vmemu.model.base import Model
from vmemu.model.fields import FieldInfo, Limits, WithJsonSchema, flat

_WORDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "min_length": "minItems",
    "max_length": "maxItems",
}
_TYPES: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    Path: {"type": "string", "format": "path"},
    type(None): {"type": "null"},
    Any: {},
}


_HOLDING = {tuple: ("array", "items"), dict: ("object", "additionalProperties")}


def of(model: type[Model]) -> dict[str, Any]:
    """The schema of ``model``, those of the models in it under ``$defs``. Defaults are values."""
    inner: dict[str, dict[str, Any]] = {}
    own = _of_model(model, inner)
    return {"$defs": dict(sorted(inner.items())), **own}


def _of_model(model: type[Model], inner: dict[str, dict[str, Any]]) -> dict[str, Any]:
    fields = model.model_fields
    keys = {name: field.alias or name for name, field in fields.items()}
    required = [keys[name] for name, field in fields.items() if field.is_required()]
    return {
        "title": model.__name__,
        "type": "object",
        "description": inspect.getdoc(model) or "",
        "properties": {keys[name]: _of_field(keys[name], fields[name], inner) for name in fields},
        **({"required": required} if required else {}),
        "additionalProperties": model.extra == "ignore",
    }


def _of_field(key: str, field: FieldInfo, inner: dict[str, dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "title": key.replace("_", " ").title(),
        "description": field.description,
    }
    if field.examples:
        made["examples"] = field.examples
    if field.default_factory is None and not field.is_required():
        made["default"] = field.default
    return {**_of(field.annotation, field.metadata, inner), **made}


def _of(annotation: Any, parts: Iterable[Any], inner: dict[str, dict[str, Any]]) -> dict[str, Any]:
    parts = list(parts)
    given = [part.schema for part in parts if isinstance(part, WithJsonSchema)]
    made = dict(given[-1]) if given else _bare(annotation, inner)
    for part in parts:
        if isinstance(part, Limits):
            made |= {_WORDS[name]: limit for name, limit in vars(part).items()}
    return made


def _bare(annotation: Any, inner: dict[str, dict[str, Any]]) -> dict[str, Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _of(arguments[0], flat(list(arguments[1:])), inner)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_bare(member, inner) for member in arguments]}
    if origin in _HOLDING:
        kind, held = _HOLDING[origin]
        return {"type": kind, held: _bare(arguments[-1 if origin is dict else 0], inner)}
    if origin is Literal:
        return _of_words(list(arguments))
    if isinstance(annotation, type) and issubclass(annotation, Model):
        name = annotation.__name__
        if name not in inner:
            inner[name] = {}  # stands for it while those in it are made
            inner[name] = _of_model(annotation, inner)
        return {"$ref": f"#/$defs/{name}"}
    return dict(_TYPES[annotation])


def _of_words(words: list[str]) -> dict[str, Any]:
    return {"type": "string", **({"enum": words} if len(words) > 1 else {"const": words[0]})}
