"""Post-copy between two QEMU processes on this machine, with a guest whose accesses are known.

What is measured in the guest is in its table of ticks (guest.py), what QEMU itself says in its
trace events, and how fast the push is in the times of its migration events. A migration ends by
killing both processes; they are killed as well when the process that has started them is.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from frame import Failed, NotHere
from vmemu import eventcompare

from . import guest
from .guest import Guest
from .qmp import Qmp

INSTALL = "apt-get install qemu-system-x86"
INSTALL_NEWER = "apt-get install -t bookworm-backports qemu-system-x86, or QEMU=/path/to/another"
BINARY = os.environ.get("QEMU", "qemu-system-x86_64")
"""Another QEMU than the installed one is named by its path in the environment variable QEMU."""
MEMORY = {
    "anonymous": "memory-backend-ram",
    "memfd": "memory-backend-memfd",
    "hugetlb": "memory-backend-memfd,hugetlb=on,hugetlbsize=2M",
}
"""Kinds of guest RAM, as QEMU's object is called."""

_TOOLS = (("setpriv", "apt-get install util-linux"), ("taskset", "apt-get install util-linux"))
_LIMIT_S = 60.0
_URGENT_FIRST = 8
"""The version since which pages that the guest waits for pass the limit of the push."""
_FAULT_US = 3.0
"""A read that took longer has waited for its page: without, TCG takes less than 1 us."""
_LOG = "trace.log"
_TRACED = ("postcopy_ram_fault_thread_request", "postcopy_place_page", "postcopy_place_page_zero")
"""At the destination; no more than is needed, as the push waits for each line of a page."""
_PRECOPY_BANDWIDTH = 1 << 20
"""Bytes a second: nothing to speak of before the guest moves."""
_MOST_OF_IT = 0.9
"""Of the filled memory, which pre-copy has no time for."""
_HELD_BACK = 4096
"""Bytes a second of the push where there are to be demand faults alone."""
DEMAND_PAGES = 1024
"""As many as a guest reads before QEMU's limit begins anew, which it does each 100 ms: it lets more
of the push pass then than it says."""


@dataclass(frozen=True)
class Migration:
    """What migrates, and how. What is not said is QEMU's default."""

    guest: Guest
    memory: str = "anonymous"
    preempt: bool = False
    demand_only: bool = False
    """The push is held back."""
    traced: bool = False
    """Trace events are logged and blocktime is kept, which costs."""


def needed() -> None:
    """Raises ``NotHere`` where QEMU is not installed, or one of the tools that start it."""
    for program, install in ((BINARY, INSTALL), *_TOOLS):
        if shutil.which(program) is None:
            raise NotHere(f"{program} is not installed: {install}")


@cache
def version() -> str:
    """As in "7.2.22". Raises ``NotHere``, ``Failed``."""
    needed()
    said = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"version ([0-9.]*[0-9])", said)
    if number is None:
        raise Failed(f"{BINARY} --version tells no version")
    return number[1]


def demand_needed() -> None:
    """Raises ``NotHere`` where this QEMU can't be made to answer demand faults alone."""
    if int(version().partition(".")[0]) < _URGENT_FIRST:
        raise NotHere(
            f"QEMU {version()} has no demand faults alone: its limit of the push holds urgent pages"
            f" back too, unlike that of {_URGENT_FIRST}.0: {INSTALL_NEWER}"
        )


def push_rate(migration: Migration, cpus: Collection[int], directory: Path) -> float:
    """Bytes a second of the push, while the guest halts."""
    with Pair(migration, cpus, directory) as pair:
        begun = pair.flip()
        ended = pair.source.reaches("completed")
        sent = float(pair.source.qmp.command("query-migrate")["ram"]["postcopy-bytes"])
        if sent < _MOST_OF_IT * migration.guest.filled:
            raise Failed(f"QEMU {version()}: {sent:.0f} bytes came after the flip, too few")
        return sent / (ended - begun)


def latencies(migration: Migration, cpus: Collection[int], directory: Path) -> Mapping[str, float]:
    """Of the guest's faults in us: ``seen_p50``, ``seen_p99``, and ``seen`` of them by the guest;
    with traces also ``placed_p50``, ``placed_p99``, from the fault thread's request until the page
    was placed, of ``placed`` faults, and with the push ``blocktime_ms`` of the vCPU, all as QEMU
    tells.
    """
    if migration.demand_only:
        demand_needed()
    with Pair(migration, cpus, directory) as pair:
        pair.flip()
        figures = pair.destination.reads(migration.guest, directory)
        if migration.traced and not migration.demand_only:
            figures["blocktime_ms"] = pair.destination.blocktime_ms()
        pair.stop()  # its log is complete then
    if migration.traced:
        said = eventcompare.summarize(str(directory / _LOG))
        if not said["requests"]["pages"]:
            raise Failed(f"QEMU {version()}: no fault in its trace events")
        figures |= {f"placed_p{p}": said["latency_ns"][f"p{p}"] / 1e3 for p in (50, 99)}
        figures["placed"] = said["requests"]["pages"]
    return figures


class Pair:
    """Source and destination, between ``migrate`` and their end."""

    def __init__(self, migration: Migration, cpus: Collection[int], directory: Path) -> None:
        needed()
        self._exit = ExitStack()
        with ExitStack() as stack:
            (directory / "boot.img").write_bytes(migration.guest.boot_sector())
            self.source = stack.enter_context(_Machine("src", migration, cpus, directory))
            self.destination = stack.enter_context(_Machine("dst", migration, cpus, directory))
            self._set_up(migration)
            self._exit = stack.pop_all()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End both. Safe to call twice."""
        self._exit.close()

    def _set_up(self, migration: Migration) -> None:
        capabilities = {
            "events": True,
            "postcopy-ram": True,
            "postcopy-preempt": migration.preempt,
            "postcopy-blocktime": migration.traced,
        }
        switches = [{"capability": name, "state": on} for name, on in capabilities.items() if on]
        for machine in (self.source, self.destination):
            machine.qmp.command("migrate-set-capabilities", capabilities=switches)
        limits = {"max_bandwidth": _PRECOPY_BANDWIDTH}
        if migration.demand_only:
            limits["max_postcopy_bandwidth"] = _HELD_BACK
        self.source.qmp.command("migrate-set-parameters", **limits)
        self.destination.qmp.command("migrate-incoming", uri="unix:migration.sock")

    def flip(self) -> float:
        """The guest has its memory and moves. When its pages began to travel, in seconds."""
        self.source.heard(guest.FILLED)
        self.source.qmp.command("migrate", uri="unix:migration.sock")
        self.source.reaches("active")
        self.source.qmp.command("migrate-start-postcopy")
        return self.source.reaches("postcopy-active")


class _Machine:
    """One QEMU: a context manager that kills it."""

    def __init__(
        self, side: str, migration: Migration, cpus: Collection[int], directory: Path
    ) -> None:
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            self._console, console = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, self._console)
            self._errors = stack.enter_context((directory / f"{side}.err").open("w+b"))
            with theirs, os.fdopen(console, "wb"):
                self._process = subprocess.Popen(
                    [*_bound(cpus), *_command(side, migration, theirs.fileno(), console)],
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=(theirs.fileno(), console),
                )
            stack.callback(self._kill)
            self._name = f"{BINARY} ({'source' if side == 'src' else 'destination'})"
            try:
                self.qmp = Qmp(ours, self._name)
            except Failed as failed:
                said = self._said()
                if migration.memory == "hugetlb" and "Cannot allocate memory" in said:
                    raise NotHere(f"{self._name}: others took the free hugepages") from None
                raise Failed(f"{failed}: {said}") from None
            stack.callback(self.qmp.close)
            self._exit = stack.pop_all()

    def __enter__(self) -> _Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def reaches(self, status: str) -> float:
        """When its migration has this status, in seconds; not of one that it had before."""
        ends = ("failed", "cancelled", "postcopy-paused")
        found, at = self.qmp.wait_for("MIGRATION", lambda said: said["status"] in (status, *ends))
        if found["status"] != status:
            said = self.qmp.command("query-migrate").get("error-desc", self._said())
            raise Failed(f"{self._name}: the migration is {found['status']}: {said}")
        return at

    def heard(self, wanted: int) -> float:
        """The guest's next byte, which has to be this one. When it came: monotonic, in seconds."""
        if not select.select([self._console], [], [], _LIMIT_S)[0]:
            raise Failed(f"{self._name}: the guest says nothing for {_LIMIT_S:.0f} s")
        byte = os.read(self._console, 1)
        at = time.monotonic()
        if byte == bytes([guest.WRONG]):
            raise Failed(f"{self._name}: the guest read another word than it had written")
        if byte != bytes([wanted]):
            raise Failed(f"{self._name} is gone: {self._said()}")
        return at

    def reads(self, what: Guest, directory: Path) -> dict[str, float]:
        """How long those of the guest's reads took that waited for their page; it has begun or
        will."""
        begun = self.heard(guest.BEGUN)
        ended = self.heard(guest.ENDED)
        table = directory / "ticks"
        arguments = {"val": guest.TABLE, "size": what.table_bytes, "filename": str(table)}
        self.qmp.command("pmemsave", **arguments)
        each, all_of_them = guest.read_ticks(table.read_bytes())
        us = each * ((ended - begun) * 1e6 / all_of_them)
        waited = us[us > _FAULT_US]
        if not len(waited):
            raise Failed(f"{self._name}: no read of the guest has waited for its page")
        return {
            "seen": len(waited),
            **{f"seen_p{p}": float(np.percentile(waited, p)) for p in (50, 99)},
        }

    def blocktime_ms(self) -> float:
        """How long its only vCPU stood still in all, once it has all memory."""
        self.reaches("completed")
        return float(self.qmp.command("query-migrate")["postcopy-vcpu-blocktime"][0])

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _said(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else "nothing said"


def _bound(cpus: Collection[int]) -> list[str]:
    """What stands before a command that stays on these CPUs, and dies with the thread that has
    started it."""
    return ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", ",".join(map(str, sorted(cpus)))]


def _command(side: str, migration: Migration, qmp: int, console: int) -> list[str]:
    incoming = side == "dst"
    readback = guest.AT_DESTINATION if incoming else guest.AT_SOURCE
    ram = migration.guest.ram
    return [
        *(BINARY, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-object", f"{MEMORY[migration.memory]},id=ram,size={ram}"),
        # A fault of TCG is one of a thread, as in vmemu. KVM inside another hypervisor may emulate
        # each instruction, and then measures nothing but that.
        *("-machine", "pc,accel=tcg,memory-backend=ram", "-m", f"{ram >> 20}M"),
        *("-drive", "file=boot.img,format=raw,snapshot=on"),
        *("-chardev", f"file,id=console,path=/dev/fd/{console}"),
        *("-device", f"isa-debugcon,iobase={guest.CONSOLE},readback={readback},chardev=console"),
        *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
        *(("-incoming", "defer") if incoming else ()),
        *(_tracing() if incoming and migration.traced else ()),
    ]


def _tracing() -> Iterable[str]:
    yield from ("-msg", "timestamp=on", "-D", _LOG)
    for event in _TRACED:
        yield from ("-trace", event)
