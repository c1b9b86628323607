"""Scenarios of every kind, good and bad, each made from its number."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from any_trace import FAULTS, KIB, MIB, AnyTrace, Data

CONFIGS = Path(__file__).parents[2] / "configs"


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
    sealed: Path
    """A tmpfs that nobody may write to."""


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
            "guest": {
                "vcpus": self._random.randint(1, 3),
                "trace": AnyTrace(self._random, blocks).good(),
            },
            "migration": self._migration(),
            "limits": {"stall": "20s"},
            "channel": {"kind": self._random.choice(("pipe", "pipe", "shm"))},
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

    def _migration(self) -> Data:
        rounds = self._random.choice((0, 0, 1, 2))
        precopy: Data = {
            "rounds": rounds,
            "dirty_tracking": self._random.choice(("auto", "kernel", "replay")),
        }
        if rounds and self._random.random() < 0.3:
            precopy |= {"switch": "converged", "max_downtime": "10ms", "max_time": "500ms"}
        postcopy: Data = {
            "push": self._random.random() < 0.7,
            "release_ram": self._random.random() < 0.3,
            "push_order": self._random.choice(("sequential", "around_faults", "recorded")),
        }
        if self._random.random() < 0.3:
            postcopy["delivery"] = "sigbus"
        else:
            postcopy["preempt"] = self._random.random() < 0.7
            postcopy["fault_threads"] = self._random.choice((1, 1, 2))
            postcopy["fault_around"] = self._random.choice((0, 0, 16))
            postcopy["prefetch"] = self._random.choice(("none", "adaptive"))
        return {
            "precopy": precopy,
            "flip_at": self._random.choice(("0%", "0%", "25%", "100%")),
            "postcopy": postcopy,
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
            self._odd_range,
            self._reach,
            self._lock,
            self._balloon,
            self._client,
            self._content,
            self._pace,
            self._bandwidth,
            self._verify,
            self._several,
            self._wait,
            self._limits,
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
        block = self._one(data)
        block["page_size"] = self._random.choice(sizes)
        if self._random.random() < 0.5:
            block["size"] = block["page_size"]

    def _place(self, data: Data) -> None:
        """A path that is on something else than it should be, taken, or nowhere."""
        block, name = self._one(data), f"p{self._number}"
        at = self._places
        taken = at.tmpfs / f"taken{self._number}"
        taken.write_bytes(b"somebody's")
        places = [at.tmpfs, at.disk, at.little, at.huge, at.little_huge, at.gigantic]
        places += [at.sealed]
        paths = [place / name for place in places]
        paths += [at.tmpfs / "gone" / name, taken, at.tmpfs, taken / name, Path("/proc") / name]
        if block["backing"] == "anonymous" and self._random.random() < 0.8:
            block["backing"] = "shared"
        block["path"] = str(self._random.choice(paths))

    def _target_page(self, data: Data) -> None:
        data["guest"]["target_page_size"] = self._random.choice((4 * KIB, 16 * KIB, 2 * MIB))

    def _recorded(self, data: Data) -> None:
        """A recording, on blocks that hold it or do not."""
        if self._random.random() < 0.3:
            data["blocks"][0] |= {"size": 32 * MIB}
        data["guest"]["trace"] = AnyTrace(self._random, data["blocks"]).recorded()

    def _odd_range(self, data: Data) -> None:
        data["guest"]["trace"] = AnyTrace(self._random, data["blocks"]).odd_range()

    def _reach(self, data: Data) -> None:
        """A flip behind the end of the trace, or in it."""
        data["migration"]["flip_at"] = self._random.choice((1, 40, 10_000_000, "50%", "1ms"))

    def _lock(self, data: Data) -> None:
        data["memory"] = {"lock": True}

    def _balloon(self, data: Data) -> None:
        """As many pages as there are, or more."""
        limits = (1, 2, 100_000)
        data["guest"]["balloon"] = {"limit": self._random.choice(limits), "rate": 1_000_000}

    def _client(self, data: Data) -> None:
        """One or two, on a block that another process can map or cannot."""
        clients = []
        for number in range(self._random.choice((1, 1, 2))):
            block = self._one(data)
            traces = AnyTrace(self._random, [block])
            trace = self._random.choice((traces.synthetic, traces.recorded))()
            clients.append({"name": f"vhost{number}", "block": block["name"], "trace": trace})
            clients[-1]["vcpus"] = self._random.choice((1, 2))
        data["clients"] = clients

    def _content(self, data: Data) -> None:
        """A file, with a hole or without, for a block that may be smaller; or none."""
        kind = self._random.choice(("full", "full", "hole", "empty", "directory", "gone"))
        path = self._places.disk / f"{kind}{self._number}"
        if kind == "directory":
            path.mkdir(exist_ok=True)
        elif kind != "gone":
            path.write_bytes(b"" if kind == "empty" else bytes(range(256)) * 256)
        if kind == "hole":
            with path.open("r+b") as file:
                file.truncate(512 * KIB)
        self._one(data)["content"] = {"kind": "file", "path": str(path)}

    def _pace(self, data: Data) -> None:
        """At recorded times of a trace that has some, or none."""
        pace: Data = {"kind": self._random.choice(("recorded", "recorded", "rate"))}
        if pace["kind"] == "rate":
            pace["accesses_per_second"] = 1_000_000
        else:
            pace["factor"] = 100.0
            if self._random.random() < 0.5:
                trace = AnyTrace(self._random, data["blocks"]).recording(FAULTS)
                data["guest"]["trace"] = trace
        data["guest"]["pace"] = pace

    def _bandwidth(self, data: Data) -> None:
        """Slow, and not slower than a test may be."""
        phase = data["migration"][self._random.choice(("precopy", "postcopy"))]
        phase["bandwidth"] = self._random.choice(("16MiB/s", "1Gbit/s"))

    def _verify(self, data: Data) -> None:
        data["verify"] = {"reads": self._random.random() < 0.5, "final": True}

    def _several(self, data: Data) -> None:
        """Traces side by side, on vCPUs that may be more than the accesses."""
        traces = AnyTrace(self._random, data["blocks"])
        data["guest"]["trace"] = [traces.synthetic() for _ in range(3)]
        data["guest"]["vcpus"] = self._random.choice((1, 7))

    def _wait(self, data: Data) -> None:
        data["on_unavailable"] = self._random.choice(("fail", "skip", {"wait": "200ms"}))

    def _limits(self, data: Data) -> None:
        """What no host can keep, or what each can."""
        times = ("1ns", "1ms", "20s", "0s")
        data["source"] = {"startup_timeout": self._random.choice(times)}
        data["limits"] = {"stall": self._random.choice(times)}

    def _nonsense(self, data: Data) -> None:
        """What is no scenario at all."""
        key = self._random.choice(("blocks", "guest", "colour"))
        data[key] = self._random.choice(([], "none", 7))
