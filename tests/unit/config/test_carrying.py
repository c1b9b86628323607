"""What may come along with the answers to faults, and where it makes no sense."""

from __future__ import annotations

from typing import Any

import pytest

from vmemu._config.deliveries import across_delivery


def data(**postcopy: Any) -> dict[str, Any]:
    return {"migration": {"postcopy": postcopy}}


@pytest.mark.parametrize("fields", [{"fault_around": 2}, {"prefetch": "adaptive"}])
def test_a_vcpu_that_serves_itself_is_sent_nothing_else(fields):
    assert across_delivery(data(**fields)) == []
    assert across_delivery(data(delivery="thread", **fields)) == []
    ((where, what, remedy),) = across_delivery(data(delivery="sigbus", **fields))
    (name,) = fields
    assert where == ("migration", "postcopy", name)
    assert "delivery: sigbus" in what
    assert remedy == f"leave out {name}, or use 'delivery: thread'"


@pytest.mark.parametrize(
    "fields",
    [{}, {"fault_around": 1}, {"prefetch": "none"}, {"fault_around": "x"}, {"prefetch": []}],
)
def test_what_is_off_or_wrong_by_itself_is_not_told_here(fields):
    assert across_delivery(data(delivery="sigbus", **fields)) == []


def test_a_fault_thread_has_cpus_where_there_is_one():
    placed = data(delivery="sigbus") | {"placement": {"vcpus": "0", "fault": "0"}}
    ((where, what, remedy),) = across_delivery(placed)
    assert where == ("placement", "fault")
    assert what.endswith("there is no fault thread")
    assert remedy == "leave out fault, or use 'delivery: thread'"
    assert across_delivery(placed | {"clients": [{"name": "c"}]}) == []
    assert across_delivery(placed | data(delivery="thread")) == []


@pytest.mark.parametrize("whole", [None, {}, {"migration": 3}, {"migration": {"postcopy": []}}])
def test_what_can_not_be_read_is_passed_over(whole):
    assert across_delivery(whole) == []
