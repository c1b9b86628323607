"""The content of blocks against a model of _core/content.h written in Python."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmemu import core
from vmemu.content import (
    ALL,
    ContentSpec,
    ExpectedContent,
    fill_entry,
    key_of,
    read_into,
    threshold,
)
from vmemu.errors import InputError
from vmemu.ramblock import Backing, RAMBlock

M64 = (1 << 64) - 1
STEP, WRITTEN, ZERO = 0x9E3779B97F4A7C15, 0x632BE59BD9B4E019, 0xD1B54A32D192ED03
SHIFT = 12
SIZE = 8 << SHIFT
SEED, NAME = 7, "pc.ram"


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & M64
    return x ^ (x >> 31)


def model_page_is_zero(key: int, page: int, share: float) -> bool:
    below = threshold(share)
    return below == ALL or mix(((key ^ ZERO) + page * STEP) & M64) < below


def model_initial(key: int, size: int, shift: int, share: float) -> bytes:
    words = []
    for i in range(size // 8):
        zero = model_page_is_zero(key, i * 8 >> shift, share)
        words.append(0 if zero else mix((key + i * STEP) & M64))
    return b"".join(word.to_bytes(8, "little") for word in words)


def model_written(key: int, offset: int) -> int:
    page, in_page = offset & ~4095, offset & 4095
    first = mix((key + (page >> 3) * STEP + WRITTEN) & M64)
    word = (first + (in_page >> 3) * STEP) & M64
    return word >> (offset % 8 * 8) & 0xFF


def entry_for(share: float = 0.0, shift: int = SHIFT, seed: int = SEED, name: str = NAME):
    entry = core.ffi.new("struct vm_content *")
    fill_entry(entry, seed, name, shift, share)
    return entry


def filled(entry, size: int = SIZE) -> bytearray:
    image = core.ffi.new("uint8_t[]", size)
    core.lib.vm_content_fill(entry, image, size)
    return bytearray(core.ffi.buffer(image))


def verify(
    entry, memory: bytearray, marks: bytearray | None = None, given_back: bytes | None = None
):
    """The C core's verdict on ``memory``."""
    result = core.ffi.new("struct vm_verify *")
    image = core.ffi.from_buffer("uint8_t[]", memory)
    noted = core.ffi.NULL if marks is None else core.ffi.from_buffer("uint8_t[]", marks)
    gone = core.ffi.NULL if given_back is None else core.ffi.from_buffer("uint8_t[]", given_back)
    core.lib.vm_verify_block(result, 3, image, len(memory), entry, noted, gone)
    return result


# ---- keys and thresholds ----


def test_a_key_follows_from_seed_and_name_alone():
    assert key_of(1, "a") == key_of(1, "a")
    assert len({key_of(seed, name) for seed in range(50) for name in ("a", "b", "ab", "")}) == 200
    assert key_of(M64, "ä") >> 64 == 0


def test_a_threshold_is_its_share_of_all_numbers():
    assert threshold(0.0) == 0
    assert threshold(0.5) == 1 << 63
    assert threshold(1.0) == ALL
    assert threshold(0.9999999999999999) < ALL


# ---- the initial content ----


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shift", [12, 13, 15])
def test_the_image_is_what_the_model_says(share, shift):
    assert filled(entry_for(share, shift)) == model_initial(key_of(SEED, NAME), SIZE, shift, share)


@given(st.integers(0, M64), st.text(max_size=20), st.floats(0, 1))
def test_the_image_is_what_the_model_says_for_any_seed_name_and_share(seed, name, share):
    image = filled(entry_for(share, SHIFT, seed, name), 2 << SHIFT)
    assert image == model_initial(key_of(seed, name), 2 << SHIFT, SHIFT, share)


def test_about_the_wanted_share_of_pages_is_zeros():
    image = filled(entry_for(0.25), 1000 << SHIFT)
    pages = [image[at : at + 4096] for at in range(0, len(image), 4096)]
    zeros = sum(not any(page) for page in pages)
    assert 190 < zeros < 310  # four standard deviations


def test_no_word_of_a_block_occurs_twice():
    image = filled(entry_for())
    words = {bytes(image[at : at + 8]) for at in range(0, SIZE, 8)}
    assert len(words) == SIZE // 8


def test_a_file_is_padded_with_zeros_and_used_as_it_is(tmp_path):
    path = tmp_path / "dump.raw"
    path.write_bytes(b"guest" * 1000)
    block = RAMBlock(NAME, Backing.ANONYMOUS, SIZE, 4096)
    expected = ExpectedContent(SEED, [block], [ContentSpec(path=str(path))])
    image = (b"guest" * 1000).ljust(SIZE, b"\0")
    assert bytes(core.ffi.buffer(expected.table[0].file, SIZE)) == image
    assert verify(expected.table, bytearray(image)).bytes_wrong == 0
    spoilt = bytearray(image)
    spoilt[4999] ^= 1
    assert verify(expected.table, spoilt).mismatch[0].offset == 4999


def test_a_file_longer_than_its_block_is_refused(tmp_path):
    path = tmp_path / "dump.raw"
    path.write_bytes(bytes(4097))
    with pytest.raises(InputError, match="longer than its block of 4096 bytes"):
        read_into(str(path), bytearray(4096))


def test_a_file_as_long_as_its_block_is_taken(tmp_path):
    path = tmp_path / "dump.raw"
    path.write_bytes(b"x" * 4096)
    memory = bytearray(4096)
    read_into(str(path), memory)
    assert memory == b"x" * 4096


def test_behind_a_shorter_file_memory_stays_as_it_was(tmp_path):
    path = tmp_path / "dump.raw"
    path.write_bytes(b"guest")
    memory = bytearray(b"." * 4096)
    read_into(str(path), memory)
    assert memory == b"guest".ljust(4096, b".")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.raw: No such file"):
        read_into(str(tmp_path / "gone.raw"), bytearray(4096))
    with pytest.raises(InputError, match="Is a directory"):
        read_into(str(tmp_path), bytearray(4096))


# ---- the check ----

IMAGES = {share: (entry_for(share), filled(entry_for(share))) for share in (0.0, 0.5, 1.0)}


@pytest.mark.parametrize("share", IMAGES)
def test_an_untouched_image_is_right(share):
    entry, image = IMAGES[share]
    result = verify(entry, image)
    assert (result.bytes_checked, result.bytes_wrong, result.noted) == (SIZE, 0, 0)


@given(st.sampled_from(list(IMAGES)), st.integers(0, SIZE - 1), st.integers(1, 255))
def test_each_single_wrong_byte_is_found_and_named(share, offset, flip):
    entry, image = IMAGES[share]
    spoilt = bytearray(image)
    spoilt[offset] ^= flip
    result = verify(entry, spoilt)
    assert (result.bytes_wrong, result.noted) == (1, 1)
    found = result.mismatch[0]
    assert (found.block, found.offset) == (3, offset)
    assert (found.expected, found.found) == (image[offset], spoilt[offset])


@given(st.sets(st.integers(0, SIZE - 1), max_size=100))
def test_every_wrong_byte_is_counted_and_the_first_words_are_noted(offsets):
    entry, image = IMAGES[0.5]
    spoilt = bytearray(image)
    for offset in offsets:
        spoilt[offset] ^= 0x80
    result = verify(entry, spoilt)
    assert result.bytes_wrong == len(offsets)
    firsts = sorted(
        {min(o for o in offsets if o // 8 == word) for word in {o // 8 for o in offsets}}
    )
    assert [result.mismatch[i].offset for i in range(result.noted)] == firsts[:16]


@given(st.sampled_from(list(IMAGES)), st.sets(st.integers(0, SIZE - 1), max_size=40))
def test_marked_bytes_must_be_the_written_ones_and_the_others_the_initial_ones(share, offsets):
    entry, image = IMAGES[share]
    key = key_of(SEED, NAME)
    memory, marks = bytearray(image), bytearray(SIZE // 8)
    for offset in offsets:
        memory[offset] = model_written(key, offset)
        marks[offset // 8] |= 1 << offset % 8
    assert verify(entry, memory, marks).bytes_wrong == 0
    lost = sum(memory[offset] != image[offset] for offset in offsets)
    assert verify(entry, bytearray(image), marks).bytes_wrong == lost
    assert verify(entry, memory).bytes_wrong == lost


@given(st.sampled_from(list(IMAGES)), st.sets(st.integers(0, SIZE // 4096 - 1)), st.booleans())
def test_pages_that_a_balloon_gave_back_must_be_zeros_whatever_was_written(share, gone, marked):
    entry, image = IMAGES[share]
    memory, pages = bytearray(image), bytearray(SIZE // 4096)
    marks = bytearray(b"\xff" * (SIZE // 8)) if marked else None
    if marked:
        key = key_of(SEED, NAME)
        memory[:] = bytes(model_written(key, offset) for offset in range(SIZE))
    for page in gone:
        memory[page * 4096 : (page + 1) * 4096] = bytes(4096)
        pages[page] = 1
    assert verify(entry, memory, marks, bytes(pages)).bytes_wrong == 0
    for page in gone:
        memory[page * 4096 + 77] = 1
    result = verify(entry, memory, marks, bytes(pages))
    assert result.bytes_wrong == len(gone)
    assert [(m.offset, m.expected, m.found) for m in list(result.mismatch)[: result.noted]] == [
        (page * 4096 + 77, 0, 1) for page in sorted(gone)
    ]


def test_a_check_that_is_stopped_stops():
    entry, image = IMAGES[0.0]
    result = core.ffi.new("struct vm_verify *", {"stop": 1})
    core.lib.vm_verify_block(
        result,
        0,
        core.ffi.from_buffer("uint8_t[]", image),
        SIZE,
        entry,
        core.ffi.NULL,
        core.ffi.NULL,
    )
    assert result.bytes_checked == 0
