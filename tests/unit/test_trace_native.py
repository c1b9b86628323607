"""The native trace format: round trips, both shapes of it, and everything that must be refused."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu.errors import TraceError
from vmemu.traces import native
from vmemu.traces.convert import convert
from vmemu.traces.figures import stats
from vmemu.traces.inputs import open_input
from vmemu.traces.reader import FETCH, LOAD, MODIFY, STORE, BlockBase

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA = Path(__file__).parent.parent / "data"
PAGE = 4096

Access = tuple[int, int, int, int]  # stream, address, kind, size


def write(path: Path, accesses: list[Access], cut: int = 1000, **options: Any) -> None:
    """Writes accesses in the given order, ``cut`` at a time."""
    with native.TraceWriter(path, **options) as writer:
        for start in range(0, len(accesses), cut):
            part = accesses[start : start + cut]
            for stream in dict.fromkeys(access[0] for access in part):
                mine = [access for access in part if access[0] == stream]
                writer.append(
                    stream,
                    np.array([access[1] for access in mine], np.uint64),
                    np.array([access[2] for access in mine], np.uint8),
                    np.array([access[3] for access in mine], np.uint16),
                )
        writer.finish()


def read(trace: native.Trace) -> dict[int, list[tuple[int, int, int]]]:
    result: dict[int, list[tuple[int, int, int]]] = {}
    for chunk in trace.chunks():
        columns = (chunk.addresses.tolist(), chunk.kinds.tolist(), chunk.sizes.tolist())
        result.setdefault(chunk.stream, []).extend(zip(*columns, strict=True))
    return result


def by_stream(accesses: list[Access]) -> dict[int, list[tuple[int, int, int]]]:
    result: dict[int, list[tuple[int, int, int]]] = {}
    for stream, *rest in accesses:
        result.setdefault(stream, []).append((rest[0], rest[1], rest[2]))
    return result


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


SOME: list[Access] = [
    (0, 0x1000, LOAD, 8),
    (0, 0x1FFC, STORE, 8),
    (7, 0x9000, MODIFY, 4),
    (0, 0x5123, LOAD, 1),
    (7, 0x1000, STORE, 16),
]


@pytest.fixture
def some(tmp_path: Path) -> Path:
    path = tmp_path / "some.vmtrace"
    write(path, SOME)
    return path


def addresses() -> st.SearchStrategy[int]:
    near = st.integers(0, 40 * PAGE)
    return st.one_of(near, near.map(lambda a: a + (1 << 40)), st.integers(0, (1 << 64) - PAGE))


def access_lists() -> st.SearchStrategy[list[Access]]:
    sizes = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 512, 4096])
    access = st.tuples(st.sampled_from([0, 1, 99]), addresses(), st.integers(0, 3), sizes)
    return st.lists(access, max_size=60)


class TestRoundTrip:
    @settings(deadline=None)
    @given(access_lists(), st.integers(1, 20))
    def test_gives_back_what_was_written(self, accesses: list[Access], cut: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "t.vmtrace"
            write(path, accesses, cut, fetches=True)
            trace = native.open(path)
            assert read(trace) == by_stream(accesses)
            assert os.listdir(directory) == ["t.vmtrace"]

            native.pack(path, f"{path}.zst", level=1)
            assert read(native.open(f"{path}.zst")) == by_stream(accesses)

    @settings(deadline=None)
    @given(access_lists())
    def test_bytes_do_not_depend_on_how_chunks_are_cut(self, accesses: list[Access]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            one, other = Path(directory) / "one", Path(directory) / "other"
            write(one, accesses, 3, fetches=True)
            write(other, accesses, 1000, fetches=True)
            assert files(one) == files(other)

    def test_columns_are_what_the_format_says(self, some: Path) -> None:
        trace = native.open(some)
        assert trace.pages.tolist() == [1, 2, 5, 9]
        assert trace.sizes.tolist() == [1, 4, 8, 16] + [0] * 60
        assert [stream.id for stream in trace.streams] == [0, 7]
        assert trace.streams[0].where.tolist() == [0x0000, 0x0FFC, 0x2123]
        assert trace.streams[0].where.dtype == np.dtype("<u4")
        assert trace.streams[0].what.tolist() == [2 << 2 | LOAD, 2 << 2 | STORE, 0 << 2 | LOAD]
        assert trace.accesses == 5
        assert trace.meta.counts.straddling == 1

    def test_numpy_reads_the_columns(self, some: Path) -> None:
        assert np.load(some / "7.where.npy").tolist() == [0x3000, 0x0000]

    def test_columns_are_read_only(self, some: Path) -> None:
        native.pack(some, some.with_suffix(".zst"))
        for path in (some, some.with_suffix(".zst")):
            with pytest.raises(ValueError, match="read-only"):
                native.open(path).streams[0].where[0] = 1

    def test_many_pages_take_wide_columns(self, tmp_path: Path) -> None:
        count = (1 << 20) + 1
        with native.TraceWriter(tmp_path / "wide.vmtrace") as writer:
            writer.append(
                0,
                np.arange(count, dtype=np.uint64) << np.uint64(13) | np.uint64(5),
                np.zeros(count, np.uint8),
                np.full(count, 8, np.uint16),
            )
            writer.finish()
        where = native.open(tmp_path / "wide.vmtrace").streams[0].where
        assert where.dtype == np.dtype("<u8")
        assert int(where[-1]) == (count - 1) << 12 | 5

    def test_empty_trace(self, tmp_path: Path) -> None:
        write(tmp_path / "none.vmtrace", [])
        trace = native.open(tmp_path / "none.vmtrace")
        assert trace.accesses == 0
        assert stats.native_stats(trace).span_bytes == 0


class TestWriter:
    def test_leaves_nothing_without_finish(self, tmp_path: Path) -> None:
        with native.TraceWriter(tmp_path / "t.vmtrace") as writer:
            writer.append(
                0, np.array([1], np.uint64), np.array([0], np.uint8), np.array([1], np.uint16)
            )
        assert list(tmp_path.iterdir()) == []

    def test_replaces_a_trace_but_nothing_else(self, some: Path, tmp_path: Path) -> None:
        write(some, SOME[:1])
        assert native.open(some).accesses == 1
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("precious")
        with pytest.raises(TraceError, match="is not replaced"):
            native.TraceWriter(tmp_path / "mine")
        assert sorted(os.listdir(tmp_path)) == ["mine", "some.vmtrace"]

    def test_refuses_more_sizes_than_the_format_has(self, tmp_path: Path) -> None:
        accesses = [(0, 0, LOAD, size) for size in range(1, 66)]
        with pytest.raises(TraceError, match="more than 64"):
            write(tmp_path / "t.vmtrace", accesses)
        write(tmp_path / "t.vmtrace", accesses[:64])
        assert native.open(tmp_path / "t.vmtrace").sizes.tolist() == list(range(1, 65))

    def test_refuses_an_access_over_the_end(self, tmp_path: Path) -> None:
        write(tmp_path / "last.vmtrace", [(0, (1 << 64) - 8, LOAD, 8)])
        native.open(tmp_path / "last.vmtrace")
        with pytest.raises(TraceError, match="end of the address space"):
            write(tmp_path / "t.vmtrace", [(0, (1 << 64) - 8, LOAD, 16)])

    def test_refuses_fetches_unless_told(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="kind"):
            write(tmp_path / "t.vmtrace", [(0, 0, FETCH, 1)])

    def test_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="can't be written"):
            native.TraceWriter(tmp_path / "no" / "t.vmtrace")


class TestPacked:
    def test_is_a_plain_tar_in_one_frame(self, some: Path, tmp_path: Path) -> None:
        native.pack(some, tmp_path / "p.vmtrace.zst")
        plain = zstd.decompress((tmp_path / "p.vmtrace.zst").read_bytes())
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            members = tar.getmembers()
            assert [m.name for m in members][:2] == ["p.vmtrace/meta.json", "p.vmtrace/pages.npy"]
            assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {
                (0, 0, 0, "", 0o644)
            }
            tar.extractall(tmp_path / "by-tar", filter="data")
        assert files(tmp_path / "by-tar" / "p.vmtrace") == files(some)

    def test_same_bytes_every_time_and_wherever_it_was_made(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write(tmp_path / name, SOME)
            (tmp_path / f"dir-{name}").mkdir()
            native.pack(tmp_path / name, tmp_path / f"dir-{name}" / "t.vmtrace.zst")
        one = (tmp_path / "dir-a" / "t.vmtrace.zst").read_bytes()
        assert one == (tmp_path / "dir-b" / "t.vmtrace.zst").read_bytes()

    def test_unpack_gives_the_same_directory(self, some: Path, tmp_path: Path) -> None:
        native.pack(some, tmp_path / "p.zst")
        native.unpack(tmp_path / "p.zst", tmp_path / "back.vmtrace")
        assert files(tmp_path / "back.vmtrace") == files(some)

    def test_tar_made_by_other_hands(self, some: Path, tmp_path: Path) -> None:
        """Other order, directory entries, extended headers, files of no interest."""
        (some / "notes.txt").write_text("not ours")
        with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.add(some, arcname="./ünter/t.vmtrace")
        assert read(native.open(tmp_path / "t.tar")) == by_stream(SOME)

    def test_gnu_tar_opens_it(self, some: Path, tmp_path: Path) -> None:
        native.pack(some, tmp_path / "p.vmtrace.zst")
        plain = zstd.decompress((tmp_path / "p.vmtrace.zst").read_bytes())
        subprocess.run(["tar", "-xf", "-"], input=plain, cwd=tmp_path, check=True, timeout=30)
        assert files(tmp_path / "p.vmtrace") == files(some)

    @pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
    def test_cut_off(self, some: Path, tmp_path: Path, keep: float) -> None:
        packed = tmp_path / "p.vmtrace.zst"
        native.pack(some, packed)
        raw = packed.read_bytes()
        packed.write_bytes(raw[: int(len(raw) * keep) if isinstance(keep, float) else keep])
        with pytest.raises(TraceError, match=r"p\.vmtrace\.zst: "):
            native.open(packed)

    def test_cut_off_in_a_column_says_how_much_is_there(self, some: Path, tmp_path: Path) -> None:
        packed, cut = tmp_path / "p.vmtrace.zst", tmp_path / "cut.vmtrace.zst"
        native.pack(some, packed)
        plain = zstd.decompress(packed.read_bytes())
        end = plain.index(b"\x93NUMPY") + 100
        cut.write_bytes(zstd.compress(plain[:end]))
        for act in (native.open, lambda path: native.unpack(path, tmp_path / "u.vmtrace")):
            message = r"pages\.npy is cut off: \d+ bytes promised, 100 there"
            with pytest.raises(TraceError, match=message) as caught:
                act(cut)
            assert "whole copy" in caught.value.remedy

    def test_too_large_to_be_read(
        self, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        native.pack(some, tmp_path / "p.vmtrace.zst")
        monkeypatch.setattr(native.format, "PACKED_LIMIT", 1000)
        with pytest.raises(TraceError, match="tar --zstd -xf"):
            native.open(tmp_path / "p.vmtrace.zst")


def _change(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        values = np.load(path / name)
        changed = change(values)
        np.save(path / name, values if changed is None else changed)

    return apply


def _meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        meta = json.loads((path / "meta.json").read_text())
        change(meta)
        (path / "meta.json").write_text(json.dumps(meta))

    return apply


def _set(index: int, value: int) -> Callable[[np.ndarray[Any, Any]], None]:
    def change(values: np.ndarray[Any, Any]) -> None:
        values[index] = value

    return change


def _cut(path: Path) -> None:
    os.truncate(path / "0.where.npy", (path / "0.where.npy").stat().st_size - 1)


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (_change("0.where.npy", _set(1, 4 << 12)), r"0\.where\.npy: access 1 .* not in pages"),
    (_change("0.where.npy", _set(0, 2 << 12 | 0xFFF)), "access 0 goes on in a page"),
    (_change("0.where.npy", _set(0, 3 << 12 | 0xFFF)), "access 0 goes on in a page"),
    (_change("7.what.npy", _set(1, 63 << 2)), r"7\.what\.npy: access 1 has a size"),
    (_change("7.what.npy", _set(1, 3 << 2 | FETCH)), "instruction fetches"),
    (_change("7.what.npy", _set(1, 3 << 2 | LOAD)), "columns hold 3 reads"),
    (_change("0.where.npy", lambda v: v[:-1]), "2 and 3 values"),
    (_change("0.where.npy", lambda v: v.astype("<u8")), "must be <u4"),
    (_change("0.where.npy", lambda v: v.astype("<i4")), r"0\.where\.npy: the .npy header"),
    (_change("0.where.npy", lambda v: v.reshape(1, -1)), r"0\.where\.npy: the .npy header"),
    (_change("pages.npy", _set(0, 2)), "not sorted"),
    (_change("pages.npy", _set(3, 1 << 52)), "beyond the 64-bit"),
    (_change("pages.npy", lambda v: v[:-1]), "meta.json says 4"),
    (_cut, r"0\.where\.npy: is cut off: 3 values promised \(12 bytes\), 2 there \(11 bytes\)"),
    (lambda p: (p / "0.what.npy").write_bytes(b""), r"0\.what\.npy: not a \.npy"),
    (lambda p: (p / "0.what.npy").unlink(), r"0\.what\.npy: is missing"),
    (lambda p: (p / "meta.json").unlink(), "not a native trace"),
    (lambda p: (p / "meta.json").write_bytes(b"\xff{"), "meta.json: not JSON"),
    (lambda p: (p / "meta.json").write_bytes(b"[" * 100_000), "meta.json: not JSON"),
    (lambda p: (p / "meta.json").write_bytes(b"[]"), "not a JSON object"),
    (_meta(lambda m: m.pop("magic")), "no magic"),
    (_meta(lambda m: m.update(version=3)), "version 3"),
    (_meta(lambda m: m.update(page_shift=14)), "page_shift"),
    (_meta(lambda m: m.update(pages=True)), "pages is missing or no whole"),
    (_meta(lambda m: m["sizes"].append(1)), "sizes must be"),
    (_meta(lambda m: m.update(sizes=[0, 1, 2, 3])), "sizes must be"),
    (_meta(lambda m: m["streams"].reverse()), "ascending by id"),
    (_meta(lambda m: m["streams"][0].pop("id")), r"streams\[0\]\.id"),
    (_meta(lambda m: m["streams"][0].update(id="../../etc")), r"streams\[0\]\.id"),
    (_meta(lambda m: m["counts"].update(straddling=9)), "hold 1 straddling"),
    (_meta(lambda m: m["counts"].update(dropped=[])), "dropped is not a JSON object"),
    (_meta(lambda m: m.update(missing="times")), "missing is missing"),
    (_meta(lambda m: m.update(address_kind="real")), "address_kind"),
]


def write_timed(path: Path) -> None:
    with native.TraceWriter(path, address_kind="ram-block") as writer:
        for stream, times in ((3, [5, 9]), (1, [7]), (3, [1 << 63])):
            count = len(times)
            writer.append(
                stream,
                np.full(count, 1 << 44, np.uint64),
                np.zeros(count, np.uint8),
                np.ones(count, np.uint16),
                np.array(times, np.uint64),
            )
        writer.blocks = (BlockBase("pc.ram", 0), BlockBase("vga", 1 << 44))
        writer.finish()


class TestTimesAndBlocks:
    def test_round_trip(self, tmp_path: Path) -> None:
        write_timed(tmp_path / "t.vmtrace")
        native.pack(tmp_path / "t.vmtrace", tmp_path / "p.vmtrace.zst")
        for trace in (
            native.open(tmp_path / "t.vmtrace"),
            native.open(tmp_path / "p.vmtrace.zst"),
        ):
            assert trace.meta.time_range_ns == (5, 1 << 63)
            assert trace.meta.blocks == (("pc.ram", 0), ("vga", 1 << 44))
            times = {stream.id: stream.times.tolist() for stream in trace.streams}
            assert times == {1: [7], 3: [5, 9, 1 << 63]}

    def test_times_are_given_always_or_never(self, tmp_path: Path) -> None:
        columns = (np.zeros(1, np.uint64), np.zeros(1, np.uint8), np.ones(1, np.uint16))
        with native.TraceWriter(tmp_path / "t.vmtrace") as writer:
            writer.append(0, *columns)
            with pytest.raises(ValueError, match="or none has"):
                writer.append(0, *columns, np.zeros(1, np.uint64))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"time_range_ns": [5, 8]}, "times outside of time_range_ns"),
            ({"time_range_ns": [9, 5]}, "must be null or the first and the last"),
            ({"time_range_ns": [5]}, "must be null or the first and the last"),
            ({"blocks": [{"name": "a", "start": 4}]}, "blocks must have names"),
            ({"blocks": [{"name": "a", "start": 0}, {"name": "a", "start": 4096}]}, "blocks must"),
        ],
    )
    def test_lies_are_found(self, change: dict[str, Any], message: str, tmp_path: Path) -> None:
        path = tmp_path / "t.vmtrace"
        write_timed(path)
        meta = json.loads((path / "meta.json").read_text())
        (path / "meta.json").write_text(json.dumps(meta | change))
        with pytest.raises(TraceError, match=message):
            native.open(path)


class TestRefused:
    @pytest.mark.parametrize(("damage", "message"), WRONG, ids=[message for _, message in WRONG])
    def test_damage(self, some: Path, damage: Callable[[Path], Any], message: str) -> None:
        damage(some)
        with pytest.raises(TraceError, match=message) as caught:
            native.open(some)
        assert str(caught.value).startswith(str(some))

    def test_missing_and_other_files(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="can't be opened"):
            native.open(tmp_path / "none")
        (tmp_path / "text").write_text("hello\n")
        with pytest.raises(TraceError, match="vmemu trace convert"):
            native.open(tmp_path / "text")
        (tmp_path / "empty").touch()
        with pytest.raises(TraceError, match="it is empty"):
            native.open(tmp_path / "empty")

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_mutated_directory(self, data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "t.vmtrace"
            write(path, SOME)
            file = path / data.draw(st.sampled_from(sorted(os.listdir(path))))
            file.write_bytes(mutated(data, file.read_bytes()))
            open_or_refuse(path)

    @settings(max_examples=300, deadline=None)
    @given(st.data(), st.booleans())
    def test_mutated_packed(self, data: st.DataObject, inside: bool) -> None:
        with tempfile.TemporaryDirectory() as directory:
            write(Path(directory) / "t.vmtrace", SOME)
            packed = Path(directory) / "t.vmtrace.zst"
            native.pack(Path(directory) / "t.vmtrace", packed, level=1)
            raw = packed.read_bytes()
            if inside:
                raw = zstd.compress(mutated(data, zstd.decompress(raw)), 1)
            else:
                raw = mutated(data, raw)
            packed.write_bytes(raw)
            open_or_refuse(packed)


def mutated(data: st.DataObject, raw: bytes) -> bytes:
    """Some bytes changed, or a part cut out, doubled, or put in."""
    at = data.draw(st.integers(0, len(raw)))
    length = data.draw(st.integers(0, 64))
    new = data.draw(st.binary(max_size=16))
    kind = data.draw(st.sampled_from(["replace", "insert", "cut", "double", "truncate"]))
    return {
        "replace": raw[:at] + new + raw[at + len(new) :],
        "insert": raw[:at] + new + raw[at:],
        "cut": raw[:at] + raw[at + length :],
        "double": raw[: at + length] + raw[at:],
        "truncate": raw[:at],
    }[kind]


def open_or_refuse(path: Path) -> None:
    try:
        trace = native.open(path)
    except TraceError as error:
        refusal = str(error)
    else:
        # What was accepted can be used to the last index.
        assert sum(len(chunk.addresses) for chunk in trace.chunks()) == trace.accesses
        return
    assert refusal.startswith(str(path))


def _no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


class TestConvert:
    @pytest.mark.parametrize("name", ["t.vmtrace", "t.vmtrace.zst"])
    def test_a_trace_is_replaced_only_when_asked_for(self, name: str, tmp_path: Path) -> None:
        out = tmp_path / name
        lackey, gpa = DATA / "lackey-sort-excerpt.txt.zst", DATA / "gpa-boot-excerpt.bin.zst"
        convert(lackey, out)
        with pytest.raises(TraceError, match=r"exists already; name another, or .* --force"):
            convert(gpa, out)
        assert native.open(out).meta.source.format == "lackey"
        convert(gpa, out, replace=True)
        assert native.open(out).meta.source.format == "tcg-gpa"
        assert os.listdir(tmp_path) == [name]

    def test_native_to_packed_and_back(self, some: Path, tmp_path: Path) -> None:
        convert(some, tmp_path / "some.vmtrace.zst")
        convert(tmp_path / "some.vmtrace.zst", tmp_path / "back.vmtrace")
        assert files(tmp_path / "back.vmtrace") == files(some)

    def test_recording_packed_leaves_only_the_file(self, tmp_path: Path) -> None:
        convert(DATA / "gpa-boot-excerpt.bin.zst", tmp_path / "t.vmtrace.zst")
        assert os.listdir(tmp_path) == ["t.vmtrace.zst"]

    @pytest.mark.parametrize(
        ("name", "held"),
        [("t.csv", b"customer,balance\n1,2\n"), ("t.parquet", b"x"), ("t.arrow", b"PAR1")],
    )
    def test_what_is_no_table_of_a_trace_is_not_replaced_by_one(
        self, some: Path, tmp_path: Path, name: str, held: bytes
    ) -> None:
        out = tmp_path / name
        out.write_bytes(held)
        with pytest.raises(TraceError, match="exists and is no table of a trace"):
            convert(some, out, replace=True)
        assert out.read_bytes() == held
        assert sorted(os.listdir(tmp_path)) == ["some.vmtrace", name]
        out.write_bytes(b"")
        convert(some, out)
        with pytest.raises(TraceError, match="exists already"):
            convert(some, out)
        convert(some, out, replace=True)

    @pytest.mark.parametrize("name", ["t.vmtrace", "t.vmtrace.zst", "t.csv"])
    @pytest.mark.parametrize("linked", [True, False], ids=["links", "no-links"])
    def test_what_comes_while_it_is_made_is_kept(
        self, some: Path, tmp_path: Path, name: str, linked: bool, monkeypatch: Any
    ) -> None:
        """Another conversion to the same name ends in the middle of this one."""
        if not linked:
            monkeypatch.setattr(os, "link", _no_links)
        out = tmp_path / name
        other = DATA / "lackey-sort-excerpt.txt.zst"

        def come(*_: object) -> None:
            if not out.exists():
                convert(other, out)

        with pytest.raises(TraceError, match="exists already; name another"):
            convert(some, out, collapse=True, report=come)
        assert sorted(os.listdir(tmp_path)) == sorted(["some.vmtrace", name])
        with open_input(out) as came:
            assert came.source.format in ("lackey", "csv")

    def test_what_is_not_ours_and_comes_meanwhile_is_kept_with_force(
        self, some: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "t.vmtrace"
        with pytest.raises(TraceError, match="is no native trace"):
            convert(some, out, replace=True, collapse=True, report=lambda *_: out.write_text("x"))
        assert out.read_text() == "x"
        assert sorted(os.listdir(tmp_path)) == ["some.vmtrace", "t.vmtrace"]

    def test_a_damaged_packed_trace_is_called_by_its_name(self, tmp_path: Path) -> None:
        packed = tmp_path / "m.tar"
        with tarfile.open(packed, "w", format=tarfile.GNU_FORMAT) as tar:
            tar.addfile(tarfile.TarInfo("m/other"))
        with pytest.raises(TraceError) as caught:
            convert(packed, tmp_path / "t.vmtrace")
        assert str(caught.value) == f"{packed}: not a native trace: it has no meta.json"
        assert os.listdir(tmp_path) == ["m.tar"]

    def test_refused_output(self, some: Path, tmp_path: Path) -> None:
        for out, message in (
            (tmp_path / "t.txt", r"must be NAME\.vmtrace, NAME\.vmtrace\.zst, NAME\.csv"),
            *(
                (tmp_path / name, "must be")
                for name in ("-", "x", "x.parquet.zst", ".csv", "x.zst")
            ),
            (some, "are the same"),
            (tmp_path / "other.vmtrace", "copy it"),
        ):
            with pytest.raises(TraceError, match=message):
                convert(some, out)
        recording = tmp_path / "r.vmtrace.zst"
        recording.write_bytes((DATA / "gpa-boot-excerpt.bin.zst").read_bytes())
        with pytest.raises(TraceError, match="is not replaced"):
            convert(DATA / "lackey-sort-excerpt.txt.zst", recording)
        assert sorted(os.listdir(tmp_path)) == ["r.vmtrace.zst", "some.vmtrace"]
