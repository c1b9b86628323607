"""Settings that do nothing are told, by a check and by a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import HUGE, scenario

from vmemu import idle
from vmemu.idle import idle_settings

RAM = {"name": "ram", "backing": "anonymous", "size": "64KiB"}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": 2 * HUGE}
GIGANTIC = {"name": "huge", "backing": "hugetlbfs", "page_size": "1GiB", "size": "1GiB"}


def told(blocks: list[dict[str, Any]], **postcopy: Any) -> list[tuple[str, str]]:
    found = idle_settings(scenario(blocks, migration={"postcopy": postcopy}))
    return [(idle.path.rpartition(".")[2], idle.remedy) for idle in found]


@pytest.mark.parametrize(
    ("blocks", "postcopy", "path", "remedy"),
    [
        ([RAM], {"push": False, "push_order": "recorded"}, "push_order", "push: true"),
        ([RAM], {"fault_around": 1}, "fault_around", "fault_around: 16"),
        ([HUGEPAGES], {"fault_around": 64}, "fault_around", "fault_around: 0"),
        ([GIGANTIC], {"prefetch": "adaptive"}, "prefetch", "prefetch: none"),
    ],
)
def test_a_setting_without_effect(
    blocks: list[dict[str, Any]], postcopy: dict[str, Any], path: str, remedy: str
) -> None:
    assert told(blocks, **postcopy) == [(path, remedy)]


@pytest.mark.parametrize(
    ("blocks", "postcopy"),
    [
        ([RAM], {}),
        ([HUGEPAGES], {"push": False, "prefetch": "adaptive"}),
        ([RAM], {"push_order": "recorded", "fault_around": 2}),
        ([HUGEPAGES, RAM], {"fault_around": 64}),
    ],
)
def test_settings_with_an_effect(blocks: list[dict[str, Any]], postcopy: dict[str, Any]) -> None:
    assert told(blocks, **postcopy) == []


@pytest.mark.parametrize(
    ("file", "name", "bound"),
    [
        ("carry.h", "VM_AROUND_BYTES", idle._MOST_AROUND),
        ("prefetch.c", "LARGEST_PAGE", idle._LARGEST_AHEAD),
    ],
)
def test_the_bounds_are_those_of_the_core(file: str, name: str, bound: int) -> None:
    """A check says what does nothing without loading the core."""
    source = Path(idle.__file__).parent / "_core" / file
    found = re.search(rf"#define {name} \(UINT64_C\((\d+)\) << (\d+)\)", source.read_text())
    assert found is not None
    assert int(found[1]) << int(found[2]) == bound
