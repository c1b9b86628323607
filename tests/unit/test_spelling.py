"""Words that are nearly others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmemu.spelling import written_alike

WORDS = ["vcpus", "clients", "fault", "fault_threads"]


def test_the_nearest_comes_first_and_what_is_far_not_at_all():
    assert written_alike("vcpu", WORDS) == ["vcpus"]
    assert written_alike("fault_thrd", WORDS, most=2) == ["fault_threads", "fault"]
    assert written_alike("fault_thrd", WORDS, most=2, likeness=0.8) == ["fault_threads"]
    assert written_alike("seed", iter(WORDS)) == []


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=8), st.integers(1, 4))
def test_nothing_is_meant_that_is_not_known(word, known, most):
    found = written_alike(word, known, most=most)
    assert len(found) <= most
    assert set(found) <= set(known)
    if word in known:
        assert found[0] == word
