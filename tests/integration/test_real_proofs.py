"""Proofs on real memory: what this kernel has works, and each pool is as it was afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import HUGE, Footprint
from test_ordinary_user import as_ordinary_user

from vmemu import hugepages, thp_memory
from vmemu.doctor.proofs import Kind, every_kind, prove
from vmemu.host.document import Proof
from vmemu.ramblock import BASE_PAGE
from vmemu.reservation import Resizer
from vmemu.userfault import Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault")
GIB = 1 << 30
FAULTS = ("missing", "minor", "write_protect")
SMALL = [k for k in every_kind() if k.page_size == BASE_PAGE]
THP = [k for k in every_kind() if k.thp]


def named(kind: Kind) -> str:
    return f"{kind.backing}{'-thp' if kind.thp else ''}-{kind.page_size >> 10}k-{kind.fault}"


def has(*features: Feature) -> bool:
    """Whether this kernel announces them all."""
    with Userfaultfd() as uffd:
        return all(feature in uffd.available for feature in features)


NEEDED = {
    ("anonymous", "missing"): (),
    ("anonymous", "write_protect"): (Feature.PAGEFAULT_FLAG_WP,),
    ("shared", "missing"): (Feature.MISSING_SHMEM,),
    ("shared", "minor"): (Feature.MINOR_SHMEM,),
    ("shared", "write_protect"): (Feature.PAGEFAULT_FLAG_WP, Feature.WP_HUGETLBFS_SHMEM),
    ("hugetlbfs", "missing"): (Feature.MISSING_HUGETLBFS,),
    ("hugetlbfs", "minor"): (Feature.MINOR_HUGETLBFS,),
    ("hugetlbfs", "write_protect"): (Feature.PAGEFAULT_FLAG_WP, Feature.WP_HUGETLBFS_SHMEM),
}


def check_answer(kind: Kind, proof: Proof) -> None:
    """The answer that the feature bits announce, on memory that is there."""
    assert (proof.backing, proof.page_size, proof.thp, proof.fault) == (
        kind.backing,
        kind.page_size,
        kind.thp,
        kind.fault,
    )
    needed = NEEDED.get((kind.backing, kind.fault))
    if needed is None:
        assert proof.works is False and "page cache" in proof.why
    elif not has(*needed):
        assert proof.works is False and "UFFD_FEATURE_" in proof.why
    else:
        assert proof.works is True, proof.why
        assert proof.faults >= 1
        assert proof.fault_ns is not None and proof.fault_ns > 0
        return
    assert (proof.faults, proof.fault_ns) == (0, None)


@pytest.mark.parametrize("kind", SMALL, ids=named)
def test_small_pages_answer_as_the_features_say(kind):
    before = Footprint.now()
    (proof,) = prove([kind])
    check_answer(kind, proof)
    assert not proof.works or (proof.faults, proof.why) == (16, "")
    assert before.left_by(Footprint.now()) == {}


@pytest.mark.parametrize("kind", THP, ids=named)
def test_transparent_hugepages_answer_as_the_features_say(kind):
    before = Footprint.now()
    (proof,) = prove([kind])
    if proof.works is None:
        assert "the kernel gave" in proof.why
        pytest.skip(proof.why)
    check_answer(kind, proof)
    if proof.works and kind.fault == "missing":
        assert "placed as pages of" in proof.why
    elif proof.works:
        assert proof.why == "" or "MADV_COLLAPSE" in proof.why
    assert before.left_by(Footprint.now()) == {}


def test_the_memory_of_a_proof_really_is_transparent_hugepages(monkeypatch):
    """What is written to protected memory was one hugepage when it was protected."""
    sizes: list[tuple[str, int, int]] = []
    make_huge = thp_memory.make_huge

    def watched(block: Any) -> str:
        note = make_huge(block)
        sizes.append((block.backing.value, thp_memory.huge_bytes(block), block.size))
        return note

    monkeypatch.setattr(thp_memory, "make_huge", watched)
    found = prove([k for k in THP if k.fault == "write_protect"])
    if any(proof.works is None for proof in found):
        pytest.skip(" ".join(proof.why for proof in found))
    whole = 4 * thp_memory.thp_size()
    assert sizes == [("anonymous", whole, whole), ("shared", whole, whole)]


def test_hugepages_answer_as_the_features_say(pool_alone: Resizer):
    pool_alone.resize(6)
    before = Footprint.now(), hugepages.pool(HUGE)
    kinds = [k for k in every_kind() if (k.backing, k.page_size) == ("hugetlbfs", HUGE)]
    assert [kind.fault for kind in kinds] == list(FAULTS)
    for kind, proof in zip(kinds, prove(kinds), strict=True):
        check_answer(kind, proof)
        assert not proof.works or (proof.faults, proof.why) == (3, "")
    assert before[0].left_by(Footprint.now()) == {}
    assert hugepages.pool(HUGE) == before[1]


@pytest.mark.parametrize(("pages", "faults"), [(1, 1), (2, 1), (3, 2)])
def test_a_small_pool_is_enough_and_what_others_reserved_stays_theirs(
    pool_alone: Resizer, pages, faults
):
    pool_alone.resize(pages)
    kinds = [Kind("hugetlbfs", HUGE, fault) for fault in FAULTS]
    for proof in prove(kinds):
        assert not proof.works or proof.faults == faults
        assert proof.works is not None
    assert hugepages.pool(HUGE) == hugepages.Pool(HUGE, pages, pages, 0, 0)


def test_an_empty_pool_has_its_remedy_which_mends_it(pool_alone: Resizer):
    pool_alone.resize(0)
    kinds = [Kind("hugetlbfs", HUGE, fault) for fault in FAULTS]
    for proof in prove(kinds):
        assert (proof.works, proof.why) == (None, "no free hugepage of 2MiB")
        assert proof.remedy == hugepages.resize_command(HUGE, 1)
    subprocess.run(proof.remedy, shell=True, check=True, capture_output=True)
    assert [p.works for p in prove(kinds)] == [has(*NEEDED["hugetlbfs", f]) for f in FAULTS]


def test_a_pool_that_may_grow_grows_by_one_page_and_back(pool_alone: Resizer):
    pool_alone.resize(0)
    overcommit = hugepages.SYSFS / "hugepages-2048kB/nr_overcommit_hugepages"
    was = overcommit.read_text()
    overcommit.write_text("4")
    try:
        (proof,) = prove([Kind("hugetlbfs", HUGE, "missing")])
        assert (proof.works, proof.faults) == (has(Feature.MISSING_HUGETLBFS), 1)
        assert hugepages.pool(HUGE) == hugepages.Pool(HUGE, 0, 0, 0, 0, overcommit=4)
    finally:
        overcommit.write_text(was)


@pytest.fixture
def gigantic(pool_alone: Resizer) -> Iterator[None]:
    """A page of 1 GiB, for as long as the test takes."""
    if GIB not in hugepages.page_sizes():
        pytest.skip("this kernel has no hugepages of 1GiB")
    file = hugepages.SYSFS / "hugepages-1048576kB/nr_hugepages"
    total = hugepages.pool(GIB).total
    file.write_text(str(total + 1))
    try:
        if hugepages.pool(GIB).available < 1:
            pytest.skip("no memory for a page of 1GiB")
        yield
    finally:
        file.write_text(str(total))


def test_a_page_of_1gib_answers_as_the_features_say(gigantic):
    before = hugepages.pool(GIB)
    kinds = [Kind("hugetlbfs", GIB, fault) for fault in FAULTS]
    for kind, proof in zip(kinds, prove(kinds), strict=True):
        check_answer(kind, proof)
        assert not proof.works or proof.faults == 1
    assert hugepages.pool(GIB) == before


def test_all_proofs_at_once_are_those_of_every_kind(pool_lock: None):
    before = Footprint.now()
    found = prove()
    assert [(p.backing, p.page_size, p.thp, p.fault) for p in found] == [
        (k.backing, k.page_size, k.thp, k.fault) for k in every_kind()
    ]
    assert before.left_by(Footprint.now()) == {}


LOCKED = """
import json
from vmemu import core
from vmemu.doctor.proofs import prove
core.call(core.lib.vm_mlockall)
print(json.dumps([[p.works, p.why] for p in prove() if p.works is not False]))
"""


def test_a_process_that_locks_all_its_memory_proves_nothing():
    if os.geteuid() != 0:
        pytest.skip("only root locks as much as it likes")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", LOCKED],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found
    assert all(works is None and "mlockall" in why for works, why in found)


ORDINARY = """
import json, os
from vmemu.doctor.proofs import every_kind, prove
kinds = [kind for kind in every_kind() if kind.backing != "hugetlbfs"]
print(json.dumps([os.geteuid(), [[p.works, p.why] for p in prove(kinds)]]))
"""


def test_an_ordinary_user_proves_the_same_by_faults_in_user_mode():
    uid, found = as_ordinary_user(ORDINARY)
    assert uid == 65534
    kinds = [kind for kind in every_kind() if kind.backing != "hugetlbfs"]
    for kind, (works, why) in zip(kinds, found, strict=True):
        if kind.thp and works is None:
            assert "the kernel gave" in why
        else:
            needed = NEEDED.get((kind.backing, kind.fault))
            assert works == (needed is not None and has(*needed)), why
