"""Every event that is known, as one table in the C core (``_core/event_table.h``) has them.

What writes events there and what reads them in Python are made from the same lines.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from vmemu import core

DESTINATION, SOURCE = "destination", "source"

Args = dict[str, Any]
"""Numbers are int, everything else is str."""

_FIELD = re.compile(r"\{(\w+):(.)(.)\}")
_FORMS = {
    "s": ("(.*)", 0),
    "u": ("([0-9]{1,20})", 10),
    "d": ("(-?[0-9]{1,20})", 10),
    "x": ("([0-9a-f]{1,16})", 16),
    "p": ("(0x[0-9a-f]{1,16})", 16),
}
"""How a field looks in a text, and the base of its number; 0: it is no number."""
_MOST = 1 << 64


class Field(NamedTuple):
    """An argument of an event: its name, where the C core takes it from, how it is printed."""

    name: str
    source: str
    form: str


@dataclass(frozen=True)
class Kind:
    """One line of the C core's table. ``side`` is empty for an event that both sides have."""

    id: int
    name: str
    side: str
    fields: tuple[Field, ...]
    pattern: re.Pattern[str]
    """Of the text behind the name; a group for each field of the text."""
    bases: tuple[tuple[str, int], ...]
    """Of those fields: name, base of its number or 0."""

    def parse(self, text: str) -> Args | None:
        """The arguments in a text, None when it is not of this event's form."""
        match = self.pattern.fullmatch(text)
        if match is not None:
            values = zip(self.bases, match.groups(), strict=True)
            return {n: int(v, base) if base else v for (n, base), v in values}
        if "(nil)" in text:  # how glibc prints a pointer that is NULL
            return self.parse(text.replace("(nil)", "0x0"))
        return None

    def accepts(self, args: Args) -> bool:
        """Whether JSON arguments are all there and of the right types."""
        for name, _, form in self.fields:
            value = args.get(name)
            if form == "s":
                if type(value) is not str:
                    return False
            elif type(value) is not int or not -_MOST < value < _MOST:
                return False
        return True


@functools.cache
def kinds() -> dict[str, Kind]:
    """Every event of the table by its name."""
    table = {}
    number = 1
    while (entry := core.lib.vm_event_kind(number)) != core.ffi.NULL:
        kind = _kind(number, entry)
        table[kind.name] = kind
        number += 1
    return table


@functools.cache
def words() -> dict[str, int]:
    """The words that events carry by number, such as the states of a migration."""
    table: dict[str, int] = {}
    while (entry := core.lib.vm_event_word(len(table))) != core.ffi.NULL:
        table[core.text(entry)] = len(table)
    return table


def _kind(number: int, entry: Any) -> Kind:
    sides = {core.lib.VM_SIDE_DESTINATION: DESTINATION, core.lib.VM_SIDE_SOURCE: SOURCE}
    text = core.text(entry.text)
    in_text = [Field(*parts) for parts in _FIELD.findall(text)]
    extra = [Field(*parts) for parts in _FIELD.findall(core.text(entry.extra))]
    pattern, end = "", 0
    for match in _FIELD.finditer(text):
        pattern += re.escape(text[end : match.start()]) + _FORMS[match[3]][0]
        end = match.end()
    return Kind(
        id=number,
        name=core.text(entry.name),
        side=sides.get(entry.side, ""),
        fields=(*in_text, *extra),
        pattern=re.compile(pattern + re.escape(text[end:])),
        bases=tuple((one.name, _FORMS[one.form][1]) for one in in_text),
    )
