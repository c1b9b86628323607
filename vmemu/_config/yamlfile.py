"""Strict YAML that remembers where everything stands.

A :class:`Document` is plain data (dict, list, str, int, float, bool) plus the line and column of
every key and value. Constructs that YAML readers disagree about (``no``, ``1e3``, ``010``,
``1:30``), and those that a scenario has no use for (aliases, merge keys, tags), are problems, not
guesses. Reading goes on past them, so that one pass finds them all.

The document is built from parser events, not from composed nodes: events tell an explicit tag from
a resolved one, no alias is ever expanded, and the depth is bounded here instead of by the C stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import yaml

from vmemu._config.scalars import find_trap, plain_value
from vmemu.errors import Problem
from vmemu.inputfile import denied, open_input
from vmemu.units import printable

Path = tuple[str | int, ...]
"""Where a value stands in the data: mapping keys and list indices from the root."""

LONGEST_FILE: Final = 1 << 20
DEEPEST: Final = 32

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What YAML 1.1 calls printable; anything else may not stand in a file even inside quotes.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Unreadable:
    """Stands for a value that was there but could not be read; its problem is already reported.
    ``text`` is that of a word which YAML readers disagree about."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def __repr__(self) -> str:
        return "UNREADABLE"


UNREADABLE: Final = Unreadable()


class Place(NamedTuple):
    """A place in a file; ``line`` and ``column`` count from 1, 0 means none."""

    file: str
    line: int
    column: int


@dataclass
class Document:
    """One scenario file as plain data, its places, and the problems found on the way."""

    file: str
    data: Any = UNREADABLE
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value (or the key) at ``path`` stands, else its nearest parent."""
        if key and path in self.keys:
            return self.keys[path]
        while path and path not in self.values:
            path = path[:-1]
        return self.values.get(path, Place(self.file, 0, 0))

    def problem(
        self, path: Path, what: str, remedy: str, code: str = "", *, key: bool = False
    ) -> Problem:
        """A problem of the value (or the key) at ``path``."""
        return Problem(*self.place(path, key=key), field_name(path), what, remedy, code)

    def override(self, dotted: str, text: str) -> None:
        """Replace the value at ``dotted`` by ``text``, read as YAML; for ``--set dotted=text``."""
        place = Place("--set", 0, 0)
        path = self._locate(dotted, place)
        if path is None:
            return
        self._forget(path)
        builder = _Builder(self, path, place)
        self._store(path, builder.build(text), place)

    def put(self, path: Path, value: Any, source: str) -> None:
        """Replace the value at ``path``, whose parent is there; ``source`` says who gave it."""
        self._forget(path)
        self._store(path, value, Place(source, 0, 0))

    def _store(self, path: Path, value: Any, place: Place) -> None:
        parent = value_at(self.data, path[:-1])
        parent[path[-1]] = value
        self.values.setdefault(path, place)
        self.keys[path] = place

    def _forget(self, path: Path) -> None:
        """Drop the places below ``path``: what stood there is replaced."""
        for places in (self.values, self.keys):
            for known in [p for p in places if p[: len(path)] == path]:
                del places[known]

    def _locate(self, dotted: str, place: Place) -> Path | None:
        """The path that ``dotted`` names, missing mappings made; None after a problem."""
        try:
            steps = split_path(dotted)
        except ValueError as error:
            what, _, remedy = str(error).partition("; ")
            self.problems.append(Problem(*place, printable(dotted), what, remedy))
            return None
        path: Path = ()
        node = self.data
        for number, step in enumerate(steps):
            if number:
                node = self._enter(node, path, place)
            if isinstance(node, Unreadable):
                return None
            item = find_step(node, step)
            if item is None:
                self.problems.append(
                    Problem(*place, printable(dotted), *_no_step(node, step, path))
                )
                return None
            path = (*path, item)
        return path

    def _enter(self, node: Any, path: Path, place: Place) -> Any:
        """The value at ``path``, the last item of which is looked up in ``node``."""
        item = path[-1]
        if isinstance(node, dict) and item not in node:
            node[item] = {}
            self.values[path] = self.keys[path] = place
        return node[item]


class Step(NamedTuple):
    """One step of a dotted path: ``text``, and whether it stood in square brackets."""

    text: str
    bracketed: bool


_STEP = re.compile(r"(?:^|\.)([^.\[\]]+)|\[([^\[\]]+)\]")


def split_path(dotted: str) -> list[Step]:
    """The steps of ``guest.vcpus``, ``blocks.0.size`` or ``blocks[pc.ram].size``.

    Raises ValueError, 'what is wrong; what would do', if ``dotted`` is no such path.
    """
    steps: list[Step] = []
    position = 0
    while match := _STEP.match(dotted, position):
        steps.append(Step(match[1] or match[2], match[1] is None))
        position = match.end()
    if not steps or position != len(dotted) or steps[0].bracketed:
        raise ValueError(
            f"'{printable(dotted)}' is no path of a field;"
            " write it as guest.vcpus, blocks[0].size or blocks[pc.ram].size"
        )
    return steps


def find_step(node: Any, step: Step) -> str | int | None:
    """The key or index that ``step`` means in ``node``; a bracketed text looks for a ``name``."""
    if isinstance(node, dict):
        return None if step.bracketed else step.text
    if not isinstance(node, list):
        return None
    if step.text.isascii() and step.text.isdigit() and len(step.text) < 10:
        return int(step.text) if int(step.text) < len(node) else None
    if not step.bracketed:
        return None
    for index, item in enumerate(node):
        if isinstance(item, dict) and item.get("name") == step.text:
            return index
    return None


def _no_step(node: Any, step: Step, path: Path) -> tuple[str, str]:
    parent = field_name(path)
    shown = printable(step.text)
    if isinstance(node, list):
        names = [str(item["name"]) for item in node if isinstance(item, dict) and "name" in item]
        known = f", named {', '.join(printable(n) for n in names[:8])}" if names else ""
        return f"{parent} has no entry {shown}", f"it has {len(node)}, counted from 0{known}"
    if isinstance(node, dict):
        return f"{parent} is a mapping, not a list", f"write {parent}.{shown}"
    return f"{parent} is a single value", f"set it as a whole: --set '{parent}={{{shown}: ...}}'"


def value_at(data: Any, path: Path) -> Any:
    """The value at ``path`` in ``data``, or None if there is none."""
    for item in path:
        if isinstance(data, dict):
            data = data.get(item)
        elif isinstance(data, list) and isinstance(item, int) and item < len(data):
            data = data[item]
        else:
            return None
    return data


def field_name(path: Path) -> str:
    """``path`` as people write it: ``blocks[1].size``."""
    text = ""
    for item in path:
        if isinstance(item, int):
            text += f"[{item}]"
        else:
            text += f".{printable(item)}" if text else printable(item)
    return text


def read(file: str) -> Document:
    """Read ``file``; raises nothing: what is wrong is in the document's ``problems``.

    ``data`` is UNREADABLE when nothing could be made of the file at all.
    """
    document = Document(file)
    text = _read_text(document)
    if text is not None:
        document.data = _Builder(document, (), None).build(text)
    return document


def _read_text(document: Document) -> str | None:
    """The text of the document's file, or None after a problem."""
    file = document.file
    try:
        with open_input(file) as stream:
            raw = stream.read(LONGEST_FILE + 1)
    except (OSError, ValueError) as error:
        document.problems.append(Problem(_shown(file), 0, 0, "", *_cant_read(error, file)))
        return None
    if len(raw) > LONGEST_FILE:
        document.problems.append(
            Problem(
                file,
                0,
                0,
                "",
                f"the file is larger than {LONGEST_FILE} bytes",
                "give a scenario; content and traces belong into files of their own",
            )
        )
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig")
        document.problems.append(
            Problem(
                file,
                *_line_column(before),
                "",
                f"byte {raw[error.start]:#04x} is not UTF-8",
                "save the file as UTF-8",
            )
        )
        return None


def _shown(file: str) -> str:
    return printable(file, 4096) or "''"


def _cant_read(error: Exception, file: str) -> tuple[str, str]:
    if not file:
        return "this names no file", "name a scenario, such as boot.yaml"
    if file == "-":
        return "no such file", "name /dev/stdin for standard input"
    if isinstance(error, FileNotFoundError):
        return "no such file", "check the name and the directory it is looked for in"
    if isinstance(error, IsADirectoryError):
        return "this is a directory", "name a scenario file in it"
    if isinstance(error, PermissionError):
        return denied(file)
    reason = (error.strerror if isinstance(error, OSError) else str(error)) or "unknown reason"
    return f"the file can't be read: {reason}", "name a file"


def _line_column(before: str) -> tuple[int, int]:
    """Line and column, from 1, of the character after ``before``."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


class _StopReadingError(Exception):
    """Nothing after this place can be read; its problem is already reported."""


class _Builder:
    """Builds the value at ``base`` of ``document`` from YAML text.

    With ``fixed``, the text does not come from the file, and this is the place of everything in it.
    """

    def __init__(self, document: Document, base: Path, fixed: Place | None) -> None:
        self._document = document
        self._base = base
        self._fixed = fixed
        self._events: Iterator[Any] = iter(())

    def build(self, text: str) -> Any:
        """The value of ``text``, or UNREADABLE."""
        bad = _UNPRINTABLE.search(text)
        if bad:
            line, column = _line_column(text[: bad.start()])
            self._report(
                self._at(line, column),
                self._base,
                f"character {bad[0]!a} may not stand in YAML",
                "remove it, or write it as an escape in double quotes",
            )
            return UNREADABLE
        self._events = iter(yaml.parse(text, Loader=_LOADER))
        try:
            return self._documents()
        except _StopReadingError:
            return UNREADABLE
        except yaml.MarkedYAMLError as error:
            self._syntax(text, error)
        except yaml.YAMLError as error:
            self._report(
                self._at(1, 1),
                self._base,
                f"this is not YAML: {printable(str(error))}",
                "save the file as plain UTF-8 text",
            )
        return UNREADABLE

    def _documents(self) -> Any:
        value: Any = None
        seen = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                seen += 1
                if seen > 1:
                    self._report(
                        self._mark(event),
                        self._base,
                        "a second document begins here",
                        "keep one document a file and remove the '---'",
                    )
                    return value
                value = self._node(next(self._events), self._base)
        if not seen:
            return self._empty()
        return value

    def _empty(self) -> Any:
        place = self._at(1, 1)
        if self._fixed is not None:
            self._report(place, self._base, "no value is given", "give one after the '='")
        else:
            self._report(
                place, self._base, "the file is empty", "give at least 'blocks' and 'guest'"
            )
        return UNREADABLE

    def _node(self, event: Any, path: Path) -> Any:
        place = self._mark(event)
        self._document.values[path] = place
        if len(path) - len(self._base) > DEEPEST:
            self._report(
                place,
                path[:4],
                f"nested more than {DEEPEST} levels deep",
                "close the brackets, or write it flatter",
            )
            raise _StopReadingError
        if isinstance(event, yaml.AliasEvent):
            name = printable(str(event.anchor))
            self._report(
                place, path, f"alias *{name}: aliases are not read here", "write the value out"
            )
            return UNREADABLE
        if event.anchor:
            self._report(
                place,
                path,
                f"anchor &{printable(event.anchor)} has no use here",
                "remove it, and write the value out where it was meant",
            )
        if event.tag:
            self._report(
                place,
                path,
                f"tag {printable(event.tag)}: tags are not read here",
                "remove it, and quote the value if it is text",
            )
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        if event.tag:
            return UNREADABLE
        return self._scalar(event, path, place)

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, (*path, len(items))))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._key(event, path, items)
            value = next(self._events)
            if key is None:
                self._skip(value)
                continue
            self._document.keys[(*path, key)] = self._mark(event)
            items[key] = self._node(value, (*path, key))
        return items

    def _key(self, event: Any, path: Path, items: dict[str, Any]) -> str | None:
        """The key of one entry, or None after a problem for which the entry is left out."""
        place = self._mark(event)
        if not isinstance(event, yaml.ScalarEvent):
            self._skip(event)
            self._report(place, path, "this key is not a word", "use one of the fields' names")
            return None
        if event.anchor or event.tag:
            self._report(place, path, "a key with a tag or an anchor", "write the key alone")
            return None
        key: str = event.value
        if key == "<<" and not event.style:
            self._report(place, (*path, key), "merge keys are not read here", "write the keys out")
            return None
        if key in items:
            first = self._document.keys[(*path, key)]
            where = f" on line {first.line}" if first.line else ""
            self._report(
                place,
                (*path, key),
                f"this key is given twice, first{where or ' before'}",
                "keep one of them",
            )
            return None
        return key

    def _skip(self, event: Any) -> None:
        """Pass over the node that ``event`` begins."""
        depth = 0
        while True:
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if not depth:
                return
            event = next(self._events)

    def _scalar(self, event: Any, path: Path, place: Place) -> Any:
        text: str = event.value
        if event.style:
            return text
        trap = find_trap(text)
        if trap is not None:
            self._report(place, path, *trap)
            return Unreadable(text)
        return plain_value(text)

    def _syntax(self, text: str, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        lines = text.split("\n")
        content = lines[line - 1] if line <= len(lines) else ""
        indentation = content[: len(content) - len(content.lstrip())]
        if "\t" in indentation and self._fixed is None:
            self._report(
                self._at(line, indentation.index("\t") + 1),
                self._base,
                "a tab in the indentation",
                "indent with spaces",
            )
            return
        # libyaml names C-level things ('<block end>'); they still tell those who know YAML most.
        reason = printable(error.problem or "can't be read", 160)
        self._report(
            self._at(line, column),
            self._base,
            f"YAML syntax: {reason}",
            "check the quotes, brackets, colons and indentation here and just above",
        )

    def _mark(self, event: Any) -> Place:
        mark = event.start_mark
        return self._at(mark.line + 1, mark.column + 1)

    def _at(self, line: int, column: int) -> Place:
        return self._fixed or Place(self._document.file, line, column)

    def _report(self, place: Place, path: Path, what: str, remedy: str) -> None:
        self._document.problems.append(Problem(*place, field_name(path), what, remedy))
