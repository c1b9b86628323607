"""Dirty tracking on real memory: the kernel and the replay find the same pages, and miss none."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import workload_of

from vmemu import core, dirty
from vmemu.content import ContentSpec, ExpectedContent, fill_entry
from vmemu.cthread import Bell
from vmemu.errors import CoreError, HostError
from vmemu.guest_worker import NO_END, Guest, GuestWorker
from vmemu.protocol import BlockEntry
from vmemu.ramblock import BASE_PAGE
from vmemu.recipe import RecordedRecipe
from vmemu.source_precopy import image_blocks
from vmemu.synthetic import SyntheticShare
from vmemu.traces.mapping import Compact
from vmemu.userfault import Feature, Userfaultfd
from vmemu.workload import Lane, StreamSlice, Workload

SORT = Path(__file__).parents[2] / "configs/traces/sort.vmtrace.zst"
PAGE = 4096
SEED = 11

pytestmark = pytest.mark.usefixtures("kernel_tracks")

SLOW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def kernel_tracks(userfault: None) -> None:
    """This kernel tracks dirty pages."""
    with Userfaultfd() as uffd:
        if not uffd.available & Feature.WP_ASYNC:
            pytest.skip("this kernel has no UFFD_FEATURE_WP_ASYNC")


def entry(name: str, pages: int, page_size: int = PAGE) -> BlockEntry:
    return BlockEntry(name, pages * page_size, page_size)


class Rig:
    """Images with a guest whose writes both trackers see; it runs as far as it is told."""

    def __init__(self, blocks: tuple[BlockEntry, ...], workload: Workload) -> None:
        self.source = core.owned(core.lib.vm_source_create(len(blocks)), core.lib.vm_source_destroy)
        for index, block in enumerate(blocks):
            self._fill(index, block)
        self.images = [self.source.image[index] for index in range(len(blocks))]
        self.kernel = dirty.KernelTracker(self.images)
        self.guest = self._make_guest(blocks, workload)
        self.replay = dirty.ReplayTracker(self.source, self.guest)
        self.workload = workload
        self.bell = Bell()
        self.slots = [(core.ffi.new("uint32_t *"), core.ffi.new("uint64_t *")) for _ in range(64)]
        for map_ in self.maps():
            map_[:] = 0
        self.kernel.start()
        self.replay.start()

    def _fill(self, index: int, block: BlockEntry) -> None:
        shift = block.page_size.bit_length() - 1
        arguments = (self.source, index, block.name.encode(), block.size, shift)
        core.call(core.lib.vm_source_set, *arguments)
        dirty.only_small_pages(self.source.image[index])
        content = core.ffi.new("struct vm_content *")
        fill_entry(content, SEED, block.name, shift, 0.4)
        core.lib.vm_content_fill(content, self.source.image[index].data, block.size)

    def _make_guest(self, blocks: tuple[BlockEntry, ...], workload: Workload) -> Guest:
        table = image_blocks(self.source, blocks)
        ram = table.table()
        for index, block in enumerate(table):
            core.lib.vm_ram_mark_received(core.ffi.addressof(ram.block, index), 0, block.pages)
        expected = ExpectedContent(SEED, list(table), [ContentSpec(zero_share=0.4) for _ in blocks])
        flags = {"check_reads": True, "keep_marks": False, "track_writes": True}
        return Guest(workload, table, ram, expected, **flags)

    def start(self, begin: int = 0, end: int = NO_END) -> list[GuestWorker]:
        """The vCPUs, running accesses [begin, end) of each share."""
        workers = [
            GuestWorker(self.guest, i, self.bell, slots=self.slots[i], begin=begin, end=end)
            for i in range(len(self.workload.vcpus))
        ]
        for worker in workers:
            worker.thread.start()
        return workers

    def run(self, begin: int = 0, end: int = NO_END) -> None:
        for worker in self.start(begin, end):
            worker.thread.join()
            assert worker.error is None
            assert worker.figures.reads_wrong == 0

    def maps(self) -> list[np.ndarray[Any, Any]]:
        """The dirty bits of each image, as the source has them: a view."""
        return [
            np.frombuffer(core.ffi.buffer(i.dirty, (i.size // PAGE + 63) // 64 * 8), np.uint64)
            for i in self.images
        ]

    def bytes_of(self, index: int) -> np.ndarray[Any, Any]:
        image = self.images[index]
        return np.frombuffer(core.ffi.buffer(image.data, image.size), np.uint8)

    def harvest(self, tracker: dirty.DirtyTracker) -> set[tuple[int, int]]:
        """(block, target page) that the tracker finds dirty."""
        tracker.harvest()
        found = set()
        for block, map_ in enumerate(self.maps()):
            bits = np.unpackbits(map_.view(np.uint8), bitorder="little")
            found |= {(block, int(page)) for page in np.flatnonzero(bits)}
            map_[:] = 0
        return found

    def both(self) -> set[tuple[int, int]]:
        """What both find, which must be the same."""
        found = self.harvest(self.kernel)
        assert found == self.harvest(self.replay)
        return found

    def close(self) -> None:
        self.kernel.close()
        self.replay.close()
        self.bell.close()


@pytest.fixture
def rigs() -> Iterator[list[Rig]]:
    """Rigs that are put here are closed."""
    made: list[Rig] = []
    yield made
    for rig in made:
        rig.close()


def written_pages(workload: Workload, begin: int, end: int) -> set[tuple[int, int]]:
    """(block, target page) that accesses [begin, end) of each share write, found without the core's
    replay."""
    pages: set[int] = set()
    for share in workload.vcpus:
        where, kind, size = accesses(share)
        writes = slice(begin, end)
        for at, what, length in zip(where[writes], kind[writes], size[writes], strict=True):
            if what in (1, 2):
                pages |= {int(at) // PAGE, (int(at) + int(length) - 1) // PAGE}
    return {(int(workload.block[p]), int(workload.offset[p]) // PAGE) for p in pages}


def accesses(lanes: list[Lane]) -> tuple[Any, Any, Any]:
    """Addresses, kinds and sizes of a share of one trace, in the order in which it is replayed."""
    if isinstance(lanes[0].work, SyntheticShare):
        made, _keep = lanes[0].work.to_c()
        count = lanes[0].accesses
        where, what = np.empty(count, np.uint64), np.empty(count, np.uint8)
        core.lib.vm_synthetic_fill(
            made,
            core.ffi.from_buffer("uint64_t[]", where),
            core.ffi.from_buffer("uint8_t[]", what),
            count,
        )
    else:
        where = np.concatenate([np.asarray(lane.work.where, np.uint64) for lane in lanes])
        what = np.concatenate([lane.work.what for lane in lanes])
    return where, what & 3, lanes[0].sizes[what >> 2]


# ---- the same set ----


def test_both_find_the_pages_that_a_recording_writes(rigs):
    blocks = (entry("ram", 2048), entry("huge", 2, 2 << 20))
    recipe = RecordedRecipe(str(SORT), vcpus=1, low=0, high=60_000, layout=Compact("ram"))
    workload = recipe.make(blocks)
    rig = Rig(blocks, workload)
    rigs.append(rig)
    total = workload.accesses
    for begin, end in ((0, 100), (100, total // 3), (total // 3, total // 3), (total // 3, total)):
        rig.run(begin, end)
        assert rig.both() == written_pages(workload, begin, end)


@SLOW
@given(
    fields=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 1 << 32),
            "kind": st.sampled_from(["uniform", "sequential", "permutation", "zipf", "hot_cold"]),
            "write_share": st.sampled_from([0.0, 0.02, 0.5, 1.0]),
            "accesses": st.integers(1, 4000),
            "vcpus": st.integers(1, 3),
            "stride": st.sampled_from([8, 64, 4096, 4104]),
        }
    ),
    cuts=st.lists(st.integers(0, 4000), max_size=4),
    pages=st.integers(1, 700),
)
def test_both_find_the_pages_that_a_synthetic_guest_writes(fields, cuts, pages):
    blocks = (entry("ram", pages), entry("huge", 1, 2 << 20), entry("vram", 65))
    if fields["kind"] != "sequential":
        fields = {key: value for key, value in fields.items() if key != "stride"}
    workload = workload_of(blocks, **fields)
    rig = Rig(blocks, workload)
    try:
        bounds = [0, *sorted(cuts), NO_END]
        for begin, end in itertools.pairwise(bounds):
            rig.run(begin, end)
            assert rig.both() == written_pages(workload, begin, end)
        assert rig.both() == set()
    finally:
        rig.close()


def test_a_write_that_straddles_two_pages_makes_both_dirty(rigs):
    blocks = (entry("ram", 8),)
    where = np.array([PAGE - 3, 5 * PAGE + 100], np.uint64)
    stream = StreamSlice(where, np.array([1, 0], np.uint8))
    whole = workload_of(blocks, 1, 1, kind="uniform", accesses=1, write_share=0.0)
    workload = Workload(whole.block, whole.offset, [[Lane(stream, whole.vcpus[0][0].sizes)]])
    rig = Rig(blocks, workload)
    rigs.append(rig)
    rig.run()
    assert rig.both() == {(0, 0), (0, 1)}


def test_many_stretches_of_dirty_pages_take_more_than_one_scan(rigs):
    blocks = (entry("ram", 4000),)
    workload = workload_of(
        blocks, 1, 1, kind="sequential", accesses=2000, write_share=1.0, stride=2 * PAGE
    )
    rig = Rig(blocks, workload)
    rigs.append(rig)
    rig.run()
    assert rig.both() == {(0, page) for page in range(0, 4000, 2)}


def test_what_was_written_before_the_start_is_forgotten_and_reads_are_no_writes(rigs):
    blocks = (entry("ram", 256),)
    workload = workload_of(blocks, 1, 1, kind="uniform", accesses=5000, write_share=0.0)
    rig = Rig(blocks, workload)
    rigs.append(rig)
    rig.run()
    assert rig.both() == set()


# ---- while the guest runs ----


@pytest.mark.parametrize("method", ["kernel", "replay"])
@pytest.mark.parametrize("seed", range(4))
def test_a_copy_kept_up_to_date_by_harvests_ends_equal(rigs, method, seed):
    """Pre-copy in small: what is written after it was copied must be found dirty again."""
    blocks = (entry("ram", 64), entry("huge", 1, 2 << 20))
    workload = workload_of(blocks, 2, seed, kind="uniform", accesses=1_000_000, write_share=0.7)
    rig = Rig(blocks, workload)
    rigs.append(rig)
    copies = [rig.bytes_of(index).copy() for index in range(len(blocks))]
    tracker = getattr(rig, method)

    def update() -> int:
        pages = rig.harvest(tracker)
        for block, page in pages:
            here = slice(page * PAGE, (page + 1) * PAGE)
            copies[block][here] = rig.bytes_of(block)[here]
        return len(pages)

    workers = rig.start()
    found = 0
    while not all(worker.thread.done for worker in workers):
        found += update()
    for worker in workers:
        worker.thread.join()
    # On a busy machine the guest may be done before the first look: then all is in the last one.
    assert found + update() >= 64
    for index, copy in enumerate(copies):
        assert np.array_equal(copy, rig.bytes_of(index))


# ---- which of them, and why ----


@pytest.fixture
def images() -> Iterator[list[Any]]:
    """One image of 16 pages; its source lives as long as the test."""
    source = core.owned(core.lib.vm_source_create(1), core.lib.vm_source_destroy)
    core.call(core.lib.vm_source_set, source, 0, b"ram", 16 * PAGE, 12)
    yield [source.image[0]]
    del source


def test_the_kernel_tracks_when_it_can(images):
    for wanted, reason in (("auto", "this kernel can"), ("kernel", "the scenario asks for it")):
        tracker, tracking = dirty.start_kernel(images, wanted)
        assert tracker is not None
        tracker.close()
        tracker.close()
        assert tracking == dirty.Tracking("kernel", reason)
    assert dirty.start_kernel(images, "replay") == (
        None,
        dirty.Tracking("replay", "the scenario asks for it"),
    )


def _refuse(*_: object) -> None:
    raise CoreError("UFFDIO_REGISTER", 1)


def _no_feature(*_: object) -> None:
    raise HostError("userfaultfd of this kernel lacks UFFD_FEATURE_WP_ASYNC")


@pytest.mark.parametrize(
    ("where", "what", "words"),
    [
        ("vmemu.dirty.PAGEMAP", "/nonexistent", "/nonexistent can't be opened"),
        ("vmemu.dirty.PAGEMAP", "/dev/null", "PAGEMAP_SCAN"),
        ("vmemu.dirty.Userfaultfd.require", _no_feature, "lacks UFFD_FEATURE_WP_ASYNC"),
        ("vmemu.dirty.Userfaultfd.register", _refuse, "UFFDIO_REGISTER"),
        ("vmemu.dirty.KernelTracker._written", lambda *_: 0, "reports writes wrongly"),
    ],
)
def test_a_kernel_that_can_not_is_replaced_with_the_reason(images, monkeypatch, where, what, words):
    monkeypatch.setattr(where, what)
    before = sorted(os.listdir("/proc/self/fd"))
    tracker, tracking = dirty.start_kernel(images, "auto")
    assert tracker is None
    assert tracking.method == "replay"
    assert words in tracking.reason
    with pytest.raises(HostError, match="the kernel can't track dirty pages") as caught:
        dirty.start_kernel(images, "kernel")
    assert words in str(caught.value)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_memory_that_is_not_tracked_is_an_error_and_no_empty_answer(images):
    with open(dirty.PAGEMAP, "rb") as pagemap:
        address = int(core.ffi.cast("uintptr_t", images[0].data))
        with pytest.raises(CoreError) as caught:
            core.call(
                core.lib.vm_pagemap_harvest,
                pagemap.fileno(),
                address,
                images[0].size,
                images[0].dirty,
            )
    assert caught.value.operation == "PAGEMAP_SCAN"


def test_base_pages_are_target_pages():
    assert BASE_PAGE == PAGE
