"""For whom a scenario is read: the host whose page sizes it gets, and whether to run it or to judge
it.

A value may be right in itself and not fit what is beside it, or any host. To run such a scenario is
refused as any other mistake; to judge it, that is one finding among others.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from vmemu import hugepages, units
from vmemu._config.wording import refuse
from vmemu.model.fields import ValidationInfo


@dataclass(frozen=True)
class PageSizes:
    """What blocks that name no page size get on a host, bytes: its ``base`` page, and for
    hugetlbfs the smallest hugepage that it lists (2 MiB if it lists none)."""

    base: int
    smallest_huge: int = 2 * units.MIB


def base_page_size() -> int:
    """The host's base page size, bytes."""
    return os.sysconf("SC_PAGESIZE")


def smallest_hugepage_size() -> int:
    """The smallest hugepage size that the host lists, bytes; 2 MiB if it lists none."""
    return min(hugepages.page_sizes(), default=2 * units.MIB)


def base_page(info: ValidationInfo) -> int:
    """Of the host that the scenario is read for: of this one, if nobody said so."""
    pages = _pages(info)
    return pages.base if pages else base_page_size()


def smallest_hugepage(info: ValidationInfo) -> int:
    """Likewise, for hugetlbfs."""
    pages = _pages(info)
    return pages.smallest_huge if pages else smallest_hugepage_size()


def _pages(info: ValidationInfo) -> PageSizes | None:
    return (info.context or {}).get("pages")


def misfit(info: ValidationInfo, code: str, what: str, remedy: str, *below: str | int) -> None:
    """Refuse a value that does not fit; to judge the scenario, let it pass."""
    if not (info.context or {}).get("judging"):
        raise refuse(what, remedy, *below, code=code)
