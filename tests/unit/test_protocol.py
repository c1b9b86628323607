"""The protocol's table: both ends and the C core mean the same, and garbage is told apart."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu import core, protocol
from vmemu.errors import ProtocolError
from vmemu.protocol import (
    HEADER,
    MAX_DISCARDS_PER_COMMAND,
    VERSION,
    BlockEntry,
    Header,
    Message,
    Summary,
    pack_discard,
    unpack_discard,
    unpack_summary,
)

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
OFFSETS = {
    "type": 0,
    "flags": 2,
    "block": 4,
    "offset": 8,
    "pages": 16,
    "length": 20,
    "queued_ns": 24,
    "sent_ns": 32,
}


def summary(**changes) -> bytes:
    blocks = [{"name": "ram", "size": 4096, "page_size": 4096}]
    document = {
        "version": VERSION,
        "target_page_size": 4096,
        "page_sizes": 4096,
        "blocks": blocks,
    }
    return json.dumps(document | changes).encode()


# ---- messages and headers ----


@pytest.mark.parametrize("message", Message)
def test_message_types_are_those_of_the_c_core(message):
    assert getattr(core.lib, f"VM_MSG_{message.name}") == message


def test_the_c_core_has_no_message_that_is_not_in_the_table():
    names = {name.removeprefix("VM_MSG_") for name in dir(core.lib) if name.startswith("VM_MSG_")}
    assert names == {message.name for message in Message}
    for name in ("FLAG_URGENT", "FLAG_AROUND", "FLAG_AHEAD", "FLAG_IN_IMAGE"):
        assert getattr(core.lib, f"VM_{name}") == getattr(protocol, name)


def test_the_header_is_laid_out_as_in_the_c_core():
    assert core.ffi.sizeof("struct vm_header") == HEADER.size == 40
    assert list(OFFSETS) == list(Header._fields)
    for name, offset in OFFSETS.items():
        assert core.ffi.offsetof("struct vm_header", name) == offset


@given(
    st.builds(
        Header,
        *(st.integers(0, (1 << bits) - 1) for bits in (16, 16, 32, 64, 32, 32, 64, 64)),
    )
)
def test_a_packed_header_says_the_same_to_the_c_core(header):
    found = core.ffi.new("struct vm_header *")
    core.ffi.memmove(found, header.pack(), HEADER.size)
    assert tuple(getattr(found, name) for name in Header._fields) == tuple(header)
    assert Header(*HEADER.unpack(header.pack())) == header


def test_a_header_is_named_even_if_its_type_is_not():
    assert Header(Message.PUSH).name == "PUSH"
    assert Header(999).name == "type 999"


# ---- the summary of blocks ----


@given(st.lists(entries, max_size=5), st.integers(0, 1 << 20))
def test_a_summary_says_what_went_in(blocks, page_size):
    said = Summary(blocks, page_size)
    assert unpack_summary(said.pack()) == said


@given(st.lists(entries, max_size=5))
def test_the_summary_of_page_sizes_has_the_bits_of_every_block(blocks):
    found = Summary(blocks, 4096).page_sizes
    for bit in range(40):
        assert found >> bit & 1 == any(block.page_size >> bit & 1 for block in blocks)


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_and_nothing_else(payload):
    with pytest.raises(ProtocolError):
        unpack_summary(payload)


@given(json_values, json_values, json_values)
def test_json_of_another_shape_is_a_protocol_error_or_a_summary(blocks, size, name):
    for payload in (
        summary(blocks=blocks),
        summary(target_page_size=size),
        summary(page_sizes=size),
        summary(blocks=[{"name": name, "size": size, "page_size": 4096}]),
        summary(version=size),
        json.dumps(blocks).encode(),
    ):
        try:
            found, target = unpack_summary(payload)
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
        {"page_sizes": 4096.0},
        {"page_sizes": 4097},
        {"page_sizes": 0},
        {"page_sizes": None},
        {"blocks": {"name": 1}},
        {"blocks": [{"name": 7, "size": 4096, "page_size": 4096}]},
        {"blocks": [{"name": "ram", "size": -4096, "page_size": 4096}]},
        {"blocks": [{"name": "ram", "size": 4096}]},
        {"blocks": "ram"},
        {"blocks": None},
    ],
)
def test_a_summary_that_is_not_well_formed_is_refused(changes):
    with pytest.raises(ProtocolError):
        unpack_summary(summary(**changes))


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, None, True, float(VERSION), "2"])
def test_another_version_is_refused_and_both_are_named(version):
    with pytest.raises(ProtocolError, match=rf"speaks version .*, this end {VERSION}"):
        unpack_summary(summary(version=version))


def test_nesting_without_end_is_a_protocol_error():
    with pytest.raises(ProtocolError):
        unpack_summary(b"[" * 100_000)


# ---- discards ----

ranges = st.lists(
    st.tuples(*[st.integers(0, (1 << 64) - 1)] * 2),
    min_size=1,
    max_size=MAX_DISCARDS_PER_COMMAND,
)


@given(st.text(min_size=1, max_size=60), ranges)
def test_a_discard_says_what_went_in(name, some):
    assert unpack_discard(pack_discard(name, some)) == (name, some)


@pytest.mark.parametrize("count", [0, MAX_DISCARDS_PER_COMMAND + 1])
def test_a_discard_has_one_to_twelve_ranges(count):
    with pytest.raises(ProtocolError, match=rf"has {count} ranges; 1 to 12 are allowed"):
        unpack_discard(pack_discard("ram", [(0, 4096)] * count))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0", b"\0" + bytes(16), b"\4ram", b"\3ram" + bytes(15), b"\3ram" + bytes(17)],
)
def test_a_discard_cut_short_or_without_a_name_is_refused(payload):
    with pytest.raises(ProtocolError, match=rf"a discard of {len(payload)} bytes? is"):
        unpack_discard(payload)


@given(st.binary(max_size=300))
def test_garbage_is_a_protocol_error_or_a_discard(payload):
    try:
        name, some = unpack_discard(payload)
    except ProtocolError:
        return
    assert name
    assert 1 <= len(some) <= MAX_DISCARDS_PER_COMMAND
