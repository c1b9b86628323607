"""Inputs that are archives: members one behind the other, cut off, damaged, and what is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.errors import TraceError
from vmemu.traces import unzip
from vmemu.traces.opening import open_stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NOISE = b"".join(number.to_bytes(4, "little") for number in range(0, 60_000_000, 997))
MEMBERS = [NOISE[:70_000], b"", NOISE[70_000:], b"the end"]
WHOLE = b"".join(MEMBERS)


class Pipe(io.RawIOBase):
    """Takes bytes and can't seek, so that sizes stand behind the data."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.taken += bytes(memoryview(data))  # type: ignore[arg-type]
        return len(memoryview(data))  # type: ignore[arg-type]


def zipped(
    members: list[bytes] = MEMBERS,
    method: int = zipfile.ZIP_DEFLATED,
    *,
    piped: bool = False,
    zip64: bool = False,
) -> bytes:
    out = Pipe() if piped else io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:  # type: ignore[arg-type]
        for number, member in enumerate(members):
            with archive.open(f"chunk.{number:04}", "w", force_zip64=zip64) as file:
                file.write(member)
    return bytes(out.taken) if isinstance(out, Pipe) else out.getvalue()


def read(path: Path) -> tuple[bytes, bool]:
    with open_stream(path) as stream:
        parts = iter(lambda: stream.read(100_003), b"")
        return b"".join(parts), stream.truncated


def opened(raw: bytes, tmp_path: Path) -> tuple[bytes, bool]:
    (tmp_path / "x").write_bytes(raw)
    return read(tmp_path / "x")


class TestZip:
    @pytest.mark.parametrize("piped", [False, True])
    @pytest.mark.parametrize("zip64", [False, True])
    def test_members_come_one_behind_the_other(
        self, piped: bool, zip64: bool, tmp_path: Path
    ) -> None:
        assert opened(zipped(piped=piped, zip64=zip64), tmp_path) == (WHOLE, False)

    def test_stored(self, tmp_path: Path) -> None:
        assert opened(zipped(method=zipfile.ZIP_STORED), tmp_path) == (WHOLE, False)

    def test_of_a_pipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stdin:
            buffer = io.BufferedReader(io.BytesIO(zipped()))

        monkeypatch.setattr(sys, "stdin", Stdin)
        with open_stream("-") as stream:
            assert stream.read(len(WHOLE) + 1) == WHOLE

    @pytest.mark.parametrize("piped", [False, True])
    def test_cut_off_gives_what_was_whole(self, piped: bool, tmp_path: Path) -> None:
        raw = zipped(piped=piped)
        for cut in (40, 1000, len(raw) // 2, len(raw) - 200, len(raw) - 1):
            got, truncated = opened(raw[:cut], tmp_path)
            assert truncated
            assert WHOLE.startswith(got)
            if cut > len(raw) // 3:
                assert len(got) > len(WHOLE) // 4

    def test_damage_is_found(self, tmp_path: Path) -> None:
        raw = bytearray(zipped(method=zipfile.ZIP_STORED))
        raw[len(raw) // 2] ^= 1
        with pytest.raises(TraceError, match=r"damaged: the checksum of member 'chunk.0002'"):
            opened(bytes(raw), tmp_path)
        raw = bytearray(zipped())
        raw[18] ^= 1
        with pytest.raises(TraceError, match=r"damaged: member 'chunk.0000' has not the size"):
            opened(bytes(raw), tmp_path)
        with pytest.raises(TraceError, match="damaged: neither a member nor the directory"):
            opened(zipped([b"a"])[:43] + b"what is this" * 100, tmp_path)

    @pytest.mark.parametrize(
        ("raw", "message"),
        [
            (zipped(method=zipfile.ZIP_BZIP2), "packed with method 12, .*unzip -p FILE"),
            (zipped(method=zipfile.ZIP_STORED, piped=True), "without its size .*unzip -p FILE"),
            (zipped()[:6] + b"\1" + zipped()[7:], "encrypted; unpack it: unzip -p -P PASSWORD"),
        ],
    )
    def test_what_is_refused_is_told_how_to_unpack(
        self, raw: bytes, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(TraceError, match=message):
            opened(raw, tmp_path)

    def test_one_that_swells_is_unpacked_as_it_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(zipped([bytes(1 << 27)]))
        with open_stream(tmp_path / "x") as stream:
            assert stream.read(1 << 20) == bytes(1 << 20)
            assert len(stream._ahead) <= 1 << 18

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_mutated(self, data: st.DataObject) -> None:
        members = [NOISE[:3000], NOISE[5000:9000]]
        raw = zipped(members, piped=data.draw(st.booleans()))
        at = data.draw(st.integers(4, len(raw)))
        new = data.draw(st.binary(max_size=40))
        skipped = data.draw(st.integers(0, 100))
        stream = unzip.ZipStream("x", io.BytesIO(raw[:at] + new + raw[at + skipped :]))
        got = bytearray()
        try:
            while part := stream.read1(1000):
                got += part
        except (EOFError, TraceError, unzip.zlib.error):
            return
        assert bytes(got) in (b"", members[0], members[1], b"".join(members))


class TestOthers:
    def test_several_members_and_frames(self, tmp_path: Path) -> None:
        halves = (WHOLE[:50_000], WHOLE[50_000:])
        for pack in (gzip.compress, zstd.compress, bz2.compress):
            assert opened(b"".join(map(pack, halves)), tmp_path) == (WHOLE, False)

    def test_a_zstd_file_that_begins_with_a_skippable_frame(self, tmp_path: Path) -> None:
        skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
        assert opened(skippable + zstd.compress(WHOLE), tmp_path) == (WHOLE, False)

    def test_bzip2_cut_off_and_damaged(self, tmp_path: Path) -> None:
        raw = bz2.compress(WHOLE, 1)
        got, truncated = opened(raw[: len(raw) // 2], tmp_path)
        assert truncated
        assert got
        assert WHOLE.startswith(got)
        with pytest.raises(TraceError, match="x: "):
            opened(raw[:60_000] + bytes(100) + raw[60_100:], tmp_path)

    @pytest.mark.parametrize(
        ("magic", "command"),
        [
            (b"\x04\x22\x4d\x18", "lz4 -d FILE"),
            (b"\x02\x21\x4c\x18", "lz4 -d FILE"),
            (b"\xff\x06\x00\x00sNaPpY", "snzip -d FILE"),
        ],
    )
    def test_what_is_not_unpacked_here(self, magic: bytes, command: str, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match=f"; unpack it first: {command}$"):
            opened(magic + bytes(100), tmp_path)
