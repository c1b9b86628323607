"""Zipf's distribution as an alias table: two random numbers give a rank, however many there are.

Ranks are put into buckets; within one each rank is as likely as any other. The first ranks have a
bucket each, and a later bucket holds at most a 64th as many ranks as lie before it, so the share of
a bucket is exact and that of a single rank at most theta/128 off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmemu.content import ALL

_RATIO = 64
_DIGITS = 30


@dataclass(frozen=True)
class AliasTable:
    """``rank`` (uint64) has the first rank of each bucket, from 0, and the number of ranks at its
    end. ``alias`` (uint64, a row a column) has the number below which a random 64-bit number means
    the bucket of the column's number, and the bucket that it means otherwise."""

    rank: NDArray[np.uint64]
    alias: NDArray[np.uint64]

    @property
    def column_bits(self) -> int:
        """The number of columns as a power of two."""
        return len(self.alias).bit_length() - 1


@lru_cache(maxsize=16)
def alias_table(ranks: int, theta: float) -> AliasTable:
    """The table for ``ranks`` ranks, of which number r (from 1) is chosen as often as r**-theta.

    The same on every machine: decimal arithmetic rounds ln and exp correctly, which libm does not.
    """
    bounds = _buckets(ranks)
    with localcontext(Context(prec=_DIGITS)):
        masses = _masses(bounds, Decimal(repr(theta)))
    rank = np.array(bounds, np.uint64)
    alias = np.array(_alias(masses), np.uint64)
    rank.flags.writeable = alias.flags.writeable = False  # shared by all who ask again
    return AliasTable(rank, alias)


def _buckets(ranks: int) -> list[int]:
    bounds = [0]
    while bounds[-1] < ranks:
        bounds.append(min(bounds[-1] + max(bounds[-1] // _RATIO, 1), ranks))
    return bounds


def _masses(bounds: Sequence[int], theta: Decimal) -> list[int]:
    """The weight of each bucket, as a whole number."""
    scale = 10**_DIGITS
    masses = []
    for low, high in pairwise(bounds):
        if high - low == 1:
            mass = (-theta * Decimal(high).ln()).exp()
        else:
            # The sum over its ranks low+1..high as an integral: a bucket of several begins at rank
            # 128, from where on the two differ by less than theta * (theta+1) / (24 * 128**2).
            half = Decimal("0.5")
            mass = _antiderivative(high + half, theta) - _antiderivative(low + half, theta)
        masses.append(int(mass * scale))
    return masses


def _antiderivative(x: Decimal, theta: Decimal) -> Decimal:
    """Of x**-theta."""
    power = 1 - theta
    return x.ln() if power == 0 else (power * x.ln()).exp() / power


def _alias(masses: Sequence[int]) -> list[tuple[int, int]]:
    """Walker's alias method in whole numbers: a power of two of columns, all of them equally high.

    A column is filled by the mass of its own number, if there is one, and by a part of another one
    where that is not enough.
    """
    columns = max(2, 1 << (len(masses) - 1).bit_length())
    height = sum(masses)
    left = [mass * columns for mass in masses] + [0] * (columns - len(masses))
    small = [i for i, mass in enumerate(left) if mass < height]
    large = [i for i, mass in enumerate(left) if mass >= height]
    made = [(ALL, i) for i in range(columns)]
    while small:
        short, long = small.pop(), large[-1]
        made[short] = ((left[short] << 64) // height, long)
        left[long] -= height - left[short]
        if left[long] < height:
            small.append(large.pop())
    return made
