"""Every reason of `vmemu check` made true: pools, files, pages and traces, in this process.

Each test checks verdict, code, figures and remedy, that a run agrees, and that what the remedy says
makes it ok. Reasons that need another process are in test_check_limits.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checking import (
    check_refused,
    check_runs,
    codes,
    command,
    guest,
    huge,
    outcome,
    ram,
    scenario,
    shared,
    the,
)

from vmemu import hugepages
from vmemu.check.judge import judge
from vmemu.check.verdict import Reason
from vmemu.config import load, load_to_judge
from vmemu.errors import HostError, mending
from vmemu.migration import Migration
from vmemu.reservation import Resizer

pytestmark = pytest.mark.usefixtures("userfault")

HOLDER = """
import sys
from vmemu.ramblock import Backing, RAMBlock
block = RAMBlock("other", Backing.HUGETLBFS, int(sys.argv[1]) << 21, 2 << 20)
block.map()
print("mapped", flush=True)
sys.stdin.read()
"""
Mount = Callable[..., Path]


@pytest.fixture
def mount(own_mounts: None, tmp_path: Path) -> Mount:
    """Mounts a file system on a new directory."""

    def mounting(kind: str, options: str) -> Path:
        directory = Path(tempfile.mkdtemp(prefix=kind, dir=tmp_path))
        command = ["mount", "-t", kind, "-o", options, "none", str(directory)]
        subprocess.run(command, check=True)
        return directory

    return mounting


@pytest.fixture
def held() -> Iterator[Callable[[int], None]]:
    """Another process that holds so many hugepages."""
    holders: list[subprocess.Popen[str]] = []

    def holding(pages: int) -> None:
        argv = [sys.executable, "-c", HOLDER, str(pages)]
        pipe = subprocess.PIPE
        holders.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True))
        assert holders[-1].stdout is not None
        assert holders[-1].stdout.readline() == "mapped\n"

    yield holding
    for holder in holders:
        holder.communicate(timeout=30)


def found_by(path: Path) -> list[Reason]:
    report = judge(path)
    return [*report.reasons, *(reason for block in report.blocks for reason in block.reasons)]


def beyond_memory() -> str:
    """A size that is more than all memory, in whole GiB."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return f"{(total >> 30) + 1}GiB"


# ---- pools ----


def test_a_pool_without_pages_is_too_small_and_the_remedy_makes_it_large_enough(
    pool_alone: Resizer, tmp_path: Path
) -> None:
    pool_alone.resize(0)
    path = scenario(tmp_path, huge("4MiB", name="a"), huge("2MiB", name="b"))
    reason = check_refused(path, "pool_small", "blocks a, b need 3 hugepages of 2MiB", "0 in all")
    assert reason["remedy"] == "sysctl vm.nr_hugepages=3"
    assert f"{path}:1:" in reason["place"] and "blocks[0].size" in reason["place"]
    command(reason["remedy"])
    check_runs(path)


def test_every_block_of_a_pool_that_is_too_small_says_so(
    pool_alone: Resizer, tmp_path: Path
) -> None:
    pool_alone.resize(2)
    report = judge(scenario(tmp_path, huge(name="a"), ram(), huge("2MiB", name="b")))
    assert [block.verdict for block in report.blocks] == ["incompatible", "ok", "incompatible"]


def test_pages_that_others_hold_are_waited_for_or_missing(
    pool_alone: Resizer, held: Callable[[int], None], tmp_path: Path
) -> None:
    pool_alone.resize(4)
    held(3)
    path = scenario(tmp_path, huge())
    reason = check_refused(path, "pool_taken", "needs 2 hugepages", "4 in all", "others hold")
    assert reason["remedy"] == "sysctl vm.nr_hugepages=5"
    skipping = scenario(tmp_path, huge(), on_unavailable="skip")
    assert check_refused(skipping, "pool_taken") == reason
    waiting = judge(scenario(tmp_path, huge(), on_unavailable={"wait": "30s"}))
    assert waiting.verdict == "unknown"
    assert "the run waits up to 30s for it" in the("pool_taken", waiting)["message"]
    command(reason["remedy"])
    check_runs(path)


def test_more_hugepages_than_memory_will_never_be(pool_alone: Resizer, tmp_path: Path) -> None:
    path = scenario(tmp_path, huge(beyond_memory()))
    reason = check_refused(path, "pool_never", "hugepages of 2MiB", "will never have them")
    assert reason["remedy"].startswith("use a size of at most ")


def test_pages_by_overcommit_count(pool_alone: Resizer, tmp_path: Path) -> None:
    pool_alone.resize(1)
    setting = hugepages.SYSFS / "hugepages-2048kB/nr_overcommit_hugepages"
    before = setting.read_text()
    path = scenario(tmp_path, huge())
    check_refused(path, "pool_small", "1 in all")
    setting.write_text("1")
    try:
        check_runs(path)
    finally:
        setting.write_text(before)


# ---- pages ----


def test_a_page_size_that_the_host_has_not(tmp_path: Path) -> None:
    absent = next(s << 20 for s in (16, 4, 64) if s << 20 not in hugepages.page_sizes())
    path = scenario(tmp_path, huge("64MiB", page_size=absent))
    reason = check_refused(path, "page_size_absent", f"of {absent >> 20}MiB", "it has: 2MiB")
    assert reason["remedy"] == "page_size: 2MiB"


@pytest.mark.parametrize(
    ("block", "code", "word", "remedy"),
    [
        (huge("3MiB", page_size="2MiB"), "misaligned", "no multiple", "use 2MiB or 4MiB"),
        (ram("6000"), "misaligned", "no multiple", "use 4KiB or 8KiB"),
        (ram("4MiB", page_size="2MiB"), "page_size_impossible", "2MiB", "leave page_size out"),
        (huge("64KiB", page_size="4KiB"), "page_size_impossible", "4KiB", "such as 2MiB"),
    ],
)
def test_what_does_not_fit_together_is_incompatible(
    tmp_path: Path, block: dict[str, str], code: str, word: str, remedy: str
) -> None:
    path = scenario(tmp_path, shared(), block)
    reason = check_refused(path, code, word)
    assert remedy in reason["remedy"]
    assert [b.verdict for b in judge(path).blocks] == ["ok", "incompatible"]


def test_the_sizes_that_a_remedy_names_do(tmp_path: Path) -> None:
    reason = the("misaligned", judge(scenario(tmp_path, ram("6000"))))
    for size in reason["remedy"].removeprefix("use ").split(" or "):
        check_runs(scenario(tmp_path, ram(size)))


def test_a_target_page_bigger_than_the_hosts(tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), guest=guest(target_page_size="16KiB"))
    reason = check_refused(path, "target_page", "16KiB", "4KiB")
    assert reason["remedy"] == "guest: {target_page_size: 4KiB}"
    ran = f"PostcopyUnsupported: {reason['place']}: {reason['message']}; use '{reason['remedy']}'"
    assert outcome(path)["ran"] == ran
    check_runs(scenario(tmp_path, ram(), guest=guest(target_page_size="4KiB")))


def test_mixed_sizes_and_no_preempt_are_degraded_and_run(
    pool_alone: Resizer, tmp_path: Path
) -> None:
    pool_alone.resize(2)
    migration = {"postcopy": {"preempt": False}}
    found = check_runs(scenario(tmp_path, huge(), ram(), migration=migration), "degraded")
    assert "4KiB, 2MiB" in the("mixed_page_sizes", found)["message"]
    reason = the("preempt_off", found)
    assert reason["remedy"] == "migration: {postcopy: {preempt: true}}"
    check_runs(scenario(tmp_path, huge(), migration={"postcopy": {"preempt": True}}))


def test_pages_of_1_gib_are_degraded_and_run(pool_alone: Resizer, tmp_path: Path) -> None:
    setting = hugepages.SYSFS / "hugepages-1048576kB/nr_hugepages"
    if not setting.exists():
        pytest.skip("this CPU has no pages of 1 GiB")
    before = setting.read_text()
    path = scenario(tmp_path, huge("1GiB", page_size="1GiB"))
    missing = judge(path)
    try:
        if missing.verdict == "incompatible":
            remedy = the("pool_small", missing)["remedy"]
            assert remedy.endswith("/hugepages-1048576kB/nr_hugepages")
            command(remedy)
        if hugepages.pool(1 << 30).available < 1:
            pytest.skip("memory is in too small pieces for a page of 1 GiB")
        reason = the("gigantic_pages", check_runs(path, "degraded"))
        assert "a whole page of 1GiB" in reason["message"] and "400ms" in reason["message"]
    finally:
        setting.write_text(before)


# ---- files ----


def moved(reason: dict[str, Any], path: Path, block: dict[str, Any]) -> Path:
    """The scenario as the reason mends it: its command is done, and its path is written."""
    line = reason["remedy"]
    if line.startswith("mkdir "):
        command(line)
        line = re.search(r"; mount one and use '(path: \S+)'$", reason["message"])[1]
    place = line.removeprefix("path: ")
    assert hugepages.filesystem_of(place)[0] == "hugetlbfs"
    assert os.statvfs(os.path.dirname(place)).f_bsize == 2 << 20
    return scenario(path.parent, block | {"path": place})


@pytest.fixture
def mounted_for_it(own_mounts: None) -> Iterator[None]:
    """A directory that a remedy makes is not left behind."""
    before = set(Path("/dev").glob("hugepages-*"))
    yield
    for made in set(Path("/dev").glob("hugepages-*")) - before:
        subprocess.run(["umount", str(made)], check=False)
        made.rmdir()


@pytest.mark.usefixtures("own_mounts")
def test_a_directory_that_is_not_there_becomes_a_hugetlbfs(
    pool_alone: Resizer, tmp_path: Path
) -> None:
    pool_alone.resize(2)
    directory = tmp_path / "huge pages"
    path = scenario(tmp_path, huge(path=str(directory / "ram")))
    reason = check_refused(path, "path_filesystem", f"{directory}/ram lies on ", "not on hugetlbfs")
    assert reason["remedy"].startswith(f"mkdir -p '{directory}' && mount -t hugetlbfs")
    command(reason["remedy"])
    check_runs(path)


@pytest.mark.usefixtures("mounted_for_it")
@pytest.mark.parametrize("place", ["/var/tmp", "/srv", "/proc", None])
def test_nothing_is_mounted_over_a_directory_that_is_there(
    pool_alone: Resizer, tmp_path: Path, place: str | None
) -> None:
    pool_alone.resize(2)
    block = huge(path=f"{place or tmp_path}/vmemu-ram")
    path = scenario(tmp_path, block)
    kind, mount = hugepages.filesystem_of(block["path"])
    reason = check_refused(path, "path_filesystem", f"lies on {kind} ({mount}) on this host")
    assert f"none {place or tmp_path}" not in reason["remedy"]
    check_runs(moved(reason, path, block))


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    path = scenario(tmp_path, shared(path="/dev/shm"))
    reason = check_refused(path, "path_directory", "/dev/shm is a directory on this host")
    assert reason["remedy"] == "path: /dev/shm/vram"
    check_runs(scenario(tmp_path, shared(path="/dev/shm/vram")))


@pytest.mark.usefixtures("mounted_for_it")
def test_a_tmpfs_is_no_hugetlbfs(pool_alone: Resizer, mount: Mount, tmp_path: Path) -> None:
    pool_alone.resize(2)
    directory = mount("tmpfs", "size=8m")
    (directory / "somebody's").write_text("a mount would hide it")
    path = scenario(tmp_path, huge(path=str(directory / "ram")))
    reason = check_refused(path, "path_filesystem", f"lies on tmpfs ({directory})")
    check_runs(moved(reason, path, huge()))
    # Where a hugetlbfs would do, it is named.
    other = mount("hugetlbfs", "pagesize=2M")
    reason = the("path_filesystem", judge(path := scenario(tmp_path, huge(path=f"{directory}/r"))))
    assert reason["remedy"].startswith("path: ") and reason["remedy"].endswith("/r")
    check_runs(moved(reason, path, huge()))
    check_runs(scenario(tmp_path, huge(path=f"{other}/r")))


@pytest.mark.usefixtures("mounted_for_it")
def test_a_hugetlbfs_of_another_page_size(
    pool_alone: Resizer, mount: Mount, tmp_path: Path
) -> None:
    if 1 << 30 not in hugepages.page_sizes():
        pytest.skip("this CPU has no pages of 1 GiB")
    pool_alone.resize(2)
    directory = mount("hugetlbfs", "pagesize=1G")
    path = scenario(tmp_path, huge(page_size="2MiB", path=str(directory / "ram")))
    reason = check_refused(path, "path_page_size", "holds pages of 1GiB, and the block wants 2MiB")
    check_runs(moved(reason, path, huge()))


@pytest.mark.usefixtures("mounted_for_it")
def test_a_hugetlbfs_that_is_full(pool_alone: Resizer, mount: Mount, tmp_path: Path) -> None:
    pool_alone.resize(4)
    directory = mount("hugetlbfs", "pagesize=2M,size=4M")
    blocks = [huge("2MiB", name=f"h{n}", path=str(directory / f"h{n}")) for n in range(3)]
    path = scenario(tmp_path, *blocks)
    reason = check_refused(path, "path_full", "blocks h0, h1, h2 need 6MiB", "4MiB free of 4MiB")
    check_runs(moved(reason, path, huge()))
    check_runs(scenario(tmp_path, *blocks[:2]))


def test_a_full_tmpfs_is_made_larger(mount: Mount, tmp_path: Path) -> None:
    directory = mount("tmpfs", "size=64k")
    path = scenario(tmp_path, shared(path=str(directory / "vram")))
    reason = check_refused(path, "path_full", "256KiB", "64KiB free of 64KiB")
    assert reason["remedy"] == f"mount -o remount,size=262144 {directory}"
    command(reason["remedy"])
    check_runs(path)


def test_shared_memory_in_a_file_on_a_disk(tmp_path: Path) -> None:
    path = scenario(tmp_path, shared(path=str(tmp_path / "vmemu-check-vram")))
    reason = check_refused(path, "path_filesystem", "not on tmpfs: userfaultfd has no faults")
    assert reason["remedy"] == "path: /dev/shm/vmemu-check-vram"
    check_runs(scenario(tmp_path, shared(path="/dev/shm/vmemu-check-vram")))


def test_a_directory_that_is_not_there(mount: Mount, tmp_path: Path) -> None:
    directory = mount("tmpfs", "size=8m") / "deep" / "er"
    path = scenario(tmp_path, shared(path=str(directory / "vram")))
    reason = check_refused(path, "path_missing", f"there is no directory {directory}")
    assert reason["remedy"] == f"mkdir -p {directory}"
    command(reason["remedy"])
    check_runs(path)


def test_a_file_that_is_there(mount: Mount, tmp_path: Path) -> None:
    file = mount("tmpfs", "size=8m") / "vram"
    file.write_text("somebody's")
    path = scenario(tmp_path, shared(path=str(file)))
    reason = check_refused(path, "path_exists", f"{file} exists already")
    assert reason["remedy"] == "name another path, or leave path out, for a memfd"
    assert file.read_text() == "somebody's"
    check_runs(scenario(tmp_path, shared(path=str(file) + "2")))


# ---- memory ----


def test_more_memory_than_there_is_will_never_be(tmp_path: Path) -> None:
    zeros, size = {"zero_share": 1.0}, beyond_memory()
    reason = check_refused(scenario(tmp_path, ram(size)), "memory_never", "in all")
    assert reason["remedy"] == "use smaller blocks"
    # Zeros take nothing; what the guest may write into them is all that is not known.
    tight = judge(scenario(tmp_path, ram(size, content=zeros)))
    assert tight.verdict == "unknown"
    assert "more for zeros that are written" in the("memory_tight", tight)["message"]


# ---- the same of a run ----


@pytest.mark.parametrize(
    ("code", "blocks", "sections"),
    [
        ("page_size_absent", [huge("1GiB", page_size="512MiB")], {}),
        ("page_size_absent", [huge("384KiB", page_size="128KiB", name="a b")], {}),
        ("target_page", [ram()], {"guest": guest(target_page_size="16KiB")}),
        ("memory_never", [ram("40TiB")], {}),
        ("memory_never", [ram("40TiB")], {"on_unavailable": "skip"}),
        ("path_filesystem", [shared(path="/proc/x")], {}),
        ("path_filesystem", [huge(path="/proc/no/x")], {}),
        ("path_filesystem", [huge(path="/srv/x")], {}),
        ("path_filesystem", [huge(path="/srv/not there/x")], {}),
        ("path_directory", [shared(path="/dev/shm")], {}),
        ("path_missing", [shared(path="/dev/shm/no such/x")], {}),
    ],
)
def test_a_run_is_refused_in_the_words_of_a_check(
    tmp_path: Path, code: str, blocks: list[dict[str, Any]], sections: dict[str, Any]
) -> None:
    path = scenario(tmp_path, *blocks, **sections)
    sizes = [block.page_size for block in load_to_judge(path)[0].blocks]
    if code == "page_size_absent" and sizes[0] in hugepages.page_sizes():
        pytest.skip("this host has pages of that size")
    (reason,) = [one for one in found_by(path) if one.code == code]
    made = Migration(load(path))
    try:
        said = str(made.run().error)
    except HostError as error:
        said = str(error)
    assert reason.place in said
    assert f"{reason.message}; {mending(reason.remedy)}" in said


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_block_of_64_tib_of_hugepages_is_refused_for_want_of_memory(
    tmp_path: Path, share: float
) -> None:
    path = scenario(tmp_path, huge("64TiB", content={"zero_share": share}))
    reason = check_refused(path, "pool_never", "will never have them")
    assert reason["remedy"].startswith("use a size of at most")
    with pytest.raises(HostError, match=r"this host will never have them") as caught:
        Migration(load(path)).run()
    assert caught.value.exit_code == 3


# ---- traces ----

BOOT = Path(__file__).parents[2] / "configs/traces/linux-boot.vmtrace.zst"


def recorded(directory: Path, **keys: object) -> dict[str, object]:
    shutil.copy(BOOT, directory / "boot.vmtrace.zst")
    return guest(trace={"file": "boot.vmtrace.zst", **keys})


def test_a_trace_that_does_not_fit_its_blocks(tmp_path: Path) -> None:
    made = recorded(tmp_path, map={"kind": "compact"})
    path = scenario(tmp_path, ram("64KiB"), guest=made)
    reason = check_refused(path, "trace")
    assert "guest.trace.map" in reason["place"] and reason["remedy"]
    check_runs(scenario(tmp_path, ram("256MiB"), guest=made))


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    made = recorded(tmp_path)
    (tmp_path / "boot.vmtrace.zst").write_text("no trace")
    reason = check_refused(scenario(tmp_path, ram(), guest=made), "trace")
    assert "guest.trace.file" in reason["place"]


def test_a_region_beyond_its_block(tmp_path: Path) -> None:
    regions = {"kind": "regions", "regions": ["0x0-1MiB=vram"], "outside": "drop"}
    path = scenario(tmp_path, ram(), shared(), guest=recorded(tmp_path, map=regions))
    reason = check_refused(path, "trace", "needs 'vram' up to 0x100000")
    assert reason["remedy"].endswith("give the block a size of 1MiB")
    assert [block.verdict for block in judge(path).blocks] == ["ok", "incompatible"]


def test_a_pattern_beyond_its_block(tmp_path: Path) -> None:
    walked = {"kind": "uniform", "accesses": 100, "block": "ram", "stop": "1MiB"}
    path = scenario(tmp_path, ram(), guest=guest(trace={"synthetic": walked}))
    check_refused(path, "trace", "1MiB is beyond the end of 'ram', 256KiB")
    assert judge(path).blocks[0].verdict == "incompatible"
    check_runs(scenario(tmp_path, ram("1MiB"), guest=guest(trace={"synthetic": walked})))


def test_a_flip_beyond_the_trace(tmp_path: Path) -> None:
    path = scenario(tmp_path, ram(), migration={"flip_at": 5000})
    check_refused(path, "trace", "access 5,000 is beyond the end of the trace")
    check_runs(scenario(tmp_path, ram(), migration={"flip_at": 500}))


def test_content_bigger_than_its_block(tmp_path: Path) -> None:
    (tmp_path / "dump.raw").write_bytes(bytes(8192))
    content = {"kind": "file", "path": "dump.raw"}
    path = scenario(tmp_path, ram("4KiB", content=content))
    reason = check_refused(path, "content", "8,192 bytes, more than the block's 4,096")
    assert reason["remedy"] == "use a larger block, or cut the file"
    check_runs(scenario(tmp_path, ram("8KiB", content=content)))


def test_a_scenario_with_nothing_wrong_has_no_reasons(tmp_path: Path) -> None:
    assert codes(check_runs(scenario(tmp_path, ram(), shared()))) == set()
