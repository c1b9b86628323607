"""Models: a class whose annotated fields say what a mapping may hold, read from plain data.

Names and meaning are pydantic's, so that whoever knows it can read the models. It is not used
itself: to come up and to build the models of a scenario takes pydantic 200 ms, these 20, and a verb
may take 150 in all. What reads a field is made when a value of it is read for the first time.

All faults of the data are found, not only the first. What was read is frozen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    dataclass_transform,
    get_args,
    get_origin,
)

from vmemu.model.faults import Fault, Loc, ValidationError, Wrong, with_words
from vmemu.model.fields import (
    UNDEFINED,
    Check,
    Field,
    FieldInfo,
    PlainSerializer,
    ValidationInfo,
    flat,
)
from vmemu.model.reading import reader_of


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class _Models(type):
    """Finds the fields of a model and what checks them: those of its bases first."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _Models:
        checks = {key: one for key, one in namespace.items() if isinstance(one, Check)}
        for key in checks:
            del namespace[key]
        made = super().__new__(cls, name, bases, namespace)
        own: dict[str, FieldInfo] = {}
        hints: dict[str, Any] = inspect.get_annotations(made, eval_str=True)
        for key, hint in hints.items():
            if not key.startswith("_") and get_origin(hint) is not ClassVar:
                own[key] = _field(hint, namespace.get(key, UNDEFINED))
                if key in namespace:
                    delattr(made, key)
        fields: dict[str, FieldInfo] = {}
        inherited: dict[str, Check] = {}
        for base in reversed(made.__mro__[1:]):
            fields |= vars(base).get("_own_fields", {})
            inherited |= vars(base).get("_own_checks", {})
        made._own_fields, made._own_checks = own, checks  # type: ignore[attr-defined]
        made.model_fields = fields | own  # type: ignore[attr-defined]
        made._checks = tuple((inherited | checks).values())  # type: ignore[attr-defined]
        return made


def _field(annotation: Any, given: Any) -> FieldInfo:
    """The field; what its type says of it holds as well."""
    info = given if isinstance(given, FieldInfo) else FieldInfo(given)
    parts: list[Any] = []
    if get_origin(annotation) is Annotated:
        annotation, *parts = get_args(annotation)
    info.annotation = annotation
    info.metadata = [*flat(parts), *info.metadata]
    for part in parts:
        if isinstance(part, FieldInfo):
            info.allow_inf_nan &= part.allow_inf_nan
    return info


class Model(metaclass=_Models):
    """A mapping. A subclass declares its fields; those of its bases come first."""

    extra: ClassVar[Literal["forbid", "ignore"]] = "forbid"
    """What is done with keys that are no fields."""

    model_fields: ClassVar[dict[str, FieldInfo]]
    _checks: ClassVar[tuple[Check, ...]]

    def __init__(self, **values: Any) -> None:
        vars(self).update(vars(type(self).model_validate(values)))

    @classmethod
    def model_validate(cls, data: Any, *, context: Mapping[str, Any] | None = None) -> Self:
        """The model in plain ``data``; ``context`` is for validators. Raises ValidationError with
        everything that is wrong."""
        try:
            return cls.read_at(data, (), context)
        except Wrong as wrong:
            raise ValidationError(cls.__name__, wrong.faults) from None

    @classmethod
    def model_construct(cls) -> Self:
        """The model of nothing but defaults, which are not checked."""
        made = cls.__new__(cls)
        vars(made).update({name: field.default for name, field in cls.model_fields.items()})
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """The same with other values of some fields, which are not checked."""
        made = type(self).__new__(type(self))
        vars(made).update({**vars(self), **(update or {})})
        return made

    def model_dump(self, *, by_alias: bool = False) -> dict[str, Any]:
        """Plain data, fit for JSON; under their aliases, names say the unit."""
        return {
            (field.serialization_alias if by_alias else None) or name: _plain(
                getattr(self, name), _serializer(field), by_alias
            )
            for name, field in self.model_fields.items()
        }

    @classmethod
    def read_at(cls, data: Any, loc: Loc, context: Mapping[str, Any] | None) -> Self:
        """The model in ``data``, which stands at ``loc`` of something larger. Raises Wrong."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            raise Wrong(Fault("model_type", loc, "is no mapping", data))
        values: dict[str, Any] = {}
        faults: list[Fault] = []
        for name, field in cls.model_fields.items():
            key = field.alias or name
            try:
                given = data.get(key, UNDEFINED)
                if given is UNDEFINED:
                    if field.is_required():
                        raise Wrong(Fault("missing", (*loc, key), "is missing", data))
                    given = _default(field, None if faults else values)
                    if not field.validate_default:
                        values[name] = given
                        continue
                values[name] = cls._reader(name)(given, (*loc, key), values, context)
            except Wrong as wrong:
                faults += wrong.faults
        if cls.extra == "forbid":
            known = {field.alias or name for name, field in cls.model_fields.items()}
            faults += (
                Fault("extra_forbidden", (*loc, key), "is not known here", value)
                for key, value in data.items()
                if key not in known
            )
        if faults:
            raise Wrong(*faults)
        made = cls.__new__(cls)
        vars(made).update(values)
        return made._checked(data, loc, context)

    def _checked(self, data: Any, loc: Loc, context: Mapping[str, Any] | None) -> Self:
        for check in self._checks:
            if not check.fields:
                with_words(check.func, self, ValidationInfo(vars(self), context), data, loc)
        return self

    @classmethod
    def _reader(cls, name: str) -> Any:
        """What reads that field; made when it is first needed."""
        readers = vars(cls).get("_readers")
        if readers is None:
            readers = {}
            cls._readers = readers  # type: ignore[attr-defined]
        if name not in readers:
            checks = [check for check in cls._checks if name in check.fields]
            readers[name] = reader_of(cls, cls.model_fields[name], checks)
        return readers[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} is frozen: {name} can't be set")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} can't be deleted")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.model_fields)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in self.model_fields)
        return f"{type(self).__name__}({', '.join(values)})"


def _default(field: FieldInfo, values: dict[str, Any] | None) -> Any:
    """The default of a field that is left out. One that is made of the fields before it has none
    when any of them is wrong, which ``values`` None says."""
    if field.default_factory is None:
        return field.default
    if values is None:
        raise Wrong
    return field.default_factory(values)


def _serializer(field: FieldInfo) -> Callable[[Any], Any] | None:
    return next(_serializers(field.annotation, field.metadata), None)


def _serializers(annotation: Any, parts: list[Any]) -> Iterator[Callable[[Any], Any]]:
    """Those of a type, and of the types in it."""
    yield from (part.func for part in parts if isinstance(part, PlainSerializer))
    for inner in get_args(annotation):
        yield from _serializers(inner, list(getattr(inner, "__metadata__", ())))


def _plain(value: Any, serializer: Callable[[Any], Any] | None, by_alias: bool) -> Any:
    if isinstance(value, Model):
        return value.model_dump(by_alias=by_alias)
    if isinstance(value, tuple):
        return [_plain(item, serializer, by_alias) for item in value]
    if value is not None and serializer is not None:
        return serializer(value)
    return str(value) if isinstance(value, Path) else value
