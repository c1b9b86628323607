"""docs/doctor.md names what there is: the document's keys, and the codes of problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from vmemu.doctor import problems
from vmemu.doctor.opening import HowName
from vmemu.host.document import HostDocument
from vmemu.model.base import Model

PAGE = (Path(__file__).parents[3] / "docs/doctor.md").read_text()
NAMED = set(re.findall(r"`([a-z_]+)`", PAGE))


def keys(model: type[Model]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, Model):
                yield from keys(part)


@pytest.mark.parametrize("key", sorted(set(keys(HostDocument))))
def test_every_key_is_named(key: str) -> None:
    assert key in NAMED


def test_every_code_of_a_problem_and_no_other_has_its_row() -> None:
    source = Path(problems.__file__).read_text()
    codes = set(re.findall(r"""_problem\(\s*"([a-z_]+)\"""", source))
    rows = PAGE.partition("| `code` | what is wrong |")[2]
    assert set(re.findall(r"`([a-z_]+)`", re.sub(r"\| [^|`][^|]*\|\n", "|\n", rows))) == codes


def test_every_way_has_its_row() -> None:
    assert set(get_args(HowName)) <= NAMED
