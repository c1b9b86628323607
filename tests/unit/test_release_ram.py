"""``release_ram``: the source frees what was sent, only that, and only once it is on its way."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vmemu import core
from vmemu.protocol import HEADER, Header, Message

PAGE = 4096
BLOCKS = {"ram": (200, 12), "huge": (4, 16)}
LOOPS = pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])


def address(image: Any) -> int:
    return int(core.ffi.cast("uintptr_t", image.data))


def present(image: Any) -> int:
    """Bytes of an image that have memory of their own, by /proc/self/pagemap: a page that was read
    again is the shared page of zeros, which is not exclusive."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        data = os.pread(pagemap.fileno(), image.size // PAGE * 8, address(image) // PAGE * 8)
    own = np.uint64(1 << 63 | 1 << 56)  # present, exclusive
    return int(((np.frombuffer(data, np.uint64) & own) == own).sum()) * PAGE


class Source:
    """A source of two blocks; ``said`` is what came on both channels, once it was closed."""

    def __init__(self, preempt: bool, release: bool = True) -> None:
        self.c = core.owned(core.lib.vm_source_create(len(BLOCKS)), core.lib.vm_source_destroy)
        self.content = []
        for index, (name, (pages, shift)) in enumerate(BLOCKS.items()):
            size = pages << shift
            core.call(core.lib.vm_source_set, self.c, index, name.encode(), size, shift)
            image = self.c.image[index]
            core.call(core.lib.vm_advise, address(image), size, mmap.MADV_NOHUGEPAGE)
            data = random.Random(index).randbytes(size // 2) + bytes(size // 2)
            core.ffi.memmove(image.data, data, size)
            self.content.append(data)
        self.c.release_ram = release
        self.main, self.c.main_fd = os.pipe()
        self.urgent, self.c.urgent_fd = os.pipe() if preempt else (-1, -1)
        self.c.return_fd, self.requests = os.pipe()
        self.c.push_fd = os.eventfd(0)
        self.said: list[bytes] = []
        self._loops = ["vm_source_serve", "vm_source_push"] if preempt else ["vm_source_both"]

    def run(self, requests: bytes) -> None:
        """Serve the requests and push the rest, until the destination has all of it."""
        ends = [fd for fd in (self.main, self.urgent) if fd >= 0]
        readers = [threading.Thread(target=self._read, args=(fd,)) for fd in ends]
        loops = [threading.Thread(target=self._run, args=(name,)) for name in self._loops]
        for thread in (*readers, *loops):
            thread.start()
        os.write(self.requests, requests + Header(Message.PUSH).pack())
        while not self._done():
            time.sleep(0.001)
        os.close(self.requests)
        for thread in loops:
            thread.join()
        os.close(self.c.main_fd)
        if self.urgent >= 0:
            os.close(self.c.urgent_fd)
        for thread in readers:
            thread.join()
        self.requests = -1

    @property
    def total(self) -> int:
        return sum(pages for pages, _ in BLOCKS.values())

    def _done(self) -> bool:
        if self.c.release_ram:  # the last thing that is done to a page
            return bool(self.c.bytes_released == sum(len(data) for data in self.content))
        return bool(self.c.pages_urgent + self.c.pages_pushed + self.c.pages_zero == self.total)

    def _run(self, loop: str) -> None:
        core.call(getattr(core.lib, loop), self.c)

    def _read(self, fd: int) -> None:
        data = bytearray()
        while piece := os.read(fd, 1 << 20):
            data += piece
        self.said.append(bytes(data))

    def close(self) -> None:
        for fd in (self.main, self.urgent, self.requests, self.c.return_fd, self.c.push_fd):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def sources() -> Iterator[list[Source]]:
    made: list[Source] = []
    yield made
    for source in made:
        source.close()


def received(source: Source) -> list[bytes]:
    """The blocks as the destination has them, each page exactly once."""
    blocks = [bytearray(len(data)) for data in source.content]
    seen: set[tuple[int, int]] = set()
    shifts = [shift for _, shift in BLOCKS.values()]
    for data in source.said:
        at = 0
        while at < len(data):
            header = Header(*HEADER.unpack_from(data, at))
            at += HEADER.size
            if header.type in (Message.PAGES, Message.ZERO):
                for page in range(header.pages):
                    place = (header.block, (header.offset >> shifts[header.block]) + page)
                    assert place not in seen
                    seen.add(place)
                blocks[header.block][header.offset : header.offset + header.length] = data[
                    at : at + header.length
                ]
            at += header.length
    assert len(seen) == source.total
    return [bytes(block) for block in blocks]


def request(name: bytes, page: int) -> bytes:
    offset = page << BLOCKS[name.decode()][1]
    return Header(Message.REQ_PAGES_ID, 0, 0, offset, 1, len(name)).pack() + name


WANTED = b"".join(request(b"ram", page) for page in (7, 199, 0, 7)) + request(b"huge", 1)


@LOOPS
def test_all_is_sent_and_all_is_freed(sources, preempt):
    source = Source(preempt)
    sources.append(source)
    source.run(WANTED)
    assert received(source) == source.content
    assert source.c.bytes_released == sum(len(data) for data in source.content)
    assert sum(present(source.c.image[index]) for index in range(2)) == 0


@LOOPS
def test_nothing_is_freed_unless_it_is_asked_for(sources, preempt):
    source = Source(preempt, release=False)
    sources.append(source)
    source.run(WANTED)
    assert received(source) == source.content
    assert source.c.bytes_released == 0
    for index, data in enumerate(source.content):
        assert present(source.c.image[index]) == len(data)


@LOOPS
def test_a_page_that_could_not_be_sent_is_kept(sources, preempt):
    """The destination has closed its end: what is written to it has reached nobody."""
    source = Source(preempt)
    sources.append(source)
    end = "urgent" if preempt else "main"
    os.close(getattr(source, end))
    setattr(source, end, -1)
    os.write(source.requests, request(b"ram", 3))
    core.call(getattr(core.lib, source._loops[0]), source.c)
    os.close(source.c.main_fd)
    if preempt:
        os.close(source.c.urgent_fd)
    assert source.c.bytes_released == 0
    image = source.c.image[0]
    assert bytes(core.ffi.buffer(image.data, image.size)) == source.content[0]
