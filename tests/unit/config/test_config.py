"""Scenarios: what is accepted, what it becomes, and how errors are located."""

from __future__ import annotations

import json
import os
import pickle
from fractions import Fraction
from pathlib import Path

import pytest
from scenarios import FULL, SMALL, problems, write

from vmemu import config, hugepages
from vmemu._config.judging import base_page_size, smallest_hugepage_size
from vmemu.errors import HostError
from vmemu.hostcheck import Code, HostProblem, PostcopyUnsupported
from vmemu.model import jsonschema
from vmemu.model.faults import ValidationError


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
    with pytest.raises(AttributeError, match="frozen"):
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


def test_every_field_is_described_in_the_schema() -> None:
    schema = jsonschema.of(config.Scenario)
    for model in [schema, *schema["$defs"].values()]:
        assert model["description"]
        for name, field in model["properties"].items():
            assert "description" in field or "$ref" in field, f"{model['title']}.{name}"
