"""Where each recorded page lies in the RAM blocks.

A mapping is made for the page dictionary of a trace and never for single accesses: a few columns,
an entry a page. Each layout is a small value that travels between processes, and one file:

``compact``      one page (or aligned region) behind the other, in the order of addresses
``regions``      range by range, for guest-physical recordings
``blocks``       by the names of the RAM blocks, for recordings that have them
``first_touch``  in the order in which pages were first touched
``modulo``       page number modulo the pages of the blocks; pages may share their memory
``auto``         ``blocks`` for recordings that name RAM blocks, else ``compact``

``pagemap`` is what all of them give, ``touched`` what the accesses of a trace do to one.
"""

from __future__ import annotations

from vmemu.traces.mapping.auto import Auto
from vmemu.traces.mapping.blocks import ByBlock
from vmemu.traces.mapping.compact import Compact
from vmemu.traces.mapping.first_touch import FirstTouch
from vmemu.traces.mapping.modulo import Modulo
from vmemu.traces.mapping.pagemap import PAGE, PAGE_SHIFT, Block, PageMap
from vmemu.traces.mapping.regions import Region, Regions
from vmemu.traces.mapping.touched import Touched, count_accesses_on, touched
from vmemu.traces.samememory import same_memory

__all__ = [
    "PAGE",
    "PAGE_SHIFT",
    "Auto",
    "Block",
    "ByBlock",
    "Compact",
    "FirstTouch",
    "Layout",
    "Modulo",
    "PageMap",
    "Region",
    "Regions",
    "Touched",
    "count_accesses_on",
    "same_memory",
    "touched",
]

Layout = Auto | ByBlock | Compact | FirstTouch | Modulo | Regions
"""How to map: ``lay(trace, blocks)`` gives the ``PageMap``, or raises ``TraceError``."""
