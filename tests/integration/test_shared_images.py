"""Channel shm in the C core: what is mapped, copied, freed and refused, page by page."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import anonymous, await_true, shared
from test_receiver import PAGE, Destination, pages, zeros

from vmemu import core, images
from vmemu.channel import create_pipes
from vmemu.errors import CoreError, PeerGone, ProtocolError, VmemuError
from vmemu.images import Images
from vmemu.manager import MemoryManager
from vmemu.protocol import FLAG_IN_IMAGE, FLAG_URGENT, HEADER, Header, Message
from vmemu.userfault import Feature, Userfaultfd

COMPLETE = Header(Message.COMPLETE).pack()
MANY = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def in_place(userfault: None) -> None:
    """Shared memory can be the image here."""
    if not images.in_place_works():
        pytest.skip("this kernel has no UFFD_FEATURE_MINOR_SHMEM")


class SharedDestination(Destination):
    """As its parent, with images: that of ``vram`` is its memory. Page n of them is full of n."""

    def __init__(self, release: bool = False, pages: int = 8) -> None:
        blocks = [anonymous("ram", pages=80), shared("vram", pages=pages)]
        blocks[1].in_image = True
        self.memory = MemoryManager(blocks, images=Images(blocks, release=release))
        self.memory.map()
        for image, block in zip(self.memory.shared_images, blocks, strict=True):
            os.pwrite(image.fd, b"".join(bytes([n + 1]) * PAGE for n in range(block.pages)), 0)
        self.uffd = Userfaultfd(Feature.THREAD_ID | Feature.MISSING_SHMEM | Feature.MINOR_SHMEM)
        self.memory.register(self.uffd)
        self.ram = self.memory.blocks.table()
        assert self.memory.images is not None
        self.memory.images.attach(self.ram)
        self._open()

    @property
    def image(self) -> int:
        """The descriptor of the image of ``ram``."""
        return self.memory.shared_images[0].fd


@pytest.fixture
def destination() -> Iterator[SharedDestination]:
    destination = SharedDestination()
    yield destination
    destination.close()


def there(block: int, first: int, count: int = 1, **lies: int) -> bytes:
    """A message that pages may be taken from the image; ``lies`` replace fields of it."""
    return pages(block, first, count, **({"length": 0, "flags": FLAG_IN_IMAGE} | lies))


# ---- placing ----


def test_what_is_announced_is_taken_from_the_image(destination):
    destination.listen(there(0, 0, 80) + there(1, 0, 8) + COMPLETE)
    for block in destination.memory.blocks:
        assert block.read(0, block.size) == b"".join(
            bytes([n + 1]) * PAGE for n in range(block.pages)
        )
    placed = destination.c.placed_main
    assert (placed.copied, placed.continued, placed.exists) == (80, 8, 0)
    assert destination.c.bytes_received == 88 * PAGE
    assert destination.ram.pages_received == 88


def test_zeros_of_an_image_that_has_others_are_still_the_image(destination):
    """Of the block's own memory nothing can be made zeros: the source says what it holds."""
    fd = destination.memory.shared_images[1].fd
    os.pwrite(fd, bytes(PAGE), 3 * PAGE)
    core.call(core.lib.vm_punch_hole, fd, 4 * PAGE, 2 * PAGE)
    destination.listen(
        zeros(0, 0, 80) + there(1, 0, 3) + zeros(1, 3, 3) + there(1, 6, 2) + COMPLETE
    )
    vram = destination.memory.blocks[1]
    expected = [1, 2, 3, 0, 0, 0, 7, 8]
    assert [vram.read(n * PAGE, 1)[0] for n in range(8)] == expected
    assert destination.memory.blocks[0].read(5 * PAGE, PAGE) == bytes(PAGE)
    assert [destination.ram.block[i].arrived.zero for i in range(2)] == [80, 3]


@given(st.lists(st.sampled_from(["hole", "there", "mapped"]), min_size=8, max_size=8))
@MANY
def test_any_mixture_of_holes_and_pages_is_mapped(kinds):
    destination = SharedDestination()
    try:
        vram, uffd = destination.memory.blocks[1], destination.uffd
        for page, kind in enumerate(kinds):
            if kind == "hole":
                fd = destination.memory.shared_images[1].fd
                core.call(core.lib.vm_punch_hole, fd, page * PAGE, PAGE)
            if kind == "mapped":
                assert uffd.map_there(vram.address + page * PAGE, PAGE, PAGE)
        assert uffd.map_there(vram.address, vram.size, PAGE)
        expected = [0 if kind == "hole" else n + 1 for n, kind in enumerate(kinds)]
        assert [vram.read(n * PAGE, 1)[0] for n in range(8)] == expected
    finally:
        destination.close()


def test_a_received_page_that_leaves_the_page_table_is_mapped_again(destination):
    """As when the kernel has written it to swap: to wake who waits would have him wait for ever."""
    fault = threading.Thread(target=core.call, args=(core.lib.vm_fault_loop, destination.c, 0))
    fault.start()
    vram = destination.memory.blocks[1]
    try:
        core.lib.vm_ram_mark_received(core.ffi.addressof(destination.ram.block, 1), 0, 8)
        for _ in range(3):
            assert [vram.read(n * PAGE, 1)[0] for n in range(8)] == list(range(1, 9))
            core.call(core.lib.vm_advise, vram.address, vram.size, mmap.MADV_DONTNEED)
        assert destination.c.stats.late == 24
        assert destination.c.stats.requests == 0
    finally:
        os.eventfd_write(destination.c.quit_fd, 1)
        fault.join()


def test_what_was_copied_is_freed_where_it_is_asked_for():
    destination = SharedDestination(release=True)
    try:
        before = os.fstat(destination.image).st_blocks
        destination.listen(there(0, 10, 20) + zeros(0, 0, 10) + there(0, 30, 50) + there(1, 0, 8))
    except PeerGone:
        pytest.fail("all of it had come")
    else:
        after = os.fstat(destination.image).st_blocks
        assert (before, after) == (80 * 8, 10 * 8)
        assert destination.memory.blocks[1].read(7 * PAGE, 1) == b"\x08"
    finally:
        destination.close()


def mapped_of(address: int) -> int:
    """KiB of a mapping that the page table has."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    assert any(line.startswith(f"{address:x}-") for line in lines)
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


@pytest.mark.parametrize("release", [False, True])
def test_the_listen_thread_maps_ahead_while_nothing_comes_and_fills_no_hole(release):
    destination = SharedDestination(release=release)
    core.call(core.lib.vm_punch_hole, destination.image, 20 * PAGE, 30 * PAGE)
    blocks = os.fstat(destination.image).st_blocks
    listen = threading.Thread(target=core.call, args=(core.lib.vm_listen_loop, destination.c))
    listen.start()
    try:
        wanted = 0 if release else 50 * 4
        image = int(destination.ram.block[0].image)
        await_true(lambda: mapped_of(image) == wanted)
        os.write(destination.main, there(0, 0, 20))
        await_true(lambda: destination.ram.pages_received == 20)
        assert os.fstat(destination.image).st_blocks == blocks - (20 * 8 if release else 0)
    finally:
        os.eventfd_write(destination.c.quit_fd, 1)
        listen.join()
        destination.close()


def test_a_hole_in_an_image_is_an_ordinary_page_of_zeros(destination):
    """A source that went wild may punch holes; the destination lives on."""
    core.call(core.lib.vm_punch_hole, destination.image, 0, 80 * PAGE)
    with pytest.raises(PeerGone):
        destination.listen(there(0, 0, 64) + there(0, 64, 1))
    assert destination.memory.blocks[0].read(0, 65 * PAGE) == bytes(65 * PAGE)


# ---- two who listen in turn ----

LOOPS = ("vm_listen_loop", "vm_listen_beside")


class Listeners:
    """Both, on what ``feed`` writes; ``join`` gives what ended each of them."""

    def __init__(self, destination: SharedDestination) -> None:
        self.destination = destination
        self.ends: list[CoreError | VmemuError | None] = []
        self._threads = [threading.Thread(target=self._run, args=(name,)) for name in LOOPS]
        for thread in self._threads:
            thread.start()

    def _run(self, loop: str) -> None:
        try:
            core.call(getattr(core.lib, loop), self.destination.c)
        except (CoreError, VmemuError) as error:
            self.ends.append(error)
        else:
            self.ends.append(None)

    def feed(self, data: bytes, piece: int = 1 << 20) -> None:
        for at in range(0, len(data), piece):
            os.write(self.destination.main, data[at : at + piece])

    def join(self) -> list[CoreError | VmemuError | None]:
        for thread in self._threads:
            thread.join()
        return self.ends


@given(st.randoms(use_true_random=False), st.sampled_from([7, HEADER.size, 100, 1 << 20]))
@settings(MANY, max_examples=25)
def test_two_threads_place_each_page_once(random, piece):
    """Whatever they read in one go, and with pages that are copied and zeros in between."""
    destination = SharedDestination(pages=200)
    try:
        messages = [there(0, n) for n in range(70)] + [zeros(0, n, 1) for n in range(70, 80)]
        messages += [there(1, n, 4) for n in range(0, 200, 4)]
        random.shuffle(messages)
        listeners = Listeners(destination)
        listeners.feed(b"".join(messages) + COMPLETE, piece)
        assert listeners.join() == [None, None]
        c, vram = destination.c, destination.memory.blocks[1]
        assert destination.ram.pages_received == 280
        assert c.placed_main.continued + c.placed_beside.continued == 200
        assert c.placed_main.copied + c.placed_beside.copied == 70
        assert c.placed_main.exists + c.placed_beside.exists == 0
        assert c.bytes_received == 270 * PAGE
        assert [vram.read(n * PAGE, 1)[0] for n in range(200)] == list(range(1, 201))
    finally:
        destination.close()


def test_the_last_pages_may_be_placed_by_another_when_the_channel_ends(destination):
    listeners = Listeners(destination)
    listeners.feed(zeros(0, 0, 80) + b"".join(there(1, n) for n in range(8)))
    os.close(destination.main)
    destination.main = -1
    assert listeners.join() == [None, None]
    assert destination.ram.pages_received == 88


@pytest.mark.parametrize("ending", ["lie", "quit", "gone"])
def test_what_ends_one_of_two_ends_the_other(destination, ending):
    listeners = Listeners(destination)
    listeners.feed(there(1, 0) + there(1, 1))
    await_true(lambda: destination.ram.pages_received == 2)
    if ending == "lie":
        listeners.feed(there(1, 7, 2))
    elif ending == "quit":
        os.eventfd_write(destination.c.quit_fd, 1)
    else:
        os.close(destination.main)
        destination.main = -1
    expected = {"lie": ProtocolError, "quit": type(None), "gone": PeerGone}[ending]
    assert sorted(str(type(end)) for end in listeners.join()) == sorted(
        str(kind) for kind in (expected, type(None))
    )


# ---- lies ----


@pytest.mark.parametrize(
    "message",
    [
        pages(0, 0, 2),
        pages(1, 0, 2),
        there(0, 0, length=PAGE),
        there(1, 0, length=1),
        there(0, 79, 2),
        there(1, 8),
        there(2, 0),
        there(1, 0, 0),
        there(1, 0, offset=1),
        there(0, 0, pages=(1 << 32) - 1),
    ],
)
@pytest.mark.parametrize("urgent", [False, True])
def test_what_can_not_be_is_refused(destination, message, urgent):
    feed = destination.serve_faults if urgent else destination.listen
    with pytest.raises(ProtocolError, match="channel: message type"):
        feed(message)
    assert destination.ram.pages_received == 0


def test_without_images_nothing_is_taken_from_one():
    destination = Destination()
    try:
        with pytest.raises(ProtocolError, match="come another way"):
            destination.listen(there(0, 0))
    finally:
        destination.close()


headers = st.builds(
    lambda kind, flags, block, offset, count, length: Header(
        kind, flags, block, offset, count, length
    ).pack(),
    st.sampled_from([Message.PAGES, Message.ZERO, Message.COMPLETE]),
    st.sampled_from([0, FLAG_URGENT, FLAG_IN_IMAGE, FLAG_IN_IMAGE | FLAG_URGENT]),
    st.integers(0, 2),
    st.integers(0, 90).map(lambda page: page * PAGE)
    | st.integers(0, 1 << 64).map(int.__and__.__get__((1 << 64) - 1)),
    st.integers(0, 90) | st.integers(0, (1 << 32) - 1),
    st.just(0) | st.integers(0, 2 * PAGE),
)


@given(st.lists(headers, max_size=6))
@MANY
def test_any_messages_end_in_one_clear_error_or_in_none(messages):
    destination = SharedDestination()
    try:
        destination.listen(b"".join(messages))
    except (PeerGone, ProtocolError):
        pass
    finally:
        destination.close()


# ---- the source ----


class SharedSource:
    """A ``struct vm_source`` of one block whose image is a memfd, with the pipes of a channel."""

    def __init__(self, block_pages: int, in_place: bool, filled: set[int]) -> None:
        self.ends, self.theirs = create_pipes(preempt=True, shared=True)
        self.c: Any = core.owned(core.lib.vm_source_create(1), core.lib.vm_source_destroy)
        core.call(core.lib.vm_source_set, self.c, 0, b"ram", block_pages * PAGE, 12)
        self.fd = os.memfd_create("vmemu-test", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, block_pages * PAGE)
        core.call(core.lib.vm_source_share, self.c, 0, self.fd, in_place)
        for page in filled:
            self.c.image[0].data[page * PAGE + 17] = 1
        self.c.main_fd = self.theirs.main.fileno()
        self.c.return_fd = self.theirs.return_path.fileno()
        self.c.push_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def close(self) -> None:
        self.ends.close()
        self.theirs.close()
        os.close(self.c.push_fd)
        os.close(self.fd)


@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 199)))
@MANY
def test_zeros_are_noted_and_holes_stay_holes(filled, touched):
    source = SharedSource(200, False, filled)
    try:
        for page in touched - filled:
            os.pwrite(source.fd, bytes(PAGE), page * PAGE)
        blocks = os.fstat(source.fd).st_blocks
        core.call(core.lib.vm_source_note_zeros, source.c, 0, source.fd)
        assert os.fstat(source.fd).st_blocks == blocks
        os.eventfd_write(source.c.push_fd, 1)
        push = threading.Thread(target=core.call, args=(core.lib.vm_source_push, source.c))
        push.start()
        sent: dict[int, int] = {}
        while (header := Header(*HEADER.unpack(os.read(source.ends.main.fileno(), 40)))).type != 11:
            assert header.length == 0
            assert header.flags == (FLAG_IN_IMAGE if header.type == Message.PAGES else 0)
            first = header.offset // PAGE
            sent |= dict.fromkeys(range(first, first + header.pages), header.type)
        push.join()
        assert sent == {n: Message.PAGES if n in filled else Message.ZERO for n in range(200)}
        assert os.fstat(source.fd).st_blocks == blocks
    finally:
        source.close()


@pytest.mark.parametrize("in_place", [True, False])
def test_the_push_is_never_further_ahead_than_its_pipe(in_place):
    """A pipe would hold the messages of many GiB, and what is announced is not sent again."""
    run = 256 if in_place else 64
    source = SharedSource(4096, in_place, set(range(4096)))
    try:
        os.eventfd_write(source.c.push_fd, 1)
        push = threading.Thread(target=core.call, args=(core.lib.vm_source_push, source.c))
        push.start()
        for taken in range(1, 5):
            await_true(lambda want=(taken + 2) * run: source.c.pages_pushed >= want)
            assert source.c.pages_pushed == (taken + 2) * run
            assert len(os.read(source.ends.main.fileno(), 1 << 20)) == HEADER.size
        source.c.stop = 1
        while source.ends.main.fileno() >= 0 and push.is_alive():
            os.read(source.ends.main.fileno(), HEADER.size)
            push.join(0.05)
    finally:
        source.close()
