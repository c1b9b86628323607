"""What a field of a model is declared with: the parts of its type, its limits, what checks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from vmemu.model.faults import Refusal

F = TypeVar("F")

Validate = Callable[..., Any]
"""``(value)`` or ``(value, info)``: the value that it becomes; raises Refusal."""


class _Undefined:
    def __repr__(self) -> str:
        return "UNDEFINED"


UNDEFINED = _Undefined()
"""The default of a field that must be given."""


class ValidationInfo(NamedTuple):
    """What a validator may look at: the fields of the section that were read before its own, and
    what the caller of ``model_validate`` gave."""

    data: Mapping[str, Any]
    context: Mapping[str, Any] | None


# ---- parts of a type, in ``Annotated`` ----
# Plain classes: to make a dataclass takes as long as to import a module.


class _Calls:
    """A part that calls ``func``."""

    __match_args__ = ("func",)

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func


class BeforeValidator(_Calls):
    """A Validate that makes what its type takes of a value."""


class AfterValidator(_Calls):
    """A Validate that checks a value which its type has taken."""


class PlainValidator(_Calls):
    """A Validate that stands in the place of the type."""


class PlainSerializer(_Calls):
    """Makes plain data of the value."""


class WithJsonSchema:
    """What the type is in a JSON schema."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self.schema = schema


class Tag:
    """The name of a union's member."""

    def __init__(self, tag: str) -> None:
        self.tag = tag


class Discriminator:
    """Chooses the tag of a union's member by the value; where it finds none, ``refusal`` is what
    is wrong, if the usual words won't do."""

    def __init__(self, choose: Callable[[Any], str | None], refusal: Refusal | None = None) -> None:
        self.choose = choose
        self.refusal = refusal


# ---- fields ----


class Limits:
    """The limits that were given, and no others: ``ge``, ``gt``, ``le`` of a number,
    ``min_length`` and ``max_length`` of a list."""

    def __init__(self, **given: Any) -> None:
        vars(self).update({name: limit for name, limit in given.items() if limit is not None})


class FieldInfo:
    """One field of a model. ``annotation`` is its type without the ``Annotated`` around it, whose
    parts are in ``metadata``. Data has it under its ``alias`` if it has one."""

    def __init__(
        self,
        default: Any = UNDEFINED,
        *,
        default_factory: Callable[[dict[str, Any]], Any] | None = None,
        validate_default: bool = False,
        description: str = "",
        examples: list[Any] | None = None,
        alias: str | None = None,
        serialization_alias: str | None = None,
        allow_inf_nan: bool = True,
        **limits: Any,
    ) -> None:
        self.annotation: Any = None
        self.metadata: list[Any] = [Limits(**limits)] if limits else []
        self.default = default
        self.default_factory = default_factory
        self.validate_default = validate_default
        self.description = description
        self.examples = examples
        self.alias = alias
        self.serialization_alias = serialization_alias or alias
        self.allow_inf_nan = allow_inf_nan

    def is_required(self) -> bool:
        """Whether there is no default."""
        return self.default is UNDEFINED and self.default_factory is None


def flat(parts: list[Any]) -> Iterator[Any]:
    """Parts of a type, with those of fields among them in their places."""
    for part in parts:
        if isinstance(part, FieldInfo):
            yield from part.metadata
        else:
            yield part


def Field(default: Any = UNDEFINED, **rest: Any) -> Any:  # noqa: N802
    """A field with its default and what FieldInfo takes; of any type, for type checkers."""
    return FieldInfo(default, **rest)


class Check(NamedTuple):
    """A model's method that checks ``fields`` of it, or with none the whole."""

    fields: tuple[str, ...]
    mode: str
    func: Callable[..., Any]


def field_validator(*fields: str, mode: Literal["before", "after"] = "after") -> Callable[[F], F]:
    """Makes a class method ``(value)`` or ``(value, info)`` check those fields, before or after
    their type does."""

    def mark(method: Any) -> Any:
        return Check(fields, mode, method.__func__)

    return mark


def model_validator(method: Callable[..., Any]) -> Any:
    """Makes a method ``(self, info)`` check a model of which all fields are right."""
    return Check((), "after", method)
