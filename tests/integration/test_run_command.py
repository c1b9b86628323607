"""``vmemu run`` as its users run it: a process of its own, real memory, real faults."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from support import HUGE, accesses_of, await_true

from vmemu import hugepages
from vmemu.results import schema

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
BOOT_ACCESSES = 1_594_333

SMALL = """\
name: small
seed: 5
blocks:
  - {name: pc.ram, backing: anonymous, size: 2MiB, content: {kind: seeded, zero_share: 0.25}}
  - {name: vga.vram, backing: shared, size: 1MiB}
guest:
  vcpus: 2
  trace:
    synthetic: {kind: permutation, write_share: 0.0}
"""

pytestmark = pytest.mark.usefixtures("userfault")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A scenario whose guest reads every page once and writes none."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vmemu", "run", *map(str, arguments)]


def vmemu_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def result_of(path: Path) -> dict[str, Any]:
    """A result that was written: it must be valid whatever happened."""
    loaded: dict[str, Any] = json.loads(path.read_text())
    schema.validate(loaded)
    return loaded


def check_complete(result: dict[str, Any]) -> None:
    """Every byte is right, and every page came exactly once."""
    assert result["status"] == "completed"
    assert result["verify"]["ok"] is True
    assert result["verify"]["mismatches"] == []
    assert result["verify"]["bytes_checked"] == sum(block["size"] for block in result["blocks"])
    assert result["faults"]["count"] == sum(vcpu["faults"] for vcpu in result["vcpus"])
    for block in result["blocks"]:
        pages = block["pages"]
        came = pages["precopied"] + pages["requested"] + pages["pushed"] + pages["zero"]
        assert came == pages["total"]


def test_the_recorded_boot_completes_with_every_byte_right(tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    done = vmemu_run(QUICKSTART, "--json", kept)
    assert (done.returncode, done.stderr) == (0, "")
    result = result_of(kept)
    check_complete(result)
    assert len(result["vcpus"]) == 2
    assert sum(vcpu["accesses"] for vcpu in result["vcpus"]) == BOOT_ACCESSES
    assert all(vcpu["accesses"] > 0 for vcpu in result["vcpus"])
    assert result["faults"]["count"] > 0
    assert result["faults"]["requests_sent"] > 0
    assert result["throughput"]["bytes"] > 0
    phases = ["prepare", "map", "source", "precopy", "listen", "guest", "drain", "verify"]
    assert [phase["name"] for phase in result["phases"]] == [*phases, "cleanup"]
    assert done.stdout.startswith("completed: all 134,479,872 bytes right")
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("name", ["anonymous", "shared", "phases", "recorded-faults"])
def test_the_other_scenarios_complete(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "result.json"
    assert vmemu_run(CONFIGS / f"{name}.yaml", "--json", kept).returncode == 0
    check_complete(result_of(kept))


@pytest.mark.usefixtures("hugetlb")
@pytest.mark.parametrize("name", ["hugetlbfs", "mixed"])
def test_the_scenarios_with_hugepages_complete(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "result.json"
    arguments = ["--set", "on_unavailable={wait: 60s}", "--json", kept]
    done = vmemu_run(CONFIGS / f"{name}.yaml", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    result = result_of(kept)
    check_complete(result)
    assert any(block["page_size"] == 2 << 20 for block in result["blocks"])


def test_json_on_standard_output_leaves_the_table_to_standard_error(small: Path) -> None:
    done = vmemu_run(small, "--json", "-")
    assert done.returncode == 0
    check_complete(json.loads(done.stdout))
    assert done.stderr.startswith("completed: all 3,145,728 bytes right")


def test_quiet_says_nothing_when_all_is_well(small: Path) -> None:
    done = vmemu_run(small, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_seed_and_set_take_the_place_of_what_the_file_says(small: Path, tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    overrides = ["--set", "guest.vcpus=3", "--set", "migration.postcopy={preempt: false}"]
    done = vmemu_run(small, "--json", kept, "--seed", 99, *overrides)
    assert done.returncode == 0
    result = result_of(kept)
    check_complete(result)
    assert result["seed"] == result["scenario"]["seed"] == 99
    assert len(result["vcpus"]) == 3
    assert result["scenario"]["migration"]["postcopy"]["preempt"] is False


def test_without_the_push_each_touched_page_is_asked_for(small: Path, tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    vmemu_run(small, "--json", kept, "--set", "migration.postcopy.push=false")
    result = result_of(kept)
    check_complete(result)
    # Every page is touched exactly once, and nothing brings it but the touch.
    pages = sum(block["pages"]["total"] for block in result["blocks"])
    assert result["faults"]["requests_sent"] == result["faults"]["count"] == pages
    assert all(block["pages"]["pushed"] == 0 for block in result["blocks"])


def test_without_verification_nothing_is_claimed(small: Path, tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    done = vmemu_run(small, "--json", kept, "--set", "verify={reads: false, final: false}")
    assert done.returncode == 0
    assert result_of(kept)["verify"]["ok"] is None
    assert done.stdout.startswith("completed: nothing was verified")


@pytest.mark.parametrize(("block", "offset"), [("pc.ram", 0x1FFFFF), ("vga.vram", 0x1007)])
def test_a_flipped_byte_is_found_and_named(
    small: Path, tmp_path: Path, block: str, offset: int
) -> None:
    kept = tmp_path / "result.json"
    done = vmemu_run(
        small, "--json", kept, "--inject", f"loader.flip@block={block},offset={offset}"
    )
    assert done.returncode == 1
    result = result_of(kept)
    assert result["status"] == "failed"
    assert result["error"]["kind"] == "verification"
    assert result["verify"]["ok"] is False
    assert result["verify"]["bytes_wrong"] == 1
    # All of memory is compared even so: the byte may not be the only one.
    assert result["verify"]["bytes_checked"] == sum(b["size"] for b in result["blocks"])
    (wrong,) = result["verify"]["mismatches"]
    assert (wrong["block"], wrong["offset"]) == (block, offset)
    assert wrong["expected"] ^ wrong["found"] == 0xFF
    assert done.stdout.startswith("failed: ")
    assert f"{block}+{offset:#x}" in done.stdout.splitlines()[0]


def test_a_broken_scenario_is_named_with_file_and_line(tmp_path: Path) -> None:
    path, kept = tmp_path / "broken.yaml", tmp_path / "result.json"
    path.write_text(SMALL.replace("size: 2MiB", "size: 2MB").replace("vcpus: 2", "vcpus: none"))
    done = vmemu_run(path, "--json", kept)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [re.sub(r":\d+: .*", "", line) for line in lines] == [f"{path}:4", f"{path}:7"]
    assert "blocks[0].size" in lines[0]
    assert not kept.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "guest.vcpus"], "'guest.vcpus' is no path=value"),
        (["--set", "=3"], "'=3' is no path=value"),
        (["--seed", "many"], "'many' is not a valid integer"),
        (["--set", "guest.cpus=3"], "guest.cpus"),
        (["--inject", "loader.flop"], "known: loader.flip@"),
        (["--inject", "loader.flip@block=rom,offset=0"], "known: pc.ram, vga.vram"),
        (["--json", "/nowhere/result.json"], "/nowhere is no directory"),
    ],
)
def test_wrong_usage_says_what_is_wrong(small: Path, arguments: list[str], said: str) -> None:
    done = vmemu_run(small, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_no_bug_of_ours(small: Path) -> None:
    done = vmemu_run(small, "--json", "/dev/full")
    assert done.returncode == 1
    assert done.stderr == "/dev/full: the result can't be written: No space left on device\n"


@pytest.mark.usefixtures("hugetlb")
@pytest.mark.parametrize(("json_file", "events"), [("-", "-"), ("zz", "zz"), ("zz", "there/../zz")])
def test_the_result_and_the_events_are_not_put_in_one_place(
    small: Path, tmp_path: Path, json_file: str, events: str
) -> None:
    (tmp_path / "there").mkdir()
    done = subprocess.run(
        command(small, "--json", json_file, "--events", events),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--json and --events can't both be there" in done.stderr
    assert not (tmp_path / "zz").exists()


def test_events_on_standard_output_leave_the_table_to_standard_error(small: Path) -> None:
    done = vmemu_run(small, "--events", "-")
    assert done.returncode == 0
    assert all(isinstance(json.loads(line), dict) for line in done.stdout.splitlines())
    assert "completed" in done.stderr


def test_more_hugepages_than_there_are(small: Path, tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    size = (hugepages.pool(HUGE).total + 1) * HUGE
    more = f"blocks=[{{name: huge, backing: hugetlbfs, page_size: 2MiB, size: {size}}}]"
    failed = vmemu_run(small, "--set", more, "--json", kept)
    assert failed.returncode == 3
    assert "sysctl vm.nr_hugepages=" in failed.stderr
    assert not kept.exists()
    skipped = vmemu_run(small, "--set", more, "--set", "on_unavailable=skip", "--json", kept)
    assert skipped.returncode == 0
    assert skipped.stdout.startswith("skipped: ")
    assert result_of(kept)["error"]["kind"] == "hugepages"


# ---- signals ----


@contextmanager
def endless(small: Path, vcpus: int, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A run whose guest is at work and would be for a very long time."""
    small.write_text(SMALL.replace("permutation", f"uniform, accesses: {1 << 50}"))
    process = subprocess.Popen(
        command(small, "--set", f"guest.vcpus={vcpus}", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        await_true(lambda: process.poll() is not None or accesses_of(process.pid) > 0)
        yield process
    finally:
        process.kill()
        process.communicate()


def threads_of_children(pid: int) -> int:
    """The most threads that a child of a process has."""
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return max((len(os.listdir(f"/proc/{child}/task")) for child in children), default=0)
    return 0


def test_a_run_interrupted_before_the_flip_says_what_it_does_not_know(
    small: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "result.json"
    small.write_text(SMALL.replace("permutation", f"uniform, accesses: {1 << 50}"))
    settings = ("guest.vcpus=8", "migration.flip_at=10min", "migration.precopy.rounds=1")
    words = [word for one in settings for word in ("--set", one)]
    with subprocess.Popen(
        command(small, *words, "--json", kept),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        while threads_of_children(process.pid) < 1 + 8:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert (process.returncode, err) == (130, "")
    assert out.startswith("interrupted in phase precopy")
    assert "not over: what was done at the source is not known" in out
    result = result_of(kept)
    assert result["precopy"]["rounds"] is result["precopy"]["bytes_sent"] is None
    for vcpu in result["vcpus"]:
        for name in ("accesses", "accesses_at_source", "reads", "writes", "dropped"):
            assert vcpu[name] is None
        assert vcpu["faults"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupted_run_keeps_its_result(
    small: Path, tmp_path: Path, number: signal.Signals, times: int
) -> None:
    kept = tmp_path / "result.json"
    with endless(small, 8, "--json", kept) as process:
        for _ in range(times):
            process.send_signal(number)
        out, err = process.communicate()
        # What comes after the result is kept may end the process by the signal itself.
        assert process.returncode in ((130,) if times == 1 else (130, -number))
    assert "Traceback" not in err
    assert "Exception" not in err
    result = result_of(kept)
    assert result["status"] == "interrupted"
    assert result["error"] == {
        "kind": "interrupted",
        "message": f"interrupted by {number.name}",
    }
    assert result["verify"]["ok"] is None
    if times == 1:
        assert out.startswith("interrupted in phase guest")
        assert sum(vcpu["accesses"] for vcpu in result["vcpus"]) > 0
