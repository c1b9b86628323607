"""Scenarios of every kind, good and bad, each made from its number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
CONFIGS = Path(__file__).parents[2] / "configs"
SORT = CONFIGS / "traces" / "sort.vmtrace.zst"

Data = dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Where files of blocks may be told to lie: directories, right and wrong ones."""

    tmpfs: Path
    disk: Path
    little: Path
    """A tmpfs of 256 KiB."""
    huge: Path
    """hugetlbfs of 2 MiB pages."""
    little_huge: Path
    """The same that takes one page."""
    gigantic: Path
    """hugetlbfs of 1 GiB pages."""


class AnyScenario:
    """The scenario of that number as plain data: the same each time, for the same places."""

    def __init__(self, number: int, places: Places, *, huge: bool) -> None:
        self._random = random.Random(number)
        self._number = number
        self._places = places
        self._huge = huge

    def data(self) -> Data:
        """Most have nothing wrong, some one thing, a few two."""
        blocks = [self._block(index) for index in range(self._random.choice((1, 1, 2, 3)))]
        if self._huge:
            blocks[0] = self._hugetlbfs(0)
        data: Data = {
            "name": f"any-{self._number}",
            "seed": self._number,
            "blocks": blocks,
            "guest": {"vcpus": self._random.randint(1, 3), "trace": self._trace(blocks)},
            "migration": self._migration(),
            "limits": {"stall": "20s"},
        }
        for spoil in self._random.choices(self._spoilers(), k=self._random.choice((0, 1, 1, 2))):
            spoil(data)
        if self._random.random() < 0.03:
            self._nonsense(data)
        return data

    # ---- what works ----

    def _block(self, index: int) -> Data:
        made: Data = {
            "name": f"ram{index}",
            "backing": self._random.choice(("anonymous", "shared")),
        }
        made["size"] = self._random.choice((4, 16, 64, 200, 512)) * KIB
        if made["backing"] == "shared" and self._random.random() < 0.4:
            made["path"] = str(self._places.tmpfs / f"b{self._number}-{index}")
        if self._random.random() < 0.3:
            made["content"] = {"zero_share": self._random.choice((0.25, 0.5, 1.0))}
        return made

    def _hugetlbfs(self, index: int) -> Data:
        made: Data = {"name": f"ram{index}", "backing": "hugetlbfs", "size": 2 * MIB}
        made["size"] *= self._random.choice((1, 1, 2, 3))
        if self._random.random() < 0.5:
            made["page_size"] = 2 * MIB
        if self._random.random() < 0.4:
            made["path"] = str(self._places.huge / f"b{self._number}-{index}")
        return made

    def _trace(self, blocks: list[Data]) -> Any:
        accesses = self._random.choice((1, 50, 2000))
        kinds = ("sequential", "uniform", "permutation", "zipf", "hot_cold", "pointer_chase")
        made: Data = {"kind": self._random.choice(kinds), "accesses": accesses}
        if self._random.random() < 0.3:
            made["block"] = self._random.choice(blocks)["name"]
        if self._random.random() < 0.3:
            made["stop"] = "50%" if blocks[0]["size"] > 8 * KIB else "100%"
        return {"synthetic": made}

    def _migration(self) -> Data:
        rounds = self._random.choice((0, 0, 1, 2))
        return {
            "precopy": {
                "rounds": rounds,
                "dirty_tracking": self._random.choice(("auto", "kernel", "replay")),
            },
            "flip_at": self._random.choice(("0%", "25%", "100%")) if rounds else "0%",
            "postcopy": {
                "preempt": self._random.random() < 0.7,
                "push": self._random.random() < 0.7,
                "fault_threads": self._random.choice((1, 1, 2)),
                "release_ram": self._random.random() < 0.3,
            },
        }

    # ---- what may be wrong, or only unusual ----

    def _spoilers(self) -> list[Callable[[Data], None]]:
        return [
            self._size,
            self._size,
            self._page_size,
            self._place,
            self._place,
            self._target_page,
            self._recorded,
            self._recorded,
            self._reach,
            self._lock,
            self._client,
            self._content,
            self._pace,
            self._wait,
        ]

    def _one(self, data: Data) -> Data:
        block: Data = self._random.choice(data["blocks"])
        return block

    def _size(self, data: Data) -> None:
        """Too large for any memory, for the pool, or no whole number of pages."""
        block = self._one(data)
        sizes = [4097, 100_000, 6 * KIB, 1 << 40, 40 << 40, 0, 1 << 50]
        if block["backing"] == "hugetlbfs":
            sizes += [20 * MIB, 3 * MIB, 300 * MIB, 2 << 30]
        block["size"] = self._random.choice(sizes)

    def _page_size(self, data: Data) -> None:
        sizes = (4 * KIB, 8 * KIB, 64 * KIB, 2 * MIB, 3 * MIB, 32 * MIB, 1 << 30, 16 << 30)
        self._one(data)["page_size"] = self._random.choice(sizes)

    def _place(self, data: Data) -> None:
        """A path that is on something else than it should be, taken, or nowhere."""
        block, name = self._one(data), f"p{self._number}"
        at = self._places
        taken = at.tmpfs / f"taken{self._number}"
        taken.write_bytes(b"somebody's")
        places = [at.tmpfs, at.disk, at.little, at.huge, at.little_huge, at.gigantic]
        paths = [place / name for place in places]
        paths += [at.tmpfs / "gone" / name, taken, at.tmpfs, taken / name, Path("/proc") / name]
        if block["backing"] == "anonymous" and self._random.random() < 0.8:
            block["backing"] = "shared"
        block["path"] = str(self._random.choice(paths))

    def _target_page(self, data: Data) -> None:
        data["guest"]["target_page_size"] = self._random.choice((4 * KIB, 16 * KIB, 2 * MIB))

    def _recorded(self, data: Data) -> None:
        """A recording of 64 pages or so, on blocks that hold it or do not."""
        block = data["blocks"][0]["name"]
        maps: list[Data] = [
            {"kind": "compact"},
            {"kind": "compact", "block": block},
            {"kind": "modulo"},
            {"kind": "first_touch"},
            {"kind": "auto"},
            {"kind": "blocks"},
            {"kind": "regions", "regions": [f"0-64KiB={block}"]},
            {"kind": "regions", "regions": [f"0-4KiB={block}"], "outside": "drop"},
        ]
        trace: Data = {"file": str(SORT), "map": self._random.choice(maps)}
        windows = (None, {"stop": 500}, {"start": 10, "stop": 20}, {"start": 1 << 40})
        if (window := self._random.choice(windows)) is not None:
            trace["window"] = window
        if self._random.random() < 0.3:
            data["blocks"][0] |= {"size": 32 * MIB}
        data["guest"]["trace"] = trace

    def _reach(self, data: Data) -> None:
        """A flip behind the end of the trace, or in it."""
        data["migration"]["flip_at"] = self._random.choice((1, 40, 10_000_000, "50%", "1ms"))

    def _lock(self, data: Data) -> None:
        data["memory"] = {"lock": True}
        if self._random.random() < 0.3:
            data["guest"]["balloon"] = {"limit": 2}

    def _client(self, data: Data) -> None:
        block = self._one(data)["name"]
        trace = {"synthetic": {"kind": "uniform", "accesses": 50}}
        data["clients"] = [{"name": "vhost0", "block": block, "trace": trace}]

    def _content(self, data: Data) -> None:
        """A file of 64 KiB, for a block that may be smaller."""
        path = self._places.disk / f"content{self._number}"
        path.write_bytes(bytes(range(256)) * 256)
        self._one(data)["content"] = {"kind": "file", "path": str(path)}

    def _pace(self, data: Data) -> None:
        kind = self._random.choice(("recorded", "rate"))
        data["guest"]["pace"] = {"kind": kind}
        if kind == "rate":
            data["guest"]["pace"]["accesses_per_second"] = 1_000_000

    def _wait(self, data: Data) -> None:
        data["on_unavailable"] = self._random.choice(("fail", "skip", {"wait": "200ms"}))

    def _nonsense(self, data: Data) -> None:
        """What is no scenario at all."""
        key = self._random.choice(("blocks", "guest", "colour"))
        data[key] = self._random.choice(([], "none", 7))
