"""`vmemu check` between documents of hosts as people send them: cut, edited, of another machine."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checking import guest, huge, ram, scenario, shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded_hosts import GIB, MIB, host, pool

from vmemu.check.judge import judge
from vmemu.check.terminal import lines
from vmemu.doctor.reading import parse
from vmemu.errors import InputError
from vmemu.host.document import Mount

HUGE = Mount(path="/mnt/huge", type="hugetlbfs", page_size=2 * MIB, size=8 * MIB, free=8 * MIB)
WHOLE = json.loads(
    json.dumps(host(pools=(pool(), pool(GIB, 2)), mounts=(HUGE,)).model_dump(by_alias=True))
)
Where = tuple[str | int, ...]


def places(data: Any, where: Where = ()) -> Iterator[Where]:
    """The way to every value in ``data``."""
    yield where
    pairs = data.items() if isinstance(data, dict) else ()
    for key, value in [*pairs, *(enumerate(data) if isinstance(data, list) else ())]:
        yield from places(value, (*where, key))


PLACES = [place for place in places(WHOLE) if place]
NUMBERS = [0, 1, -1, 3, 4096, 1 << 20, 1 << 30, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**400]
ANYTHING = st.one_of(
    st.sampled_from(NUMBERS),
    st.integers(),
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    st.just([]) | st.just({}) | st.just([None]) | st.just({"a": []}),
)
GONE = object()
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES), ANYTHING | st.just(GONE)), min_size=1, max_size=3
)


def changed(changes: list[tuple[Where, Any]]) -> bytes:
    """The whole document with other values in some places, or none."""
    data = copy.deepcopy(WHOLE)
    for (*outer, last), value in changes:
        holder = data
        try:
            for step in outer:
                holder = holder[step]
            if value is GONE:
                del holder[last]
            else:
                holder[last] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken it away
    return json.dumps(data).encode()


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One with all kinds of memory and files, and small ones."""
    every = [
        [
            ram(content={"zero_share": 0.5}),
            shared(path="/dev/shm/x"),
            huge(path="/mnt/huge/x"),
            huge("2GiB", name="gigantic", page_size="1GiB"),
        ],
        [huge("600GiB")],
    ]
    sections = {
        "memory": {"lock": True},
        "guest": guest(target_page_size="4KiB"),
        "migration": {"flip_at": "50%", "postcopy": {"preempt": False}},
    }
    return [scenario(tmp_path_factory.mktemp("scenario"), *blocks, **sections) for blocks in every]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(CHANGES)
def test_any_document_is_refused_in_a_line_or_judged_by(
    scenarios: list[Path], changes: list[tuple[Where, Any]]
) -> None:
    content = changed(changes)
    try:
        there = parse(content, "host.json")
    except InputError:
        with pytest.raises(InputError, match=r"\Ahost\.json: .*\Z"):
            parse(content, "host.json")
        return
    for path in scenarios:
        for source, destination in ((there, there), (host(), there), (there, host())):
            report = judge(path, source=source, destination=destination)
            for line in lines(report):
                assert line.isprintable()
            json.dumps(report.document())
