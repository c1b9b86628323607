"""What the fixtures ``vmemu_run`` and ``vmemu_scenario`` give to a test."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from vmemu.errors import InputError
from vmemu.testing import failure, where
from vmemu.testing.marks import Asked, override_texts, read_mark, seconds
from vmemu.testing.migrationrun import MigrationRun
from vmemu.testing.runs import Runs

if TYPE_CHECKING:
    from vmemu.config import Scenario

NO_SCENARIO = (
    "which scenario? mark the test with @pytest.mark.vmemu('boot.yaml'), or call"
    " vmemu_run('boot.yaml')"
)


class Runner:
    """The fixture ``vmemu_run``: called, it runs a scenario in a process of its own."""

    def __init__(self, item: pytest.Item, seed: int | None) -> None:
        self._item = item
        self._seed = seed
        self._runs = Runs.begin(item)

    def __call__(
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        seed: int | None = None,
        overrides: Mapping[str, Any] | Sequence[str] | None = None,
        timeout: float | str | None = None,
        inject: str | Sequence[str] = (),
        check: bool = True,
    ) -> MigrationRun:
        """Run ``config``, or the scenario of the mark with the mark's overrides, to its end.

        With ``check``, the test fails or is skipped here unless the run completes and keeps to its
        limits; without, whatever became of it is returned. ``timeout`` is ``"90s"`` or seconds.
        ``inject`` are fault points, for a test of what happens when something goes wrong.
        """
        with self._runs.heard():
            try:
                asked = _asked(self._item, config)
                limit = (
                    asked.timeout_s if timeout is None else seconds(timeout, "vmemu_run: timeout")
                )
                more = override_texts(overrides)
                points = (inject,) if isinstance(inject, str) else inject
                if not (
                    isinstance(points, Sequence) and all(isinstance(one, str) for one in points)
                ):
                    raise InputError(f"vmemu_run: inject={inject!r}: write fault points as texts")
                if not (seed is None or isinstance(seed, int)):
                    raise InputError(f"vmemu_run: seed={seed!r}: write a whole number")
            except InputError as error:
                failure.fail(f"{where.line(self._item.config.invocation_params.dir)}{error}")
            limits = self._runs.limits() if check else []
            run = self._runs.run(
                asked.config,
                seed=self._seed if seed is None else seed,
                overrides=(*asked.overrides, *more),
                timeout_s=limit,
                inject=points,
            )
            if check:
                self._runs.judge(run, limits)
            return run


def load_scenario(item: pytest.Item, seed: int | None) -> Scenario:
    """The scenario of a test's mark; the test fails when it is none."""
    from vmemu.config import load, split_override

    try:
        asked = _asked(item, None)
        texts = (*asked.overrides, *item.config.getoption("vmemu_set"))
        return load(asked.config, map(split_override, texts), seed)
    except InputError as error:
        failure.fail(str(error))


def _asked(item: pytest.Item, config: str | os.PathLike[str] | None) -> Asked:
    """What the closest mark says, or the scenario ``config``, beside the test's file."""
    if config is not None:
        if not isinstance(config, str | os.PathLike):
            raise InputError(f"vmemu_run: a scenario is a path, not {config!r}")
        return Asked(item.path.parent / config)
    mark = item.get_closest_marker("vmemu")
    if mark is None:
        raise InputError(NO_SCENARIO)
    return read_mark(mark, item.path)
