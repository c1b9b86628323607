"""Checks across the mappings of a scenario, each of which may be right by itself.

They work on plain data and pass over what can't be read, because the models report that: so one
wrong field does not hide what is wrong elsewhere.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Self

from vmemu import units
from vmemu._config import wording, yamlfile
from vmemu._config.deliveries import across_delivery
from vmemu._config.placing import across_placement
from vmemu._config.ranges import Found, across_synthetic, patterns_at
from vmemu._config.types import REGION_GRAIN, Region, parse_region


class Room(NamedTuple):
    """What is told of a block's size: bytes, or None if it can't be read, and of its pages."""

    size: int | None
    page_size: int

    @classmethod
    def of(cls, block: dict[str, Any]) -> Self:
        """Of a block of the scenario's data."""
        usual = 2 * units.MIB if block.get("backing") == "hugetlbfs" else REGION_GRAIN
        page_size = _size_or_none(block.get("page_size")) or usual
        return cls(_size_or_none(block.get("size")), page_size)

    def fitting(self, end: int) -> str:
        """The size that would do for what ends there."""
        return units.format_size(-(-end // self.page_size) * self.page_size)


def across(data: dict[str, Any]) -> list[Found]:
    """What is wrong between the blocks, and between them and the map, of a scenario's ``data``."""
    blocks = data.get("blocks")
    named: dict[str, Room] = {}
    found: list[Found] = []
    paths: set[str] = set()
    for index, block in enumerate(blocks if isinstance(blocks, list) else []):
        if not isinstance(block, dict):
            continue
        name, path = block.get("name"), block.get("path")
        if isinstance(name, str) and name in named:
            found.append(
                (
                    ("blocks", index, "name"),
                    f"another block is named '{units.printable(name)}' too",
                    "give each block a name of its own",
                )
            )
        elif isinstance(name, str):
            named[name] = Room.of(block)
        if isinstance(path, str):
            if os.path.normpath(path) in paths:
                found.append(
                    (
                        ("blocks", index, "path"),
                        "another block is in this file too",
                        "give each block a file of its own",
                    )
                )
            paths.add(os.path.normpath(path))
    found += _across_memory(data) + across_delivery(data) + across_placement(data)
    for trace in _traces(data, ("guest", "trace")):
        found += _across_map(data, (*trace, "map"), named)
        found += across_synthetic(data, (*trace, "synthetic"), _sizes(named), _sum(named))
    return found + _across_pace(data) + _across_clients(data, named)


def _traces(data: Any, where: yamlfile.Path) -> list[yamlfile.Path]:
    """Where the traces stand of which there may be one, or a list."""
    given = yamlfile.value_at(data, where)
    return [(*where, index) for index in range(len(given))] if isinstance(given, list) else [where]


def _across_pace(data: Any) -> list[Found]:
    """What is made from the seed has no times."""
    where: yamlfile.Path = ("guest", "pace", "kind")
    if yamlfile.value_at(data, where) != "recorded":
        return []
    return [
        (
            where,
            f"the accesses of {yamlfile.field_name((*trace, 'synthetic'))} have no recorded times",
            "use 'kind: rate' or 'kind: asap', or recorded traces alone",
        )
        for trace in _traces(data, ("guest", "trace"))
        if yamlfile.value_at(data, (*trace, "synthetic")) is not None
    ]


def _across_memory(data: Any) -> list[Found]:
    """The kernel refuses to give locked pages back."""
    locked = yamlfile.value_at(data, ("memory", "lock")) is True
    if not locked or yamlfile.value_at(data, ("guest", "balloon")) is None:
        return []
    what = "a balloon can't give back memory that is locked"
    return [(("guest", "balloon"), what, "leave out the balloon, or 'memory: {lock: true}'")]


def _size_or_none(value: Any) -> int | None:
    try:
        return units.parse_size(value)
    except units.UnitError:
        return None


def _sizes(named: dict[str, Room]) -> dict[str, int | None]:
    return {name: room.size for name, room in named.items()}


def _sum(named: dict[str, Room]) -> int | None:
    """The size of all blocks; None when one can't be read."""
    sizes = [room.size for room in named.values() if room.size is not None]
    return sum(sizes) if sizes and len(sizes) == len(named) else None


def _across_clients(data: dict[str, Any], named: dict[str, Room]) -> list[Found]:
    clients = data.get("clients")
    found: list[Found] = []
    names: set[str] = set()
    for index, client in enumerate(clients if isinstance(clients, list | tuple) else []):
        if not isinstance(client, dict):
            continue
        where: yamlfile.Path = ("clients", index)
        name, block = client.get("name"), client.get("block")
        if isinstance(name, str) and name in names:
            what = f"another client is named '{units.printable(name)}' too"
            found.append(((*where, "name"), what, "give each client a name of its own"))
        if isinstance(name, str):
            names.add(name)
        if isinstance(block, str):
            found += [((*where, "block"), *pair) for pair in _wrong_share(data, block, named)]
            for trace in _traces(data, (*where, "trace")):
                found += _beside_the_block(data, trace, block, named)
    return found


def _wrong_share(data: dict[str, Any], name: str, named: dict[str, Room]) -> list[tuple[str, str]]:
    """Why another process can't map that block."""
    if name not in named:
        return [_unknown_block(name, named)]
    blocks = data.get("blocks")
    for block in blocks if isinstance(blocks, list | tuple) else []:
        if isinstance(block, dict) and block.get("name") == name:
            if block.get("backing") != "anonymous":
                return []
            what = f"'{units.printable(name)}' is anonymous memory, which no other process can map"
            return [(what, "give the block 'backing: shared' or 'backing: hugetlbfs'")]
    return []


def _beside_the_block(
    data: dict[str, Any], where: yamlfile.Path, own: str, named: dict[str, Room]
) -> list[Found]:
    """What is wrong with the places of a client's trace: it has one block and no other."""
    mapped, made = (*where, "map"), (*where, "synthetic")
    found = _across_map(data, mapped, named)
    sizes = _sizes(named)
    found += across_synthetic(data, made, sizes, sizes.get(own))
    return found + [
        (
            path,
            f"the client has mapped '{units.printable(own)}' alone",
            f"use '{units.printable(own)}', or give the client the block",
        )
        for path, block in [*_mapped_blocks(data, mapped), *_walked_blocks(data, made)]
        if isinstance(block, str) and block in named and block != own
    ]


def _mapped_blocks(data: Any, where: yamlfile.Path) -> list[tuple[yamlfile.Path, Any]]:
    """The blocks that a map uses, and where it says so."""
    mapping = yamlfile.value_at(data, where)
    if not isinstance(mapping, dict):
        return []
    used: list[tuple[yamlfile.Path, Any]] = [*_blocks_named(mapping, where)]
    regions = mapping.get("regions")
    for index, text in enumerate(regions if isinstance(regions, list | tuple) else []):
        try:
            used.append(((*where, "regions", index), parse_region(text).block))
        except units.UnitError:
            continue
    return used


def _walked_blocks(data: Any, where: yamlfile.Path) -> list[tuple[yamlfile.Path, Any]]:
    """The blocks that patterns stay in, and where they say so."""
    return [((*path, "block"), pattern.get("block")) for path, pattern in patterns_at(data, where)]


def _blocks_named(mapping: dict[Any, Any], where: yamlfile.Path) -> list[tuple[yamlfile.Path, str]]:
    """The blocks that a map names, but for those of its regions, and where it does."""
    rename = mapping.get("rename")
    renamed = rename.items() if isinstance(rename, dict) else ()
    named = [((*where, "block"), mapping.get("block"))]
    named += [((*where, "rename", recorded), block) for recorded, block in renamed]
    return [(path, block) for path, block in named if isinstance(block, str)]


def _across_map(data: dict[str, Any], where: yamlfile.Path, named: dict[str, Room]) -> list[Found]:
    mapping = yamlfile.value_at(data, where)
    if not isinstance(mapping, dict):
        return []
    found: list[Found] = []
    found += [
        (path, *_unknown_block(name, named))
        for path, name in _blocks_named(mapping, where)
        if name not in named
    ]
    regions = mapping.get("regions")
    earlier: list[Region] = []
    for index, text in enumerate(regions if isinstance(regions, list) else []):
        try:
            region = parse_region(text)
        except units.UnitError:
            continue
        wrong = _wrong_region(region, named, earlier)
        found += [((*where, "regions", index), *pair) for pair in wrong]
        earlier.append(region)
    return found


def _unknown_block(name: str, named: dict[str, Room]) -> tuple[str, str]:
    return f"no block is named '{units.printable(name)}'", wording.nearest(name, named)


def _wrong_region(
    region: Region, named: dict[str, Room], earlier: list[Region]
) -> list[tuple[str, str, str]]:
    """What is wrong, what would do, and the code of what does not fit."""
    found = []
    if region.block not in named:
        found.append((*_unknown_block(region.block, named), ""))
    room = named.get(region.block)
    size = room.size if room else None
    if room and size is not None and region.offset + region.length > size:
        fitting = size - region.offset
        remedy = (
            f"end it at {region.start + fitting:#x} or before"
            if fitting > 0
            else "use a smaller offset"
        )
        remedy += f", or give the block a size of {room.fitting(region.offset + region.length)}"
        found.append(
            (
                f"the region needs '{units.printable(region.block)}' up to"
                f" {region.offset + region.length:#x}, and the block ends at {size:#x}",
                remedy,
                "trace",
            )
        )
    found += [
        (f"the region overlaps {units.printable(str(other), 100)}", "cut one of the two", "")
        for other in earlier
        if region.start < other.end and other.start < region.end
    ]
    return found
