"""What moves with the guest at the flip: read as it was sent, and garbage is told apart."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu.errors import ProtocolError
from vmemu.flip import unpack_flip
from vmemu.guest_worker import Mismatch
from vmemu.source_precopy import VCPU_FIGURES

VCPU = {"position": 7} | {name: 10 + at for at, name in enumerate(VCPU_FIGURES)}
FLIP: dict[str, Any] = {
    "stopped_ns": 123,
    "rounds": 2,
    "precopy_pages": 40,
    "precopy_bytes": 40 * 4096,
    "dirty_tracking": {"method": "replay", "reason": "the scenario says so"},
    "vcpus": [VCPU, VCPU],
    "mismatches": [["ram", 4099, 1, 2]],
}
PLACES = [
    *((name,) for name in FLIP),
    *(("vcpus", 1, name) for name in VCPU),
    ("mismatches", 0),
    ("mismatches", 0, 1),
]


def packed(place: tuple[Any, ...] = (), value: Any = None) -> bytes:
    """A FLIP; the value at ``place`` is another."""
    document = copy.deepcopy(FLIP)
    at: Any = document
    for step in place[:-1]:
        at = at[step]
    if place:
        at[place[-1]] = value
    return json.dumps(document).encode()


def test_a_flip_says_what_went_in():
    flip = unpack_flip(packed(), 2)
    assert (flip.stopped_ns, flip.rounds) == (123, 2)
    assert (flip.precopy_pages, flip.precopy_bytes) == (40, 40 * 4096)
    assert flip.dirty_tracking.method == "replay"
    assert flip.vcpus == (VCPU, VCPU)
    assert flip.mismatches == (Mismatch("ram", 4099, 1, 2),)
    assert flip.total("accesses") == 2 * VCPU["accesses"]


def test_a_guest_that_did_not_run_at_the_source_has_no_vcpus_there():
    flip = unpack_flip(packed(("vcpus",), []), 2)
    assert flip.vcpus == ()
    assert flip.total("accesses") == 0


@pytest.mark.parametrize("vcpus", [1, 3])
def test_vcpus_of_another_number_are_refused(vcpus):
    with pytest.raises(ProtocolError, match=f"FLIP has 2 vCPUs, the guest has {vcpus}"):
        unpack_flip(packed(), vcpus)


ANY_TEXT = {("dirty_tracking", "method")}


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ANY_TEXT], ids=str)
@pytest.mark.parametrize("value", [-1, 1.5, True, "7x", {"surely": "wrong"}], ids=str)
def test_a_value_that_cannot_be_meant_is_a_protocol_error(place, value):
    with pytest.raises(ProtocolError, match="not well formed"):
        unpack_flip(packed(place, value), 2)


@given(st.binary(max_size=100) | st.sampled_from([b"[]", b"{}", b"3", packed()[:-1]]))
def test_garbage_is_a_protocol_error_and_nothing_else(payload):
    with pytest.raises(ProtocolError):
        unpack_flip(payload, 2)


plain = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
values = plain | st.lists(plain, max_size=6) | st.dictionaries(st.text(max_size=3), plain)


@given(st.sampled_from(PLACES), values)
def test_json_of_another_shape_is_a_flip_or_a_protocol_error(place, value):
    with suppress(ProtocolError):
        unpack_flip(packed(place, value), 2)
