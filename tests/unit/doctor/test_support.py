"""``vmemu doctor --feature``: what a name means, and whether that works."""

from __future__ import annotations

import contextlib
from typing import get_args

import pytest
from hosts import EVERY_FEATURE, FULL, GIB, MIB, WAYS, good_host
from hypothesis import given
from hypothesis import strategies as st

from vmemu.doctor.support import (
    Answer,
    Asked,
    FeatureAsked,
    KindAsked,
    SettingAsked,
    SettingName,
    WayAsked,
    answer,
    find,
    ordinary,
    parse,
    settings,
)
from vmemu.errors import InputError
from vmemu.host.document import Collapsing, HostDocument, Proof, Unknown, Userfault, Way
from vmemu.host.files import COLLAPSE

CLOSED = Userfault(
    how=None,
    ways=(
        Way(how="device", works=False, why="none"),
        Way(how="syscall", works=False, why="it is 0", remedy="sysctl it=1"),
    ),
)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("MOVE", FeatureAsked("MOVE")),
        ("uffd_feature_minor_shmem", FeatureAsked("MINOR_SHMEM")),
        ("Minor-Shmem", FeatureAsked("MINOR_SHMEM")),
        ("syscall", WayAsked("syscall")),
        ("user-mode-only", WayAsked("user_mode_only")),
        ("shm", SettingAsked("shm")),
        ("channel: shm", SettingAsked("shm")),
        ("channel.kind=shm", SettingAsked("shm")),
        ("Collapse", SettingAsked("collapse")),
        ("collapse: on_complete", SettingAsked("collapse")),
        ("sigbus", SettingAsked("sigbus")),
        ("delivery=sigbus", SettingAsked("sigbus")),
        ("channel: {kind: shm}", SettingAsked("shm")),
        ("{channel: {kind: shm}}", SettingAsked("shm")),
        ("blocks[pc.ram].collapse=on_complete", SettingAsked("collapse")),
        ("migration.postcopy.delivery: sigbus", SettingAsked("sigbus")),
        ("migration: {postcopy: {delivery: sigbus}}", SettingAsked("sigbus")),
        ("UFFD_FEATURE_SIGBUS", FeatureAsked("SIGBUS")),
        ("shared", KindAsked("shared")),
        ("anonymous:thp", KindAsked("anonymous", thp=True)),
        ("hugetlbfs:2MiB", KindAsked("hugetlbfs", page_size=2 * MIB)),
        ("hugetlbfs:1GiB:minor", KindAsked("hugetlbfs", "minor", GIB)),
        ("HUGETLBFS:minor:1gib", KindAsked("hugetlbfs", "minor", GIB)),
        ("shared:thp:wp", KindAsked("shared", "write_protect", thp=True)),
        ("shared:write-protect", KindAsked("shared", "write_protect")),
    ],
)
def test_what_a_name_means(name: str, asked: Asked) -> None:
    assert parse(name) == asked


def test_a_setting_can_be_asked_for_as_it_is_shown() -> None:
    collapse = Collapsing(backing="shared", works=True, why="")
    shown = [said for said, _ in settings(good_host(collapse=(collapse,)))]
    assert [parse(said) for said in shown] == [SettingAsked(name) for name in get_args(SettingName)]


@pytest.mark.parametrize("name", ["kind", "channel", "migration.sigbus", "channel: pipe", "{}"])
def test_a_part_of_a_setting_is_none(name: str) -> None:
    with pytest.raises(InputError, match="nothing is called that"):
        parse(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MINOR_SHM", "is MINOR_SHMEM"),
        ("uffd_feature_mov", "is MOVE"),
        ("hugetlb", "hugetlbfs"),
        ("devise", "is device meant"),
        ("colapse", "is collapse meant"),
        ("turbo", "the settings of a scenario shm, collapse, sigbus; the ways"),
        (
            "nothing of the kind",
            "user_mode_only; and the kinds of memory anonymous",
        ),
        ("", "known are the features PAGEFAULT_FLAG_WP"),
        ("shared:maybe", "'maybe' is none of what may follow a backing"),
        ("hugepages", "is hugetlbfs meant? known are the features PAGEFAULT_FLAG_WP"),
        ("SHMEM", "is shared or shm or MINOR_SHMEM or MISSING_SHMEM meant?"),
        ("shared:2MB", "'2MB' is no page size: MiB is meant (units of 1024): write 2MiB"),
        ("hugetlbfs:2M", "'2M' is no page size: MiB is meant (units of 1024): write 2MiB"),
        ("shared:Mnor", "'Mnor' is none of what may follow a backing; is minor meant?"),
        ("hugetlbfs:thp", "hugetlbfs has no transparent hugepages"),
        ("shared:minor:missing", "says two things of the fault"),
        ("shared:thp:4KiB", "says two things of the page size"),
        ("anonymous:", "'' is none of"),
    ],
)
def test_names_that_mean_nothing(name: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(name)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"--feature {name}: ")


@given(st.text())
def test_any_name_means_something_or_is_refused_in_a_line(name: str) -> None:
    with contextlib.suppress(InputError):
        parse(name)
        return
    with pytest.raises(InputError) as caught:
        parse(name)
    assert "\n" not in str(caught.value)


# ---- answers ----


def of(host: HostDocument, name: str) -> Answer:
    return answer(host, parse(name), lambda asked: find(host.proofs, asked))


def test_a_way_answers_for_itself() -> None:
    assert of(good_host(), "device") == Answer(True)
    assert of(good_host(userfault=CLOSED), "syscall") == Answer(False, "it is 0", "sysctl it=1")


def test_a_feature_is_there_missing_or_refused() -> None:
    some = Userfault(how="syscall", ways=WAYS, features=EVERY_FEATURE[:-1], refused=("EVENT_FORK",))
    host = good_host(userfault=some)
    assert of(host, "MINOR_SHMEM") == Answer(True)
    assert of(host, "MOVE") == Answer(
        False, "this kernel has no UFFD_FEATURE_MOVE (it came with Linux 6.8)"
    )
    lacking = userfault(EVERY_FEATURE[:1])
    assert of(lacking, "SIGBUS").why.endswith("Linux 4.14, and is needed by delivery: sigbus)")
    assert "this process, which has no CAP_SYS_PTRACE" in of(host, "EVENT_FORK").why


def userfault(features: tuple[str, ...]) -> HostDocument:
    return good_host(userfault=Userfault(how="syscall", ways=WAYS, features=features))


def test_what_a_scenario_may_ask_for() -> None:
    assert of(good_host(), "sigbus") == of(good_host(), "shm") == Answer(True)
    lacking = userfault(EVERY_FEATURE[:1])
    assert not of(lacking, "sigbus").works
    copied = of(lacking, "shm")
    assert copied.works
    assert copied.why.startswith("every page is copied: this kernel has no UFFD_FEATURE_MINOR_SHM")


@pytest.mark.parametrize(
    ("whys", "found"),
    [
        (("", ""), Answer(True)),
        (("", "refused"), Answer(True, "not for shared memory: refused")),
        (("none", "none"), Answer(False, "none")),
        (("old", "refused"), Answer(False, "old; refused")),
    ],
)
def test_collapse_is_what_was_tried(whys: tuple[str, str], found: Answer) -> None:
    tried = [
        Collapsing(backing=backing, works=not why, why=why)
        for backing, why in zip(("anonymous", "shared"), whys, strict=True)
    ]
    assert of(good_host(collapse=tuple(tried)), "collapse") == found


def test_what_was_not_tried_is_not_claimed() -> None:
    assert of(good_host(), "collapse").why.endswith("could not be tried")
    note = Unknown(what=COLLAPSE, why="/proc/self/smaps: No such file or directory")
    why = of(good_host(unknown=(note,)), "collapse").why
    assert why.endswith("could not be tried: /proc/self/smaps: No such file or directory")


@pytest.mark.parametrize("name", ["MOVE", "anonymous", "shm", "collapse", "sigbus"])
def test_nothing_works_where_userfaultfd_can_not_be_opened(name: str) -> None:
    closed = good_host(userfault=CLOSED)
    assert of(closed, name) == Answer(False, "userfaultfd can't be opened: it is 0", "sysctl it=1")
    assert ordinary(closed) == of(closed, name)


def test_a_kind_answers_by_its_proof() -> None:
    def proof(size: int, works: bool | None, why: str = "", remedy: str = "") -> Proof:
        kind = {"backing": "hugetlbfs", "page_size": size, "fault": "missing"}
        return Proof(**kind, works=works, why=why, remedy=remedy)

    proofs = (proof(GIB, None, "none is free", "get one"), proof(2 * MIB, True, "slowly"))
    host = good_host(proofs=proofs, pools=(FULL,))
    assert of(host, "hugetlbfs") == of(host, "hugetlbfs:2MiB") == Answer(True)
    assert of(host, "hugetlbfs:1GiB") == Answer(False, "none is free", "get one")
    assert of(host, "hugetlbfs:4MiB") == Answer(
        False, "no hugetlbfs memory of 4MiB pages here: this host has 2MiB"
    )
    assert "has pages of 4KiB, transparent ones of 2MiB" in of(host, "shared:64KiB").why


def test_ordinary_memory_is_what_the_proof_says() -> None:
    assert ordinary(good_host()) == Answer(True, "userfaultfd opens by userfaultfd(2)")
    assert ordinary(good_host(proofs=())).works
    failed = Proof(backing="anonymous", page_size=4096, fault="missing", works=False, why="broken")
    assert ordinary(good_host(proofs=(failed,))) == Answer(False, "broken")
