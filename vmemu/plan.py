"""What a scenario asks for, as the objects that do it: blocks, their contents, the workload.

Nothing is taken from the machine here; a trace that does not fit the blocks is an error at its
place in the scenario. What traces need is imported when one is asked for: where nothing is
replayed, the blocks alone are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmemu.config import Block, FileContent, Scenario
from vmemu.protocol import BlockEntry
from vmemu.ramblock import Backing, RAMBlock

if TYPE_CHECKING:
    from vmemu.client_worker import ClientSpec
    from vmemu.content import ContentSpec
    from vmemu.images import Images
    from vmemu.recipe import Recipe
    from vmemu.workload import Workload


def in_place(scenario: Scenario, block: Block) -> bool:
    """Whether the block's memory is the source's image of it, on this host."""
    if scenario.channel.kind != "shm" or block.backing != "shared":
        return False
    from vmemu.images import in_place_works

    return in_place_works()


def blocks_of(scenario: Scenario) -> list[RAMBlock]:
    """The scenario's blocks, not mapped yet."""
    return [
        RAMBlock(
            name=block.name,
            backing=Backing(block.backing),
            size=block.size,
            page_size=block.page_size,
            path=str(block.path) if block.path else None,
            in_image=in_place(scenario, block),
            collapse=block.collapse == "on_complete",
        )
        for block in scenario.blocks
    ]


def images_of(scenario: Scenario, blocks: Sequence[RAMBlock]) -> Images | None:
    """The source's images of the blocks, where the channel has both ends map them."""
    if scenario.channel.kind != "shm":
        return None
    from vmemu.images import Images

    return Images(blocks, release=scenario.migration.postcopy.release_ram)


def contents_of(scenario: Scenario) -> tuple[ContentSpec, ...]:
    """What each block holds before the guest runs."""
    from vmemu.content import ContentSpec

    return tuple(
        ContentSpec(path=str(block.content.path))
        if isinstance(block.content, FileContent)
        else ContentSpec(zero_share=float(block.content.zero_share))
        for block in scenario.blocks
    )


def entries_of(blocks: Sequence[RAMBlock]) -> tuple[BlockEntry, ...]:
    """The blocks as both ends announce them."""
    return tuple(BlockEntry(block.name, block.size, block.page_size) for block in blocks)


def make_workload(scenario: Scenario, blocks: Sequence[RAMBlock]) -> tuple[Workload, Recipe]:
    """What the vCPUs will do, and how the source can make the same.

    Raises ConfigError when a trace can't be read or laid on the blocks.
    """
    from vmemu.trace_plan import guest_replayer

    return guest_replayer(scenario, entries_of(blocks)).make(scenario)


def client_plans(
    scenario: Scenario, blocks: Sequence[RAMBlock]
) -> list[tuple[ClientSpec, Workload]]:
    """What each client is told, and what it will do.

    Raises ConfigError when a trace can't be read or laid on the client's block.
    """
    from vmemu.client_worker import ClientSpec
    from vmemu.trace_plan import client_replayer

    entries, contents = entries_of(blocks), contents_of(scenario)
    names = [block.name for block in blocks]
    plans = []
    for number, client in enumerate(scenario.clients):
        index = names.index(client.block)
        workload, recipe = client_replayer(scenario, number, entries[index]).make(scenario)
        spec = ClientSpec(
            name=client.name,
            index=index,
            block=entries[index],
            backing=blocks[index].backing,
            content=contents[index],
            seed=scenario.seed,
            vcpus=client.vcpus,
            recipe=recipe,
            check_reads=scenario.verify.reads,
            keep_marks=scenario.verify.final,
        )
        plans.append((spec, workload))
    return plans
