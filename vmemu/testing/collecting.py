"""What is collected: scenario files, ``boot.vmemu.yaml``, an item a seed; and tests, one a seed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from vmemu.errors import InputError
from vmemu.testing.marks import read_mark
from vmemu.testing.runs import Runs
from vmemu.testing.seeds import seeds


def own_seed(file: Path, overrides: Iterable[str], config: pytest.Config) -> int:
    """The seed of a scenario. Raises CollectError with all that is wrong with it."""
    from vmemu.config import load, split_override

    # The path as the user would write it: it leads every message.
    start = config.invocation_params.dir
    shown = file.relative_to(start) if Path.cwd() == start and file.is_relative_to(start) else file
    try:
        return load(shown, map(split_override, (*overrides, *config.getoption("vmemu_set")))).seed
    except InputError as error:
        raise pytest.Collector.CollectError(str(error)) from None


def seeds_of_test(metafunc: pytest.Metafunc, mark: pytest.Mark) -> list[int] | None:
    """The seeds of a marked test; None: that of its scenario alone, whatever it is. Raises
    CollectError."""
    option: int | None = metafunc.config.getoption("vmemu_seeds")
    try:
        asked = read_mark(mark, metafunc.definition.path)
    except InputError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    if asked.seeds is None and option is None:
        return None
    if isinstance(asked.seeds, tuple):
        return list(asked.seeds)
    own = own_seed(asked.config, asked.overrides, metafunc.config)
    return seeds(own, option or asked.seeds or 1)


class ScenarioFile(pytest.File):
    """One file."""

    def collect(self) -> Iterable[ScenarioItem]:
        own = own_seed(self.path, (), self.config)
        for seed in seeds(own, self.config.getoption("vmemu_seeds") or 1):
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
