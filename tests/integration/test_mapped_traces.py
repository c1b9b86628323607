"""Recorded traces laid on blocks in every way, through whole migrations: every byte is right."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import scenario

from vmemu.migration import Migration
from vmemu.results import document, schema, terminal
from vmemu.traces import native

pytestmark = pytest.mark.usefixtures("userfault")

PAGE = 4096
LOAD, STORE, MODIFY, _ = range(4)
RAM = {"name": "ram", "backing": "anonymous", "size": "64KiB"}
VRAM = {"name": "vram", "backing": "shared", "size": "32KiB"}


@pytest.fixture(autouse=True)
def nothing_known(nothing_left: None) -> Iterator[None]:
    """A trace is mapped for as long as something knows it."""
    yield
    gc.collect()


def record(path: Path, seed: int, pages: int, accesses: int, streams: int = 2) -> Path:
    """Random accesses on pages that lie apart, some of which straddle two."""
    numbers = np.random.default_rng(seed)
    with native.TraceWriter(path) as writer:
        for stream in range(streams):
            page = numbers.integers(0, pages, accesses) * 3
            at = page * PAGE + numbers.integers(0, PAGE + 16, accesses)
            kinds = numbers.choice(np.array([LOAD, STORE, MODIFY], np.uint8), accesses)
            sizes = numbers.choice(np.array([1, 2, 4, 8, 16], np.uint16), accesses)
            writer.append(stream, at.astype(np.uint64), kinds, sizes)
        writer.finish()
    return path


def migrate(file: Path, mapping: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """The result of a run that completed."""
    guest = {"vcpus": 2, "trace": {"file": str(file), "map": mapping}}
    run = Migration(scenario([RAM, VRAM], guest=guest, **sections)).run()
    assert (run.status, run.error) == ("completed", None)
    result = document.build(run)
    schema.validate(result)
    assert result["verify"]["ok"] is True
    assert result["verify"]["bytes_checked"] == 96 << 10
    return result


MAPS: dict[str, dict[str, Any]] = {
    "modulo": {"kind": "modulo"},
    "modulo on one block": {"kind": "modulo", "block": "vram"},
    "regions on the same memory": {
        "kind": "regions",
        "regions": ["0-64KiB=ram", "64KiB-96KiB=ram+4KiB", "96KiB-128KiB=vram"],
        "outside": "drop",
    },
}


@pytest.mark.parametrize("name", MAPS)
@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 1 << 32),
    pages=st.integers(1, 60),
    before=st.fixed_dictionaries(
        {
            "flip_at": st.sampled_from(["0%", "40%", "100%"]),
            "precopy": st.sampled_from(
                [{"rounds": 2, "dirty_tracking": method} for method in ("auto", "replay")]
            ),
        }
    ),
)
def test_every_byte_is_right_where_pages_share_their_memory(
    tmp_path: Path, name: str, seed: int, pages: int, before: dict[str, Any]
) -> None:
    file = record(tmp_path / "t.vmtrace", seed, pages, 3000)
    result = migrate(file, MAPS[name], migration=before)
    done = sum(vcpu["accesses"] + vcpu["dropped"] for vcpu in result["vcpus"])
    assert done == 6000
    assert result["map"]["pages"] == len(native.open(file).pages)


def test_what_is_merged_or_outside_is_told(tmp_path: Path) -> None:
    file = record(tmp_path / "t.vmtrace", 1, 40, 3000)
    pages = native.open(file).pages
    modulo = migrate(file, {"kind": "modulo"})
    merged = len(pages) - len(np.unique(pages % 24))
    assert modulo["map"] == {"pages": len(pages), "outside": 0, "merged": merged}
    assert f"{merged} of {len(pages)} recorded pages on memory" in terminal.plain(modulo)

    dropped = migrate(file, {"kind": "regions", "regions": ["0-64KiB=ram"], "outside": "drop"})
    outside = int(np.count_nonzero(pages >= 16))
    assert dropped["map"] == {"pages": len(pages), "outside": outside, "merged": 0}
    lost = sum(
        int(np.count_nonzero(chunk.addresses + chunk.sizes > 64 << 10))
        for chunk in native.open(file).chunks()
    )
    assert sum(vcpu["dropped"] for vcpu in dropped["vcpus"]) == lost
    text = terminal.plain(dropped)
    assert f"{lost:,} accesses outside every block" in text
    assert f"{outside} of {len(pages)} recorded pages in no block" in text


def test_a_client_on_merged_pages(tmp_path: Path) -> None:
    file = record(tmp_path / "t.vmtrace", 2, 40, 3000)
    trace = {"file": str(file), "map": {"kind": "modulo"}}
    client = {"name": "a", "block": "vram", "vcpus": 2, "trace": trace}
    result = migrate(file, {"kind": "modulo", "block": "ram"}, clients=[client])
    (one,) = result["clients"]
    pages = native.open(file).pages
    assert one["map"]["merged"] == len(pages) - len(np.unique(pages % 8))
    assert one["reads_wrong"] == 0
    assert " of a on memory" in terminal.plain(result)


def test_first_touch_puts_the_first_faults_first(tmp_path: Path) -> None:
    """One vCPU without a push faults on page after page of a block that holds them all."""
    addresses = np.array([9, 2, 9, 7, 2, 30], np.uint64) * np.uint64(PAGE)
    with native.TraceWriter(tmp_path / "t.vmtrace") as writer:
        writer.append(0, addresses, np.full(6, STORE, np.uint8), np.full(6, 8, np.uint16))
        writer.finish()
    trace = {"file": str(tmp_path / "t.vmtrace"), "map": {"kind": "first_touch"}}
    wanted = scenario(
        [RAM], guest={"vcpus": 1, "trace": trace}, migration={"postcopy": {"push": False}}
    )
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    (worker,) = run.workers
    assert [int(offset) // PAGE for offset in worker.faults()["offset"]] == [0, 1, 2, 3]
