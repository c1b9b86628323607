"""A trace without a scenario: options in the place of one, and what is wrong told in their words.

A mapping is checked and laid as that of a scenario is, so that both refuse the same; only who gave
options can't do with the name of a scenario's key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vmemu.config import Scenario
    from vmemu.errors import Problem

COMMAND = "vmemu trace map"
_OPTIONS = {
    r"blocks\b.*": "--block",
    r"guest\.trace\.map\.regions\b.*": "--region",
    r"guest\.trace\.map\.rename\b.*": "--rename",
    r"guest\.trace\.map\.block": "--into",
    r"guest\.trace\.map\.outside": "--drop",
    r"guest\.trace\.map\.(kind|align)": r"--\1",
    r"guest\.trace.*": "",
}
"""The keys of a scenario, and the options that stand for them; the first that fits."""
_WORDS = {
    r"map: \{kind: blocks, rename: \{RECORDED: NAME\}\}": "--rename RECORDED=NAME",
    r"map: \{kind: regions\}": "--region START-END=BLOCK+OFFSET",
    r"map: \{kind: (\w+)\}": r"--kind \1",
    r"'kind: (\w+)'": r"--kind \1",
    r"outside: drop": "--drop",
}


def is_native(source: str) -> bool:
    """Whether there is a native trace; it may be damaged."""
    from vmemu.errors import TraceError
    from vmemu.traces import native

    try:
        return native.is_native(source)
    except (TraceError, OSError):
        return False


def is_recording(source: str) -> bool:
    """Whether a reader knows what it is."""
    from vmemu.errors import TraceError
    from vmemu.traces.recordings import open_recording

    try:
        open_recording(source).stream.close()
    except (TraceError, OSError):
        return False
    return True


def mapping_of(
    *,
    kind: str | None,
    regions: tuple[str, ...],
    renames: tuple[str, ...],
    into: str | None,
    align: str | None,
    drop: bool,
) -> dict[str, Any]:
    """The options as the ``map`` of a scenario. Raises click.UsageError."""
    implied = "regions" if regions else "blocks" if renames else None
    fields = {
        "kind": kind or implied,
        "regions": list(regions) or None,
        "rename": dict(_pair("--rename", one, "RECORDED=BLOCK") for one in renames) or None,
        "block": into,
        "align": align,
        "outside": "drop" if drop else None,
    }
    if fields["kind"] == "regions" and not regions:
        raise click.UsageError("--kind regions needs --region START-END=BLOCK[+OFFSET]")
    return {name: value for name, value in fields.items() if value is not None}


def scenario_of(source: str, blocks: tuple[str, ...], mapping: dict[str, Any]) -> Scenario:
    """A scenario that has nothing but the native trace ``source`` on these blocks.

    Raises InputError, and click.UsageError for a block that is not NAME=SIZE[/PAGE].
    """
    from vmemu.config import make

    _check_native(source)
    trace = {"file": source, "map": mapping}
    data = {"blocks": [_block(text) for text in blocks], "guest": {"trace": trace}}
    return make(data, COMMAND)


@contextmanager
def in_options() -> Iterator[None]:
    """What is wrong with a scenario of ``scenario_of`` is told with options instead of keys."""
    from vmemu.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        raise ConfigError([_as_option(problem) for problem in error.problems]) from None


def _check_native(source: str) -> None:
    from vmemu.errors import InputError

    if is_native(source):
        return
    if not Path(source).exists():
        raise InputError(f"{source}: does not exist; name a native trace")
    if is_recording(source):
        raise InputError(convert_first(source))
    raise InputError(
        f"{source}: not a native trace; if it is a scenario, leave out --block: it has its own"
    )


def convert_first(source: str) -> str:
    """What to say of a recording that no mapping can read."""
    convert = f"vmemu trace convert {source} NAME.vmtrace"
    return f"{source}: a recording has to be converted first: {convert}"


def _as_option(problem: Problem) -> Problem:
    field = problem.field
    for key, option in _OPTIONS.items():
        if re.fullmatch(key, field):
            field = re.sub(key, option, field)
            break
    return replace(
        problem, field=field, what=_in_words(problem.what), remedy=_in_words(problem.remedy)
    )


def _in_words(text: str) -> str:
    for key, option in _WORDS.items():
        text = re.sub(key, option, text)
    return text


def _block(text: str) -> dict[str, str]:
    name, size = _pair("--block", text, "NAME=SIZE")
    size, slash, page_size = size.partition("/")
    if not slash or page_size == "4KiB":
        return {"name": name, "backing": "anonymous", "size": size}
    return {"name": name, "backing": "hugetlbfs", "size": size, "page_size": page_size}


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise click.BadParameter(f"{text!r} is not {form}", param_hint=option)
    return name, value
