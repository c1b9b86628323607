"""The image of what reads must find: what is marked as written is in it."""

from __future__ import annotations

import numpy as np
import pytest
from guest_rig import PAGE, Rig
from support import await_true

from vmemu import core
from vmemu.ramblock import Backing, RAMBlock
from vmemu.userfault import Userfaultfd
from vmemu.workload import Lane, StreamSlice, size_table

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")

STORE = 1


@pytest.mark.parametrize("size", [1, 8])
def test_a_write_is_marked_when_it_is_expected_and_not_before(size: int) -> None:
    """Whoever writes there next finds the mark, and leaves it at that: were the write not expected
    yet, its loss would not be found. The image is missing, so the vCPU stops where it stores."""
    stream = StreamSlice(np.zeros(1, np.uint32), np.array([STORE], np.uint8))
    rig = Rig([Lane(stream, size_table([size]))])
    guest = rig.guest()
    image = RAMBlock("image", Backing.ANONYMOUS, guest.shared.pages * PAGE, PAGE)
    image.map()
    with Userfaultfd() as uffd:
        uffd.register(image.address, image.size)
        guest.shared.expected = core.ffi.cast("uint8_t *", image.address)
        initial = bytes(rig.memory()[:size])
        worker = rig.worker(guest)
        worker.start()
        try:
            await_true(lambda: bytes(rig.memory()[:size]) != initial)
            await_true(lambda: _stands(worker.figures.thread))
            assert guest.marks[0] == 0
        finally:
            uffd.zeropage(image.address, image.size, PAGE)
            assert worker.join()
        assert guest.marks[0] == (1 << size) - 1
        expected = core.ffi.buffer(guest.shared.expected, size)
        assert bytes(expected) == bytes(rig.memory()[:size])
        uffd.unregister(image.address, image.size)
    image.unmap()
    rig.close()


def _stands(thread: int) -> bool:
    """Whether a thread of this process waits for a page."""
    with open(f"/proc/self/task/{thread}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] in "SD"
