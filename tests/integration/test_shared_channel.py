"""Channel shm: the source's images are mapped by both ends. Every byte is right in every mode, and
nothing is copied that need not be; whoever dies, or wants to harm, harms nobody else."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support import MIB, scenario, synthetic

from vmemu import images, plan
from vmemu.config import Scenario
from vmemu.images import Images
from vmemu.manager import MemoryManager
from vmemu.migration import Migration, Progress
from vmemu.results import document, schema
from vmemu.runstate import Run, StallError, VerificationError

pytestmark = pytest.mark.usefixtures("in_place", "nothing_left")

ZEROS = {"kind": "seeded", "zero_share": 0.25}
ANONYMOUS = {"name": "ram", "backing": "anonymous", "size": "512KiB", "content": ZEROS}
SHARED = {"name": "vram", "backing": "shared", "size": "512KiB", "content": ZEROS}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "4MiB"}
LAYOUTS = {"small": [ANONYMOUS, SHARED], "mixed": [SHARED, HUGEPAGES, ANONYMOUS]}
PAGES = 128


@pytest.fixture
def in_place(userfault: None) -> None:
    """Shared memory can be the image here."""
    if not images.in_place_works():
        pytest.skip("this kernel has no UFFD_FEATURE_MINOR_SHMEM")


@pytest.fixture(params=LAYOUTS)
def blocks(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Blocks of several kinds."""
    if request.param == "mixed":
        request.getfixturevalue("hugetlb")
    return LAYOUTS[request.param]


def shm(blocks: list[dict[str, Any]], **sections: Any) -> Scenario:
    return scenario(blocks, **({"channel": {"kind": "shm"}} | sections))


def postcopy(**modes: Any) -> dict[str, Any]:
    return {"postcopy": modes}


def completed(wanted: Scenario) -> Run:
    """Run it: every byte was checked, every page came once, and the result is valid."""
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.verification is not None
    size = sum(block.size for block in wanted.blocks)
    assert (run.verification.bytes_checked, run.verification.bytes_wrong) == (size, 0)
    schema.validate(document.build(run))
    return run


def placed(run: Run) -> dict[str, int]:
    pages: dict[str, int] = document.build(run)["channel"]["pages"]
    return pages


def arrived(run: Run, index: int) -> int:
    """Pages of a block that came after the flip, but for zeros."""
    assert run.incoming is not None
    figures = run.incoming.ram.block[index].arrived
    return int(figures.requested + figures.pushed)


# ---- every byte ----


@pytest.mark.parametrize("push", [True, False], ids=["push", "demand"])
@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("release_ram", [True, False], ids=["released", "kept"])
def test_shared_memory_is_mapped_and_the_rest_copied(blocks, preempt, push, release_ram):
    modes = {"preempt": preempt, "push": push, "release_ram": release_ram}
    run = completed(shm(blocks, migration=postcopy(**modes, fault_threads=2)))
    by_name = {block["name"]: arrived(run, index) for index, block in enumerate(blocks)}
    continued = by_name.pop("vram")
    assert placed(run) == {"continued": continued, "copied": sum(by_name.values())}
    assert 0 < continued < PAGES  # a part of it is zeros


def test_pages_count_the_same_through_both_channels():
    told = []
    for kind in ("pipe", "shm"):
        guest = {"vcpus": 1, "trace": synthetic("permutation", write_share=0.5)}
        channel, modes = {"kind": kind}, postcopy(push=False)
        run = completed(
            scenario([ANONYMOUS, SHARED], channel=channel, guest=guest, migration=modes)
        )
        counted = document.build(run)
        told.append([block["pages"] for block in counted["blocks"]])
        told[-1] += [counted["throughput"]["bytes"], counted["faults"]["requests_sent"]]
    assert told[0] == told[1]
    assert told[0][-1] == 2 * PAGES


@pytest.mark.parametrize("tracking", ["kernel", "replay"])
@pytest.mark.parametrize("rounds", [1, 4])
def test_what_the_guest_writes_during_pre_copy_comes_as_it_was_last(blocks, tracking, rounds):
    migration = {
        "precopy": {"rounds": rounds, "dirty_tracking": tracking, "bandwidth": "200MiB/s"},
        "flip_at": "50%",
        "postcopy": {"release_ram": True},
    }
    guest = {
        "vcpus": 2,
        "trace": synthetic("uniform", accesses=6000, write_share=0.5),
        "pace": {"kind": "rate", "accesses_per_second": 30_000},
    }
    run = completed(shm(blocks, guest=guest, migration=migration))
    assert run.incoming is not None
    assert sum(run.incoming.ram.block[i].arrived.precopied for i in range(len(blocks))) > 0


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("push", [True, False])
def test_clients_find_what_the_guest_finds(rounds, push):
    client = {
        "name": "one",
        "block": "vram",
        "vcpus": 2,
        "trace": synthetic("uniform", accesses=3000, write_share=0.5),
    }
    migration = {"precopy": {"rounds": rounds}, "flip_at": "50%", "postcopy": {"push": push}}
    run = completed(shm([ANONYMOUS, SHARED], clients=[client], migration=migration))
    faults = [one.figures.counters["faults"] for one in run.clients]
    assert sum(faults) > 0 or push or rounds


def test_what_pre_copy_has_brought_is_no_fault_for_a_client():
    client = {"name": "one", "block": "vram", "trace": synthetic("permutation")}
    run = completed(shm([SHARED], clients=[client], migration={"precopy": {"rounds": 1}}))
    assert run.incoming is not None
    assert run.incoming.figures.stats.messages == 0


def test_a_file_is_the_content_of_both_kinds_of_image(tmp_path):
    (tmp_path / "dump").write_bytes(os.urandom(200_000) + bytes(100_000) + b"x")
    content = {"kind": "file", "path": str(tmp_path / "dump")}
    run = completed(shm([block | {"content": content} for block in (ANONYMOUS, SHARED)]))
    assert run.incoming is not None
    # All pages in the hole of the file, and behind its end.
    assert [run.incoming.ram.block[i].arrived.zero for i in range(2)] == [24 + 54] * 2


def test_a_block_on_a_tmpfs_is_an_image_too():
    at = f"/dev/shm/vmemu-test-{os.getpid()}"
    run = completed(shm([SHARED | {"path": at}], migration={"precopy": {"rounds": 1}}))
    assert run.incoming is not None
    assert not Path(at).exists()


def test_a_balloon_and_locked_memory_go_with_it():
    migration = {"precopy": {"rounds": 1}, "flip_at": "30%"}
    completed(shm([ANONYMOUS, SHARED], memory={"lock": True}, migration=migration))
    balloon = {"rate": 100, "limit": 20}
    guest = {"vcpus": 1, "trace": synthetic("uniform", accesses=2000), "balloon": balloon}
    run = completed(shm([ANONYMOUS, SHARED], guest=guest))
    assert run.balloon is not None


def test_without_minor_faults_shared_memory_is_copied_and_that_is_told(monkeypatch):
    monkeypatch.setattr(images, "in_place_works", lambda: False)
    run = completed(shm([ANONYMOUS, SHARED], migration={"precopy": {"rounds": 1}, "flip_at": "1%"}))
    run = completed(shm([ANONYMOUS, SHARED]))
    assert placed(run)["continued"] == 0
    assert placed(run)["copied"] == arrived(run, 0) + arrived(run, 1) > 0
    assert document.build(run)["warnings"] == [images.NOT_IN_PLACE]


# ---- what goes wrong ----


@pytest.mark.parametrize("name", ["ram", "vram"])
def test_a_wrong_byte_is_found(name):
    run = Migration(shm([ANONYMOUS, SHARED]), flips=((name, 70_001),)).run()
    assert isinstance(run.error, VerificationError)
    assert f"first {name}+{70_001:#x}" in str(run.error)


@pytest.mark.parametrize("preempt", [True, False], ids=["preempt", "one-channel"])
@pytest.mark.parametrize("name", ["ram", "vram"])
def test_a_page_that_is_never_announced_is_a_stall_although_it_is_there(name, preempt):
    guest = {"vcpus": 1, "trace": synthetic("permutation")}
    limits, modes = {"stall": "300ms"}, postcopy(preempt=preempt)
    wanted = shm([ANONYMOUS, SHARED], guest=guest, limits=limits, migration=modes)
    run = Migration(wanted, stalls=((name, 8192),)).run()
    assert isinstance(run.error, StallError)
    assert [(one.block, one.offset >> 12) for one in run.error.waiting] == [(name, 2)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("phase", ["precopy", "guest"])
def test_a_source_that_dies_or_stops_ends_the_run(number, phase):
    def strike(progress: Progress) -> None:
        if progress.phase == phase and migration._source is not None and left:
            os.kill(migration._source.process.pid or 0, left.pop())

    left = [number]
    big = [ANONYMOUS | {"size": "256MiB"}, SHARED | {"size": "64MiB"}]
    migration = Migration(
        shm(
            big,
            guest={"vcpus": 2, "trace": synthetic("permutation")},
            migration=postcopy(push=False),
            verify={"reads": False, "final": False},
            limits={"stall": "300ms"},
            source={"startup_timeout": "3s"},
        ),
        progress=strike,
    )
    run = migration.run()
    assert not left
    assert run.status == "failed"
    if number == signal.SIGKILL:
        assert "the source process was killed by SIGKILL" in str(run.error)
    else:
        assert isinstance(run.error, StallError)


def test_nobody_can_shrink_an_image_under_who_reads_it():
    blocks = plan.blocks_of(shm([ANONYMOUS, SHARED]))
    with MemoryManager(blocks, images=Images(blocks)) as memory:
        memory.map()
        assert [image.in_place for image in memory.shared_images] == [False, True]
        for image in memory.shared_images:
            for size in (0, 4096, 8 * MIB):
                with pytest.raises(PermissionError):
                    os.ftruncate(image.fd, size)
