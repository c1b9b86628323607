"""Traces of every kind, for scenarios made from a number: with each map, window and walk."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
TRACES = Path(__file__).parents[2] / "configs" / "traces"
SORT = TRACES / "sort.vmtrace.zst"
"""149 pages of a process, without times."""
FAULTS = TRACES / "qemu-faults.vmtrace.zst"
"""252 pages of RAM blocks, with times: 6.3 s."""

Data = dict[str, Any]

_WALKS = ("sequential", "strided", "uniform", "permutation", "zipf", "hot_cold", "pointer_chase")


class AnyTrace:
    """Traces for ``blocks``, by ``rand``."""

    def __init__(self, rand: random.Random, blocks: list[Data]) -> None:
        self._random = rand
        self._blocks = blocks

    def good(self) -> Any:
        """One that is made, or two of them side by side."""
        if self._random.random() < 0.1:
            return [self.synthetic(), self.synthetic()]
        return self.synthetic()

    # ---- made from the seed ----

    def synthetic(self) -> Data:
        if self._random.random() < 0.15:
            return {"synthetic": self._phases()}
        return {"synthetic": self._walk() | {"accesses": self._random.choice((1, 50, 2000))}}

    def _phases(self) -> Data:
        def pattern() -> Data:
            return self._walk() | {"weight": self._random.choice((1, 3))}

        def phase() -> Data:
            count = self._random.choice((1, 2))
            return {"accesses": 200, "patterns": [pattern() for _ in range(count)]}

        count = self._random.choice((1, 3))
        return {"kind": "phases", "repeat": 2, "phases": [phase() for _ in range(count)]}

    def _walk(self) -> Data:
        made: Data = {"kind": self._random.choice(_WALKS)}
        made |= {
            "strided": {"stride": self._random.choice((64, 4 * KIB))},
            "zipf": {"theta": self._random.choice((0.5, 1.2)), "unit": 64},
            "hot_cold": {"hot_share": 0.2, "period": 100},
            "pointer_chase": {"node": self._random.choice((64, 4 * KIB))},
        }.get(made["kind"], {})
        if self._random.random() < 0.3:
            made["write_share"] = self._random.choice((0.0, 1.0))
        if self._random.random() < 0.3:
            made["block"] = self._random.choice(self._blocks)["name"]
        if self._random.random() < 0.3:
            made["stop"] = "50%" if min(one["size"] for one in self._blocks) > 8 * KIB else "100%"
        return made

    def odd_range(self) -> Data:
        """A walk of a part that may be empty, beyond the memory, or too small for its steps."""
        starts = ("0%", "50%", "100%", 4 * KIB, 1 * MIB, 100)
        stops = ("0%", "50%", "100%", 4 * KIB, 64 * KIB, 8 * MIB)
        ranged = {"start": self._random.choice(starts), "stop": self._random.choice(stops)}
        steps: Data = {"zipf": {"unit": 1 * MIB}, "pointer_chase": {"node": 1 * MIB}}
        walk = self._walk() | ranged
        walk |= steps.get(walk["kind"], {})
        return {"synthetic": walk | {"accesses": 100}}

    # ---- recorded ----

    def recorded(self) -> Any:
        """One that holds, or does not, what is recorded; now and then two, or one beside a walk."""
        one = self.recording(self._random.choice((SORT, SORT, FAULTS)))
        if self._random.random() < 0.15:
            return [one, self._random.choice((self.recording(SORT), self.synthetic()))]
        return one

    def recording(self, file: Path) -> Data:
        trace: Data = {"file": str(file)}
        if self._random.random() < 0.85:
            trace["map"] = self._map()
        windows: list[Data | None] = [
            None,
            {"stop": 500},
            {"start": 10, "stop": 20},
            {"start": "25%", "stop": "26%"},
            {"start": 1 << 40},
            {"start": 20, "stop": 20},
            {"stop": "0%"},
        ]
        if (window := self._random.choice(windows)) is not None:
            trace["window"] = window
            trace["loops"] = self._random.choice((1, 1, 3))
        if self._random.random() < 0.3:
            trace["threads"] = "by_id"
        return trace

    def _map(self) -> Data:
        block = self._random.choice(self._blocks)["name"]
        maps: list[Data] = [
            {"kind": "auto"},
            {"kind": "compact"},
            {"kind": "compact", "block": block},
            {"kind": "compact", "align": self._random.choice((64 * KIB, 2 * MIB))},
            {"kind": "modulo"},
            {"kind": "modulo", "block": block},
            {"kind": "first_touch"},
            {"kind": "first_touch", "block": block},
            {"kind": "blocks"},
            {"kind": "blocks", "outside": "drop"},
            {"kind": "blocks", "rename": {"pc.ram": block}, "outside": "drop"},
            {"kind": "blocks", "rename": {"no.ram": block}},
            {"kind": "regions", "regions": [f"0-64KiB={block}"]},
            {"kind": "regions", "regions": [f"0-4KiB={block}"], "outside": "drop"},
            {"kind": "regions", "regions": [f"0-128TiB={block}"], "outside": "drop"},
            {"kind": "modulo", "block": "nobody"},
        ]
        return self._random.choice(maps)
