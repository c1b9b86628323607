"""The layout that suits what a trace's addresses are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vmemu.traces.mapping.blocks import ByBlock
from vmemu.traces.mapping.compact import Compact
from vmemu.traces.mapping.pagemap import Block, PageMap
from vmemu.traces.native.trace import Trace


@dataclass(frozen=True)
class Auto:
    """By name and offset where the trace has recorded RAM blocks, else compact."""

    kind: ClassVar[str] = "auto"

    def of(self, trace: Trace) -> ByBlock | Compact:
        """The layout of that trace."""
        return ByBlock() if trace.meta.blocks else Compact()

    def lay(self, trace: Trace, blocks: Sequence[Block]) -> PageMap:
        """Raises ``TraceError`` as the layout does that it chooses."""
        return self.of(trace).lay(trace, blocks)
