"""``vmemu trace map``: the mapping of a scenario or of a trace, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from vmemu.cli.trace import trace
from vmemu.cli.tracemap import ROWS
from vmemu.config import load
from vmemu.errors import ConfigError, InputError
from vmemu.plan import blocks_of, client_plans, make_workload
from vmemu.traces import native
from vmemu.traces.reader import BlockBase

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = Path(__file__).parents[1] / "data"
BOOT = CONFIGS / "traces" / "linux-boot.vmtrace.zst"
TRACES = CONFIGS / "traces"
SORT = CONFIGS / "traces" / "sort.vmtrace.zst"
PAGE = 4096


def shown(*arguments: object) -> str:
    words = ["map", *(str(one) for one in arguments)]
    done = CliRunner().invoke(trace, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def mapped(*arguments: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shown(*arguments, "--json", "-"))["traces"]
    return found


def row(text: str, *cells: str) -> bool:
    """Whether a line has exactly these cells."""
    return any(line.split() == list(cells) for line in text.splitlines())


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A trace of 100 pages, none next to another; its last access straddles two more."""
    path = tmp_path / "sparse.vmtrace"
    addresses = np.append(np.arange(100) * 2 * PAGE, 300 * PAGE - 4).astype(np.uint64)
    with native.TraceWriter(path) as writer:
        writer.append(0, addresses, np.zeros(101, np.uint8), np.full(101, 8, np.uint16))
        writer.finish()
    return path


def write(directory: Path, file: object, mapping: dict[str, Any], **more: Any) -> Path:
    data = {
        "blocks": [{"name": "ram", "backing": "shared", "size": "4MiB"}],
        "guest": {"trace": {"file": str(file), "map": mapping}},
    }
    path = directory / "scenario.yaml"
    path.write_text(json.dumps(data | more))
    return path


def test_a_real_boot() -> None:
    text = shown(CONFIGS / "quickstart.yaml")
    assert row(text, "0x0-0x7fe3000", "pc.ram+0x0", "23,628", "1,594,287")
    assert row(text, "0x107fd2000-0x108000000", "pc.bios+0x12000", "46", "46")
    (found,) = mapped(CONFIGS / "quickstart.yaml")
    assert found["kind"] == "regions"
    assert (found["accesses"], found["pages"], found["pages_touched"]) == (1594333, 23674, 23674)
    assert found["blocks"][0] == {
        "name": "pc.ram",
        "size": 128 << 20,
        "page_size": PAGE,
        "touched_bytes": 23628 * PAGE,
        "host_pages": 32768,
        "host_pages_touched": 23628,
        "accesses": 1594287,
    }


def test_the_guest_and_each_client_as_a_run_lays_them(tmp_path: Path) -> None:
    client = {"name": "a", "block": "ram", "trace": {"file": str(SORT), "map": {"kind": "modulo"}}}
    path = write(tmp_path, SORT, {"kind": "first_touch"}, clients=[client])
    guest, of_client = mapped(path)
    assert (guest["field"], of_client["field"]) == ("guest.trace", "clients[0].trace")
    scenario = load(path)
    blocks = blocks_of(scenario)
    workload, _ = make_workload(scenario, blocks)
    ((_, client_workload),) = client_plans(scenario, blocks)
    for found, run in ((guest, workload), (of_client, client_workload)):
        assert found["pages"] == len(run.block)
        assert found["outside"]["pages"] == run.outside == 0
        assert found["merged_pages"] == run.merged
        assert found["accesses"] == run.accesses
        places = {
            one["offset"] + page * PAGE
            for one in found["ranges"]
            for page in range((one["end"] - one["start"]) // PAGE)
        }
        assert set(run.offset.tolist()) <= places


def test_a_window_counts_what_is_replayed(tmp_path: Path, sparse: Path) -> None:
    path = write(tmp_path, sparse, {"kind": "compact"})
    assert mapped(path, "--set", "guest.trace.window.stop=10")[0]["pages_touched"] == 10
    assert mapped(path)[0]["accesses"] == 101


def test_what_is_outside_or_merged_is_told(sparse: Path) -> None:
    one = ("--block", "ram=64KiB")
    text = shown(sparse, *one, "--region", "0-64KiB=ram", "--drop")
    assert "outside: 93 accesses to 94 pages in no block" in text
    text = shown(sparse, *one, "--kind", "modulo")
    assert "merged: 93 of 102 recorded pages, on memory" in text
    assert "outside:" not in text
    assert row(text, "ram", "64KiB", "36KiB", "56.2%", "16", "of", "4KiB", "9", "101")


def test_a_long_table_is_cut(sparse: Path) -> None:
    arguments = (sparse, "--block", "huge=4MiB/2MiB")
    text = shown(*arguments)
    assert f"and {101 - ROWS} ranges more; --all shows them" in text
    whole = shown(*arguments, "--all")
    assert "ranges more" not in whole
    assert len(whole.splitlines()) == len(text.splitlines()) + 101 - ROWS - 1
    assert row(whole, "huge", "4MiB", "408KiB", "10.0%", "2", "of", "2MiB", "1", "101")


def test_recorded_blocks(tmp_path: Path) -> None:
    path = tmp_path / "log.vmtrace"
    with native.TraceWriter(path, address_kind="ram-block") as writer:
        at = np.array([0x5000, 0x9000], np.uint64)
        writer.append(0, at, np.zeros(2, np.uint8), np.ones(2, np.uint16))
        writer.blocks = (BlockBase("pc.ram", 0x4000), BlockBase("vram", 0x8000))
        writer.finish()
    text = shown(path, "--block", "pc.ram=16KiB", "--block", "vram=16KiB")
    assert row(text, "0x5000-0x6000", "pc.ram+0x1000", "1", "1")
    assert row(text, "0x9000-0xa000", "vram+0x1000", "1", "1")
    text = shown(path, "--block", "ram=16KiB", "--rename", "pc.ram=ram", "--drop")
    assert row(text, "0x9000-0xa000", "outside", "1", "1")
    scenario = write(tmp_path, path, {})
    with pytest.raises(ConfigError, match=r"'pc.ram' \(1 page\), 'vram' \(1 page\); there are ram"):
        shown(scenario)


def test_a_trace_alone_shows_its_addresses(sparse: Path) -> None:
    text = shown(BOOT)
    assert row(text, "0x107fd2000-0x108000000", "46", "46")
    assert "1,594,333 accesses, 23,674 pages" in text
    assert "guest.trace" not in text
    (found,) = mapped(BOOT)
    assert sum(one["pages"] for one in found["ranges"]) == found["pages"] == 23674
    gaps = [
        after["start"] - before["end"]
        for before, after in zip(found["ranges"], found["ranges"][1:], strict=False)
    ]
    assert min(gaps) > 2 << 20
    assert row(shown(sparse), "0x0-0x12d000", "102", "101")
    exact = mapped(sparse, "--all")[0]["ranges"]
    assert len(exact) == 101
    assert exact[1] == {
        "start": 2 * PAGE,
        "end": 3 * PAGE,
        "block": None,
        "offset": None,
        "pages": 1,
        "accesses": 1,
    }


def test_a_region_written_from_the_ranges_covers_them() -> None:
    ranges = mapped(BOOT)[0]["ranges"]
    blocks = [f"b{n}={one['end'] - one['start']}" for n, one in enumerate(ranges)]
    regions = [f"{one['start']}-{one['end']}=b{n}" for n, one in enumerate(ranges)]
    words = [*(w for b in blocks for w in ("--block", b))]
    words += [*(w for r in regions for w in ("--region", r))]
    (found,) = mapped(BOOT, *words)
    assert found["field"] is None
    assert found["outside"]["pages"] == 0


def test_recorded_blocks_are_named_and_apart(tmp_path: Path) -> None:
    path = tmp_path / "log.vmtrace"
    with native.TraceWriter(path, address_kind="ram-block") as writer:
        at = np.array([0x3000, 0x5000, 0x9000], np.uint64)
        writer.append(0, at, np.zeros(3, np.uint8), np.ones(3, np.uint16))
        writer.blocks = (BlockBase("pc.ram", 0x4000), BlockBase("vram", 0x8000))
        writer.finish()
    text = shown(path)
    assert row(text, "0x3000-0x4000", "no", "block", "1", "1")
    assert row(text, "0x5000-0x6000", "pc.ram+0x1000", "1", "1")
    assert row(text, "0x9000-0xa000", "vram+0x1000", "1", "1")


def test_a_trace_without_accesses(tmp_path: Path) -> None:
    path = tmp_path / "empty.vmtrace"
    with native.TraceWriter(path) as writer:
        writer.finish()
    assert shown(path) == f"{path} (virtual addresses): 0 accesses, 0 pages\n"
    with pytest.raises(ConfigError, match="holds no accesses; name a trace that has some"):
        shown(write(tmp_path, path, {}))


def test_pages_outside_are_told_by_their_ranges(tmp_path: Path) -> None:
    path = write(tmp_path, BOOT, {"kind": "regions", "regions": ["0-1MiB=ram"]})
    with pytest.raises(ConfigError) as caught:
        shown(path)
    (problem,) = caught.value.problems
    assert problem.what.startswith("1,")
    assert "0x5000000-0x5608000 (1,544 pages)" in problem.what
    assert "map: " not in problem.what
    assert f"`vmemu trace map {BOOT}` shows the ranges" in problem.remedy


def test_what_a_run_refuses_is_refused_in_the_same_words(tmp_path: Path) -> None:
    for mapping in ({"kind": "compact", "align": "16MiB"}, {"kind": "blocks"}):
        path = write(tmp_path, BOOT, mapping)
        scenario = load(path)
        with pytest.raises(ConfigError) as of_run:
            make_workload(scenario, blocks_of(scenario))
        with pytest.raises(ConfigError) as of_map:
            shown(path)
        assert str(of_map.value) == str(of_run.value)
        assert of_map.value.problems[0].field == "guest.trace.map"
        assert of_map.value.problems[0].remedy


def test_synthetic_accesses_need_no_map() -> None:
    assert "no trace is recorded" in shown(CONFIGS / "clients.yaml")
    assert mapped(CONFIGS / "clients.yaml") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((DATA / "lackey-sort-excerpt.txt.zst",), "vmemu trace convert .*NAME.vmtrace"),
        ((DATA / "lackey-sort-excerpt.txt.zst", "--block", "a=1MiB"), "vmemu trace convert"),
        ((BOOT, "--block", "a=1MB"), "'1MB'"),
        ((BOOT, "--block", "a=1MiB", "--kind", "compact", "--align", "5KiB"), "power of two.*8KiB"),
        (
            (BOOT, "--block", "a=1MiB", "--kind", "modulo", "--align", "2MiB"),
            "--align: is for --kind compact, not for --kind modulo",
        ),
        ((BOOT, "--block", "a=1MiB", "--into", "b"), "no block is named 'b'"),
        ((BOOT, "--block", "a=1MiB"), "a size of 94696KiB for a would do"),
        (("no-such.yaml",), "no-such.yaml"),
        (("nofile", "--block", "a=1MiB"), "^nofile: does not exist; name a native trace$"),
        ((CONFIGS / "quickstart.yaml", "--block", "a=1MiB"), "leave out --block"),
        ((BOOT, "--block", "a=1MiB/3KiB"), "^[^\n]*--block: 3KiB is no power of two[^\n]*$"),
        (
            (BOOT, "--block", "a=1MiB", "--region", "0-1MiB=a"),
            "^vmemu trace map: [0-9,]+ accesses .*, or drop them with --drop$",
        ),
        ((BOOT, "--block", "a=1MiB", "--kind", "blocks"), "use --region START-END"),
        ((TRACES / "qemu-faults.vmtrace.zst", "--block", "a=1MiB"), "--rename RECORDED=NAME, or"),
    ],
)
def test_wrong_input_says_what_would_do(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        shown(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("x.yaml", "--kind", "modulo"),
        (BOOT, "--block", "a"),
        (BOOT, "--kind", "no"),
        (BOOT, "--block", "a=1MiB", "--kind", "regions"),
        (BOOT, "--set", "seed=1"),
    ],
)
def test_wrong_usage(arguments: tuple[object, ...]) -> None:
    words = ["map", *(str(one) for one in arguments)]
    assert CliRunner().invoke(trace, words).exit_code == 2
