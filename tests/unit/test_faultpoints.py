"""Fault points as people write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmemu.errors import InputError
from vmemu.testing import faultpoints

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("text", "block", "offset"),
    [
        ("loader.flip@block=pc.ram,offset=4096", "pc.ram", 4096),
        ("loader.flip@offset=0x1000,block=pc.ram", "pc.ram", 4096),
        ("loader.flip@block=a,b c=d@e,offset=4KiB", "a,b c=d@e", 4096),
    ],
)
def test_a_fault_point_is_read(text: str, block: str, offset: int) -> None:
    point = faultpoints.parse(text)
    assert point == faultpoints.FaultPoint("loader.flip", {"block": block, "offset": offset})
    assert faultpoints.flips([point], {block: 8192}) == ((block, offset),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no fault point is called ''; known: loader.flip@block=…,offset=…"),
        ("loader.flop", "'loader.flop'; known: loader.flip@block=…,offset=…"),
        ("loader.flip", "loader.flip needs block and offset"),
        ("loader.flip@block=a", "loader.flip needs offset: loader.flip@block=…,offset=…"),
        ("loader.flip@at=3", "no option 'at'"),
        ("loader.flip@block", "no option 'block'"),
        ("loader.flip@block=a,block=b", "block is given twice"),
        ("loader.flip@block=a,offset=far", "offset: 'far' is no size"),
        ("loader.flip@block=a,offset=0x", "offset: '0x'"),
        ("loader.stall", "needs page: loader.stall@page=… or loader.stall@block=…,offset=…"),
        ("loader.stall@block=a", "loader.stall needs offset"),
        ("loader.stall@page=1,block=a", "and not both at once"),
        ("loader.stall@page=-1", "page: '-1' is no number"),
    ],
)
def test_a_fault_point_that_can_not_be_read_says_what_would_do(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        faultpoints.parse(text)


def test_a_flip_must_lie_in_a_block() -> None:
    point = faultpoints.parse("loader.flip@block=a,offset=8")
    with pytest.raises(InputError, match="no block is called 'a'; known: b, c"):
        faultpoints.flips([point], {"b": 16, "c": 16})
    with pytest.raises(InputError, match="offset 0x8 is outside block a of 0x8 bytes"):
        faultpoints.flips([point], {"a": 8})
    other = faultpoints.FaultPoint("loader.kill", {})
    assert faultpoints.flips([other, point], {"a": 9}) == (("a", 8),)


def test_a_stall_is_a_page_of_the_first_block_or_a_place_in_any() -> None:
    texts = (
        "loader.stall@page=3",
        "loader.stall@block=c,offset=4KiB",
        "loader.flip@block=b,offset=1",
    )
    points = [faultpoints.parse(text) for text in texts]
    sizes = {"b": 16384, "c": 8192}
    assert faultpoints.stalls(points, sizes, 4096) == (("b", 12288), ("c", 4096))
    assert faultpoints.flips(points, sizes) == (("b", 1),)
    with pytest.raises(
        InputError, match=r"loader\.stall: offset 0x3000 is outside block b of 0x3000"
    ):
        faultpoints.stalls(points, {"b": 12288, "c": 8192}, 4096)
    with pytest.raises(InputError, match="no block is called 'c'; known: b"):
        faultpoints.stalls(points, {"b": 16384}, 4096)


@relaxed
@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    for given_text in (text, f"loader.flip@{text}", f"loader.flip@block={text},offset=1"):
        try:
            point = faultpoints.parse(given_text)
        except InputError:
            continue
        assert point.options["offset"] >= 0
