"""The peers of benchmarks/: QEMU's guest and monitor, and what is said of a peer that is absent."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context import Context
from frame import Failed, NotHere
from peers import guest, qemu, stress_ng
from peers.guest import Guest
from peers.qmp import Qmp

GREETING = {"QMP": {"version": {}, "capabilities": []}}


# ---- the guest ----


@given(st.integers(0, 10), st.sampled_from([4096, 2 << 20]), st.booleans())
def test_every_guest_fits_into_its_sector(power: int, page_size: int, touches: bool) -> None:
    sector = Guest(1 << power, page_size, touches).boot_sector()
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"


def test_the_sector_says_where_its_descriptors_are() -> None:
    sector = Guest(16).boot_sector()
    at = sector.index(bytes.fromhex("0F 01 16"))
    pointer = struct.unpack_from("<H", sector, at + 3)[0] - 0x7C00
    limit, table = struct.unpack_from("<HI", sector, pointer)
    assert limit + 1 == 24
    code, data = (sector[table - 0x7C00 + entry :][:8] for entry in (8, 16))
    assert (code[5], data[5]) == (0x9A, 0x92)
    assert code[6] == data[6] == 0xCF  # 32 bits, 4 GiB


@pytest.mark.parametrize("pages", [3, 1 << 22])
def test_a_guest_that_the_code_has_no_room_for_is_refused(pages: int) -> None:
    with pytest.raises(ValueError, match="pages"):
        Guest(pages)


def test_the_table_is_read() -> None:
    table = struct.pack("<QQ3I", 1000, 4000, 7, 8, 9)
    each, together = guest.read_ticks(table)
    assert (each.tolist(), together) == ([7, 8, 9], 3000)


# ---- the monitor ----


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@contextmanager
def monitor(ends: tuple[socket.socket, socket.socket], *said: Any) -> Iterator[Qmp]:
    """One that has been greeted, and will hear this; its commands go nowhere."""
    lines = [GREETING, {"return": {}}, *said]
    ends[1].sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    with closing(Qmp(ends[0], "qemu")) as qmp:
        yield qmp


def event(status: str, at: int) -> dict[str, Any]:
    stamp = {"seconds": at, "microseconds": 500_000}
    return {"event": "MIGRATION", "data": {"status": status}, "timestamp": stamp}


def test_events_before_an_answer_are_kept(ends: tuple[socket.socket, socket.socket]) -> None:
    said = (event("setup", 1), event("active", 2), {"return": 5}, event("active", 3))
    with monitor(ends, *said) as qmp:
        assert qmp.command("something", some_argument=1) == 5
        for wanted, at in (("active", 2.5), ("active", 3.5), ("setup", 1.5)):
            found = qmp.wait_for("MIGRATION", lambda said, wanted=wanted: said["status"] == wanted)
            assert found == ({"status": wanted}, at)
    sent = ends[1].recv(4096).splitlines()[-1]
    assert json.loads(sent) == {"execute": "something", "arguments": {"some-argument": 1}}


def test_a_refusal_has_qemus_words(ends: tuple[socket.socket, socket.socket]) -> None:
    refusal = {"error": {"class": "GenericError", "desc": "no such thing"}}
    with (
        monitor(ends, refusal) as qmp,
        pytest.raises(Failed, match="qemu: something: no such thing"),
    ):
        qmp.command("something")


def test_qemus_end_is_told(ends: tuple[socket.socket, socket.socket]) -> None:
    with monitor(ends) as qmp:
        ends[1].shutdown(socket.SHUT_RDWR)
        with pytest.raises(Failed, match="qemu is gone"):
            qmp.wait_for("MIGRATION", lambda _: True)


def test_one_that_ends_before_its_greeting_is_gone(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ends[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(Failed, match="qemu is gone"):
        Qmp(ends[0], "qemu")


# ---- peers that are not here ----


def test_absent_peers_are_named_with_what_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(qemu, "BINARY", "qemu-system-x86_64")
    with pytest.raises(NotHere, match="apt-get install stress-ng"):
        stress_ng.fault_us(Context(tmp_path), {0})
    with pytest.raises(NotHere, match="apt-get install qemu-system-x86"):
        qemu.push_rate(qemu.Migration(Guest(16)), {0}, tmp_path)


@pytest.mark.parametrize("version", ["7.2.22", "8.0.0", "10.0.2"])
def test_demand_faults_alone_need_a_newer_qemu(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "version", lambda: version)
    if version == "7.2.22":
        with pytest.raises(NotHere, match=r"QEMU 7\.2\.22 has no demand faults alone"):
            qemu.demand_needed()
    else:
        qemu.demand_needed()


@pytest.mark.parametrize(
    "said",
    [
        "userfaultfd         9647.21 nanosecs per page fault (geometic mean of 1 instances)",
        "userfaultfd         9647.21 nanosecs per page fault (geometric mean of 1 instance)",
    ],
)
def test_stress_ngs_figure_is_found(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stress_ng, "needed", lambda: None)
    context = Context(tmp_path)
    monkeypatch.setattr(context, "run", lambda *_: f"stress-ng: info:\nstress-ng: metrc: {said}\n")
    assert stress_ng.fault_us(context, {0}) == pytest.approx(9.64721)
    monkeypatch.setattr(context, "run", lambda *_: "stress-ng: info: nothing\n")
    with pytest.raises(Failed, match="no time a page fault"):
        stress_ng.fault_us(context, {0})
