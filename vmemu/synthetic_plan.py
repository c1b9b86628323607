"""A synthetic trace of a scenario → the recipe that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vmemu.config import Phases, Synthetic
from vmemu.protocol import BlockEntry
from vmemu.recipe import SyntheticRecipe
from vmemu.synthetic import Phase
from vmemu.walks import Pattern, host_pages

_DEFAULT_STRIDE = 64


def synthetic_recipe(
    made: Synthetic, vcpus: int, seed: int, blocks: Sequence[BlockEntry]
) -> SyntheticRecipe:
    """The recipe of ``made`` on ``blocks``, which lie one behind the other."""
    if isinstance(made, Phases):
        phases = tuple(
            Phase(tuple(_pattern(pattern, blocks) for pattern in phase.patterns), phase.accesses)
            for phase in made.phases
        )
        return SyntheticRecipe(vcpus, seed, phases, made.repeat)
    pattern = _pattern(made, blocks)
    accesses = _one_round(pattern, blocks) if made.accesses is None else made.accesses
    return SyntheticRecipe(vcpus, seed, (Phase((pattern,), accesses),))


def _pattern(config: Any, blocks: Sequence[BlockEntry]) -> Pattern:
    """The pattern that one of the models of patterns asks for."""
    names = {field.name for field in fields(Pattern)} & set(type(config).model_fields)
    given = {name: getattr(config, name) for name in names}
    if given.get("stride", 0) is None:
        given["stride"] = max(_DEFAULT_STRIDE, config.access_size)
    if config.kind == "pointer_chase":
        given["unit"] = config.node
    low, high = _whole(config.block, blocks)
    begin, end = (low + bound.resolve(high - low) for bound in (config.start, config.stop))
    return Pattern(begin=begin, end=end, **given)


def _whole(block: str | None, blocks: Sequence[BlockEntry]) -> tuple[int, int]:
    """Where a block begins and ends in RAM; all of RAM without one."""
    end = 0
    for entry in blocks:
        begin, end = end, end + entry.size
        if entry.name == block:
            return begin, end
    return 0, end


def _one_round(pattern: Pattern, blocks: Sequence[BlockEntry]) -> int:
    """Each host page of a permutation once, each node of a pointer chase once."""
    if pattern.kind == "permutation":
        return len(host_pages(blocks, pattern.begin, pattern.end)) - 1
    return -(-(pattern.end - pattern.begin) // pattern.unit)
