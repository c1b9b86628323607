"""What a scenario says of its guest: traces, maps, pace, the places of walks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenarios import SMALL, TRACE_LINE, found, problems, write

from vmemu import config
from vmemu._config import dump


def test_maps_are_compact_by_default(directory: Path) -> None:
    scenario = config.load(
        write(directory, SMALL), [("guest.trace", "{file: dump.raw, map: {block: pc.ram}}")]
    )
    assert isinstance(scenario.guest.trace, config.RecordedTrace)
    assert isinstance(scenario.guest.trace.map, config.CompactMap)
    assert scenario.guest.trace.map.block == "pc.ram"
    assert scenario.guest.trace.map.align == 4096
    assert scenario.guest.trace.window.stop.resolve(1000) == 1000


def test_a_guest_may_have_several_traces(directory: Path) -> None:
    traces = "[{file: dump.raw, loops: 3, threads: by_id}, {synthetic: {kind: permutation}}]"
    scenario = config.load(write(directory, SMALL), [("guest.trace", traces)])
    assert isinstance(scenario.guest.trace, tuple)
    recorded, made = scenario.guest.trace
    assert isinstance(recorded, config.RecordedTrace)
    assert (recorded.loops, recorded.threads) == (3, "by_id")
    assert isinstance(made, config.SyntheticTrace)
    assert [list(one) for one in scenario.effective()["guest"]["trace"]] == [
        ["file", "map", "window", "loops", "threads"],
        ["synthetic"],
    ]
    place = scenario.place_of("guest.trace[1].synthetic")
    assert place.endswith("guest.trace[1].synthetic")


@pytest.mark.parametrize(
    ("pace", "made"),
    [
        ("{kind: asap}", config.AsapPace()),
        ("{kind: recorded}", config.RecordedPace(kind="recorded", factor=1.0)),
        ("{kind: recorded, factor: 2}", config.RecordedPace(kind="recorded", factor=2.0)),
        (
            "{kind: rate, accesses_per_second: 5}",
            config.RatePace(kind="rate", accesses_per_second=5),
        ),
    ],
)
def test_paces(directory: Path, pace: str, made: config.PaceConfig) -> None:
    overrides = [("guest.trace", "{file: dump.raw}"), ("guest.pace", pace)]
    assert config.load(write(directory, SMALL), overrides).guest.pace == made
    assert config.load(write(directory, SMALL)).guest.pace == config.AsapPace()


def test_clients_may_have_several_traces(directory: Path) -> None:
    text = SMALL.replace("anonymous", "shared")
    client = (
        "{name: c, block: pc.ram, trace: [{file: dump.raw}, {file: dump.raw, map: {block: x}}]}"
    )
    (problem,) = problems(write(directory, text), ("clients", f"[{client}]"))
    assert problem.field == "clients[0].trace[1].map.block"


@pytest.mark.parametrize("trace", ["{file: dump.raw}", "{file: dump.raw, map: {}}"])
def test_a_map_that_is_left_out_suits_the_trace(directory: Path, trace: str) -> None:
    scenario = config.load(write(directory, SMALL), [("guest.trace", trace)])
    assert isinstance(scenario.guest.trace, config.RecordedTrace)
    assert scenario.guest.trace.map == config.AutoMap()


def test_each_kind_of_map(directory: Path) -> None:
    maps = {
        "{kind: compact, align: 2MiB}": config.CompactMap(align=2 << 20),
        "{kind: blocks, rename: {ram: pc.ram, 'a b': pc.ram}, outside: drop}": config.BlocksMap(
            kind="blocks", rename={"ram": "pc.ram", "a b": "pc.ram"}, outside="drop"
        ),
        "{kind: first_touch, block: pc.ram}": config.FirstTouchMap(
            kind="first_touch", block="pc.ram"
        ),
        "{kind: modulo}": config.ModuloMap(kind="modulo"),
    }
    for text, expected in maps.items():
        trace = f"{{file: dump.raw, map: {text}}}"
        scenario = config.load(write(directory, SMALL), [("guest.trace", trace)])
        assert isinstance(scenario.guest.trace, config.RecordedTrace)
        assert scenario.guest.trace.map == expected
        again = directory / "again.yaml"
        again.write_text(dump.to_yaml(scenario))
        assert config.load(again).guest == scenario.guest
        assert json.dumps(scenario.effective())


WRONG_MAPS = [
    ("{kind: compact, align: 3MiB}", "align", "no power of two", "use 4MiB"),
    ("{kind: compact, align: 512}", "align", "no power of two", "use 4KiB"),
    ("{kind: blocks, rename: [a]}", "rename", "a list is not a mapping", "{RECORDED: BLOCK}"),
    ("{kind: blocks, rename: {a: 5}}", "rename", "'a' is renamed to 5", "name of one of the"),
    ("{kind: blocks, rename: {a: pc.rma}}", "rename.a", "no block is named 'pc.rma'", "'pc.ram'?"),
    ("{kind: modulo, block: vga}", "block", "no block is named 'vga'", "pc.ram"),
    ("{kind: auto, block: pc.ram}", "block", "'kind: modulo', not for 'kind: auto'", "kind"),
    ("{rename: {a: pc.ram}}", "rename", "is for 'kind: blocks'", "add it"),
    ("{outside: drop}", "outside", "is for 'kind: regions' or 'kind: blocks'", "add the one that"),
    ("{regions: [0-4KiB=pc.ram]}", "regions", "is for 'kind: regions'", "add it"),
    ("{kind: modulo, outsde: drop}", "outsde", "unknown key", "use one of kind, block"),
    ("{kind: firsttouch}", "kind", "is not known here", "did you mean 'first_touch'"),
]


@pytest.mark.parametrize(("text", "field", "what", "remedy"), WRONG_MAPS)
def test_wrong_maps(directory: Path, text: str, field: str, what: str, remedy: str) -> None:
    trace = f"{{file: dump.raw, map: {text}}}"
    (problem,) = problems(write(directory, SMALL), ("guest.trace", trace))
    assert problem.field == f"guest.trace.map.{field}"
    assert what in problem.what
    assert remedy in problem.remedy


REGIONS = [
    ("0x0-1MiB=pc.rma", "no block is named 'pc.rma'", "'pc.ram'?"),
    ("0x0-2MiB=pc.ram", "the block ends at 0x100000", "end it at 0x100000 or before"),
    ("0x0-2MiB=pc.ram", "needs 'pc.ram' up to 0x200000", "give the block a size of 2MiB"),
    ("0x0-1MiB=pc.ram+4KiB", "up to 0x101000", "end it at 0xff000 or before"),
    ("0x0-4KiB=pc.ram+1MiB", "the block ends at 0x100000", "smaller offset"),
    ("4KiB-0x1000=pc.ram", "not after its start", "above START"),
    ("100-4KiB=pc.ram", "100 is no multiple of 4KiB", "0x0 or 0x1000"),
    ("0-4KB=pc.ram", "'4KB'", "KiB is meant"),
    ("0x0-4KiB", "is no region", "START-END=block"),
    ("0x0-0x10000000000000000=pc.ram", "no size", "2MiB"),
]


@pytest.mark.parametrize(("region", "what", "remedy"), REGIONS)
def test_regions_that_do_not_fit(directory: Path, region: str, what: str, remedy: str) -> None:
    trace = f"  trace: {{file: dump.raw, map: {{kind: regions, regions: ['{region}']}}}}\n"
    (problem,) = problems(write(directory, SMALL.replace(TRACE_LINE, trace)))
    assert problem.field == "guest.trace.map.regions[0]"
    assert (problem.line, problem.column) == (6, 58)
    assert what in problem.what
    assert remedy in problem.remedy


def test_regions_that_overlap(directory: Path) -> None:
    regions = "[0-8KiB=pc.ram, 4KiB-12KiB=pc.ram+64KiB, 12KiB-16KiB=pc.ram]"
    trace = f"{{file: dump.raw, map: {{kind: regions, regions: {regions}}}}}"
    (problem,) = problems(write(directory, SMALL), ("guest.trace", trace))
    assert problem.field == "guest.trace.map.regions[1]"
    assert "overlaps 0x0-0x2000=pc.ram+0x0" in problem.what


@pytest.mark.parametrize("name", ["a+b", "a-b", "a=b", "+", "pc.ram+x"])
def test_regions_of_blocks_with_odd_names(directory: Path, name: str) -> None:
    trace = f"{{file: dump.raw, map: {{kind: regions, regions: ['0-4KiB={name}+4KiB']}}}}"
    scenario = config.load(
        write(directory, SMALL), [("blocks.0.name", f"'{name}'"), ("guest.trace", trace)]
    )
    assert isinstance(scenario.guest.trace, config.RecordedTrace)
    assert isinstance(scenario.guest.trace.map, config.RegionMap)
    assert scenario.guest.trace.map.regions == (config.Region(0, 4096, name, 4096),)


def test_the_walks_of_a_client_stay_in_its_block(directory: Path) -> None:
    text = SMALL.replace("anonymous", "shared") + (
        "clients:\n"
        "  - {name: a, block: pc.ram, trace: {synthetic: {kind: zipf, accesses: 9, stop: 2MiB}}}\n"
        "  - {name: b, block: pc.ram, trace: {synthetic: {kind: zipf, accesses: 9, block: vram}}}\n"
    )
    text = text.replace("guest:", "  - {name: vram, backing: shared, size: 4MiB}\nguest:")
    beyond, other = problems(write(directory, text))
    assert beyond.field == "clients[0].trace.synthetic.stop"
    assert beyond.what == "2MiB is beyond the end of memory, 1MiB"
    assert (other.field, other.line) == ("clients[1].trace.synthetic.block", 10)
    assert other.what == "the client has mapped 'pc.ram' alone"


def test_the_walks_of_the_guest_may_go_through_all_blocks(directory: Path) -> None:
    text = SMALL.replace("guest:", "  - {name: vram, backing: shared, size: 4MiB}\nguest:")
    trace = "{synthetic: {kind: uniform, accesses: 9, stop: %s}}"
    assert not found(write(directory, text), ("guest.trace", trace % "5MiB"))
    (problem,) = problems(write(directory, text), ("guest.trace", trace % "6MiB"))
    assert problem.what == "6MiB is beyond the end of memory, 5MiB"


def test_a_range_in_a_block_of_wrong_size_is_not_judged(directory: Path) -> None:
    text = SMALL.replace("1MiB", "100")
    trace = "{synthetic: {kind: uniform, accesses: 9, stop: 10%}}"
    (problem,) = problems(write(directory, text), ("guest.trace", trace))
    assert problem.field == "blocks[0].size"
