"""The protocol's table: both ends and the C core mean the same, and garbage is told apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu import core, protocol
from vmemu.errors import ProtocolError
from vmemu.protocol import BlockEntry, Header, Message, pack_hello, unpack_hello

entries = st.builds(
    BlockEntry, st.text(min_size=1, max_size=30), st.integers(0, 1 << 50), st.integers(1, 1 << 30)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def hello(**changes) -> bytes:
    blocks = [{"name": "ram", "size": 4096, "page_size": 4096}]
    return json.dumps({"version": 1, "target_page_size": 4096, "blocks": blocks} | changes).encode()


@pytest.mark.parametrize("message", Message)
def test_message_types_are_those_of_the_c_core(message):
    assert getattr(core.lib, f"VM_MSG_{message.name}") == message


def test_the_c_core_has_no_message_that_is_not_in_the_table():
    names = {name.removeprefix("VM_MSG_") for name in dir(core.lib) if name.startswith("VM_MSG_")}
    assert names == {message.name for message in Message}
    assert core.lib.VM_FLAG_URGENT == protocol.FLAG_URGENT


def test_the_header_is_laid_out_as_in_the_c_core():
    assert core.ffi.sizeof("struct vm_header") == protocol.HEADER.size == 24
    offsets = {"type": 0, "flags": 2, "block": 4, "offset": 8, "pages": 16, "length": 20}
    for name, offset in offsets.items():
        assert core.ffi.offsetof("struct vm_header", name) == offset


@given(
    st.builds(
        Header,
        *(st.integers(0, (1 << bits) - 1) for bits in (16, 16, 32, 64, 32, 32)),
    )
)
def test_a_packed_header_says_the_same_to_the_c_core(header):
    found = core.ffi.new("struct vm_header *")
    core.ffi.memmove(found, header.pack(), 24)
    assert tuple(getattr(found, name) for name in Header._fields) == tuple(header)
    assert Header(*protocol.HEADER.unpack(header.pack())) == header


def test_a_header_is_named_even_if_its_type_is_not():
    assert Header(Message.PUSH).name == "PUSH"
    assert Header(999).name == "type 999"


@given(st.lists(entries, max_size=5), st.integers(1, 1 << 20))
def test_hello_says_what_went_in(blocks, page_size):
    assert unpack_hello(pack_hello(blocks, page_size)) == (blocks, page_size)


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(payload):
    with pytest.raises(ProtocolError):
        unpack_hello(payload)


@given(json_values, json_values, json_values)
def test_json_of_another_shape_is_a_protocol_error_or_a_hello(blocks, size, name):
    for payload in (
        hello(blocks=blocks),
        hello(target_page_size=size),
        hello(blocks=[{"name": name, "size": size, "page_size": 4096}]),
        hello(version=size),
        json.dumps(blocks).encode(),
    ):
        try:
            found, target = unpack_hello(payload)
        except ProtocolError:
            continue
        assert isinstance(target, int)
        assert all(isinstance(one.size, int) and isinstance(one.name, str) for one in found)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_page_size": float("inf")},
        {"target_page_size": 4096.5},
        {"target_page_size": "4096"},
        {"target_page_size": True},
        {"blocks": {"name": 1}},
        {"blocks": [{"name": 7, "size": 4096, "page_size": 4096}]},
        {"blocks": [{"name": "ram", "size": -4096, "page_size": 4096}]},
        {"blocks": [{"name": "ram", "size": 4096}]},
        {"blocks": "ram"},
        {"blocks": None},
        {"version": 2},
        {"version": None},
        {"version": True},
    ],
)
def test_a_hello_that_is_not_well_formed_is_refused(changes):
    with pytest.raises(ProtocolError):
        unpack_hello(hello(**changes))


def test_nesting_without_end_is_a_protocol_error():
    with pytest.raises(ProtocolError):
        unpack_hello(b"[" * 100_000)
