"""Reader of damo's records in JSON: ``damo record``, ``damo report access --json``.

A list of records, one a monitoring target::

    [{"kdamond_idx": 0, "context_idx": 0, "intervals": {...}, "scheme_idx": null, "target_id": 0,
      "snapshots": [
        {"start_time": "82877315633000", "end_time": "23 h 1 m 17 s 415 ms 633 us", "regions": [
          {"start": "94,106,999,996,416", "end": "94,107,000,119,296",
           "nr_accesses": {"samples": 1, "percent": 5}, "age": {...}, ...}, ...]}, ...]}, ...]

Numbers are numbers or text, for people or for programs, by what damo was asked for and by its
version. Unless asked for other, ``damo record`` compresses it with zlib. What a region stands for
says :mod:`vmemu.traces.regions`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import ijson
import numpy as np

from vmemu.errors import TraceError
from vmemu.traces.opening import ByteStream
from vmemu.traces.reader import Chunk, Reader
from vmemu.traces.regions import MISSING, RegionTouches, StreamNumbers, address_kind_of

_ZLIB_MAGICS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_OLD_BINARY = b"damon_recfmt_ver"
_BATCH = 4096
_KEYS = (b'"snapshots"', b'"target_id"')

_ROLE = re.compile(
    r"(?:.*\.)?(?:(?P<record>kdamond_idx|context_idx|target_id|snapshots)"
    r"|snapshots\.item(?:|\.(?P<time>end_time)|\.regions\.item(?P<region>|\.start|\.end"
    r"|\.nr_accesses|\.nr_accesses\.(?:samples|percent))))"
)
_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_UNITS["d"] = 24 * _UNITS["h"]
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ns|us|ms|s|m|h|d)(?: |$)")


class DamoReader(Reader):
    """One stream a monitoring target, which is a process or all physical memory."""

    format = "damo"
    title = "damo record in JSON"
    address_kind = "unknown"
    missing: tuple[str, ...] = MISSING

    def __init__(self, stream: ByteStream, *, fetches: bool = False) -> None:
        super().__init__(stream, fetches=fetches)
        self._touches = RegionTouches(stream.name)
        self._targets = StreamNumbers()
        self._seen = 0

    @classmethod
    def sniff(cls, head: bytes) -> bool:
        if head.startswith(_OLD_BINARY):
            return True
        if head.startswith(_ZLIB_MAGICS):
            try:
                head = zlib.decompressobj().decompress(head, 1 << 16)
            except zlib.error:
                return False
        return head.lstrip()[:1] in (b"[", b"{") and all(key in head for key in _KEYS)

    def chunks(self) -> Iterator[Chunk]:
        head = self.stream.head(len(_OLD_BINARY))
        if head == _OLD_BINARY:
            raise TraceError(
                f"{self.stream.name}: the old binary record of DAMON, which is not read",
                "convert it with the damo of its time: damo convert_record_format"
                f" --format json_compressed --record_file {self.stream.name}",
            )
        source = _Source(self.stream, compressed=head.startswith(_ZLIB_MAGICS))
        walk = _Walk(self)
        try:
            for prefix, event, value in ijson.parse(source, buf_size=1 << 16):
                if (role := _role(prefix)) and walk.take(role, event, value):
                    yield from self._flush(walk)
        except (ijson.JSONError, ValueError) as error:
            if not source.ended:
                reason = str(error).strip().partition("\n")[0]
                raise TraceError(f"{self.stream.name}: not the JSON of damo: {reason}") from None
            self.tally.truncated = True
        yield from self._flush(walk)
        self.tally.truncated |= self.stream.truncated

    def _flush(self, walk: _Walk) -> Iterator[Chunk]:
        """What the walk has gathered; the regions of one target."""
        self._refuse_mostly_unknown(walk.regions - self.tally.unknown_lines)
        self.address_kind = address_kind_of(walk.highest)
        if walk.starts:
            columns = (np.array(c, np.uint64) for c in (walk.starts, walk.ends, walk.times))
            yield from self._touches.chunks(self._targets.of(walk.gathered_of), *columns)
            walk.starts, walk.ends, walk.times = [], [], []

    def unknown(self, number: int, region: dict[str, Any]) -> None:
        """Counts a region that makes no sense."""
        text = ", ".join(f"{key}: {value!r}" for key, value in region.items())
        self.tally.unknown(1, f"region {number}: {text[:80]}")


class _Walk:
    """Gathers accessed regions from the events of the JSON, which come one by one."""

    def __init__(self, reader: DamoReader) -> None:
        self._reader = reader
        self._record: dict[str, Any] = {}
        self._time: int | None = None
        self._region: dict[str, Any] = {}
        self.regions = 0
        self.highest = 0
        self.gathered_of: object = None
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.times: list[int] = []

    def take(self, role: str, event: str, value: Any) -> bool:
        """Takes an event; returns whether what is gathered must be given now."""
        if role == "snapshots":
            if event == "start_array":
                self.gathered_of = tuple(sorted(self._record.items()))
                self._refuse_made_up()
                return False
            self._record = {}
            return event == "end_array"
        if role == "snapshot":
            self._time = None if event == "start_map" else self._time
        elif role == "end_time":
            self._time = _nanoseconds(value)
        elif role == "region":
            if event == "start_map":
                self._region = {}
            elif event == "end_map":
                self._close_region()
                return len(self.starts) >= _BATCH
        elif event in ("string", "number", "null"):
            (self._region if role[0] == "." else self._record)[role] = value
        return False

    def _refuse_made_up(self) -> None:
        # damo shows DAMON_STAT's idle times as regions, hundredths of all memory: no addresses.
        if str(self._record.get("kdamond_idx")) == "-1":
            raise TraceError(
                f"{self._reader.stream.name}: made of DAMON_STAT's figures: it has no addresses",
                "record the accesses themselves: damo record",
            )

    def _close_region(self) -> None:
        self.regions += 1
        region = self._region
        start, end = _number(region.get(".start")), _number(region.get(".end"))
        counted = [
            _number(region.get(f".nr_accesses{key}")) for key in (".samples", "", ".percent")
        ]
        known = [count for count in counted if count is not None]
        if start is None or end is None or not 0 <= start <= end < 1 << 64 or not known:
            self._reader.unknown(self.regions, region)
            return
        self.highest = max(self.highest, end)
        if known[0] <= 0:
            return
        if self._time is None or not self.gathered_of:
            raise TraceError(
                f"{self._reader.stream.name}: region {self.regions} has no end_time of its"
                " snapshot, or no target_id of its record, in front of it, where damo writes them"
            )
        self.starts.append(start)
        self.ends.append(end)
        self.times.append(self._time)


@lru_cache(maxsize=256)
def _role(prefix: str) -> str:
    """What stands at this place of the JSON; "" where it does not matter."""
    match = _ROLE.fullmatch(prefix)
    if match is None:
        return ""
    region = match["region"]
    return (
        match["record"] or match["time"] or region or ("snapshot" if region is None else "region")
    )


def _number(value: Any) -> int | None:
    """A number that damo has written: 1234, "1,234", "5 %"; None if it is none."""
    text = str(value).replace(",", "").removesuffix("%").strip()
    try:
        return int(text) if text.isdecimal() or text[:1] == "-" else int(-(-float(text) // 1))
    except (ValueError, OverflowError):
        return None


def _nanoseconds(value: Any) -> int | None:
    """A time that damo has written: 1234, "1234", "1 h 23 m 4.5 s"; None if it is none."""
    text = str(value).replace(",", "").strip()
    parts = _DURATION.findall(text)
    time: int | None
    if parts and _DURATION.sub("", text) == "":
        time = sum(_scaled(number, _UNITS[unit]) for number, unit in parts)
    else:
        time = _number(text)
    return time if time is not None and 0 <= time < 1 << 64 else None


def _scaled(number: str, unit: int) -> int:
    """Exact where it is whole: a double has no room for the nanoseconds of a month."""
    return int(number) * unit if number.isdecimal() else round(float(number) * unit)


class _Source:
    """The JSON as a file for ijson, inflated if it is compressed."""

    def __init__(self, stream: ByteStream, *, compressed: bool) -> None:
        self.ended = False
        """ijson has been told that there is no more: what it then misses was cut off."""
        self._stream = stream
        self._inflate = zlib.decompressobj() if compressed else None

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end, or where compressed data is cut off."""
        part = self._stream.read(size) if self._inflate is None else self._inflated(size)
        self.ended |= size > 0 and not part
        return part

    def _inflated(self, size: int) -> bytes:
        inflate = self._inflate
        assert inflate is not None
        while size and not inflate.eof:
            raw = inflate.unconsumed_tail or self._stream.read(1 << 16)
            try:
                part = inflate.decompress(raw, size)
            except zlib.error as error:
                raise TraceError(
                    f"{self._stream.name}: the compressed data is damaged: {error}"
                ) from None
            if part or not raw:
                return part
        return b""
