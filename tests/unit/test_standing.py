"""When a run whose time is over is called stuck, and when it is only slow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmemu.jobs import stuck
from vmemu.status import FIGURES, Status, Stopped

WAITS = Stopped(0, "", "ram", 0x3000, 3, seconds=1.0, requested=True, received=False)
FIRST = Status(
    pid=1,
    phase="guest",
    waiting=(WAITS,),
    threads={},
    phase_s=5.0,
    hugepages_s=None,
    hugepages={},
    still_s=0.1,
    figures=dict.fromkeys(FIGURES, 9),
)


def found(monkeypatch: pytest.MonkeyPatch, now: Status) -> stuck.Standing:
    monkeypatch.setattr(stuck, "look", lambda pid: now)
    return stuck.standing(1, FIRST, 0.5)


def moved(name: str, seconds: float) -> Status:
    """A second look: a vCPU has waited for so long, and this figure is another."""
    return replace(
        FIRST, waiting=(replace(WAITS, seconds=seconds),), figures=FIRST.figures | {name: 10}
    )


def test_a_wait_while_nothing_moves_is_stuck(monkeypatch):
    standing = found(monkeypatch, FIRST)
    assert (standing.stuck, standing.stopped) == (True, (str(WAITS),))


@pytest.mark.parametrize("name", ["accesses", "pages", "checked", "messages"])
def test_a_wait_while_others_move_is_slow(name, monkeypatch):
    """As of a gigantic page that is on its way; who waits is told all the same."""
    standing = found(monkeypatch, moved(name, 20.0))
    assert not standing.stuck
    assert standing.text.startswith("in phase guest for 5")
    assert standing.stopped[0].startswith("vCPU 0 waits for ram+0x3000 (page 3) for 20")


def test_a_page_that_never_comes_is_stuck_though_others_move(monkeypatch):
    assert found(monkeypatch, moved("pages", stuck.LOST_S)).stuck


def test_a_wait_that_has_just_begun_is_not_told(monkeypatch):
    standing = found(monkeypatch, replace(FIRST, waiting=(replace(WAITS, seconds=0.1),)))
    assert (standing.stuck, standing.stopped) == (False, ())
