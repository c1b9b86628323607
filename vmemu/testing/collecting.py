"""What is collected: scenario files, ``boot.vmemu.yaml``, an item a seed; and tests, one a seed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from vmemu.errors import InputError
from vmemu.testing.failure import fail
from vmemu.testing.marks import read_mark
from vmemu.testing.runs import Runs
from vmemu.testing.seeds import seeds
from vmemu.testing.stash import BROKEN

MARK = "mark vmemu"
_SEED = re.compile(r"seed([0-9]{1,20})")


def own_seed(file: Path, overrides: Iterable[str], config: pytest.Config) -> int:
    """The seed of a scenario. Raises InputError with all that is wrong with it."""
    from vmemu.config import load, split_override

    # The path as the user would write it: it leads every message.
    start = config.invocation_params.dir
    shown = file.relative_to(start) if Path.cwd() == start and file.is_relative_to(start) else file
    return load(shown, map(split_override, (*overrides, *config.getoption("vmemu_set")))).seed


def seeds_of_test(metafunc: pytest.Metafunc, mark: pytest.Mark) -> list[int] | None:
    """The seeds of a marked test; None: that of its scenario alone, whatever it is. What is wrong
    with the mark is kept for the test to say: it is no reason to lose the others of its file."""
    definition, config = metafunc.definition, metafunc.config
    option: int | None = config.getoption("vmemu_seeds")
    try:
        asked = read_mark(mark, definition.path)
        if isinstance(asked.seeds, tuple):
            return list(asked.seeds)
        named = named_seeds(config, definition.path, definition.originalname)
        count = option or asked.seeds
        if count is None:
            return named or None
        own = own_seed(asked.config, asked.overrides, config)
    except InputError as error:
        text = str(error)
        shown = text if text.startswith(MARK) else f"{MARK}: {text}"
        config.stash.setdefault(BROKEN, {})[definition.nodeid] = shown
        return None
    return _all_of(seeds(own, count), named)


def require_whole_mark(test: pytest.Function, broken: Mapping[str, str]) -> None:
    """Fail a test whose mark could not be read; ``broken`` is what is wrong, by test."""
    parent = test.parent.nodeid if test.parent else ""
    if what := broken.get(f"{parent}::{test.originalname}"):
        fail(what)


def named_seeds(config: pytest.Config, path: Path, test: str = "") -> list[int]:
    """The seeds that the command line names by a test's id, ``boot.vmemu.yaml::seed5`` or
    ``test_boot.py::test_it[seed5]``: such a test is there however many seeds were asked for."""
    found = []
    for argument in config.args:
        file, *names = str(argument).partition("[")[0].split("::")
        words = (
            names[-1:] if not test else _parameters(str(argument)) if names[-1:] == [test] else []
        )
        if config.invocation_params.dir / file == path:
            found += [int(match[1]) for match in map(_SEED.fullmatch, words) if match]
    return [seed for seed in dict.fromkeys(found) if seed < 1 << 64]


def _parameters(argument: str) -> list[str]:
    return argument.partition("[")[2].removesuffix("]").split("-")


def _all_of(first: list[int], more: list[int]) -> list[int]:
    return list(dict.fromkeys([*first, *more]))


class ScenarioFile(pytest.File):
    """One file."""

    def collect(self) -> Iterable[ScenarioItem]:
        try:
            own = own_seed(self.path, (), self.config)
        except InputError as error:
            raise self.CollectError(str(error)) from None
        wanted = seeds(own, self.config.getoption("vmemu_seeds") or 1)
        for seed in _all_of(wanted, named_seeds(self.config, self.path)):
            yield ScenarioItem.from_parent(self, name=f"seed{seed}", seed=seed)


class ScenarioItem(pytest.Item):
    """One run of a file."""

    def __init__(self, *, seed: int, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.seed = seed

    def runtest(self) -> None:
        runs = Runs.begin(self)
        limits = runs.limits()
        runs.judge(runs.run(self.path, seed=self.seed, overrides=()), limits)

    def reportinfo(self) -> tuple[Path, int, str]:
        # No end of the test's id: pytest would write each dot of it as "::".
        return self.path, 0, f"{self.path.name}, seed {self.seed}"
