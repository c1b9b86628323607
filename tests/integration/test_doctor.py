"""``vmemu doctor`` on this host: what it finds is so, and its remedies mend."""

from __future__ import annotations

import os
import platform
import pwd
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import without_userfaultfd
from checking import SUDO
from support import HUGE, Footprint
from test_ordinary_user import as_ordinary_user

from vmemu import hugepages, mounts
from vmemu.doctor.reading import parse
from vmemu.doctor.survey import survey
from vmemu.host.document import FaultKind, HostDocument, Problem, Proof
from vmemu.reservation import Resizer
from vmemu.units import format_size
from vmemu.userfault import Userfaultfd, feature_names

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs/quickstart.yaml"
NOBODY = 65534

SURVEY = """
import json
from vmemu.doctor.survey import survey
print(json.dumps(survey(proofs=True, wakeups=True).model_dump(by_alias=True)))
"""
ANSWERS = """
import contextlib, json, sys
from vmemu.cli.doctor import _answer
names = ("anonymous", "syscall", "EVENT_FORK", "MOVE")
with contextlib.redirect_stdout(sys.stderr):
    codes = [_answer((name,)) for name in names]
print(json.dumps(codes))
"""


def vmemu(*words: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run vmemu, behind another command that runs it if wanted."""
    command = [*before, sys.executable, "-m", "vmemu", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)


def doctor(before: Sequence[str] = ()) -> tuple[HostDocument, int]:
    done = vmemu("doctor", "--json", "-", before=before)
    assert done.stderr.startswith("post-copy ")
    return parse(done.stdout.encode(), "stdout"), done.returncode


def under(action: str) -> list[str]:
    """A filter that refuses userfaultfd(2) in that way."""
    if platform.machine() not in without_userfaultfd.NUMBERS:
        pytest.skip("the number of userfaultfd(2) is not known for this machine")
    return [sys.executable, without_userfaultfd.__file__, action]


def proof_of(host: HostDocument, backing: str, fault: FaultKind = "missing") -> Proof:
    kinds = [p for p in host.proofs if (p.backing, p.fault, p.thp) == (backing, fault, False)]
    return min(kinds, key=lambda proof: proof.page_size)


def problem(host: HostDocument, code: str, about: str = "") -> Problem | None:
    return next((one for one in host.problems if one.code == code and about in one.what), None)


def run_remedy(command: str) -> None:
    subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True, timeout=60)


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may")


# ---- as whoever runs the tests ----


@pytest.mark.usefixtures("userfault")
def test_what_it_finds_is_what_the_kernel_says() -> None:
    host, code = doctor()
    assert code == 0
    with Userfaultfd() as uffd:
        assert host.userfault.features == tuple(feature_names(uffd.available))
        assert host.userfault.how == uffd.how.name.lower()
    proof = proof_of(host, "anonymous")
    assert proof.works
    assert proof.fault_ns and proof.faults
    assert [pool.page_size for pool in host.pools] == hugepages.page_sizes()
    assert host.kernel.release == os.uname().release
    assert set(host.cpus.allowed) == os.sched_getaffinity(0)
    assert host.cpus.wakeup_same_ns


def test_nothing_is_left_behind() -> None:
    survey(proofs=True, wakeups=True)
    before = Footprint.now()
    survey(proofs=True, wakeups=True)
    assert before.left_by(Footprint.now()) == {}


def test_a_survey_without_proofs_needs_no_numpy() -> None:
    code = "import sys; from vmemu.doctor.survey import *; survey(); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_file_is_read_back_and_shown_beside(tmp_path: Path) -> None:
    file = tmp_path / "host.json"
    done = vmemu("doctor", "--json", str(file))
    host = parse(file.read_bytes(), "file")
    assert done.stdout.startswith("post-copy ")
    assert all(one.remedy in done.stdout for one in host.problems)


def test_a_place_that_can_not_be_written_is_told_before_anything_is_tried() -> None:
    done = vmemu("doctor", "--json", "/nonexistent/host.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "/nonexistent is no directory" in done.stderr


@pytest.mark.usefixtures("userfault")
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("THREAD_ID", 0, "THREAD_ID: works"),
        ("anonymous", 0, "anonymous: works"),
        ("shared:missing", 0, "shared:missing: works"),
        ("anonymous:minor", 1, "anonymous memory is in no page cache"),
        ("hugetlbfs:64KiB:minor", 1, "no hugetlbfs memory of 64KiB pages here"),
        ("shm", 0, "shm: works"),
        ("sigbus", 0, "sigbus: works"),
        ("channel: shn", 2, "the settings of a scenario shm, collapse, sigbus;"),
        ("THREAD_IT", 2, "is THREAD_ID meant?"),
    ],
)
def test_a_feature_is_answered_by_the_exit_code(name: str, code: int, words: str) -> None:
    done = vmemu("doctor", "--feature", name)
    assert done.returncode == code
    said, silent = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert words in said
    assert (said.count("\n"), silent) == (1, "")


@pytest.mark.usefixtures("userfault")
def test_several_are_all_answered_and_one_that_is_missing_decides() -> None:
    asked = [word for name in ("anonymous:minor", "THREAD_ID") for word in ("--feature", name)]
    done = vmemu("doctor", *asked)
    assert (done.returncode, done.stdout) == (1, "THREAD_ID: works\n")
    assert done.stderr.startswith("anonymous:minor: a minor fault is one")
    good = vmemu("doctor", *asked[2:], "--feature", "anonymous")
    assert (good.returncode, good.stdout) == (0, "THREAD_ID: works\nanonymous: works\n")
    unknown = vmemu("doctor", *asked, "--feature", "nothing")
    assert (unknown.returncode, unknown.stdout) == (2, "")


def test_an_answer_is_no_document() -> None:
    done = vmemu("doctor", "--feature", "MOVE", "--json", "-")
    assert done.returncode == 2
    assert "leave --json out" in done.stderr


# ---- with less than root ----


@pytest.mark.usefixtures("userfault")
def test_an_ordinary_user_is_told_what_is_refused_and_why() -> None:
    host = HostDocument.model_validate(as_ordinary_user(SURVEY))
    ways = {way.how: way for way in host.userfault.ways}
    if host.userfault.unprivileged_sysctl == 0:
        assert not ways["syscall"].works
        assert ways["syscall"].remedy == "sudo sysctl vm.unprivileged_userfaultfd=1"
        assert "EVENT_FORK" in host.userfault.refused
    assert not host.limits.ipc_lock
    assert proof_of(host, "anonymous").works
    device = Path("/dev/userfaultfd")
    if device.exists() and device.stat().st_mode & 0o006 == 0:
        why = ways["device"].why
        assert f"with mode {device.stat().st_mode & 0o7777:04o}" in why
        assert f"this process is {pwd.getpwuid(NOBODY).pw_name}'s" in why
        assert host.userfault.how == "user_mode_only"
        assert problem(host, "user_mode_only")


@pytest.mark.usefixtures("userfault")
def test_answers_for_an_ordinary_user() -> None:
    anonymous, syscall, fork, move = as_ordinary_user(ANSWERS)
    host = survey()
    assert anonymous == 0
    assert syscall == (0 if host.userfault.unprivileged_sysctl == 1 else 1)
    assert fork == 1  # the kernel announces it, and wants CAP_SYS_PTRACE
    assert move == (0 if "MOVE" in host.userfault.features else 1)


# ---- under a filter ----


@pytest.mark.usefixtures("root", "userfault")
@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("EPERM", "a seccomp filter refuses the call (EPERM)"),
        ("ENOSYS", "a seccomp filter answers that there is no such call (ENOSYS)"),
        ("TRAP", "a seccomp filter kills the process that asks (SIGSYS)"),
        ("KILL", "a seccomp filter kills the process that asks (SIGSYS)"),
    ],
)
def test_a_filter_is_told_from_what_the_kernel_refuses(action: str, words: str) -> None:
    host, code = doctor(under(action))
    ways = {way.how: way for way in host.userfault.ways}
    assert host.userfault.seccomp == "filter"
    assert ways["syscall"].why.startswith(words)
    assert ways["user_mode_only"].why.startswith(words)
    # The device takes no such call, and faults are served as ever.
    assert ways["device"].works == os.path.exists("/dev/userfaultfd")
    assert host.userfault.how == ("device" if ways["device"].works else None)
    assert code == (0 if ways["device"].works else 3)
    assert bool(proof_of(host, "anonymous").works) == ways["device"].works


@pytest.mark.usefixtures("root", "userfault")
def test_a_run_goes_by_the_device_where_a_filter_kills_who_calls() -> None:
    if not os.path.exists("/dev/userfaultfd"):
        pytest.skip("no /dev/userfaultfd here")
    done = vmemu("run", str(QUICKSTART), "--quiet", "--json", "-", before=under("KILL"))
    assert done.returncode == 0, done.stderr
    assert '"how": "/dev/userfaultfd"' in done.stdout


@pytest.mark.usefixtures("root", "userfault")
def test_where_nothing_opens_it_post_copy_does_not_work() -> None:
    """A filter, and a user who may not open the device."""
    drop = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    drop += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    device = Path("/dev/userfaultfd")
    if device.exists() and device.stat().st_mode & 0o006:
        pytest.skip("anybody may open /dev/userfaultfd here")
    before = [*drop, *under("EPERM")]
    host, code = doctor(before)
    assert (code, host.userfault.how) == (3, None)
    assert host.problems[0].code == "userfaultfd"
    assert host.problems[0].severity == "error"
    done = vmemu("doctor", before=before)
    assert done.stdout.startswith("post-copy does not work here: ")
    answer = vmemu("doctor", "--feature", "anonymous", before=before)
    assert answer.returncode == 1
    assert "userfaultfd can't be opened: " in answer.stderr
    run = vmemu("run", str(QUICKSTART), before=before)
    assert run.returncode == 3
    assert "vmemu doctor, which says why" in run.stderr


# ---- the device ----

OWN_DEV = """
mkdir "$0/shm" && mount --bind /dev/shm "$0/shm" && mount -t tmpfs none /dev && mkdir /dev/shm
mount --bind "$0/shm" /dev/shm && mknod -m 666 /dev/urandom c 1 9 && mknod -m 666 /dev/null c 1 3
"""


def with_own_dev(tmp_path: Path, *shell: str) -> list[str]:
    """Before a command that an ordinary user runs, with a /dev that nobody else sees."""
    place = tmp_path / str(len(list(tmp_path.iterdir())))
    place.mkdir()
    script = "\n".join((OWN_DEV, *shell, 'exec "$@"'))
    own = ["unshare", "-m", "/bin/sh", "-ec", script, str(place)]
    return [*own, *nobody("")]


@pytest.mark.usefixtures("root", "userfault")
def test_an_absent_device_and_one_that_is_roots_are_mended_by_their_remedies(
    tmp_path: Path,
) -> None:
    if not os.path.exists("/dev/userfaultfd"):
        pytest.skip("no /dev/userfaultfd here")
    make = [f"mknod -m 600 /dev/userfaultfd c 10 {os.minor(os.stat('/dev/userfaultfd').st_rdev)}"]
    for before, words in (([], "there is no /dev/userfaultfd"), (make, "with mode 0600")):
        host, _ = doctor(with_own_dev(tmp_path, *before))
        device = host.userfault.ways[1]
        assert (device.how, device.works) == ("device", False)
        assert words in device.why
        mended, _ = doctor(with_own_dev(tmp_path, *before, SUDO + device.remedy))
        assert mended.userfault.ways[1].works
        assert not [one for one in mended.unknown if "/dev" in one.what]


@pytest.mark.usefixtures("root", "userfault")
def test_where_nothing_opens_it_the_remedy_makes_post_copy_work(tmp_path: Path) -> None:
    if not os.path.exists("/dev/userfaultfd"):
        pytest.skip("no /dev/userfaultfd here")
    make = f"mknod -m 600 /dev/userfaultfd c 10 {os.minor(os.stat('/dev/userfaultfd').st_rdev)}"
    host, code = doctor([*with_own_dev(tmp_path, make), *under("EPERM")])
    found = problem(host, "userfaultfd")
    assert (code, found is not None) == (3, True)
    assert found is not None
    mend = SUDO + found.remedy
    mended, code = doctor([*with_own_dev(tmp_path, make, mend), *under("EPERM")])
    assert (code, mended.userfault.how, problem(mended, "userfaultfd")) == (0, "device", None)
    assert proof_of(mended, "anonymous").works


@pytest.mark.usefixtures("root", "userfault")
def test_root_of_a_user_namespace_is_not_told_what_only_the_hosts_may_do() -> None:
    host, _ = doctor(["unshare", "-r"])
    told = [one.remedy for one in host.problems if one.code in ("pool_empty", "pool_taken")]
    told += [way.remedy for way in host.userfault.ways if way.how == "syscall" and not way.works]
    if not told:
        pytest.skip("every pool has pages, and vm.unprivileged_userfaultfd is 1")
    assert all(one.startswith("sudo ") and one.endswith("  # on the host") for one in told)
    assert not host.limits.raisable


# ---- limits, and what lifts them ----


def nobody(shell: str) -> list[str]:
    """Before a command that an ordinary user runs in a shell that has done ``shell``."""
    drop = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    drop += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    return ["/bin/sh", "-c", f'{shell}\nexec "$@"', "sh", *drop]


@pytest.mark.usefixtures("root", "userfault")
@pytest.mark.parametrize(
    ("code", "limit"),
    [
        ("memlock", "ulimit -l 64"),
        ("memlock", "ulimit -S -l 64"),
        ("memlock", "ulimit -S -l 64; ulimit -H -l 4096"),
        ("open_files", "ulimit -S -n 128"),
        ("open_files", "ulimit -n 128"),
        ("memory", "ulimit -S -d 200000"),
        ("memory", "ulimit -d 200000"),
    ],
)
def test_a_limit_of_the_shell_is_lifted_by_the_remedy(code: str, limit: str) -> None:
    host, _ = doctor(nobody(limit))
    found = problem(host, code)
    assert found is not None
    if not found.remedy:
        assert not host.limits.raisable
        pytest.skip("root has no CAP_SYS_RESOURCE here: a hard limit stays as it is")
    mended, _ = doctor(nobody(f"{limit}\n{SUDO}{found.remedy}"))
    assert problem(mended, code) is None


@pytest.mark.usefixtures("userfault")
def test_the_limit_of_a_control_group_is_lifted_by_the_remedy(memory_limit: Path) -> None:
    processes = memory_limit.with_name("cgroup.procs")
    inside = ["/bin/sh", "-c", f'echo $$ > {processes}\nexec "$@"', "sh"]
    host, _ = doctor(inside)
    found = problem(host, "memory", str(memory_limit))
    assert found is not None
    run_remedy(found.remedy)
    mended, _ = doctor(inside)
    assert problem(mended, "memory", str(memory_limit)) is None


# ---- without /proc or /sys ----


@pytest.mark.usefixtures("root", "userfault")
@pytest.mark.parametrize(("top", "kind"), [("/proc", "proc"), ("/sys", "sysfs")])
def test_what_can_not_be_read_is_said_and_stops_nothing(top: str, kind: str) -> None:
    hide = f'mount -t tmpfs none {top} && exec "$@"'
    host, code = doctor(["unshare", "-m", "sh", "-c", hide, "sh"])
    assert code == 0
    notes = {unknown.what: unknown for unknown in host.unknown}
    assert notes[f"all that {top} tells"].remedy == f"mount -t {kind} {kind} {top}"


@pytest.mark.usefixtures("root", "userfault")
def test_what_can_not_be_tried_is_answered_with_the_reason() -> None:
    hide = 'mount -t tmpfs none /proc && exec "$@"'
    done = vmemu(
        "doctor", "--feature", "collapse", before=["unshare", "-m", "sh", "-c", hide, "sh"]
    )
    assert done.returncode == 1
    assert "could not be tried: /proc/" in done.stderr
    assert done.stderr.endswith("No such file or directory\n")


# ---- hugepages ----


def hugepage_problems(host: HostDocument) -> dict[str, Problem]:
    about = format_size(HUGE)
    return {one.code: one for one in host.problems if about in one.what}


def test_the_remedy_for_an_empty_pool_fills_it(pool_alone: Resizer) -> None:
    pool_alone.resize(0)
    host, code = doctor()
    assert code == 0
    assert proof_of(host, "hugetlbfs").works is None
    answer = vmemu("doctor", "--feature", "hugetlbfs:2MiB")
    assert answer.returncode == 1
    run_remedy(answer.stderr.strip().rpartition("mend it with: ")[2])
    assert vmemu("doctor", "--feature", "hugetlbfs:2MiB").returncode == 0
    pool_alone.resize(0)
    run_remedy(hugepage_problems(host)["pool_empty"].remedy)
    mended, _ = doctor()
    assert "pool_empty" not in hugepage_problems(mended)
    assert {
        fault: proof_of(mended, "hugetlbfs", fault).works for fault in ("missing", "minor")
    } == {
        "missing": True,
        "minor": True,
    }
    pool = next(pool for pool in mended.pools if pool.page_size == HUGE)
    assert (pool.total, pool.free) == (64, 64)
    assert sum(node.total for node in pool.nodes) == 64


def test_a_pool_that_others_have_taken_grows_by_the_remedy(pool_alone: Resizer) -> None:
    import mmap

    pool_alone.resize(2)
    with mmap.mmap(-1, 2 * HUGE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000):
        host = survey()
        taken = hugepage_problems(host)["pool_taken"]
        assert taken.what.endswith("2 in all, 2 free, 2 of these reserved")
        run_remedy(taken.remedy)
        assert "pool_taken" not in hugepage_problems(survey())
    pool_alone.resize(0)


@pytest.fixture
def no_hugetlbfs(own_mounts: None) -> None:
    """None is mounted, as far as this test sees."""
    for mount in reversed(mounts.mounted()):
        if mount.type == "hugetlbfs":
            subprocess.run(["umount", "-l", mount.path], check=True)


@pytest.mark.usefixtures("no_hugetlbfs")
def test_the_remedy_for_a_mount_mounts_one_that_files_can_be_made_in(
    pool_alone: Resizer,
) -> None:
    pool_alone.resize(2)
    remedy = hugepage_problems(survey())["mount"].remedy
    run_remedy(remedy)
    place = remedy.split()[-1]
    try:
        host = survey()
        assert "mount" not in hugepage_problems(host)
        found = next(mount for mount in host.mounts if mount.path == place)
        assert (found.type, found.page_size, found.writable) == ("hugetlbfs", HUGE, True)
        os.chmod(place, 0o755)
        as_user: dict[str, Any] = as_ordinary_user(SURVEY)
        refused = HostDocument.model_validate(as_user)
        access = problem(refused, "mount_access", place)
        assert access is not None
        run_remedy(SUDO + access.remedy)
        mended = HostDocument.model_validate(as_ordinary_user(SURVEY))
        assert problem(mended, "mount_access", place) is None
    finally:
        subprocess.run(["umount", place], check=True)
        os.rmdir(place)
