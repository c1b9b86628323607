"""The source: another process that holds an image of every block and serves it.

It is started by spawn, never by fork: a fork would copy threads' locks and registered memory. It
imports next to nothing, ignores Ctrl-C (the destination decides when it is over) and ends as soon
as the destination's end of the return path closes, however that comes about.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any, cast

from vmemu import core, dirty, handover
from vmemu.affinity import Places, settle
from vmemu.channel import ChannelEnds, VcpuEnds, receive, send, send_bytes
from vmemu.childprocess import ChildProcess, live_with
from vmemu.content import ContentSpec, fill_entry, read_into
from vmemu.cthread import Bell, CThread
from vmemu.errors import HostError, MigrationError, PeerGone, VmemuError
from vmemu.interrupts import SIGNALS
from vmemu.protocol import BlockEntry, Message, Summary, unpack_summary
from vmemu.source_precopy import ALIVE_S, Note, Precopy, PrecopySpec, SourceGuest, SourceGuestSpec

NO_PRECOPY = PrecopySpec()
if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from vmemu.events import EventLog
    from vmemu.images import SharedImage

BASE_PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class PushSpec:
    """Which pages come before others. ``fault_around``: pages of the window around one that is
    asked for; ``order`` of the push as a scenario names it, with its list for ``recorded``: uint64
    as bytes, ``block << VM_CURSOR_SHIFT | page``."""

    fault_around: int = 0
    order: str = "around_faults"
    recorded: bytes = b""


@dataclass(frozen=True)
class SourceSpec:
    """All that the source process is told. ``release_ram``: free what was sent. ``images``:
    of each block, where the destination has it mapped; none with a channel that carries bytes.
    ``flips`` are (block index, offset): bytes to spoil, for tests, and ``stalls`` pages never to
    send. ``places`` are the CPUs of its threads. ``events`` is its log, with the blocks described.
    """

    seed: int
    blocks: tuple[BlockEntry, ...]
    contents: tuple[ContentSpec, ...]
    precopy: PrecopySpec = NO_PRECOPY
    guest: SourceGuestSpec | None = None
    postcopy_bandwidth: int = 0
    push: PushSpec = PushSpec()
    release_ram: bool = False
    images: tuple[SharedImage, ...] = ()
    events: EventLog | None = None
    flips: tuple[tuple[int, int], ...] = ()
    stalls: tuple[tuple[int, int], ...] = ()
    places: Places = field(default_factory=Places)


# ---- in the destination ----


class SourceProcess(ChildProcess):
    """The source process as the destination sees it; ``ends`` are the destination's.

    It may be started before it is known what it has to do: its interpreter comes up while the
    destination imports, plans and maps. Closing ``ends`` ends it. ``channels`` are both sides' ends
    of its channels.
    """

    def __init__(
        self,
        channels: tuple[ChannelEnds, ChannelEnds],
        life: Callable[[Connection, ChannelEnds], None] | None = None,
    ) -> None:
        self.ends, self._theirs = channels
        self._told, self._telling = Pipe(duplex=True)
        self._teller: threading.Thread | None = None
        arguments = (self._told, self._theirs)
        super().__init__("the source process", "vmemu-source", life or serve, arguments)

    def start(self) -> None:
        """As ``ChildProcess.start``; only what the destination needs of the channels stays open."""
        try:
            super().start()
        except BaseException:
            self.ends.close()
            self._telling.close()
            raise
        finally:
            self._theirs.close()
            self._told.close()

    def tell(self, spec: SourceSpec) -> None:
        """What it has to do, once. A process that is gone, or takes nothing, is found by whoever
        waits for its first message: an order of the push is longer than a socket holds, so a thread
        sends it, which ends with the process."""
        try:
            data = handover.begin(self._telling, spec)
        except (BrokenPipeError, ConnectionResetError):
            self._telling.close()
            return
        thread = threading.Thread(target=self._say, args=(data,), name="tell", daemon=True)
        try:
            thread.start()
            self._teller = thread
        except RuntimeError as error:  # Python's word for pthread_create's EAGAIN
            self._telling.close()
            raise HostError(f"a thread for the source process can't be started: {error}") from None

    def _say(self, data: bytes) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # they are for the main thread
        with self._telling, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._telling.send_bytes(data)

    def stop(self, patience_s: float) -> None:
        """As ``ChildProcess.stop``; nobody is told anything any more."""
        super().stop(patience_s)
        if self._teller is not None:
            self._teller.join(1.0)


# ---- in the source ----


def serve(told: Connection, ends: ChannelEnds) -> None:
    """The whole life of the source process; exits with 0 when the destination is done or gone."""
    # Making an image of many GiB looks at no channel, so the end of the destination is watched for.
    live_with(ends.return_path.fileno())
    try:
        spec = hear(told)
        _serve(spec, ends)
        _noting(spec)("migrate_set_state", new_state="completed")
    except PeerGone:
        pass  # the destination ended first: it knows why
    except VmemuError as error:
        _say_failed(ends.main, str(error), error.exit_code)
        sys.exit(error.exit_code)
    except MemoryError:
        _say_failed(ends.main, "no memory for the image", MigrationError.exit_code)
        sys.exit(1)
    # The destination waits for this process, and nothing of its interpreter needs an orderly end.
    os._exit(0)


def hear(told: Connection) -> SourceSpec:
    """What it has to do. Raises PeerGone when the destination ends without a word."""
    with told:
        try:
            return cast(SourceSpec, handover.receive(told))
        except EOFError:
            raise PeerGone("the destination had nothing for the source to do") from None


@contextlib.contextmanager
def _saying_alive(ends: ChannelEnds) -> Iterator[None]:
    """Images of many GiB take longer than the destination waits for a source that says nothing."""
    made = threading.Event()

    def say() -> None:
        with contextlib.suppress(PeerGone):
            while not made.wait(ALIVE_S):
                send(ends.main, Message.ROUND)

    thread = threading.Thread(target=say, name="alive")
    thread.start()
    try:
        yield
    finally:
        made.set()
        thread.join()


def _say_failed(end: Connection, reason: str, exit_code: int) -> None:
    with contextlib.suppress(PeerGone):
        send(end, Message.FAILED, reason.encode()[:4000], pages=exit_code)


def _serve(spec: SourceSpec, ends: ChannelEnds) -> None:
    ours = Summary(list(spec.blocks), BASE_PAGE)
    _noting(spec)("migrate_set_state", new_state="setup")
    send(ends.main, Message.HELLO, ours.pack())
    with _saying_alive(ends):
        source = _create(spec)
    source.main_fd = ends.main.fileno()
    theirs = unpack_summary(receive(ends.return_path, Message.ADVISE))
    if theirs != ours:
        raise MigrationError("the destination's blocks or page sizes are not the source's")
    _precopy(spec, source, ends)
    bell = Bell()
    try:
        source.urgent_fd = ends.urgent_fd
        source.return_fd = ends.return_path.fileno()
        source.push_fd = os.eventfd(0, os.EFD_CLOEXEC)
        _send_pages(source, ends, bell, spec.places)
    finally:
        bell.close()


def _precopy(spec: SourceSpec, source: Any, ends: ChannelEnds) -> None:
    """Everything up to the flip; afterwards the guest belongs to the destination."""
    guest = None
    if spec.guest is not None:
        with _saying_alive(ends):
            guest = SourceGuest(
                spec.guest, source, spec.seed, spec.blocks, spec.contents, places=spec.places
            )
    after_ns = spec.guest.after_ns if spec.guest is not None else None
    precopy = Precopy(
        source,
        spec.blocks,
        spec.precopy,
        guest=guest,
        after_ns=after_ns,
        main=ends.main,
        note=_noting(spec),
    )
    settle(spec.places.of("precopy_out"))
    precopy.run()
    send_bytes(ends.main, precopy.package(), "the flip")
    if guest is not None:
        guest.tracker.close()  # only now: it takes time, and the guest stands still until the flip
    core.lib.vm_source_release_sent(source)
    source.limiter.bytes_per_second = spec.postcopy_bandwidth
    source.limiter.free_at_ns = 0
    for index, offset in spec.stalls:
        _withhold(source, index, offset >> spec.blocks[index].page_size.bit_length() - 1)


def _withhold(source: Any, index: int, page: int) -> None:
    """A page that counts as sent is not sent again; and all is never said to be."""
    source.image[index].sent[page // 64] |= 1 << page % 64
    source.withholds = True


def _noting(spec: SourceSpec) -> Note:
    """How to log an event: not at all, without a log."""
    if spec.events is None:
        return lambda *_name, **_args: None
    return spec.events.note


def _send_pages(source: Any, ends: ChannelEnds, bell: Bell, places: Places) -> None:
    if source.urgent_fd < 0:
        settle(places.of("urgent"))
        core.call(core.lib.vm_source_both, source)
        return
    run = partial(core.call, core.lib.vm_source_push, source)
    push = CThread("push", run, bell, places.of("push"))
    threads = [push, *_vcpu_servers(source, ends, bell, places)]
    try:
        for thread in threads:
            thread.start()
        settle(places.of("urgent"))  # not before: a thread begins where its starter is
        core.call(core.lib.vm_source_serve, source)
    finally:
        # Who served has rung already. Without it, a push that has not begun would wait for ever.
        source.stop = 1
        os.eventfd_write(source.push_fd, 1)
        # It writes to the main channel, on which a failure is told next. Those that serve a vCPU go
        # on until the destination, which has to hear of it first, lets the vCPUs go.
        push.join()
    for thread in threads:
        thread.join()
        if thread.error is not None:
            raise thread.error


def _vcpu_servers(source: Any, ends: ChannelEnds, bell: Bell, places: Places) -> list[CThread]:
    """A thread for each vCPU that serves itself. It ends when the vCPU's end of its return path is
    closed, and tells a failure to the vCPU that waits for it."""

    def serve(own: VcpuEnds) -> None:
        descriptors = (own.return_path.fileno(), own.pages.fileno())
        try:
            core.call(core.lib.vm_source_serve_vcpu, source, *descriptors)
        except VmemuError as error:
            _say_failed(own.pages, str(error), error.exit_code)
            raise

    return [
        CThread(f"serve{index}", partial(serve, own), bell, places.of("urgent", index))
        for index, own in enumerate(ends.vcpus)
    ]


def _create(spec: SourceSpec) -> Any:
    """The C core's ``struct vm_source`` with every image filled."""
    source = core.owned(core.lib.vm_source_create(len(spec.blocks)), core.lib.vm_source_destroy)
    source.release_ram = spec.release_ram
    source.fault_around = spec.push.fault_around
    if spec.events is not None:
        source.log = spec.events.pointer
    for index, (block, content) in enumerate(zip(spec.blocks, spec.contents, strict=True)):
        page_shift = block.page_size.bit_length() - 1
        core.call(
            core.lib.vm_source_set, source, index, block.name.encode(), block.size, page_shift
        )
        if spec.images:
            image = spec.images[index]
            core.call(core.lib.vm_source_share, source, index, image.fd, image.in_place)
        if _by_small_pages(spec):
            dirty.only_small_pages(source.image[index])
        _fill(source.image[index], spec.seed, block, content)
    listed = core.ffi.from_buffer("uint64_t[]", spec.push.recorded)
    order = getattr(core.lib, f"VM_PUSH_{spec.push.order.upper()}")
    core.call(core.lib.vm_push_order_set, source, order, listed, len(listed))
    for index, offset in spec.flips:
        source.image[index].data[offset] ^= 0xFF
    for index, image in enumerate(spec.images):
        if spec.guest is None:  # nobody writes to it any more
            core.call(core.lib.vm_source_note_zeros, source, index, image.fd)
        image.close()
    return source


def _by_small_pages(spec: SourceSpec) -> bool:
    """Whether something will be done to single pages of the images, as to each whole page."""
    tracked = spec.guest is not None and spec.guest.dirty_tracking != "replay"
    return tracked or spec.release_ram


def _fill(image: Any, seed: int, block: BlockEntry, content: ContentSpec) -> None:
    """The image is ordinary memory of this process, so Python may touch it."""
    if content.path is not None:
        read_into(content.path, core.ffi.buffer(image.data, block.size))
        return
    entry = core.ffi.new("struct vm_content *")
    page_shift = block.page_size.bit_length() - 1
    fill_entry(entry, seed, block.name, page_shift, content.zero_share)
    core.lib.vm_content_fill(entry, image.data, block.size)
