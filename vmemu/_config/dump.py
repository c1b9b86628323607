"""A scenario, or a value of it, as a scenario file writes it: what is shown can be run again."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from vmemu._config import scalars
from vmemu._config.types import Means
from vmemu.model.base import Model
from vmemu.model.fields import FieldInfo


def to_yaml(model: Model) -> str:
    """The whole of ``model`` with its defaults, as YAML that is read back to the same."""
    return yaml.dump(
        plain(model), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 20
    )


def plain(model: Model) -> dict[str, Any]:
    """The fields of ``model`` as plain data with the units of a scenario; without those that are
    left out."""
    fields = type(model).model_fields
    values = {name: getattr(model, name) for name in fields}
    return {
        name: written(value, fields[name]) for name, value in values.items() if value is not None
    }


def written(value: Any, field: FieldInfo) -> Any:
    """One field's ``value`` as a scenario has it."""
    if isinstance(value, Model):
        return plain(value)
    if isinstance(value, tuple):
        return [written(item, field) for item in value]
    means = meaning(field)
    return means.write(value) if means else str(value) if isinstance(value, Path) else value


def meaning(field: FieldInfo) -> Means | None:
    """What the field's type means, wherever in its annotation that stands; None for models and
    words."""
    return next((m for m in field.metadata if isinstance(m, Means)), None) or _inside(
        field.annotation
    )


def _inside(annotation: Any) -> Means | None:
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, Means):
            return extra
    # A union of models or a word among models has its meanings in its members.
    members = get_args(annotation) if get_origin(annotation) is not None else ()
    return next((found for member in members if (found := _inside(member))), None)


def in_one_line(value: Any) -> str:
    """Plain data as YAML in one line, as the value of ``--set`` has it."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=1 << 20,
        default_flow_style=True,
    )
    return text.strip()


class _Dumper(yaml.SafeDumper):
    """Writes nothing that ``yamlfile`` refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, value: str) -> yaml.Node:
        """Plain where it stays text to every reader, else in quotes."""
        trap = scalars.find_trap(value) or not isinstance(scalars.plain_value(value), str)
        return self.represent_scalar("tag:yaml.org,2002:str", value, style='"' if trap else None)

    def number(self, value: float) -> yaml.Node:
        """In digits, without an exponent; what is too tiny for that as text, which has one."""
        digits = format(Decimal(repr(value)), "f")
        if scalars.find_trap(digits):
            return self.text(repr(value))
        return self.represent_scalar("tag:yaml.org,2002:float", digits)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_representer(float, _Dumper.number)
