"""Variations of a scenario, by number.

Variation ``number`` of a seed is a function of both, of the scenario and of the kinds of memory
that the host has; of no clock, and of nothing that other variations came to. So a failure is had
again by its number, and a run that is cut short has run the same ones as a longer one.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmemu import plan
from vmemu._config import yamlfile
from vmemu.config import AsapPace, Scenario, Wait, load, split_override
from vmemu.errors import ConfigError
from vmemu.jobs.supervised import Job
from vmemu.memoryneed import memory_needed
from vmemu.stress.dimensions import DIMENSIONS, MOST_MEMORY, Choice
from vmemu.stress.draw import Draw
from vmemu.stress.kinds import HostKinds
from vmemu.workload import Workload

MOST_TRIES = 50
WAIT = "{wait: 30s}"
"""For hugepages, which the runs beside it give back within seconds."""

_FASTEST = 1_000_000_000


@dataclass(frozen=True)
class Variation:
    """One variation: a run of ``vmemu run FILE --seed seed`` with ``--set`` for each override.

    ``seed`` None is the scenario's own. ``scenario`` is what they make of it.
    """

    number: int
    seed: int | None
    overrides: tuple[str, ...]
    scenario: Scenario


class Variations:
    """All variations of a scenario file under ``seed``; number 0 is the scenario itself.

    ``given`` are its user's overrides, which every variation keeps. Raises ConfigError when the
    scenario is wrong, or its trace does not fit.
    """

    def __init__(
        self, file: Path | str, seed: int, kinds: HostKinds, given: Sequence[str] = ()
    ) -> None:
        self.seed = seed
        self.kinds = kinds
        self.file = file
        self.given = tuple(given)
        self.base = load(file, map(split_override, self.given))
        self._kept = [_path(self.base, split_override(text)[0]) for text in self.given]
        _laid(self.base)
        self._checked = tuple(f"verify.{key}=true" for key in self._unchecked())

    def _unchecked(self) -> list[str]:
        """A run that checks less can fail without anybody seeing it."""
        verify = self.base.verify
        return [key for key in ("reads", "final") if not getattr(verify, key)]

    def of(self, number: int) -> Variation:
        """The variation of that number."""
        if number == 0:
            return self._completed(0, None, [])
        for attempt in range(MOST_TRIES):
            draw = Draw(self.base.name, self.seed, number, attempt)
            seed = draw.word()
            try:
                return self._drawn(number, seed, draw)
            except ConfigError:
                continue
        # A scenario that is fixed in every direction: at least with another seed.
        return self._completed(number, seed, [])

    def command(self, number: int, *options: str) -> str:
        """What runs that variation alone, under ``vmemu stress`` with ``options``."""
        words = [word for text in self.given for word in ("--set", text)]
        numbers = ["--seed", str(self.seed), "--first", str(number), "--runs", "1"]
        file = Job(Path(self.file)).arguments()[1]
        return shlex.join(["vmemu", "stress", file, *words, *options, *numbers])

    def _drawn(self, number: int, seed: int, draw: Draw) -> Variation:
        """A variation, or ConfigError where what was drawn does not fit."""
        choice = Choice(self.base, self.kinds, draw)
        drawn = [
            (path, text)
            for dimension, share in DIMENSIONS
            if draw.chance(share)
            for path, text in dimension(choice)
            if self._free(path)
        ]
        a_second = draw.between(1, 8) if draw.chance(0.2) else 0
        scenario = self._load(seed, [f"{path}={text}" for path, text in drawn])
        self._check_memory(scenario)
        workload = _laid(scenario)
        asap = isinstance(scenario.guest.pace, AsapPace)
        if a_second and asap and self._free("guest.pace"):
            rate = min(workload.accesses * a_second // scenario.guest.vcpus + 1, _FASTEST)
            drawn.append(("guest.pace", f"{{kind: rate, accesses_per_second: {rate}}}"))
        return self._completed(number, seed, [f"{path}={text}" for path, text in drawn])

    def _completed(self, number: int, seed: int | None, drawn: list[str]) -> Variation:
        overrides = [*self.given, *self._checked, *drawn]
        scenario = load(self.file, map(split_override, overrides), seed)
        huge = memory_needed(scenario).hugepages
        if huge and not isinstance(scenario.on_unavailable, Wait) and self._free("on_unavailable"):
            overrides.append(f"on_unavailable={WAIT}")
            scenario = load(self.file, map(split_override, overrides), seed)
        return Variation(number, seed, tuple(overrides), scenario)

    def _load(self, seed: int, drawn: Iterable[str]) -> Scenario:
        return load(self.file, map(split_override, [*self.given, *drawn]), seed)

    def _free(self, path: str) -> bool:
        """Whether its user has set neither it, nor a part of it, nor the whole that it is in."""
        steps = _path(self.base, path)
        return not any(all(a == b for a, b in zip(steps, kept)) for kept in self._kept)  # noqa: B905

    def _check_memory(self, scenario: Scenario) -> None:
        """Raise ConfigError for memory that runs beside each other could not all have."""
        sizes = [block.size for block in scenario.blocks]
        given = sum(block.size for block in self.base.blocks)
        if sum(sizes) > max(given * 5 // 4, MOST_MEMORY):
            raise scenario.error("blocks", "more memory than a variation may have", "")
        for page_size, pages in memory_needed(scenario).hugepages.items():
            if pages > self.kinds.pools.get(page_size, 0):
                raise scenario.error("blocks", "more hugepages than the pool has", "")
        small = sum(block.size for block in scenario.blocks if block.backing != "hugetlbfs")
        lockable = self.kinds.lockable
        if scenario.memory.lock and lockable is not None and small > lockable:
            raise scenario.error("memory.lock", "more than may be locked", "")


def _laid(scenario: Scenario) -> Workload:
    """What the vCPUs will do. Raises ConfigError when a trace does not fit."""
    blocks = plan.blocks_of(scenario)
    plan.client_plans(scenario, blocks)
    return plan.make_workload(scenario, blocks)[0]


def _path(scenario: Scenario, dotted: str) -> tuple[str | int, ...]:
    """The path with the numbers of blocks and clients in the place of their names."""
    known = {
        "blocks": [block.name for block in scenario.blocks],
        "clients": [client.name for client in scenario.clients],
    }
    steps: list[str | int] = []
    for step in yamlfile.split_path(dotted):
        names = known.get(str(steps[0]), []) if len(steps) == 1 else []
        if step.text in names:
            steps.append(names.index(step.text))
        else:
            steps.append(int(step.text) if step.text.isdigit() else step.text)
    return tuple(steps)
