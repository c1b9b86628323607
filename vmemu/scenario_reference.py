"""The reference of a scenario, made from its models: ``docs/scenario.md``, and the answers of
``vmemu config``.

``python -m vmemu.scenario_reference > docs/scenario.md`` writes the document anew.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from vmemu._config import dump, keys, prose, wording, yamlfile
from vmemu._config.annotations import bare, is_model, members
from vmemu.config import Scenario
from vmemu.errors import InputError
from vmemu.model import jsonschema
from vmemu.model.base import Model
from vmemu.model.fields import UNDEFINED, FieldInfo
from vmemu.spelling import written_alike
from vmemu.units import printable


@dataclass(frozen=True)
class Variant:
    """One of the mappings that may stand at a place; ``title`` tells it from the others."""

    title: str
    model: type[Model]


@dataclass(frozen=True)
class Chapter:
    """What is written at ``path`` of a scenario (``blocks[].content``; "" is the whole)."""

    path: str
    about: str
    words: tuple[str, ...]
    """Single words that may stand in the place of a mapping."""
    variants: tuple[Variant, ...]
    default: str = ""
    """As ``_default`` tells it; empty for the whole."""

    @property
    def title(self) -> str:
        return f"`{self.path}`" if self.path else "The whole"


def document() -> str:
    """The whole reference as Markdown."""
    parts = [prose.TITLE]
    first: dict[tuple[Variant, ...], Chapter] = {}
    told: list[str] = []
    for chapter in chapters():
        known = first.setdefault(chapter.variants, chapter)
        if known is chapter:
            parts.append(_markdown(chapter))
        elif not any(_is_below(chapter.path, path) for path in told):
            told.append(chapter.path)
            parts.append(_again(chapter, known))
    return "\n".join(parts)


def explain(field: str) -> str:
    """What the reference says of a field, or of a section and all below it.

    Raises InputError for a field that there is not.
    """
    wanted = _canonical(field)
    below = [chapter for chapter in chapters() if _is_below(_key(chapter.path), wanted)]
    if below:
        return "\n".join(map(_markdown, below))
    rows = [row for chapter in chapters() for row in _rows_named(chapter, wanted)]
    if rows:
        return "\n".join(rows)
    raise InputError(f"a scenario has no field '{printable(field)}'; {_meant(wanted)}")


def _meant(wanted: str) -> str:
    """The remedy for a field that there is not: where its name, or one of its words, is known."""
    fields = {name: field for chapter in chapters() for name, field in _fields(chapter)}
    found = (
        keys.ending_in(wanted, fields)
        or [name for name, field in fields.items() if wanted in _words(field.annotation)]
        or ([] if written_alike(wanted, fields) else keys.ending_alike(wanted, fields))
    )
    return keys.asked(found) if found else wording.nearest(wanted, fields)


def schema() -> dict[str, Any]:
    """The JSON schema of a scenario, its defaults as a scenario writes them."""
    made = jsonschema.of(Scenario)
    for chapter in chapters():
        for variant in chapter.variants:
            name = variant.model.__name__
            properties = (made if chapter.path == "" else made["$defs"][name])["properties"]
            for key, field in variant.model.model_fields.items():
                if "default" in properties[key] and field.default is not None:
                    properties[key]["default"] = dump.written(field.default, field)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


# ---- from the models to chapters ----


def chapters() -> list[Chapter]:
    """All of them: a section before those that it contains."""
    return list(_chapters("", Scenario, "Everything but `blocks` and `guest.trace` has a default."))


def _chapters(path: str, annotation: Any, about: str, default: str = "") -> Iterator[Chapter]:
    variants = tuple(_variants(annotation))
    if not variants:
        return
    yield Chapter(path, about, tuple(_words(annotation)), variants, default)
    for variant in variants:
        for name, field in variant.model.model_fields.items():
            many = "[]" if get_origin(bare(field.annotation)) is tuple else ""
            below = f"{path}.{name}{many}".lstrip(".")
            about = field.description or ""
            yield from _chapters(below, field.annotation, about, _default(field))


def _variants(annotation: Any) -> Iterator[Variant]:
    """The models that an annotation allows."""
    annotation = bare(annotation)
    if is_model(annotation):
        yield Variant("", annotation)
    elif get_origin(annotation) is tuple:
        yield from _variants(get_args(annotation)[0])
    for tag, member in members(annotation).items():
        model = bare(member)
        if is_model(model):
            kind = "kind" in model.model_fields
            yield Variant(f"kind: {tag}" if kind else f"{{{tag}: ...}}", model)


def _words(annotation: Any) -> list[str]:
    annotation = bare(annotation)
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    return [word for member in members(annotation).values() for word in _words(member)]


# ---- from a field to words ----


def _takes(field: FieldInfo) -> str:
    """The type in words, with its range."""
    words, means = [f"`{word}`" for word in _words(field.annotation)], dump.meaning(field)
    many = get_origin(bare(field.annotation)) is tuple
    if next(_variants(field.annotation), None):
        words += ["list of mappings"] if many else ["mapping", *_lists(field.annotation)]
    elif means and not words:
        words.append(f"list of {means.words}s" if many else means.words)
    return _listed(words) + _range(field)


def _lists(annotation: Any) -> list[str]:
    """What is said of a mapping that may be a list of them as well."""
    several = members(bare(annotation)).values()
    return ["list of them"] if any(get_origin(bare(m)) is tuple for m in several) else []


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _range(field: FieldInfo) -> str:
    limits: dict[str, Any] = {}
    for limit in field.metadata:
        names = ("ge", "gt", "le", "min_length")
        limits |= {name: getattr(limit, name) for name in names if hasattr(limit, name)}
    text = ""
    if "ge" in limits and "le" in limits:
        text = f", {_number(field, limits['ge'])} to {_number(field, limits['le'])}"
    elif "ge" in limits:
        text = f", {_number(field, limits['ge'])} or more"
    elif "gt" in limits:
        text = f", more than {limits['gt']}"
    elif "min_length" in limits and get_origin(bare(field.annotation)) is tuple:
        text = f", {limits['min_length']} or more"
    return text


def _number(field: FieldInfo, value: int) -> str:
    if value > 1 << 32 and not value & (value + 1):
        return f"2^{value.bit_length()} - 1"
    means = dump.meaning(field)
    return str(means.write(value)) if means else str(value)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "of the host"
    if field.default is UNDEFINED:
        return "**required**"
    if field.default is None:
        return "left out"
    value = dump.written(field.default, field)
    if isinstance(value, dict):
        return f"`kind: {value['kind']}`" if "kind" in value else "its defaults"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(field: FieldInfo) -> str:
    words_alone = get_origin(bare(field.annotation)) is Literal  # they stand beside it
    example = f" Example: `{field.examples[0]}`" if field.examples and not words_alone else ""
    return f"{field.description}{example}"


# ---- Markdown ----


def _markdown(chapter: Chapter) -> str:
    parts = [f"## {chapter.title}", "", chapter.about, ""]
    if chapter.words:
        words = _listed([f"`{word}`" for word in chapter.words])
        parts += [f"One of the words {words} ({chapter.default} by default), or:", ""]
    for variant in chapter.variants:
        if variant.title:
            parts += [f"### `{variant.title}`", "", inspect.getdoc(variant.model) or "", ""]
        parts += [*_table(chapter, variant), ""]
    if chapter.path in prose.FURTHER:
        parts += [prose.FURTHER[chapter.path]]
    return "\n".join(parts)


def _again(chapter: Chapter, known: Chapter) -> str:
    """A chapter that has the same tables as one before it."""
    link = f"[`{known.path}`](#{_anchor(known.path)})"
    return "\n".join(
        [f"## {chapter.title}", "", chapter.about, "", f"As {link}, all below it too.", ""]
    )


def _table(chapter: Chapter, variant: Variant) -> list[str]:
    lines = ["| field | takes | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in variant.model.model_fields.items():
        cells = (_linked(chapter, name, field), _takes(field), _default(field), _meaning(field))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _linked(chapter: Chapter, name: str, field: FieldInfo) -> str:
    """The field's name, leading to its chapter if it has one."""
    if next(_variants(field.annotation), None) is None:
        return f"`{name}`"
    path = f"{chapter.path}.{name}".lstrip(".")
    return f"[`{name}`](#{_anchor(path)})"


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z_]", "", path)


# ---- finding a field ----


def _canonical(field: str) -> str:
    """``blocks[pc.ram].size``, ``blocks.0.size`` and ``blocks[].size`` as ``blocks.size``."""
    try:
        steps = yamlfile.split_path(_key(field))
    except ValueError as error:
        raise InputError(str(error)) from None
    return ".".join(s.text for s in steps if not s.bracketed and not s.text.isdigit())


def _key(path: str) -> str:
    return path.replace("[]", "")


def _is_below(path: str, section: str) -> bool:
    return path == section or path.startswith(f"{section}.")


def _fields(chapter: Chapter) -> Iterator[tuple[str, FieldInfo]]:
    """Of all its variants; the name is as a person asks for it."""
    for variant in chapter.variants:
        for name, field in variant.model.model_fields.items():
            yield f"{_key(chapter.path)}.{name}".lstrip("."), field


def _rows_named(chapter: Chapter, wanted: str) -> Iterator[str]:
    """What is said of the field, once for each variant of its section that has it."""
    for variant in chapter.variants:
        for name, field in variant.model.model_fields.items():
            if f"{_key(chapter.path)}.{name}".lstrip(".") == wanted:
                of = f" (`{variant.title}`)" if variant.title else ""
                rows = (("takes", _takes(field)), ("default", _default(field)))
                listed = "".join(f"  {key}: {text}\n" for key, text in rows)
                yield f"`{chapter.path}.{name}`{of}\n{listed}  {_meaning(field)}".replace("`.", "`")


if __name__ == "__main__":
    print(document(), end="")
