"""A scenario: YAML in, a frozen :class:`Scenario` out, or all that is wrong with it at once.

Nothing is mapped, opened for writing or started here: the most that is touched is the directory
entry of a trace or content file.

:func:`load` checks in two passes over the same data. The models (``_config.models``) check each
field by itself and against the fields before it in the same mapping; ``_config.crosscheck`` checks
what spans several mappings. Both always run, so that one wrong field hides no other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmemu._config import wording, yamlfile
from vmemu._config.crosscheck import across
from vmemu._config.guest import (
    AsapPace,
    Guest,
    PaceConfig,
    RatePace,
    RecordedPace,
    RecordedTrace,
    SyntheticTrace,
    Traces,
    Window,
)
from vmemu._config.judging import PageSizes
from vmemu._config.maps import (
    AutoMap,
    BlocksMap,
    CompactMap,
    FirstTouchMap,
    ModuloMap,
    RegionMap,
)
from vmemu._config.models import (
    Block,
    Channel,
    ClientConfig,
    FileContent,
    Limits,
    Memory,
    Migration,
    Postcopy,
    Precopy,
    SeededContent,
    Source,
    Unavailable,
    Verify,
    Wait,
)
from vmemu._config.placing import CpuLists, Placing
from vmemu._config.section import Section
from vmemu._config.synthetics import Permutation, Phases, Sequential, Synthetic, Uniform
from vmemu._config.types import LONGEST_NAME, FlipPoint, Name, Position, Region, Whole
from vmemu.errors import ConfigError, Problem, VmemuError
from vmemu.model.faults import Refusal, ValidationError
from vmemu.model.fields import Field, ValidationInfo, model_validator
from vmemu.units import printable

__all__ = [
    "AsapPace",
    "AutoMap",
    "Block",
    "BlocksMap",
    "Channel",
    "ClientConfig",
    "CompactMap",
    "CpuLists",
    "FileContent",
    "FirstTouchMap",
    "FlipPoint",
    "Guest",
    "Limits",
    "Migration",
    "ModuloMap",
    "PaceConfig",
    "PageSizes",
    "Permutation",
    "Phases",
    "Position",
    "Postcopy",
    "Precopy",
    "RatePace",
    "RecordedPace",
    "RecordedTrace",
    "Region",
    "RegionMap",
    "Scenario",
    "SeededContent",
    "Sequential",
    "Source",
    "Synthetic",
    "SyntheticTrace",
    "Traces",
    "Uniform",
    "Verify",
    "Wait",
    "Window",
    "load",
    "load_to_judge",
    "make",
    "split_override",
]


class Scenario(Section):
    """A whole run, as :func:`load` gives it."""

    name: Name = Field(default="unnamed", description="Its name; by default that of the file.")
    seed: Whole = Field(
        default=1,
        ge=0,
        le=(1 << 64) - 1,
        description="What all random choices and contents come from.",
    )
    blocks: tuple[Block, ...] = Field(
        min_length=1,
        description="The guest's RAM.",
        examples=["[{name: pc.ram, backing: anonymous, size: 128MiB}]"],
    )
    guest: Guest = Field(
        description="The guest's vCPUs and what they touch.",
        examples=["{trace: {file: traces/linux-boot.vmtrace}}"],
    )
    clients: tuple[ClientConfig, ...] = Field(
        default=(),
        description="Processes beside the guest, each on one block: they run once the guest has"
        " moved.",
        examples=["[{name: vhost0, block: pc.ram, trace: {synthetic: {kind: permutation}}}]"],
    )
    memory: Memory = Field(
        default=Memory.model_construct(), description="The destination's memory as a whole."
    )
    source: Source = Field(
        default=Source.model_construct(), description="The process that holds the pages at first."
    )
    channel: Channel = Field(
        default=Channel.model_construct(), description="What the two sides are connected by."
    )
    migration: Migration = Field(
        default=Migration.model_construct(), description="How the pages move."
    )
    placement: Placing = Field(
        default="auto",
        description="On which CPUs the threads run on whose way a fault is.",
        examples=["{vcpus: 0-1, fault: 0, urgent: 0}"],
    )
    verify: Verify = Field(
        default=Verify.model_construct(), description="What is compared with what it must be."
    )
    on_unavailable: Unavailable = Field(
        default="fail",
        description="When the host lacks a resource: fail, skip the run, or wait for it.",
        examples=["{wait: 30s}"],
    )
    limits: Limits = Field(
        default=Limits.model_construct(), description="What ends a run that gets nowhere."
    )

    _document: yamlfile.Document | None = None

    @model_validator
    def _check_across(self, info: ValidationInfo) -> None:
        # load() makes these checks itself, even when some field is wrong; Python callers don't.
        if not (info.context or {}).get("loading"):
            for path, what, remedy, *_ in across(self.model_dump()):
                raise Refusal("across", f"{yamlfile.field_name(path)}: {what}; {remedy}")

    @property
    def path(self) -> Path | None:
        """The file that the scenario was read from; None if it was made in Python."""
        return Path(self._document.file) if self._document else None

    def error(self, field: str, what: str, remedy: str) -> ConfigError:
        """An error of ``field`` (``blocks[1].size``) at its place in the file, to be raised.

        A field that the file leaves out gets the place of the nearest mapping around it.
        """
        return ConfigError([Problem(*self._place(field), field, what, remedy)])

    def place_of(self, field: str) -> str:
        """Where a field stands, to lead a message: ``boot.yaml:4:11: blocks[1].size``."""
        place = self._place(field)
        where = f"{place.file}:{place.line}:{place.column}" if place.line else place.file
        return f"{where}: {field}"

    def locate(self, error: VmemuError) -> None:
        """Give ``error`` its place in the file, if it is about one of the blocks."""
        error.locate(self._place_of_block)

    def _place_of_block(self, name: str, key: str) -> str:
        """The place of a key of the block of that name, empty if there is no such block; without a
        name that of a key of the scenario."""
        if not name:
            return self.place_of(key)
        for index, block in enumerate(self.blocks):
            if block.name == name:
                return self.place_of(f"blocks[{index}].{key}".rstrip("."))
        return ""

    def _place(self, field: str) -> yamlfile.Place:
        document = self._document
        if document is None:
            return yamlfile.Place(self.name, 0, 0)
        path: yamlfile.Path = ()
        for step in yamlfile.split_path(field):
            item = yamlfile.find_step(yamlfile.value_at(document.data, path), step)
            if item is None:
                break
            path = (*path, item)
        return document.place(path)

    def effective(self) -> dict[str, Any]:
        """The whole configuration with its defaults, fit for JSON.

        Sizes are integers in bytes; durations are integers in nanoseconds under names with ``_ns``.
        """
        effective: dict[str, Any] = self.model_dump(by_alias=True)
        return effective


def load(
    path: str | os.PathLike[str],
    overrides: Iterable[tuple[str, str | None]] = (),
    seed: int | None = None,
) -> Scenario:
    """The scenario in the file ``path``, with ``overrides`` and ``seed`` put in its place.

    Each override is a dotted path and the YAML text of its new value: ``("guest.vcpus", "4")``;
    :func:`split_override` makes one of an argument of ``--set``. Relative paths in them start at
    the scenario's directory, as those of the file do.
    Raises ConfigError with every problem of the file and the overrides; nothing else.
    """
    return _without_problems(_read(path, overrides, seed))


def load_to_judge(
    path: str | os.PathLike[str],
    overrides: Iterable[tuple[str, str | None]] = (),
    seed: int | None = None,
    pages: PageSizes | None = None,
) -> tuple[Scenario, list[Problem]]:
    """As ``load``, for a host with those ``pages``: the scenario, and what of it does not fit.

    Such a problem has a ``code``, and its value is in the scenario as it was given. Raises
    ConfigError when any other problem is there.
    """
    document = _read(path, overrides, seed)
    scenario = _validated(document, {"pages": pages})
    misfits, document.problems = document.problems, []
    if misfits and all(problem.code for problem in misfits):
        scenario = _validated(document, {"pages": pages, "judging": True})
    elif misfits:
        raise ConfigError(misfits)
    assert scenario is not None, "what does not fit is let pass"
    vars(scenario)["_document"] = document  # it is frozen but for who reads it
    return scenario, misfits


def for_host(scenario: Scenario, pages: PageSizes) -> Scenario:
    """What ``load_to_judge`` gave, as it is read for another host. Its file is not read again: it
    may be a pipe. What does not fit is let pass."""
    document = scenario._document
    assert document is not None
    again = replace(document, problems=[])
    found = _validated(again, {"pages": pages, "judging": True})
    assert found is not None, "what does not fit is let pass"
    vars(found)["_document"] = again
    return found


def _read(
    path: str | os.PathLike[str], overrides: Iterable[tuple[str, str | None]], seed: int | None
) -> yamlfile.Document:
    """The file with what is put in its place; problems are in the document, unless it is no
    mapping."""
    document = yamlfile.read(os.fspath(path))
    if not isinstance(document.data, dict):
        if not document.problems:
            document.problems.append(
                document.problem(
                    (), "a scenario is a mapping", "write 'blocks:' and 'guest:' with their values"
                )
            )
        raise ConfigError(document.problems)
    for dotted, text in overrides:
        if text is None:
            document.problems.append(_no_override(dotted))
        else:
            document.override(dotted, text)
    if seed is not None:
        document.put(("seed",), seed, "--seed")
    return document


def make(data: dict[str, Any], source: str) -> Scenario:
    """The scenario in plain ``data``, as YAML would give it; ``source`` is whose errors they are.

    Relative paths start at the working directory. Raises ConfigError with every problem.
    """
    return _without_problems(yamlfile.Document(source, data))


def split_override(text: str) -> tuple[str, str | None]:
    """The override in ``guest.vcpus=4``; for ``load`` to refuse, with all else that is wrong, when
    it is none."""
    path, equals, value = text.partition("=")
    return (path, value) if equals and path else (text, None)


def _without_problems(document: yamlfile.Document) -> Scenario:
    scenario = _validated(document)
    if scenario is None or document.problems:
        raise ConfigError(document.problems)
    vars(scenario)["_document"] = document  # it is frozen but for who reads it
    return scenario


def _validated(
    document: yamlfile.Document, reading: dict[str, Any] | None = None
) -> Scenario | None:
    """The document's scenario, or None with the problems added to the document; ``reading`` says
    for whom, as ``_config.judging`` asks it."""
    data = {"name": _default_name(document.file), **document.data}
    context = {"directory": Path(document.file).parent, "loading": True, **(reading or {})}
    scenario = None
    try:
        scenario = Scenario.model_validate(data, context=context)
    except ValidationError as error:
        document.problems = wording.meant_as_truth(error, Scenario, document)
        document.problems += wording.problems(error, Scenario, document)
        document.problems += _beyond_wrong_kinds(error, context, document, data)
    document.problems += [document.problem(*found) for found in across(data)]
    return scenario


def _beyond_wrong_kinds(
    error: ValidationError,
    context: dict[str, Any],
    document: yamlfile.Document,
    data: dict[str, Any],
) -> list[Problem]:
    """What is wrong next to a misspelt ``kind``, which chooses the fields that are checked."""
    guessed = wording.with_kinds_guessed(error, Scenario, data)
    if guessed is None:
        return []
    try:
        Scenario.model_validate(guessed, context=context)
    except ValidationError as more:
        further = wording.problems(more, Scenario, document)
        # What a guessed kind lacks may be no mistake once the kind is right.
        sure = [problem for problem in further if problem.what != wording.MISSING]
        return [problem for problem in sure if problem not in document.problems]
    return []


def _no_override(text: str) -> Problem:
    what = f"'{printable(text)}' is no path=value"
    return Problem("--set", 0, 0, "", what, "write such as guest.vcpus=4")


def _default_name(file: str) -> str:
    stem = re.sub(r"(\.vmemu)?\.ya?ml$|\.vmemu$", "", os.path.basename(file))
    fitting = "".join(c if c.isprintable() else "_" for c in stem).encode()[:LONGEST_NAME]
    return fitting.decode(errors="ignore") or "unnamed"
