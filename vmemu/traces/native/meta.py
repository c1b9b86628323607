"""``meta.json`` of a native trace: see ``native.format`` for what each field means."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from vmemu.errors import TraceError
from vmemu.traces.reader import MAX_ACCESS_SIZE, MAX_STREAMS, BlockBase

META_NAME = "meta.json"
MAGIC = "vmemu-trace"
VERSION = 2
READABLE_VERSIONS = (1, 2)
PAGE_SHIFT = 12
MAX_SIZES = 64
ADDRESS_KINDS = ("virtual", "guest-physical", "ram-block", "unknown")

_MAX_COUNT = 1 << 62


@dataclass(frozen=True)
class StreamMeta:
    id: int
    accesses: int


@dataclass(frozen=True)
class Source:
    format: str = ""
    file: str = ""


@dataclass(frozen=True)
class Counts:
    """Data accesses, except ``instruction_fetches``; a modify counts once in ``accesses``."""

    accesses: int = 0
    reads: int = 0
    writes: int = 0
    modifies: int = 0
    instruction_fetches: int = 0
    straddling: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    unknown_lines: int = 0
    first_unknown: str = field(default="", compare=False)
    """For people, of a recording that was just read; a trace does not keep it."""


@dataclass(frozen=True)
class Meta:
    address_kind: str
    source: Source
    sizes: tuple[int, ...]
    pages: int
    streams: tuple[StreamMeta, ...]
    fetches: bool
    counts: Counts
    truncated: bool
    missing: tuple[str, ...]
    time_range_ns: tuple[int, int] | None = None
    blocks: tuple[BlockBase, ...] = ()

    @property
    def lost_in_csv(self) -> tuple[str, ...]:
        """What is missing and can't be seen from the columns of a table."""
        by_column = ("times", "threads", "sizes", "writes", "modifies", "instruction_fetches")
        return tuple(key for key in self.missing if key not in by_column)

    def to_json(self) -> bytes:
        """The bytes of ``meta.json``, the same for the same values."""
        fixed = {"magic": MAGIC, "version": VERSION, "page_shift": PAGE_SHIFT}
        blocks = [block._asdict() for block in self.blocks]
        counts = asdict(self.counts)
        del counts["first_unknown"]
        values = fixed | asdict(self) | {"counts": counts, "blocks": blocks}
        return (json.dumps(values, indent=1) + "\n").encode()


def parse_meta(name: str, raw: bytes) -> Meta:
    """Checks and takes over ``meta.json``; ``name`` is for messages. Raises ``TraceError``."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{name}: not JSON: {error}") from None
    fields = _Fields(name, values, "")
    if fields.values.get("magic") != MAGIC:
        raise TraceError(f"{name}: not a native trace: no magic {MAGIC!r}")
    if (version := fields.integer("version")) not in READABLE_VERSIONS:
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise TraceError(f"{name}: version {version}; this vmemu knows versions {known}")
    if fields.integer("page_shift") != PAGE_SHIFT:
        raise fields.wrong("page_shift", f"is not {PAGE_SHIFT}")
    return Meta(
        address_kind=_address_kind(fields),
        source=_source(fields.object("source")),
        sizes=_sizes(fields),
        pages=fields.integer("pages"),
        streams=_streams(fields),
        fetches=fields.boolean("fetches"),
        counts=_counts(fields.object("counts")),
        truncated=fields.boolean("truncated"),
        missing=tuple(fields.list_of("missing", str)),
        time_range_ns=_time_range(fields) if version > 1 else None,
        blocks=_blocks(fields) if version > 1 else (),
    )


class _Fields:
    """One JSON object, with errors that name the field."""

    def __init__(self, name: str, values: Any, prefix: str) -> None:
        self._name = name
        self._prefix = prefix
        if not isinstance(values, dict):
            raise TraceError(f"{name}: {prefix.rstrip('.') or 'it'} is not a JSON object")
        self.values: dict[str, Any] = values

    def wrong(self, key: str, what: str) -> TraceError:
        return TraceError(f"{self._name}: {self._prefix}{key} {what}")

    def integer(self, key: str, most: int = _MAX_COUNT) -> int:
        value = self.values.get(key)
        if type(value) is not int or not 0 <= value <= most:
            raise self.wrong(key, "is missing or no whole number of a sensible size")
        return value

    def boolean(self, key: str) -> bool:
        value = self.values.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "is missing or neither true nor false")
        return value

    def string(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "is missing or no string")
        return value

    def object(self, key: str) -> _Fields:
        return _Fields(self._name, self.values.get(key), f"{self._prefix}{key}.")

    def list_of(self, key: str, kind: type) -> list[Any]:
        value = self.values.get(key)
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise self.wrong(key, f"is missing or no list of {kind.__name__}")
        return value

    def objects(self, key: str) -> list[_Fields]:
        items = self.list_of(key, dict)
        return [
            _Fields(self._name, item, f"{self._prefix}{key}[{index}].")
            for index, item in enumerate(items)
        ]


def _address_kind(fields: _Fields) -> str:
    kind = fields.string("address_kind")
    if kind not in ADDRESS_KINDS:
        raise fields.wrong("address_kind", f"is neither {' nor '.join(ADDRESS_KINDS)}")
    return kind


def _source(fields: _Fields) -> Source:
    return Source(fields.string("format"), fields.string("file"))


def _sizes(fields: _Fields) -> tuple[int, ...]:
    sizes = fields.list_of("sizes", int)
    in_range = all(1 <= size <= MAX_ACCESS_SIZE for size in sizes)
    if len(sizes) > MAX_SIZES or not in_range or sorted(set(sizes)) != sizes:
        raise fields.wrong("sizes", f"must be up to {MAX_SIZES} ascending sizes of 1 to 4096 bytes")
    return tuple(sizes)


def _streams(fields: _Fields) -> tuple[StreamMeta, ...]:
    streams = [
        StreamMeta(entry.integer("id"), entry.integer("accesses"))
        for entry in fields.objects("streams")
    ]
    ids = [stream.id for stream in streams]
    if len(ids) > MAX_STREAMS or sorted(set(ids)) != ids:
        raise fields.wrong("streams", f"must be at most {MAX_STREAMS}, ascending by id")
    return tuple(streams)


def _time_range(fields: _Fields) -> tuple[int, int] | None:
    if fields.values.get("time_range_ns") is None:
        return None
    times = fields.list_of("time_range_ns", int)
    if len(times) != 2 or not 0 <= times[0] <= times[1] < 1 << 64:
        raise fields.wrong("time_range_ns", "must be null or the first and the last nanosecond")
    return times[0], times[1]


def _blocks(fields: _Fields) -> tuple[BlockBase, ...]:
    blocks = [
        BlockBase(entry.string("name"), entry.integer("start", most=(1 << 64) - 1))
        for entry in fields.objects("blocks")
    ]
    starts = [block.start for block in blocks]
    named = len({block.name for block in blocks}) == len(blocks)
    aligned = all(start % (1 << PAGE_SHIFT) == 0 for start in starts)
    if sorted(set(starts)) != starts or not named or not aligned:
        raise fields.wrong("blocks", "must have names of their own and ascending starts of pages")
    return tuple(blocks)


def _counts(fields: _Fields) -> Counts:
    dropped = fields.object("dropped")
    return Counts(
        accesses=fields.integer("accesses"),
        reads=fields.integer("reads"),
        writes=fields.integer("writes"),
        modifies=fields.integer("modifies"),
        instruction_fetches=fields.integer("instruction_fetches"),
        straddling=fields.integer("straddling"),
        dropped={key: count for key in dropped.values if (count := dropped.integer(key))},
        unknown_lines=fields.integer("unknown_lines"),
    )
