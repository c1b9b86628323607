"""The scenario reference, and ``vmemu config``: what is said and shown is what ``load`` takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from vmemu import config
from vmemu import scenario_reference as reference
from vmemu._config import dump
from vmemu.cli.config import config as config_command
from vmemu.errors import InputError
from vmemu.plan import blocks_of, make_workload

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))

ODD = """\
name: '1e3'
seed: 18446744073709551615
blocks:
  - {name: 'no', backing: anonymous, size: 1MiB, content: {zero_share: 0.00001}}
  - {name: 'a+b', backing: shared, size: 4KiB, path: /dev/shm/x}
guest:
  trace:
    - file: t.vmtrace
      map: {kind: regions, regions: [0-4KiB=a+b, 4KiB-8KiB=no], outside: drop}
      window: {start: 12.5%, stop: 1594333}
    - {file: t.vmtrace, loops: 1000, threads: by_id, map: {block: 'no'}}
  pace: {kind: recorded, factor: 0.1}
migration:
  precopy: {rounds: 3, bandwidth: 10Gbit/s, max_downtime: 1.5ms, switch: converged}
  flip_at: 1000
  postcopy: {bandwidth: 100MiB/s}
on_unavailable: {wait: 1.5s}
"""


def run(*arguments: str) -> str:
    result = CliRunner().invoke(config_command, arguments)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_document_is_what_is_generated() -> None:
    written = (REPOSITORY / "docs/scenario.md").read_text()
    assert written == reference.document(), (
        "python -m vmemu.scenario_reference > docs/scenario.md writes it anew"
    )


def test_every_field_of_every_model_is_in_it() -> None:
    text = reference.document()
    for name, model in json.loads(run("schema"))["$defs"].items():
        for field in model["properties"]:
            assert re.search(rf"^\| \[?`{field}`", text, re.M), f"{name}.{field}"


def test_links_lead_to_headings() -> None:
    text = reference.document()
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
    assert set(re.findall(r"\(#([^)]*)\)", text)) <= anchors


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("guest.trace.map", "START-END=block+OFFSET"),
        ("guest", "## `guest.trace.window`"),
        ("blocks[pc.ram].content", "### `kind: file`"),
        ("blocks.0.size", "`blocks[].size`"),
        ("blocks[].size", "takes: size"),
        ("seed", "whole number, 0 to 2^64 - 1"),
        ("on_unavailable", "One of the words `fail` or `skip`"),
        ("guest.trace.synthetic.accesses", "(`kind: permutation`)"),
        ("guest.trace[1].loops", "10^6"),
        ("guest.trace", "mapping"),
        ("guest.pace", "### `kind: rate`"),
    ],
)
def test_fields_are_explained(field: str, said: str) -> None:
    assert said in run("explain", field)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("guest.vcpu", "'guest.vcpus'"),
        ("nix", "use one of name, seed"),
        ("a..b", "is no path"),
        ("fault_around", "did you mean 'migration.postcopy.fault_around'?"),
        ("postcopy.prefetch", "did you mean 'migration.postcopy.prefetch'?"),
        ("faultaround", "did you mean 'migration.postcopy.fault_around'?"),
        ("bandwidth", "'migration.precopy.bandwidth' or 'migration.postcopy.bandwidth'?"),
        ("sigbus", "did you mean 'migration.postcopy.delivery'?"),
        ("on_complete", "did you mean 'blocks.collapse'?"),
    ],
)
def test_what_is_no_field_has_a_remedy(field: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        run("explain", field)


def test_a_word_that_is_the_default_is_told_where_it_is_explained() -> None:
    assert "`spread` or `none` (`auto` by default), or:" in run("explain", "placement")


def test_defaults_of_the_schema_are_as_a_scenario_writes_them() -> None:
    schema = json.loads(run("schema"))
    models = schema["$defs"]
    assert models["Limits"]["properties"]["stall"]["default"] == "30s"
    assert models["Migration"]["properties"]["flip_at"]["default"] == "0%"
    assert models["Precopy"]["properties"]["bandwidth"]["default"] == "unlimited"
    assert schema["properties"]["limits"]["default"] == {"stall": "30s"}


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_what_is_shown_can_be_run_again(file: Path, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(run("show", str(file), "--set", "guest.vcpus=3"))
    again = config.load(tmp_path / "shown.yaml")
    wanted = config.load(file, [("guest.vcpus", "3")])
    assert again.effective() == wanted.effective()
    assert run("show", str(tmp_path / "shown.yaml")) == (tmp_path / "shown.yaml").read_text()


def test_odd_values_are_shown_so_that_they_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "t.vmtrace").mkdir()
    (tmp_path / "odd.yaml").write_text(ODD)
    odd = config.load(tmp_path / "odd.yaml")
    (tmp_path / "shown.yaml").write_text(dump.to_yaml(odd))
    assert config.load(tmp_path / "shown.yaml").effective() == odd.effective()


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20),
    st.integers(0, 1 << 62),
    st.integers(0, 1 << 62),
    st.floats(0, 1),
)
def test_any_value_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, name: str, ns: int, rate: int, share: float
) -> None:
    if not name.isprintable():
        return
    content = {"zero_share": share}
    block = {"name": name, "backing": "anonymous", "size": 4096, "content": content}
    made = config.Scenario.model_validate(
        {
            "name": name,
            "blocks": [block],
            "guest": {"trace": {"synthetic": {"kind": "permutation"}}},
            "limits": {"stall": f"{ns + 1}ns"},
            "migration": {"postcopy": {"bandwidth": f"{rate}B/s"}},
        }
    )
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(dump.to_yaml(made))
    assert config.load(file).effective() == made.effective()


def test_the_example_of_the_readme_touches_all_its_blocks(tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text()
    example = next(e for e in re.findall(r"```yaml\n(.*?)```", text, re.S) if "blocks:" in e)
    (tmp_path / "example.yaml").write_text(example)
    (tmp_path / "traces").symlink_to(REPOSITORY / "configs/traces")
    scenario = config.load(tmp_path / "example.yaml")
    workload, _ = make_workload(scenario, blocks_of(scenario))
    assert set(np.unique(workload.block)) == set(range(len(scenario.blocks)))
