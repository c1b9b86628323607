"""From the faults of data to problems that a person can act on.

A validator refuses a value with :func:`refuse`. The faults that ``vmemu.model`` finds are put into
words here, by the field's annotation and the value that stands there. Each is located by its path
in the YAML, which is the fault's ``loc`` without the tags that unions add to it.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args, get_origin

from vmemu._config import keys
from vmemu._config.annotations import bare, is_model, members
from vmemu._config.scalars import truth
from vmemu._config.yamlfile import Document, Path, Unreadable, field_name, value_at
from vmemu.errors import Problem
from vmemu.model.base import Model
from vmemu.model.faults import Fault, Refusal, ValidationError
from vmemu.model.fields import Discriminator, FieldInfo
from vmemu.spelling import written_alike
from vmemu.units import printable

_REFUSED = "refused"

MISSING = "is missing"
"""What is wrong with a field that must be there."""


def refuse(what: str, remedy: str, *below: str | int, code: str = "") -> Refusal:
    """The error to raise for a value, or for the key ``below`` it: what is wrong, what would do;
    ``code`` as of Problem."""
    context = {"what": what, "remedy": remedy, "below": below, "code": code}
    return Refusal(_REFUSED, f"{what}; {remedy}", context)


def choice(choose: Callable[[Any], str | None], what: str, remedy: str) -> Discriminator:
    """A union's discriminator, and what is said when it finds no member to choose."""
    return Discriminator(choose, refuse(what, remedy))


def show(value: Any) -> str:
    """``value`` in a few words of a message."""
    if isinstance(value, str):
        return f"'{printable(value)}'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 1024:
        return "a huge number"
    return printable(str(value))


def nearest(word: str, known: Iterable[str]) -> str:
    """The remedy for a ``word`` that is none of ``known``: the nearest of them, or all."""
    known = list(known)
    near = written_alike(word, known)
    if near:
        return f"did you mean '{printable(near[0])}'?"
    if not known:
        return "remove it"
    return f"use {'one of ' if len(known) > 1 else ''}{', '.join(printable(k) for k in known[:16])}"


def problems(error: ValidationError, model: type[Model], document: Document) -> list[Problem]:
    """The problems in ``error`` of validating ``document`` as ``model``, located.

    Those that only follow from an unreadable value, which is reported already, are left out.
    """
    found: dict[Problem, None] = {}
    spotted = [(fault, _spot(fault.loc, model)) for fault in error.faults]
    meant = {_meant(spot) for fault, spot in spotted if fault.type == "extra_forbidden"}
    for fault, spot in spotted:
        misspelt = fault.type == "missing" and spot.path in meant
        if not misspelt and not _follows(fault, value_at(document.data, spot.path)):
            path, what, remedy = _words(fault, spot, document)
            key = fault.type == "extra_forbidden"
            code = fault.context.get("code", "")
            found[document.problem(path, what, remedy, code, key=key)] = None
    return list(found)


_NO_WORD_OF_VALUES = ("bool_type", "string_type", "missing", "extra_forbidden")
"""Faults that say nothing more of what stands there than that it is no truth value."""


def meant_as_truth(error: ValidationError, model: type[Model], document: Document) -> list[Problem]:
    """The problems of the document: of a word such as 'on' they say what its field takes, where
    that is something else than true or false."""
    takes: dict[str, str] = {}
    for fault in error.faults:
        spot = _spot(fault.loc, model)
        value = value_at(document.data, spot.path)
        on = truth(value.text) if isinstance(value, Unreadable) else None
        if on is not None and fault.type not in _NO_WORD_OF_VALUES:
            takes[field_name(spot.path)] = _words(fault._replace(value=on), spot, document)[2]
    return [
        replace(problem, remedy=takes.get(problem.field, problem.remedy))
        for problem in document.problems
    ]


def with_kinds_guessed(error: ValidationError, model: type[Model], data: Any) -> Any:
    """A copy of ``data`` in which each misspelt ``kind`` is what was probably meant; None when
    nothing can be guessed."""
    guessed = None
    for fault in error.faults:
        if fault.type != "union_tag_invalid" or not isinstance(fault.value, dict):
            continue
        spot = _spot(fault.loc, model)
        kind, kinds = str(fault.value.get("kind"))[:100], members(spot.annotation)
        near = written_alike(kind, kinds)
        if near:
            guessed = copy.deepcopy(data) if guessed is None else guessed
            value_at(guessed, spot.path)["kind"] = near[0]
    return guessed


def _meant(spot: _Spot) -> Path:
    """The path of the field that an unknown key probably means; empty if there is none."""
    fields = spot.parent.model_fields if spot.parent else {}
    near = written_alike(str(spot.path[-1]), fields)
    return (*spot.path[:-1], near[0]) if near else ()


def _follows(fault: Fault, value: Any) -> bool:
    """Whether a fault only follows from another, which is reported by itself."""
    if fault.type == "extra_forbidden":
        return False
    kind = value.get("kind") if isinstance(value, dict) else None
    return isinstance(value, Unreadable) or isinstance(kind, Unreadable)


class _Spot(NamedTuple):
    """What a ``loc`` leads to: its path in the YAML, the model around it, the field, its type."""

    path: Path
    parent: type[Model] | None
    field: FieldInfo | None
    annotation: Any
    root: type[Model]
    union: dict[str, Any]
    """The members by their tags, if the model around it is one of a union."""


def _spot(loc: tuple[int | str, ...], model: type[Model]) -> _Spot:
    path: Path = ()
    parent: type[Model] | None = None
    field: FieldInfo | None = None
    annotation: Any = model
    union: dict[str, Any] = {}
    chosen_from: dict[str, Any] = {}
    for item in loc:
        annotation = bare(annotation)
        if is_model(annotation):
            path, parent = (*path, item), annotation
            union, chosen_from = chosen_from, {}
            field = annotation.model_fields.get(str(item))
            annotation = field.annotation if field else None
        elif get_origin(annotation) is tuple:
            path, annotation = (*path, item), get_args(annotation)[0]
        elif (member := members(annotation).get(str(item))) is not None:
            chosen_from = members(annotation)
            annotation = member
        else:
            path, annotation = (*path, item), None
    return _Spot(path, parent, field, bare(annotation), model, union)


def _words(fault: Fault, spot: _Spot, document: Document) -> tuple[Path, str, str]:
    """Where, what and the remedy of one fault."""
    kind, value = fault.type, fault.value
    if kind == _REFUSED:
        context = fault.context
        return (*spot.path, *context.get("below", ())), context["what"], context["remedy"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _union(spot, value)
    if kind == "extra_forbidden" and (kinds := _kinds_with(spot)):
        around = value_at(document.data, spot.path[:-1])
        return spot.path, *_of_another_kind(kinds, around.get("kind"), spot)
    return spot.path, *_what(kind, spot, value, fault.message)


def _kinds_with(spot: _Spot) -> list[str]:
    """The kinds that know a key which the one that was chosen does not."""
    return [
        kind
        for kind, member in spot.union.items()
        if is_model(bare(member)) and str(spot.path[-1]) in bare(member).model_fields
    ]


def _of_another_kind(kinds: list[str], given: Any, spot: _Spot) -> tuple[str, str]:
    named = " or ".join(f"'kind: {kind}'" for kind in kinds)
    if given is None:
        return f"is for {named}", f"add {'it' if len(kinds) == 1 else 'the one that is meant'}"
    other = "that kind" if len(kinds) == 1 else "one of these kinds"
    return f"is for {named}, not for 'kind: {given}'", f"leave it out, or use {other}"


_FEW = 2


def _nearest_field(spot: _Spot) -> str:
    """The remedy for an unknown key: one that is written much like it, or its place."""
    key, beside = str(spot.path[-1]), spot.parent.model_fields if spot.parent else {}
    alike = written_alike(key, beside, likeness=0.75)  # 'placement' and 'pace' are not
    elsewhere = [] if alike else keys.ending_in(key, keys.paths(spot.root))
    # A key that many sections have says nothing of where this one was meant to be.
    return keys.asked(elsewhere) if 0 < len(elsewhere) <= _FEW else nearest(key, beside)


def _what(kind: str, spot: _Spot, value: Any, message: str) -> tuple[str, str]:
    """What and the remedy of the errors that are about the value itself."""
    if kind == "extra_forbidden":
        words = "unknown key", _nearest_field(spot)
    elif kind == "missing":
        words = MISSING, _add(spot)
    elif kind == "literal_error":
        choices = [str(choice) for choice in get_args(spot.annotation)]
        # Where there is more than words to choose from, the examples have the rest.
        examples = map(str, (spot.field.examples or ()) if spot.field else ())
        choices += [example for example in examples if example not in choices]
        words = f"{show(value)} is not known here", _one_of(value, choices)
    elif kind in _WANTED:
        words = f"{show(value)} is not {_WANTED[kind]}", _give(kind, spot, value)
    elif kind in ("greater_than_equal", "less_than_equal", "greater_than"):
        words = f"{show(value)} is out of range", _range(spot)
    elif kind == "too_short":
        words = "the list is empty", f"give at least one entry, such as {_example(spot)}"
    else:
        description = spot.field.description if spot.field else None
        words = message, f"give {description or 'another value'}"
    return words


_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a number that can be used here",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping",
}


def _give(kind: str, spot: _Spot, value: Any) -> str:
    """The remedy for a value of the wrong type."""
    if kind.startswith("int") or kind in ("float_type", "finite_number"):
        quoted = isinstance(value, str) and re.fullmatch("[0-9]{1,20}", value)
        fits = quoted and _within(int(value), _limits(spot))
        return f"write {int(value)} without quotes" if fits else _range(spot)
    if kind == "bool_type":
        return "write true or false"
    if kind == "string_type":
        simple = not isinstance(value, dict | list)
        return f"put it in quotes: '{value}'" if simple and len(str(value)) < 60 else "give text"
    if kind == "tuple_type":
        return "write one '- ' item a line, or [item, item]"
    kinds = _kinds_of(spot.annotation)
    fields = ", ".join(spot.annotation.model_fields) if is_model(spot.annotation) else "key"
    lines = f"write 'key: value' lines with the keys of it: {fields}"
    return _of_kind(spot, value, kinds) if kinds else lines


def _kinds_of(annotation: Any) -> list[str]:
    """The words that ``kind`` may have, of a model with such a field."""
    field = annotation.model_fields.get("kind") if is_model(annotation) else None
    return [str(kind) for kind in get_args(bare(field.annotation))] if field else []


def _of_kind(spot: _Spot, value: Any, kinds: list[str]) -> str:
    """The remedy for a word in the place of a mapping with that ``kind``."""
    likely = [str(value)] if str(value) in kinds else written_alike(str(value)[:100], kinds)
    key = f"{spot.path[-1]}: " if spot.path and isinstance(spot.path[-1], str) else ""
    told = [f"'{key}{{kind: {kind}}}'" for kind in likely or kinds]
    if len(told) <= _FEW:
        return f"write {' or '.join(told)}"
    return f"write '{key}{{kind: KIND}}', where KIND is one of {', '.join(kinds)}"


def _union(spot: _Spot, value: Any) -> tuple[Path, str, str]:
    """No member of a union of models could be chosen by its ``kind``."""
    kinds = list(members(spot.annotation))
    if not isinstance(value, dict):
        return spot.path, f"{show(value)} is not a mapping", _of_kind(spot, value, kinds)
    path = (*spot.path, "kind")
    if "kind" not in value:
        return path, MISSING, f"add 'kind:' with one of {', '.join(kinds)}"
    return path, f"{show(value['kind'])} is not known here", _one_of(value["kind"], kinds)


def _one_of(value: Any, choices: list[str]) -> str:
    if isinstance(value, bool) and (word := _switched(value, choices)):
        return f"write {word}"
    near = written_alike(str(value)[:100], choices)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}{'use one of ' if len(choices) > 1 else 'use '}{', '.join(choices)}"


_OFF = ("none", "never")


def _switched(on: bool, choices: list[str]) -> str:
    """The word for true or false, where there is one for off; empty where there is no such."""
    off = [choice for choice in choices if choice in _OFF]
    rest = [choice for choice in choices if choice not in _OFF]
    if not off:
        return ""
    return (rest[0] if len(rest) == 1 else "") if on else off[0]


def _example(spot: _Spot) -> str:
    examples = spot.field.examples if spot.field else None
    return str(examples[0]).strip("[]") if examples else "the default"


def _add(spot: _Spot) -> str:
    examples = spot.field.examples if spot.field else None
    name = spot.path[-1]
    if not examples and spot.field and get_origin(spot.annotation) is Literal:
        examples = list(get_args(spot.annotation))
    return f"add it, such as '{name}: {examples[0]}'" if examples else f"add '{name}:'"


def _limits(spot: _Spot) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for limit in spot.field.metadata if spot.field else ():
        limits |= {n: getattr(limit, n) for n in ("ge", "gt", "le") if hasattr(limit, n)}
    return limits


def _within(value: int, limits: dict[str, Any]) -> bool:
    compare = {"ge": operator.ge, "gt": operator.gt, "le": operator.le}
    return all(compare[name](value, limit) for name, limit in limits.items())


def _range(spot: _Spot) -> str:
    limits = _limits(spot)
    if "gt" in limits:
        return f"give more than {limits['gt']}"
    if "ge" in limits and "le" in limits:
        return f"give a whole number from {limits['ge']} to {limits['le']}"
    return "give a whole number in digits"
