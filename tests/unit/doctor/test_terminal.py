"""What a person sees of a host."""

from __future__ import annotations

import re

import pytest
from hosts import FULL, GIB, MIB, WAYS, good_host

from vmemu.doctor import terminal
from vmemu.doctor.problems import problems
from vmemu.host.document import Collapsing, Cpus, Mount, NodePool, Proof, Unknown, Userfault


def shown(**changes: object) -> list[str]:
    host = good_host(**changes)
    return list(terminal.lines(host.model_copy(update={"problems": problems(host)})))


def test_the_verdict_is_the_first_line() -> None:
    assert shown()[0] == "post-copy works here: userfaultfd opens by userfaultfd(2)"
    closed = Userfault(how=None, ways=(WAYS[0].model_copy(update={"works": False, "why": "no"}),))
    text = shown(userfault=closed, proofs=())
    assert text[0] == "post-copy does not work here: userfaultfd can't be opened: no"
    assert text[2] == "what keeps post-copy from working"
    assert not [line for line in text if "MINOR_SHMEM" in line]


def test_what_is_wrong_comes_before_what_there_is() -> None:
    empty = FULL.model_copy(update={"total": 0, "free": 0})
    slow = Cpus(online=2, allowed=(0,), wakeup_other_ns=61_234)
    why = Unknown(what="how much", why="it is a secret", remedy="ask")
    lines = shown(pools=(empty,), cpus=slow, unknown=(why,))
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles[1:4] == ["problems", "notes", "could not be found out"]
    at = lines.index("  the pool of 2MiB pages is empty")
    assert lines[at + 1] == "    mend it with: sysctl vm.nr_hugepages=64"
    at = lines.index("  how much: it is a secret")
    assert lines[at + 1] == "    to find out: ask"


def test_which_memory_can_migrate_stands_below_the_verdict() -> None:
    kind = {"backing": "hugetlbfs", "fault": "missing"}
    ready = Proof(page_size=2 * MIB, works=True, fault_ns=812_345, **kind)
    none = Proof(page_size=GIB, works=None, why="none is free", **kind)
    transparent = ready.model_copy(update={"thp": True})
    lines = shown(proofs=(ready, none, transparent))
    assert [re.split("  +", line.strip()) for line in lines[1:3]] == [
        ["hugetlbfs 2MiB", "yes", "812us a fault"],
        ["hugetlbfs 1GiB", "not tried", "none is free"],
    ]
    assert lines[3] == ""


@pytest.mark.parametrize("width", [80, 100])
def test_only_a_word_that_is_longer_than_a_line_is_wider(width: int) -> None:
    host = good_host(pools=(FULL,), cpus=Cpus(online=2, allowed=(0,), wakeup_other_ns=61_234))
    host = host.model_copy(update={"problems": problems(host)})
    for line in terminal.lines(host, width=width):
        assert len(line) <= width or "mend it with: " in line


def test_no_path_and_no_name_is_cut() -> None:
    paths = [f"/a  very/long/{'path/' * number}" for number in (1, 40)]
    mounts = tuple(
        Mount(
            path=path,
            type="hugetlbfs",
            page_size=GIB,
            size=64 * GIB,
            free=10 * GIB + 512 * MIB,
            mode="1777",
            owner="a-long-user:a-long-group",
        )
        for path in paths
    )
    host = "h" * 64
    lines = shown(mounts=mounts, pools=(FULL,), hostname=host)
    assert [line[line.index("/") :] for line in lines[-2:]] == paths
    assert all("a-long-user:a-long-group" in line for line in lines[-2:])
    assert any(host in line for line in lines)


def test_faults_are_times_no_or_not_tried_and_reasons_are_told_once() -> None:
    def proof(page_size: int, fault: str, **fields: object) -> Proof:
        return Proof(backing="hugetlbfs", page_size=page_size, fault=fault, **fields)

    none = {"works": None, "why": "none is free"}
    proofs = (
        proof(2 * MIB, "missing", works=True, fault_ns=812_345, faults=2),
        proof(2 * MIB, "minor", works=False, why="there is no such thing"),
        proof(2 * MIB, "write_protect", works=False, why="there is no such thing"),
        proof(GIB, "missing", **none),
        proof(GIB, "minor", **none),
        proof(GIB, "write_protect", **none),
    )
    lines = shown(proofs=proofs)
    rows = {first: cells for first, *cells in (re.split(r"  +", line.strip()) for line in lines)}
    assert rows["hugetlbfs 2MiB"] == ["812us", "no", "no"]
    assert rows["hugetlbfs 1GiB"] == ["not tried"] * 3
    assert "  hugetlbfs 2MiB, minor and write-protect: there is no such thing" in lines
    assert "  hugetlbfs 1GiB: none is free" in lines


def test_features_that_are_refused_or_not_known_yet() -> None:
    names = ("EVENT_FORK", "bit42")
    some = Userfault(how="syscall", ways=WAYS, features=names, refused=("EVENT_FORK",))
    rows = dict(line.split()[:2] for line in shown(userfault=some) if len(line.split()) > 1)
    assert (rows["EVENT_FORK"], rows["bit42"], rows["MOVE"]) == ("refused", "yes", "no")


def test_features_and_settings_stand_beside_each_other() -> None:
    tried = (
        Collapsing(backing="anonymous", works=True),
        Collapsing(backing="shared", works=False, why="refused"),
    )
    names = ("THREAD_ID", "MISSING_SHMEM", "MINOR_SHMEM")
    some = Userfault(how="syscall", ways=WAYS, features=names)
    lines = [re.split("  +", line.strip()) for line in shown(userfault=some, collapse=tried)]
    assert ["MINOR_SHMEM", "yes", "5.14", "channel: {kind: shm}"] in [line[:4] for line in lines]
    assert ["SIGBUS", "no", "4.14", "delivery: sigbus"] in [line[:4] for line in lines]
    assert ["channel: {kind: shm}", "yes"] in lines
    assert ["blocks[].collapse: on_complete", "yes", "not for shared memory: refused"] in lines
    sigbus = next(
        line for line in lines if line[:2] == ["migration.postcopy.delivery: sigbus", "no"]
    )
    assert sigbus[2].startswith("this kernel has no UFFD_FEATURE_SIGBUS")


def test_nodes_are_shown_where_there_are_several() -> None:
    nodes = tuple(NodePool(node=number, total=4, free=4, surplus=0) for number in (0, 1))
    alone = shown(pools=(FULL.model_copy(update={"nodes": nodes[:1]}),))
    both = shown(pools=(FULL.model_copy(update={"nodes": nodes}),))
    assert len(both) == len(alone) + 2


def test_colour_changes_no_word() -> None:
    why = "nobody knows why " * 9
    shut = Userfault(how=None, ways=(WAYS[0].model_copy(update={"works": False, "why": why}),))
    host = good_host(pools=(FULL,), userfault=shut)
    host = host.model_copy(update={"problems": problems(host)})
    painted = "\n".join(terminal.lines(host, colour=True))
    assert "\x1b[31m" in painted
    assert re.sub(r"\x1b\[\d+m", "", painted) == "\n".join(terminal.lines(host))
