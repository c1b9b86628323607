"""The source's C loops with the far ends of their channels in a test's hands."""

from __future__ import annotations

import os
import threading

from vmemu import core
from vmemu.protocol import HEADER, Header, Message

BIG, SMALL = 2 << 20, 4096
NAMES = {"ram": (8 * SMALL, SMALL), "huge": (2 * BIG, BIG)}


class Source:
    """A ``struct vm_source`` and the far ends of its channels.

    ``names`` are the blocks, (size, page size) by name. Only the first page of each is not zeros.
    """

    def __init__(self, names: dict[str, tuple[int, int]] = NAMES) -> None:
        self.c = core.owned(core.lib.vm_source_create(len(names)), core.lib.vm_source_destroy)
        for index, (name, (size, page)) in enumerate(names.items()):
            shift = page.bit_length() - 1
            core.call(core.lib.vm_source_set, self.c, index, name.encode(), size, shift)
            core.ffi.memmove(self.c.image[index].data, b"not zeros", 9)
        self.main, self.c.main_fd = os.pipe()
        self.urgent, self.c.urgent_fd = os.pipe()
        self.c.return_fd, self.requests = os.pipe()
        self.c.push_fd = os.eventfd(0)

    def run(self, loop: str, requests: bytes = b"", piece: int = 4096, until: bytes = b"") -> bytes:
        """What the loop sends in answer to ``requests``, which come in pieces and then end.

        Their end comes only when what the loop has sent ends with ``until``.
        """
        sent, said = bytearray(), threading.Event()

        def read(fd: int) -> None:
            while got := os.read(fd, 1 << 20):
                sent.extend(got)
                if sent.endswith(until):
                    said.set()

        def write() -> None:
            for at in range(0, len(requests), piece):
                os.write(self.requests, requests[at : at + piece])
            if until:
                said.wait()
            self._close("requests")

        ends = [fd for fd in (self.main, self.urgent) if fd >= 0]
        threads = [threading.Thread(target=read, args=(fd,)) for fd in ends]
        threads.append(threading.Thread(target=write))
        for thread in threads:
            thread.start()
        try:
            core.call(getattr(core.lib, loop), self.c, *self._of_vcpu(loop))
        finally:
            self._close("main_fd", "urgent_fd")
            for thread in threads:
                thread.join()
        return bytes(sent)

    def _of_vcpu(self, loop: str) -> tuple[int, ...]:
        """A vCPU's own channels, for its loop."""
        vcpu = loop == "vm_source_serve_vcpu"
        return (self.c.return_fd, self.c.urgent_fd) if vcpu else ()

    def _close(self, *names: str) -> None:
        for name in names:
            owner = self if name in vars(self) else self.c
            fd = getattr(owner, name)
            setattr(owner, name, -1)
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        self._close("main", "urgent", "requests", "main_fd", "urgent_fd", "return_fd", "push_fd")


def messages(data: bytes) -> list[Header]:
    """The headers of a stream of messages."""
    found = []
    while data:
        header = Header(*HEADER.unpack(data[: HEADER.size]))
        found.append(header)
        data = data[HEADER.size + header.length :]
    return found


def request(name: bytes | None = None, offset: int = 0, pages: int = 1, **fields: int) -> bytes:
    kind = Message.REQ_PAGES if name is None else Message.REQ_PAGES_ID
    length = fields.pop("length", len(name or b""))
    given = {"type": kind} | fields
    header = Header(**given, offset=offset, pages=pages, length=length)
    return header.pack() + (name or b"")
