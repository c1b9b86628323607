"""By block name and offset: for recordings that name RAM blocks, as QEMU's log does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vmemu.errors import TraceError
from vmemu.traces.mapping.pagemap import (
    PAGE,
    PAGE_SHIFT,
    Block,
    PageMap,
    check_name,
    check_outside,
    rounded,
)
from vmemu.traces.mapping.touched import count_accesses_on
from vmemu.traces.native.trace import Trace
from vmemu.traces.samememory import same_memory
from vmemu.units import counted, format_size, printable

_SHOWN = 8


@dataclass(frozen=True)
class ByBlock:
    """Lays each recorded RAM block on the block of the same name, page by page.

    ``rename``: pairs of a recorded name and the name of the block to take instead. ``outside``:
    ``refuse`` the pages of recorded blocks that there are not, or ``drop`` them.
    """

    kind: ClassVar[str] = "blocks"
    rename: tuple[tuple[str, str], ...] = ()
    outside: str = "refuse"

    def __post_init__(self) -> None:
        check_outside(self.outside)

    def lay(self, trace: Trace, blocks: Sequence[Block]) -> PageMap:
        """Raises ``TraceError``, also for a trace without recorded RAM blocks."""
        recorded = _recorded(trace)
        self._check_renames(recorded.names, [block.name for block in blocks])
        block, offset = recorded.targets(self, blocks), recorded.offset
        _check_sizes(recorded, block, blocks)
        if self.outside == "refuse" and (block < 0).any():
            raise self._outside_error(trace, recorded, block, blocks)
        offset[block < 0] = 0
        share = len(set(self._targets(recorded.names))) < len(recorded.names)
        return PageMap(block, offset, same_memory(block, offset) if share else None)

    def _targets(self, names: Sequence[str]) -> list[str]:
        renamed = dict(self.rename)
        return [renamed.get(name, name) for name in names]

    def _check_renames(self, recorded: Sequence[str], known: Sequence[str]) -> None:
        for name, target in self.rename:
            check_name(target, known)
            if name not in recorded:
                raise TraceError(
                    f"rename names {_quoted(name)}, a RAM block that was not recorded",
                    f"recorded are {_listed(recorded)}",
                )

    def _outside_error(
        self,
        trace: Trace,
        recorded: _Recorded,
        block: NDArray[np.int32],
        blocks: Sequence[Block],
    ) -> TraceError:
        outside = block < 0
        pages = np.bincount(recorded.nth[outside] + 1, minlength=len(recorded.names) + 1)
        lost = [
            f"{_quoted(name)} ({counted(count, 'page')})"
            for name, count in zip(recorded.names, pages[1:].tolist(), strict=True)
            if count
        ]
        if pages[0]:
            lost.append(f"before the first recorded block ({counted(int(pages[0]), 'page')})")
        shown = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" * (len(lost) > 8))
        number = int(np.count_nonzero(outside))
        accesses = counted(count_accesses_on(trace, outside), "access")
        return TraceError(
            f"{accesses} to {number:,} of {counted(len(block), 'page')} are in recorded RAM blocks"
            f" that there are not: {shown}; there are"
            f" {', '.join(one.name for one in blocks) or 'none'}",
            "add such blocks, lay them on another with map: {kind: blocks, rename: {RECORDED:"
            " NAME}}, or drop them with outside: drop",
        )


@dataclass(frozen=True)
class _Recorded:
    """The recorded RAM blocks of a trace: for each page which of them (-1: none), and where."""

    names: list[str]
    nth: NDArray[np.intp]
    offset: NDArray[np.uint64]

    def targets(self, layout: ByBlock, blocks: Sequence[Block]) -> NDArray[np.int32]:
        """For each page the index of the block that it is laid on, -1 outside."""
        index = {block.name: number for number, block in enumerate(blocks)}
        targets = [index.get(name, -1) for name in layout._targets(self.names)]
        # The entry behind the last is what -1 takes: a page in no recorded block.
        return np.array([*targets, -1], np.int32)[self.nth]


def _recorded(trace: Trace) -> _Recorded:
    bases = trace.meta.blocks
    if not bases:
        kind = trace.meta.address_kind
        raise TraceError(
            f"the trace names no RAM blocks: its addresses are {kind}",
            "use map: {kind: regions}" if kind == "guest-physical" else "use map: {kind: compact}",
        )
    starts = np.array([base.start >> PAGE_SHIFT for base in bases], np.uint64)
    nth = np.searchsorted(starts, trace.pages, side="right").astype(np.intp) - 1
    offset = (trace.pages - starts[np.maximum(nth, 0)]) << np.uint64(PAGE_SHIFT)
    return _Recorded([base.name for base in bases], nth, offset)


def _check_sizes(recorded: _Recorded, block: NDArray[np.int32], blocks: Sequence[Block]) -> None:
    """All recorded pages of a block have to fit: it is the same block, and of another size here."""
    for index, one in enumerate(blocks):
        here = block == index
        need = int(recorded.offset[here].max()) + PAGE if here.any() else 0
        if need > one.size:
            beyond = here & (recorded.offset >= np.uint64(one.size & -PAGE))
            names = [recorded.names[nth] for nth in np.unique(recorded.nth[beyond])]
            raise TraceError(
                f"block {one.name} of {format_size(one.size)} ends before"
                f" {np.count_nonzero(beyond):,} of"
                f" {counted(int(np.count_nonzero(here)), 'page')} recorded of {_listed(names)}",
                f"a size of {rounded(need, one)} for {one.name} would do",
            )


def _quoted(name: str) -> str:
    return f"'{printable(name)}'"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(_quoted, names[:_SHOWN])) + more
