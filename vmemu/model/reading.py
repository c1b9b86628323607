"""From a field's type to the function that reads a value of it."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from vmemu.model.faults import Fault, Loc, Wrong, with_words
from vmemu.model.fields import (
    AfterValidator,
    BeforeValidator,
    Check,
    Discriminator,
    FieldInfo,
    Limits,
    PlainValidator,
    Tag,
    Validate,
    ValidationInfo,
    flat,
)

Context = Mapping[str, Any] | None
Reader = Callable[[Any, Loc, Mapping[str, Any], Context], Any]
"""(value, its place, the fields before it, context): what it becomes; raises Wrong."""


def reader_of(owner: type, field: FieldInfo, checks: Iterable[Check]) -> Reader:
    """What reads ``field`` of the model ``owner``, whose ``checks`` are about it."""
    read = _of(field.annotation, field.metadata, field.allow_inf_nan)
    for check in checks:
        func = _bound(check.func, owner)
        read = _before(func, read) if check.mode == "before" else _after(func, read)
    return read


def _bound(func: Callable[..., Any], owner: type) -> Validate:
    if func.__code__.co_argcount == 3:
        return lambda value, info: func(owner, value, info)
    return lambda value: func(owner, value)


def _of(annotation: Any, parts: Iterable[Any], inf_nan: bool) -> Reader:
    """The type, and around it what its ``parts`` say, one after the other."""
    parts = list(parts)
    read = _bare(annotation, parts, inf_nan)
    for part in parts:
        match part:
            case BeforeValidator(func=func):
                read = _before(func, read)
            case AfterValidator(func=func):
                read = _after(func, read)
            case PlainValidator(func=func):
                read = _plainly(func)
            case Limits():
                read = _limited(part, read)
    return read


def _annotated(annotation: Any) -> Reader:
    """A type that stands inside another."""
    if get_origin(annotation) is not Annotated:
        return _of(annotation, (), True)
    bare, *parts = get_args(annotation)
    infos = [part for part in parts if isinstance(part, FieldInfo)]
    return _of(bare, flat(parts), all(info.allow_inf_nan for info in infos))


def _bare(annotation: Any, parts: list[Any], inf_nan: bool) -> Reader:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _union(arguments, parts)
    if origin in _HOLDING:
        return _HOLDING[origin](_annotated(arguments[-1 if origin is dict else 0]))
    if origin is Literal:
        return _word(arguments)
    if annotation is float:
        return _float(inf_nan)
    if annotation in _SIMPLE:
        return _simple(*_SIMPLE[annotation])
    return _model(annotation)


def _model(annotation: Any) -> Reader:
    """A model, which reads itself; anything else is for the parts of the type to check."""
    read_at = getattr(annotation, "read_at", None)
    if read_at is None:
        return lambda value, *where: value

    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> Any:
        return read_at(value, loc, context)

    return read


# ---- types ----

_SIMPLE: dict[Any, tuple[type, str]] = {
    int: (int, "int_type"),
    bool: (bool, "bool_type"),
    str: (str, "string_type"),
    Path: (Path, "path_type"),
}


def _simple(wanted: type, wrong: str) -> Reader:
    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> Any:
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise Wrong(Fault(wrong, loc, f"is no {wanted.__name__}", value))
        return value

    return read


def _float(inf_nan: bool) -> Reader:
    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(Fault("float_type", loc, "is no number", value))
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not inf_nan and not math.isfinite(number):
            raise Wrong(Fault("finite_number", loc, "is not finite", value))
        return number

    return read


def _word(choices: tuple[Any, ...]) -> Reader:
    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise Wrong(Fault("literal_error", loc, f"is none of {choices}", value))
        return value

    return read


def _many(read_one: Reader) -> Reader:
    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> Any:
        if not isinstance(value, list | tuple):
            raise Wrong(Fault("tuple_type", loc, "is no list", value))
        return tuple(_each(read_one, enumerate(value), loc, before, context).values())

    return read


def _mapping(read_one: Reader) -> Reader:
    """Of words to values of a type."""

    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> Any:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Wrong(Fault("dict_type", loc, "is no mapping of words", value))
        return _each(read_one, value.items(), loc, before, context)

    return read


_HOLDING: dict[Any, Callable[[Reader], Reader]] = {tuple: _many, dict: _mapping}


def _each(
    read_one: Reader,
    items: Iterable[tuple[Any, Any]],
    loc: Loc,
    before: Mapping[str, Any],
    context: Context,
) -> dict[Any, Any]:
    """What becomes of all items, by their keys; everything wrong with any of them is raised."""
    found: dict[Any, Any] = {}
    faults: list[Fault] = []
    for key, item in items:
        try:
            found[key] = read_one(item, (*loc, key), before, context)
        except Wrong as wrong:
            faults += wrong.faults
    if faults:
        raise Wrong(*faults)
    return found


def _union(members: tuple[Any, ...], parts: list[Any]) -> Reader:
    """A type or None, or models of which one is chosen by its tag."""
    chooser = next((part for part in parts if isinstance(part, Discriminator)), None)
    if chooser is None:
        (given,) = (member for member in members if member is not type(None))
        read_given = _annotated(given)
        return lambda value, *where: None if value is None else read_given(value, *where)
    tagged = {_tag(member): member for member in members}
    readers: dict[str, Reader] = {}  # of those that were chosen

    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> Any:
        tag = chooser.choose(value)
        if tag is None or tag not in tagged:
            raise Wrong(_no_member(chooser, tag, value, loc))
        if tag not in readers:
            readers[tag] = _annotated(tagged[tag])
        return readers[tag](value, (*loc, tag), before, context)

    return read


def _tag(member: Any) -> str:
    (tag,) = (part.tag for part in member.__metadata__ if isinstance(part, Tag))
    return str(tag)


def _no_member(chooser: Discriminator, tag: str | None, value: Any, loc: Loc) -> Fault:
    if chooser.refusal is not None:
        said = chooser.refusal
        return Fault(said.type, loc, str(said), value, said.context)
    kind = "union_tag_not_found" if tag is None else "union_tag_invalid"
    return Fault(kind, loc, "is of no kind that is known here", value)


# ---- what is around a type ----


def _called(func: Validate, value: Any, info: ValidationInfo, loc: Loc) -> Any:
    code = getattr(func, "__code__", None)
    arguments = (value, info) if code is not None and code.co_argcount == 2 else (value,)
    return with_words(func, *arguments, value, loc)


def _before(func: Validate, read: Reader) -> Reader:
    return lambda value, loc, before, context: read(
        _called(func, value, ValidationInfo(before, context), loc), loc, before, context
    )


def _after(func: Validate, read: Reader) -> Reader:
    return lambda value, loc, before, context: _called(
        func, read(value, loc, before, context), ValidationInfo(before, context), loc
    )


def _plainly(func: Validate) -> Reader:
    return lambda value, loc, before, context: _called(
        func, value, ValidationInfo(before, context), loc
    )


def _limited(limits: Limits, read_any: Reader) -> Reader:
    given = vars(limits)

    def read(value: Any, loc: Loc, before: Mapping[str, Any], context: Context) -> Any:
        found = read_any(value, loc, before, context)
        for name, limit in given.items():
            kind, holds, words = _LIMITS[name]
            if found is not None and not holds(found, limit):
                raise Wrong(Fault(kind, loc, f"is {words} {limit}", found))
        return found

    return read


_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool], str]] = {
    "ge": ("greater_than_equal", lambda value, limit: value >= limit, "less than"),
    "gt": ("greater_than", lambda value, limit: value > limit, "not more than"),
    "le": ("less_than_equal", lambda value, limit: value <= limit, "more than"),
    "min_length": ("too_short", lambda value, limit: len(value) >= limit, "shorter than"),
    "max_length": ("too_long", lambda value, limit: len(value) <= limit, "longer than"),
}
