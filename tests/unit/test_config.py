"""Scenarios: what is accepted, and that every mistake is named at its place with a remedy."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vmemu import config, hugepages
from vmemu._config import dump, models
from vmemu._config.models import base_page_size, smallest_hugepage_size
from vmemu.errors import ConfigError, HostError, Problem
from vmemu.hostcheck import Code, HostProblem, PostcopyUnsupported

# The machine may be busy: no example is judged by its time.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


SMALL = """\
blocks:
  - name: pc.ram
    backing: anonymous
    size: 1MiB
guest:
  trace: {synthetic: {kind: permutation}}
"""

FULL = """\
name: everything
seed: 18446744073709551615
blocks:
  - name: pc.ram
    backing: anonymous
    size: 128MiB
    page_size: 4KiB
    content: {kind: file, path: dump.raw}
  - {name: huge0, backing: hugetlbfs, size: 64MiB, page_size: 2MiB, path: /dev/hugepages/huge0}
  - {name: pc.bios, backing: shared, size: 262144, content: {kind: seeded, zero_share: 25%}}
guest:
  vcpus: 256
  trace:
    file: boot.vmtrace
    map:
      kind: regions
      regions: ["0x0-128MiB=pc.ram", "0x107fc0000-0x108000000=pc.bios+0"]
      outside: drop
    window: {start: 12.5%, stop: 1594333}
source: {startup_timeout: 1min}
channel: {kind: pipe}
migration: {postcopy: {preempt: false, push: false}}
verify: {reads: false, final: true}
on_unavailable: {wait: 1.5s}
limits: {stall: 250ms}
"""


@pytest.fixture(autouse=True)
def _pages_of_4_and_2048_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests say what page sizes the host has."""
    monkeypatch.setattr(models, "base_page_size", lambda: 4096)
    monkeypatch.setattr(models, "smallest_hugepage_size", lambda: 2 << 20)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "boot.vmtrace").mkdir()
    (tmp_path / "dump.raw").write_bytes(bytes(8192))
    return tmp_path


def write(directory: Path, text: str) -> Path:
    file = directory / "s.yaml"
    file.write_text(text)
    return file


def found(file: Path, *overrides: tuple[str, str], seed: int | None = None) -> list[Problem]:
    """The problems of a scenario, none if it is right; each must be fit to be read."""
    problems: list[Problem] = []
    try:
        config.load(file, overrides, seed)
    except ConfigError as error:
        problems = error.problems
    for problem in problems:
        assert problem.what
        assert problem.remedy
        assert "\n" not in str(problem)
        assert "Input should" not in str(problem)
    return problems


def problems(file: Path, *overrides: tuple[str, str], seed: int | None = None) -> list[Problem]:
    """The problems of a scenario that has some."""
    some = found(file, *overrides, seed=seed)
    assert some
    return some


def test_a_small_scenario_has_defaults(directory: Path) -> None:
    scenario = config.load(write(directory, SMALL))
    assert (scenario.name, scenario.seed) == ("s", 1)
    (block,) = scenario.blocks
    assert (block.name, block.backing, block.size) == ("pc.ram", "anonymous", 1 << 20)
    assert (block.page_size, block.path) == (4096, None)
    assert block.content == config.SeededContent(kind="seeded", zero_share=0.0)
    assert scenario.guest.vcpus == 1
    assert isinstance(scenario.guest.trace, config.SyntheticTrace)
    assert isinstance(scenario.guest.trace.synthetic, config.Permutation)
    assert scenario.guest.trace.synthetic.accesses is None
    assert scenario.guest.trace.synthetic.write_share == 0.5
    assert scenario.source.startup_timeout == scenario.limits.stall == 30 * 10**9
    assert scenario.migration.postcopy.preempt is scenario.migration.postcopy.push is True
    assert scenario.verify.reads is scenario.verify.final is True
    assert (scenario.channel.kind, scenario.on_unavailable) == ("pipe", "fail")
    assert scenario.path == directory / "s.yaml"


def test_a_full_scenario(directory: Path) -> None:
    scenario = config.load(write(directory, FULL))
    ram, huge, bios = scenario.blocks
    assert scenario.seed == (1 << 64) - 1
    assert ram.content == config.FileContent(kind="file", path=directory / "dump.raw")
    assert (huge.page_size, huge.path) == (2 << 20, Path("/dev/hugepages/huge0"))
    assert isinstance(bios.content, config.SeededContent)
    assert bios.content.zero_share == 0.25
    trace = scenario.guest.trace
    assert isinstance(trace, config.RecordedTrace)
    assert trace.file == directory / "boot.vmtrace"
    assert isinstance(trace.map, config.RegionMap)
    assert trace.map.regions == (
        config.Region(0, 128 << 20, "pc.ram", 0),
        config.Region(0x107FC0000, 0x108000000, "pc.bios", 0),
    )
    assert trace.window.start == config.Position(share=Fraction(1, 8))
    assert trace.window.stop == config.Position(accesses=1594333)
    assert isinstance(scenario.on_unavailable, config.Wait)
    assert scenario.on_unavailable.wait == 1_500_000_000
    assert scenario.limits.stall == 250_000_000


def test_the_effective_configuration_is_json(directory: Path) -> None:
    effective = config.load(write(directory, FULL)).effective()
    assert json.loads(json.dumps(effective)) == effective
    assert effective["blocks"][2]["size"] == 262144
    assert effective["limits"] == {"stall_ns": 250_000_000}
    assert effective["source"] == {"startup_timeout_ns": 60 * 10**9}
    assert effective["on_unavailable"] == {"wait_ns": 1_500_000_000}
    assert effective["guest"]["trace"]["window"] == {"start": "12.5%", "stop": 1594333}
    assert effective["guest"]["trace"]["map"]["regions"][0] == "0x0-0x8000000=pc.ram+0x0"


def test_a_scenario_does_not_change_and_travels(directory: Path) -> None:
    scenario = config.load(write(directory, FULL))
    with pytest.raises(ValidationError, match="frozen"):
        scenario.seed = 2
    assert pickle.loads(pickle.dumps(scenario)) == scenario


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("boot.yaml", "boot"),
        ("boot.vmemu.yaml", "boot"),
        ("boot.yml", "boot"),
        (".yaml", "unnamed"),
    ],
)
def test_the_name_is_that_of_the_file(directory: Path, file: str, name: str) -> None:
    (directory / file).write_text(SMALL)
    assert config.load(directory / file).name == name


def test_hugepages_default_to_the_smallest_of_the_host(directory: Path) -> None:
    text = SMALL.replace("anonymous", "hugetlbfs").replace("1MiB", "4MiB")
    assert config.load(write(directory, text)).blocks[0].page_size == 2 << 20


def test_page_sizes_are_those_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_page_size() == os.sysconf("SC_PAGESIZE")
    for name in ("hugepages-1048576kB", "hugepages-64kB", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(hugepages, "SYSFS", tmp_path)
    assert smallest_hugepage_size() == 64 << 10
    monkeypatch.setattr(hugepages, "SYSFS", tmp_path / "other")
    assert smallest_hugepage_size() == 2 << 20
    monkeypatch.setattr(hugepages, "SYSFS", tmp_path / "nix")
    assert smallest_hugepage_size() == 2 << 20


@pytest.mark.parametrize(
    "content", ["{}", "{zero_share: 0.5}", "{kind: seeded}", "{zero_share: 1}", "{zero_share: 0%}"]
)
def test_content_is_seeded_by_default(directory: Path, content: str) -> None:
    scenario = config.load(write(directory, SMALL), [("blocks.0.content", content)])
    assert scenario.blocks[0].content.kind == "seeded"


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


@pytest.mark.parametrize("word", ["fail", "skip"])
def test_unavailable_words(directory: Path, word: str) -> None:
    assert config.load(write(directory, SMALL), [("on_unavailable", word)]).on_unavailable == word


def test_overrides_and_the_seed_win(directory: Path) -> None:
    scenario = config.load(
        write(directory, SMALL),
        [("guest.vcpus", "4"), ("blocks[pc.ram].size", "8MiB"), ("seed", "3")],
        seed=9,
    )
    assert (scenario.guest.vcpus, scenario.blocks[0].size, scenario.seed) == (4, 8 << 20, 9)


# What replaces the line, the line and column at which it is found wrong, the field, words of what
# is wrong, words of the remedy. The line is counted in SMALL, whose text is replaced.
BLOCK_LINE = "    size: 1MiB\n"
TRACE_LINE = "  trace: {synthetic: {kind: permutation}}\n"

# A trace of a memory of 1 MiB; where in it the mistake is, and the field.
ONE = "kind: uniform, accesses: 9, "
PHASE = "kind: phases, phases: [{accesses: 9, patterns: ["
WRONG_SYNTHETIC: list[tuple[str, str, str, str, str]] = [
    ("kind: zipff, accesses: 9", "zipff", "kind", "'zipff' is not known", "'zipf'?"),
    ("kind: strided, accesses: 9", "{", "stride", "is missing", "stride: 4KiB"),
    (
        "kind: strided, accesses: 9, stride: 100",
        "100",
        "stride",
        "100B is no multiple of access_size, 8B",
        "use 96B or 104B",
    ),
    (
        "kind: strided, accesses: 9, access_size: 64, stride: 8",
        "8}",
        "stride",
        "8B is no multiple of access_size, 64B",
        "use 64B",
    ),
    (ONE + "access_size: 24", "24", "access_size", "24B is no power of two", "16B or 32B"),
    (ONE + "access_size: 0", "0}", "access_size", "0 is out of range", "from 1 to 4096"),
    (ONE + "access_size: 8KiB", "8KiB", "access_size", "8192 is out of range", "from 1 to 4096"),
    (ONE + "stop: 5000", "5000", "stop", "5000 is no multiple of 4KiB", "use 4KiB or 8KiB"),
    (ONE + "stop: 101%", "101%", "stop", "outside 0 to 1", "0% to 100%"),
    (ONE + "stop: 0.5", "0.5", "stop", "0.5 is no place in memory", "25%"),
    (ONE + "stop: x", "x}", "stop", "'x' is no size", "2MiB"),
    (ONE + "stop: 2MiB", "2MiB", "stop", "2MiB is beyond the end of memory, 1MiB", "1MiB at most"),
    (ONE + "start: 2MiB", "2MiB", "start", "beyond the end of memory", "1MiB at most"),
    (ONE + "block: pc.ram, stop: 2MiB", "2MiB", "stop", "beyond the end of 'pc.ram'", "at most"),
    (
        ONE + "start: 50%, stop: 50%",
        "50%}",
        "stop",
        "the range from 50% to 50% of memory holds no",
        "4KiB or more between start and stop",
    ),
    (
        ONE + "start: 8KiB, stop: 1%",
        "1%}",
        "stop",
        "from 8KiB to 1% of memory holds no page",
        "4KiB",
    ),
    (ONE + "stop: 0.3%", "0.3%}", "stop", "from 0% to 0.3% of memory holds no page", "are 1MiB"),
    (ONE + "start: 100%", "100%}", "start", "holds no page", "4KiB or more"),
    (ONE + "block: pc.rom", "pc.rom", "block", "no block is named 'pc.rom'", "'pc.ram'?"),
    ("kind: zipf, accesses: 9, theta: 0", "0}", "theta", "0 is no exponent", "such as 0.99"),
    ("kind: zipf, accesses: 9, theta: -1", "-1}", "theta", "-1 is no exponent", "above 0"),
    ("kind: zipf, accesses: 9, theta: x", "x}", "theta", "'x' is no exponent", "above 0"),
    ("kind: zipf, accesses: 9, theta: true", "true", "theta", "true is no exponent", "above 0"),
    ("kind: zipf, accesses: 9, theta: 11", "11}", "theta", "11 is no exponent", "10 at most"),
    ("kind: zipf, accesses: 9, unit: 100", "100}", "unit", "no power of two", "64B or 128B"),
    (
        "kind: zipf, accesses: 9, unit: 64, access_size: 128",
        "64,",
        "unit",
        "64B holds no access of 128B",
        "128B or more",
    ),
    ("kind: zipf, accesses: 9, scatter: 1", "1}", "scatter", "1 is not true or false", "write"),
    (
        "kind: hot_cold, accesses: 9, hot_share: 0",
        "0}",
        "hot_share",
        "leaves nothing hot",
        "between 0 and 1",
    ),
    (
        "kind: hot_cold, accesses: 9, hot_share: 100%",
        "100%",
        "hot_share",
        "nothing cold",
        "between 0 and 1",
    ),
    ("kind: hot_cold, accesses: 9, hot_accesses: 2", "2}", "hot_accesses", "outside 0 to 1", "1.0"),
    ("kind: hot_cold, accesses: 9, period: 0", "0}", "period", "0 is out of range", "from 1 to"),
    (
        "kind: pointer_chase, node: 4, access_size: 8",
        "4,",
        "node",
        "4B holds no access of 8B",
        "8B or more",
    ),
    ("kind: phases", "{", "phases", "is missing", "patterns: [{kind: uniform"),
    ("kind: phases, phases: []", "[]", "phases", "the list is empty", "{accesses: 100000"),
    (
        "kind: phases, phases: [{patterns: [{kind: uniform}]}]",
        "{patterns",
        "phases[0].accesses",
        "is missing",
        "accesses: 100000",
    ),
    (
        "kind: phases, phases: [{accesses: 0, patterns: [{kind: uniform}]}]",
        "0,",
        "phases[0].accesses",
        "0 is out of range",
        "from 1 to",
    ),
    (PHASE + "]}]", "[]}", "phases[0].patterns", "the list is empty", "{kind: uniform, stop: 10%}"),
    (
        PHASE + "{kind: uniform, weight: 0}]}]",
        "[{kind: uniform",
        "phases[0].patterns",
        "all weights are 0",
        "a weight of 1 or more",
    ),
    (
        PHASE + "{kind: uniform, weight: -1}]}]",
        "-1",
        "phases[0].patterns[0].weight",
        "-1 is out of range",
        "from 0 to 1000000",
    ),
    (
        PHASE + "{kind: uniform, accesses: 9}]}]",
        "accesses: 9}",
        "phases[0].patterns[0].accesses",
        "unknown key",
        "access_size",
    ),
    (
        PHASE + "{kind: unifrom}]}]",
        "unifrom",
        "phases[0].patterns[0].kind",
        "is not known",
        "'uniform'?",
    ),
    (
        PHASE + "{kind: phases, phases: []}]}]",
        "phases, phases: []",
        "phases[0].patterns[0].kind",
        "a phase can't have phases",
        "as further phases",
    ),
    (
        PHASE + "{kind: uniform}, {kind: zipf, block: x}]}]",
        "x}",
        "phases[0].patterns[1].block",
        "no block is named 'x'",
        "pc.ram",
    ),
    (
        PHASE + "{kind: uniform, stop: 2MiB}]}]",
        "2MiB",
        "phases[0].patterns[0].stop",
        "beyond the end",
        "1MiB at most",
    ),
    (PHASE + "{kind: uniform}]}], repeat: 0", "0}", "repeat", "0 is out of range", "from 1 to"),
    (
        PHASE + "{kind: uniform}]}], repeat: 9223372036854775807",
        "9223372036854775807",
        "repeat",
        "times 9 accesses are more than",
        "use 1024819115206086200 at most",
    ),
]
WRONG: list[tuple[str, str, int, int, str, str, str]] = [
    (BLOCK_LINE, "    sise: 1MiB\n", 4, 5, "blocks[0].sise", "unknown key", "'size'?"),
    (BLOCK_LINE, "", 2, 5, "blocks[0].size", "is missing", "add it, such as 'size: 128MiB'"),
    (BLOCK_LINE, "    size: 5000\n", 4, 11, "blocks[0].size", "no multiple of its page size, 4KiB",
     "use 4KiB or 8KiB"),
    (BLOCK_LINE, "    size: 100\n", 4, 11, "blocks[0].size", "no multiple", "use 4KiB"),
    (BLOCK_LINE, "    size: 0\n", 4, 11, "blocks[0].size", "can't be empty", "4KiB or more"),
    (BLOCK_LINE, "    size: 1MB\n", 4, 11, "blocks[0].size", "'1MB'", "MiB is meant"),
    (BLOCK_LINE, "    size: 128TiB\n", 4, 11, "blocks[0].size", "more than", "at most 64TiB"),
    (BLOCK_LINE, "    size: true\n", 4, 11, "blocks[0].size", "is no size", "2MiB"),
    (BLOCK_LINE, "    size: [1]\n", 4, 11, "blocks[0].size", "is no size", "2MiB"),
    (BLOCK_LINE, "    size: no\n", 4, 11, "blocks[0].size", "truth value", "write false"),
    (BLOCK_LINE, "    size:\n", 4, 10, "blocks[0].size", "no value", "give a value"),
    (BLOCK_LINE, BLOCK_LINE * 2, 5, 5, "blocks[0].size", "given twice, first on line 4",
     "keep one"),
    (BLOCK_LINE, BLOCK_LINE + "    page_size: 3KiB\n", 5, 16, "blocks[0].page_size",
     "no power of two", "4KiB"),
    (BLOCK_LINE, BLOCK_LINE + "    page_size: 0\n", 5, 16, "blocks[0].page_size",
     "no power of two", "4KiB"),
    (BLOCK_LINE, BLOCK_LINE + "    page_size: 2MiB\n", 5, 16, "blocks[0].page_size",
     "impossible for anonymous", "'backing: hugetlbfs'"),
    (BLOCK_LINE, BLOCK_LINE + "    path: /dev/shm/x\n", 5, 11, "blocks[0].path",
     "anonymous memory has no file", "leave path out"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: seed}\n", 5, 21, "blocks[0].content.kind",
     "'seed' is not known", "'seeded'?"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: 5}\n", 5, 21, "blocks[0].content.kind",
     "5 is not known", "use one of seeded, file"),
    (BLOCK_LINE, BLOCK_LINE + "    content: seeded\n", 5, 14, "blocks[0].content",
     "'seeded' is not a mapping", "{kind: seeded}"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {zero_share: 1.5}\n", 5, 27,
     "blocks[0].content.zero_share", "outside 0 to 1", "0.0 to 1.0"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: seeded, path: x}\n", 5, 29,
     "blocks[0].content.path", "is for 'kind: file', not for", "kind, zero_share"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file}\n", 5, 14, "blocks[0].content.path",
     "is missing", "path: dump.raw"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file, path: nix}\n", 5, 33,
     "blocks[0].content.path", "no such file", "existing path"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file, path: 5}\n", 5, 33,
     "blocks[0].content.path", "5 is no path", "as text"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file, path: boot.vmtrace}\n", 5, 33,
     "blocks[0].content.path", "no ordinary file", "the bytes"),
    (BLOCK_LINE, "    size: 4KiB\n    content: {kind: file, path: dump.raw}\n", 5, 33,
     "blocks[0].content.path", "has 8,192 bytes, more than the block's 4,096", "larger block"),
    ("anonymous", "anonymus", 3, 14, "blocks[0].backing", "'anonymus' is not known",
     "'anonymous'?"),
    ("name: pc.ram", "name: ''", 2, 11, "blocks[0].name", "is empty", "1 to 255 bytes"),
    ("name: pc.ram", "name: 5", 2, 11, "blocks[0].name", "5 is not text", "in quotes: '5'"),
    ("name: pc.ram", f"name: {'é' * 128}", 2, 11, "blocks[0].name", "256 bytes long",
     "at most 255"),
    ("name: pc.ram", 'name: "a\\nb"', 2, 11, "blocks[0].name", "unprintable character", "letters"),
    ("blocks:\n", "blocks:\n  - {name: pc.ram, backing: shared, size: 4KiB}\n", 3, 11,
     "blocks[1].name", "another block is named 'pc.ram'", "name of its own"),
    ("blocks:\n", "blocks:\n  - 5\n", 2, 5, "blocks[0]", "5 is not a mapping", "'key: value'"),
    (TRACE_LINE, "  trace: {}\n", 6, 10, "guest.trace", "exactly one of 'file'", "{file: PATH}"),
    (TRACE_LINE, "  trace: {file: dump.raw, synthetic: {kind: permutation}}\n", 6, 10,
     "guest.trace", "exactly one of 'file'", "{file: PATH}"),
    (TRACE_LINE, "  trace: 5\n", 6, 10, "guest.trace", "exactly one of 'file'", "{file: PATH}"),
    (TRACE_LINE, "  trace: {file: nix}\n", 6, 17, "guest.trace.file", "no such file", "existing"),
    (TRACE_LINE, "  trace: {synthetic: {}}\n", 6, 22, "guest.trace.synthetic.kind", "is missing",
     "sequential, strided, uniform, permutation, zipf, hot_cold, pointer_chase, phases"),
    (TRACE_LINE, "  trace: {synthetic: {kind: unifrom}}\n", 6, 29, "guest.trace.synthetic.kind",
     "'unifrom' is not known", "'uniform'?"),
    (TRACE_LINE, "  trace: {synthetic: {kind: uniform}}\n", 6, 22, "guest.trace.synthetic.accesses",
     "is missing", "accesses: 100000"),
    (TRACE_LINE, "  trace: {synthetic: {kind: uniform, accesses: 0}}\n", 6, 48,
     "guest.trace.synthetic.accesses", "0 is out of range", "from 1 to"),
    (TRACE_LINE, "  trace: {synthetic: {kind: uniform, accesses: 1, stride: 1}}\n", 6, 51,
     "guest.trace.synthetic.stride", "'kind: strided', not for 'kind: uniform'",
     "kind, accesses, write_share"),
    (TRACE_LINE, "  trace: {synthetic: {kind: sequential, accesses: 1, stride: 0}}\n", 6, 62,
     "guest.trace.synthetic.stride", "0 is out of range", "from 1 to"),
    *(
        (TRACE_LINE, f"  trace: {{synthetic: {{{made}}}}}\n", 6, 22 + f"{{{made}}}}}".index(at),
         f"guest.trace.synthetic.{field}", what, remedy)
        for made, at, field, what, remedy in WRONG_SYNTHETIC
    ),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {block: pc.rom}}\n", 6, 40,
     "guest.trace.map.block", "no block is named 'pc.rom'", "'pc.ram'?"),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {kind: regions}}\n", 6, 32,
     "guest.trace.map.regions", "is missing", "0x0-128MiB=pc.ram"),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {kind: regions, regions: []}}\n", 6, 57,
     "guest.trace.map.regions", "the list is empty", "0x0-128MiB=pc.ram"),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {kind: regions, regions: x}}\n", 6, 57,
     "guest.trace.map.regions", "'x' is not a list", "[item, item]"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {stop: 101%}}\n", 6, 42,
     "guest.trace.window.stop", "outside 0 to 1", "0% to 100%"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {stop: 0.5}}\n", 6, 42,
     "guest.trace.window.stop", "0.5 is no place in a trace", "25%"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {start: -1}}\n", 6, 43,
     "guest.trace.window.start", "-1 is no place in a trace", "25%"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {start: 50%, stop: 50%}}\n", 6, 54,
     "guest.trace.window.stop", "holds nothing", "above the start"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {start: 5, stop: 4}}\n", 6, 52,
     "guest.trace.window.stop", "holds nothing", "above the start"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: 0\n", 7, 10, "guest.vcpus", "0 is out", "from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: 257\n", 7, 10, "guest.vcpus", "257 is out", "1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: 1.5\n", 7, 10, "guest.vcpus", "1.5 is not a whole number",
     "from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: true\n", 7, 10, "guest.vcpus", "true is not a whole number",
     "from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: '4'\n", 7, 10, "guest.vcpus", "'4' is not a whole number",
     "from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  peace: {kind: asap}\n", 7, 3, "guest.peace", "unknown key",
     "'pace'?"),
    (TRACE_LINE, TRACE_LINE + "  pace: {}\n", 7, 9, "guest.pace.kind", "is missing",
     "asap, recorded, rate"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: fast}\n", 7, 16, "guest.pace.kind",
     "'fast' is not known", "asap, recorded, rate"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: rate}\n", 7, 9, "guest.pace.accesses_per_second",
     "is missing", "accesses_per_second: 1000000"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: rate, accesses_per_second: 0}\n", 7, 43,
     "guest.pace.accesses_per_second", "0 is out of range", "from 1 to 1000000000"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: recorded}\n", 7, 16, "guest.pace.kind",
     "guest.trace.synthetic have no recorded times", "'kind: rate'"),
    (TRACE_LINE, "  trace: {file: dump.raw}\n  pace: {kind: recorded, factor: 0}\n", 7, 34,
     "guest.pace.factor", "0 is out of range", "more than 0"),
    (TRACE_LINE, "  trace: {file: dump.raw}\n  pace: {kind: recorded, factor: fast}\n", 7, 34,
     "guest.pace.factor", "'fast' is not a number", "more than 0"),
    (TRACE_LINE, "  trace: {file: dump.raw}\n  pace: {kind: recorded, factor: true}\n", 7, 34,
     "guest.pace.factor", "true is not a number", "more than 0"),
    (TRACE_LINE, "  trace: {file: dump.raw, loops: 0}\n", 6, 34, "guest.trace.loops",
     "0 is out of range", "from 1 to 1000000"),
    (TRACE_LINE, "  trace: {file: dump.raw, threads: id}\n", 6, 36, "guest.trace.threads",
     "'id' is not known", "use one of round_robin, by_id"),
    (TRACE_LINE, "  trace: []\n", 6, 10, "guest.trace", "the list is empty", "{file: "),
    (TRACE_LINE, "  trace: [5]\n", 6, 11, "guest.trace[0]", "exactly one of 'file'",
     "{file: PATH}"),
    (TRACE_LINE, "  trace:\n    - {file: dump.raw}\n    - {file: nix}\n", 8, 14,
     "guest.trace[1].file", "no such file", "existing"),
    (TRACE_LINE, "  trace: [{file: dump.raw}, {synthetic: {kind: unifrom}}]\n", 6, 48,
     "guest.trace[1].synthetic.kind", "'unifrom' is not known", "'uniform'?"),
    (TRACE_LINE, "  trace: [{file: dump.raw, map: {block: pc.rom}}]\n", 6, 41,
     "guest.trace[0].map.block", "no block is named 'pc.rom'", "'pc.ram'?"),
    (TRACE_LINE, "  trace: [{file: dump.raw}, {synthetic: {kind: permutation}}]\n"
     "  pace: {kind: recorded}\n", 7, 16, "guest.pace.kind",
     "guest.trace[1].synthetic have no recorded times", "'kind: rate'"),
    (TRACE_LINE, TRACE_LINE + "seed: -1\n", 7, 7, "seed", "-1 is out of range", "from 0 to 1844"),
    (TRACE_LINE, TRACE_LINE + "seed: 18446744073709551616\n", 7, 7, "seed", "is out of range",
     "to 18446744073709551615"),
    (TRACE_LINE, TRACE_LINE + "seed: 1e3\n", 7, 7, "seed", "a number to some", "1000"),
    (TRACE_LINE, TRACE_LINE + "channel: {kind: carrier}\n", 7, 17, "channel.kind",
     "'carrier' is not known", "use pipe"),
    (TRACE_LINE, TRACE_LINE + "channel: pipe\n", 7, 10, "channel", "'pipe' is not a mapping",
     "kind"),
    (TRACE_LINE, TRACE_LINE + "limits: {stall: 30}\n", 7, 17, "limits.stall", "no unit", "ns, us"),
    (TRACE_LINE, TRACE_LINE + "limits: {stall: 0s}\n", 7, 17, "limits.stall", "out of range",
     "more than 0"),
    (TRACE_LINE, TRACE_LINE + "verify: {reads: 'yes'}\n", 7, 17, "verify.reads",
     "'yes' is not true or false", "write true or false"),
    (TRACE_LINE, TRACE_LINE + "verify: {reads: yes}\n", 7, 17, "verify.reads", "truth value",
     "write true"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: later\n", 7, 17, "on_unavailable",
     "'later' is not known", "fail, skip"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: 5\n", 7, 17, "on_unavailable", "word or {wait",
     "fail, skip or {wait: 30s}"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: {wait: 1:30}\n", 7, 24, "on_unavailable.wait",
     "base 60", "90s"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: {}\n", 7, 17, "on_unavailable.wait", "is missing",
     "wait: 30s"),
    (TRACE_LINE, TRACE_LINE + "migration: {postcopy: *p}\n", 7, 23, "migration.postcopy",
     "alias *p", "write the value out"),
    (TRACE_LINE, TRACE_LINE + "? [a]\n: b\n", 7, 3, "", "not a word", "names"),
    (TRACE_LINE, TRACE_LINE + "\tx: 1\n", 7, 1, "", "a tab", "spaces"),
    (SMALL[: SMALL.index("guest")], "blocks: []\n", 1, 9, "blocks", "the list is empty", "pc.ram"),
    (SMALL[: SMALL.index("guest")], "", 1, 1, "blocks", "is missing", "blocks: ["),
    (SMALL[SMALL.index("guest") :], "guest: {}\n", 5, 8, "guest.trace", "is missing", "trace: {"),
    (SMALL, "", 1, 1, "", "the file is empty", "'blocks' and 'guest'"),
    (SMALL, "- 1\n", 1, 1, "", "a scenario is a mapping", "blocks:"),
    (SMALL, "# nothing\n", 1, 1, "", "the file is empty", "'blocks' and 'guest'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "column", "field", "what", "remedy"), WRONG)
def test_one_mistake_is_one_problem_at_its_place(
    directory: Path,
    *,
    old: str,
    new: str,
    line: int,
    column: int,
    field: str,
    what: str,
    remedy: str,
) -> None:
    assert old in SMALL
    file = write(directory, SMALL.replace(old, new, 1))
    (problem,) = problems(file)
    assert (problem.file, problem.field) == (str(file), field)
    assert (problem.line, problem.column) == (line, column)
    assert what in problem.what
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("size", "page_size", "field", "what", "remedy"),
    [
        ("4MiB", "32KiB", "page_size", "no size of a hugepage", "2MiB or 1GiB"),
        ("4MiB", "3MiB", "page_size", "no power of two", "2MiB or 4MiB"),
        ("3MiB", "2MiB", "size", "no multiple of its page size, 2MiB", "use 2MiB or 4MiB"),
        ("1MiB", "2MiB", "size", "no multiple of its page size, 2MiB", "use 2MiB"),
    ],
)
def test_hugepage_sizes(
    directory: Path, *, size: str, page_size: str, field: str, what: str, remedy: str
) -> None:
    block = f"{{name: h, backing: hugetlbfs, size: {size}, page_size: {page_size}}}"
    (problem,) = problems(write(directory, SMALL), ("blocks.0", block))
    assert (problem.file, problem.line, problem.field) == ("--set", 0, f"blocks[0].{field}")
    assert what in problem.what
    assert remedy in problem.remedy


def test_a_relative_path_of_a_block_and_a_shared_file(directory: Path) -> None:
    blocks = "[{name: a, backing: shared, size: 4KiB, path: shm/x}]"
    (problem,) = problems(write(directory, SMALL), ("blocks", blocks))
    assert "no absolute path" in problem.what
    blocks = ", ".join(
        f"{{name: {n}, backing: shared, size: 4KiB, path: /dev/shm/x}}" for n in "ab"
    )
    (problem,) = problems(write(directory, SMALL), ("blocks", f"[{blocks}]"))
    assert problem.field == "blocks[1].path"
    assert "another block is in this file" in problem.what


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


def test_all_problems_come_at_once_in_the_order_of_the_file(directory: Path) -> None:
    text = (
        SMALL.replace("1MiB", "5000")
        .replace(
            "blocks:\n", "sed: 1\nname: no\nblocks:\n  - {name: pc.ram, backing: x, size: 0}\n"
        )
        .replace("permutation", "permute")
    ) + "limits: {stall: 3}\nlimits: {}\n"
    some = problems(write(directory, text), ("guest.vcpus", "0"), ("nix.x", "1"))
    assert [(p.file == "--set", p.line, p.field) for p in some] == [
        (True, 0, "guest.vcpus"),
        (True, 0, "nix"),
        (False, 1, "sed"),
        (False, 2, "name"),
        (False, 4, "blocks[0].backing"),
        (False, 4, "blocks[0].size"),
        (False, 5, "blocks[1].name"),
        (False, 7, "blocks[1].size"),
        (False, 9, "guest.trace.synthetic.kind"),
        (False, 10, "limits.stall"),
        (False, 11, "limits"),
    ]


def test_a_misspelt_kind_hides_nothing_next_to_it(directory: Path) -> None:
    trace = "{synthetic: {kind: unifrom, accesses: -3, stride: 8}}"
    kind, accesses, stride = problems(write(directory, SMALL), ("guest.trace", trace))
    assert "did you mean 'uniform'?" in kind.remedy
    assert (accesses.field, stride.field) == (
        "guest.trace.synthetic.accesses",
        "guest.trace.synthetic.stride",
    )
    # What is not a bit like any kind is not guessed at.
    (kind,) = problems(write(directory, SMALL), ("guest.trace", trace.replace("unifrom", "x")))
    assert kind.field == "guest.trace.synthetic.kind"


@pytest.mark.parametrize(
    ("backing", "page_size", "size"),
    [("anonymous", "3KiB", "5000"), ("hugetlbfs", "2MB", "100KiB"), ("shared", "no", "4097")],
)
def test_a_wrong_page_size_hides_no_wrong_size(
    directory: Path, backing: str, page_size: str, size: str
) -> None:
    block = f"{{name: b, backing: {backing}, size: {size}, page_size: {page_size}}}"
    some = problems(write(directory, SMALL), ("blocks.0", block))
    assert sorted(p.field for p in some) == ["blocks[0].page_size", "blocks[0].size"]
    assert any("smallest" in p.what for p in some)


def test_an_override_without_an_equals_sign_hides_no_other(directory: Path) -> None:
    texts = ["foo", "guest.vcpus=0", "=3", "seed=x=y"]
    some = problems(write(directory, SMALL), *map(config.split_override, texts))
    assert [p.field or p.what for p in some] == [
        "'foo' is no path=value",
        "'=3' is no path=value",
        "seed",
        "guest.vcpus",
    ]


def test_the_remedy_for_a_word_names_what_is_no_word(directory: Path) -> None:
    (problem,) = problems(write(directory, SMALL), ("on_unavailable", "perhaps"))
    assert problem.remedy == "use one of fail, skip, {wait: 30s}"


def test_relative_paths_of_overrides_start_at_the_scenario(directory: Path) -> None:
    scenario = config.load(write(directory, SMALL), [("guest.trace", "{file: boot.vmtrace}")])
    assert isinstance(scenario.guest.trace, config.RecordedTrace)
    assert scenario.guest.trace.file == directory / "boot.vmtrace"


def test_errors_of_blocks_are_located(directory: Path) -> None:
    file = write(directory, SMALL)
    scenario = config.load(file)
    assert scenario.place_of("blocks[0].size") == f"{file}:4:11: blocks[0].size"
    error = HostError("block pc.ram: too large", "sysctl x").about("pc.ram", "size")
    scenario.locate(error)
    located = f"{file}:4:11: blocks[0].size: block pc.ram: too large; mend it with: sysctl x"
    assert str(error) == located
    assert str(pickle.loads(pickle.dumps(error))) == located
    # A key that the file leaves out has the place of its block; a place that is there stays.
    error = HostError("w").about("pc.ram", "path")
    for _ in range(2):
        scenario.locate(error)
        assert str(error) == f"{file}:2:5: blocks[0].path: w"
    for other in (HostError("elsewhere"), HostError("elsewhere").about("nix")):
        scenario.locate(other)
        assert str(other) == "elsewhere"


def test_all_that_is_wrong_with_a_host_is_located(directory: Path) -> None:
    file = write(directory, SMALL)
    scenario = config.load(file)
    problem = HostProblem(Code.MAP, "block pc.ram: too large", "sysctl x", ("pc.ram",), "size")
    anywhere = HostProblem(Code.OPEN, "no userfaultfd")
    one, two = PostcopyUnsupported([problem]), PostcopyUnsupported([problem, anywhere])
    wanted = f"{file}:4:11: blocks[0].size: block pc.ram: too large; mend it with: sysctl x"
    for error in (one, two):
        scenario.locate(error)
    assert str(one) == wanted
    assert str(two).splitlines()[1:] == [f"  {wanted}", "  no userfaultfd"]


def test_a_seed_from_the_command_line_is_checked(directory: Path) -> None:
    (problem,) = problems(write(directory, SMALL), seed=1 << 64)
    assert (problem.file, problem.line, problem.field) == ("--seed", 0, "seed")


def test_a_missing_scenario(directory: Path) -> None:
    (problem,) = problems(directory / "nix.yaml")
    assert str(problem).startswith(f"{directory / 'nix.yaml'}: no such file; ")


def test_later_errors_are_located(directory: Path) -> None:
    file = write(directory, SMALL)
    scenario = config.load(file, [("seed", "5")])
    assert str(scenario.error("blocks[0].size", "too large", "use 4KiB")) == (
        f"{file}:4:11: blocks[0].size: too large; use 4KiB"
    )
    assert f"{file}:4:11:" in str(scenario.error("blocks[pc.ram].size", "w", "r"))
    assert f"{file}:2:5:" in str(scenario.error("blocks[0].page_size", "w", "r"))
    assert f"{file}:1:1:" in str(scenario.error("limits.stall", "w", "r"))
    assert str(scenario.error("seed", "w", "r")) == "--set: seed: w; r"


def test_a_scenario_made_in_python_is_checked_too() -> None:
    block = {"name": "a", "backing": "anonymous", "size": 4096}
    guest = {"trace": {"synthetic": {"kind": "permutation"}}}
    scenario = config.Scenario.model_validate({"blocks": [block], "guest": guest})
    assert scenario.path is None
    assert str(scenario.error("seed", "w", "r")) == "unnamed: seed: w; r"
    with pytest.raises(ValidationError, match=r"blocks\[1\].name: another block is named 'a' too"):
        config.Scenario.model_validate({"blocks": [block, block], "guest": guest})


@pytest.mark.parametrize(
    ("position", "total", "resolved"),
    [
        (config.Position(accesses=0), 10, 0),
        (config.Position(accesses=10), 10, 10),
        (config.Position(share=Fraction(1, 4)), 10, 2),
        (config.Position(share=Fraction(1)), 1_594_333, 1_594_333),
    ],
)
def test_positions(position: config.Position, total: int, resolved: int) -> None:
    assert position.resolve(total) == resolved


def test_a_position_beyond_the_trace() -> None:
    with pytest.raises(ValueError, match="beyond the end of the trace; it has 10"):
        config.Position(accesses=11).resolve(10)


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


def test_every_field_is_described_in_the_schema() -> None:
    schema = config.Scenario.model_json_schema()
    for model in [schema, *schema["$defs"].values()]:
        assert model["description"]
        for name, field in model["properties"].items():
            assert "description" in field or "$ref" in field, f"{model['title']}.{name}"


def test_every_wrong_value_of_any_field_is_a_config_error(directory: Path) -> None:
    """Each leaf and mapping of a full scenario is replaced by values of every type."""
    file = write(directory, FULL)
    wrong = ["[]", "{}", "-1", "1.5", "true", "''", "x", "[1]", "{a: 1}", "'\0'", "9" * 20]

    def paths(node: Any, path: str) -> list[str]:
        if isinstance(node, dict):
            below = [paths(value, f"{path}.{key}") for key, value in node.items()]
        elif isinstance(node, list):
            below = [paths(value, f"{path}[{index}]") for index, value in enumerate(node)]
        else:
            below = []
        return [path, *(p for some in below for p in some)]

    for path in paths(yaml.safe_load(FULL), "")[1:]:
        for value in wrong:
            for problem in found(file, (path.lstrip("."), value)):
                # A block renamed, shrunk or lost leaves the regions that named it behind.
                spanning = path.startswith(".blocks") and "regions" in problem.field
                assert problem.file == "--set" or spanning


words = st.sampled_from(
    ["blocks", "guest", "name", "size", "trace", "kind", "file", "seeded", "{", "}", "[", "]", ":",
     ": ", ", ", "- ", "\n", "  ", "'", '"', "#", "&a ", "*a", "<<", "!!int ", "1", "4KiB", "no",
     "~", "---\n", "synthetic", "uniform", "\t", "|", ">", "? ", "%", "\u2028", "é"]
)  # fmt: skip


@relaxed
@given(st.one_of(st.lists(words, max_size=60).map("".join), st.text(max_size=200)))
def test_no_text_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    assert problems(file)


values = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from(["file", "seeded", "regions", "2MiB", "10%", "0-4KiB=a", "anonymous", "a"]),
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["kind", "file", "path", "map", "window", "start", "stop", "synthetic",
                         "name", "size", "backing", "page_size", "content", "regions", "block",
                         "trace", "vcpus", "wait", "postcopy", "zero_share"]),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@relaxed
@given(
    st.sampled_from(
        [
            "blocks",
            "blocks[0]",
            "blocks[0].content",
            "guest",
            "guest.trace",
            "guest.trace.map",
            "guest.trace.window",
            "on_unavailable",
            "limits",
            "migration",
            "name",
            "seed",
        ]
    ),
    values,
)
def test_no_value_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, path: str, value: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(SMALL)
    found(file, (path, json.dumps(value)))


def test_the_package_does_not_import_pydantic() -> None:
    code = "import sys, vmemu, vmemu.errors, vmemu.units; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
