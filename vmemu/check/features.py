"""Rules on userfaultfd: how it opens, and the features that the scenario can't do without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmemu.check import proofs
from vmemu.check.case import BlockOf, Case, End, Finding
from vmemu.check.codes import Code
from vmemu.check.verdict import Verdict
from vmemu.errors import Advice, Setting

if TYPE_CHECKING:
    from vmemu.userfault import Feature

_TRACKING = ("WP_ASYNC", "WP_UNPOPULATED")


def rules(case: Case) -> Iterator[Finding]:
    """All of this file."""
    userfault = case.destination.host.userfault
    if userfault.how is None:
        yield _cant_open(case, case.destination)
    else:
        yield from _features(case, _granted(case.destination))
        if userfault.how == "user_mode_only":
            yield _user_mode_only(case)
    yield from _tracking(case)


def _granted(end: End) -> frozenset[str]:
    """What is announced is not always given to who asks for it."""
    userfault = end.host.userfault
    return frozenset(userfault.features) - frozenset(userfault.refused)


def _cant_open(case: Case, end: End) -> Finding:
    ways = [way for way in end.host.userfault.ways if not way.works]
    reasons = "; ".join(f"{way.how}: {way.why}" for way in ways)
    message = f"userfaultfd can't be opened on {end.called}" + (reasons and f": {reasons}")
    remedy = next((way.remedy for way in ways if way.remedy), "")
    return case.of_all("", Code.USERFAULTFD, message, remedy)


def _user_mode_only(case: Case) -> Finding:
    end = case.destination
    message = (
        f"userfaultfd of {end.called} takes faults from user mode only: a system call that touches"
        " a page which is missing gets EFAULT instead of waiting for it"
    )
    remedy = end.as_root("sysctl vm.unprivileged_userfaultfd=1")
    return case.of_all("", Code.USER_MODE_ONLY, message, remedy, verdict=Verdict.DEGRADED)


def _features(case: Case, features: frozenset[str]) -> Iterator[Finding]:
    # It takes the core with it, which takes longer than all rules together.
    from vmemu.needed import OF_BACKING, OF_DELIVERY, OF_EVERY_BLOCK
    from vmemu.ramblock import Backing

    for wanted in OF_EVERY_BLOCK:
        if wanted.name not in features:
            yield case.of_all("", Code.FEATURE, _lacks(case.destination, wanted))
    for wanted in OF_DELIVERY[case.scenario.migration.postcopy.delivery]:
        if wanted.name not in features:
            thread = Setting("migration: {postcopy: {delivery: thread}}")
            lacks = f"{_lacks(case.destination, wanted)}, which 'delivery: sigbus' needs"
            yield case.of_all("migration.postcopy.delivery", Code.FEATURE, lacks, thread)
    for block in case.blocks:
        backing = Backing(block.block.backing)
        for wanted in OF_BACKING[backing]:
            if wanted.name not in features:
                what = f"{_lacks(case.destination, wanted)}, which {backing.value} memory needs"
                yield case.of_block(
                    block.number, "backing", Code.FEATURE, what, _another_backing(block)
                )
    yield from _in_place(case)


def _in_place(case: Case) -> Iterator[Finding]:
    """Channel shm, where shared memory needs no copy."""
    if case.scenario.channel.kind != "shm" or case.in_place:
        return
    for of in case.blocks:
        if of.block.backing == "shared":
            message = (
                f"userfaultfd of {case.destination.called} lacks UFFD_FEATURE_MINOR_SHMEM: channel"
                " shm copies the pages of this block"
            )
            degraded = Verdict.DEGRADED
            yield case.of_block(of.number, "backing", Code.FEATURE, message, verdict=degraded)


def _lacks(end: End, feature: Feature) -> str:
    return f"userfaultfd of {end.called} lacks UFFD_FEATURE_{feature.name}"


def _another_backing(of: BlockOf) -> str:
    if of.hugetlb:  # whose page size anonymous memory has not
        return Advice(f"use 'backing: anonymous', without page_size{_or_path(of)}")
    if of.block.path is None:
        return Setting("backing: anonymous")
    return Advice("use 'backing: anonymous', without path")


def _or_path(of: BlockOf) -> str:
    return " and path" if of.block.path else ""


def _tracking(case: Case) -> Iterator[Finding]:
    """The guest's writes at the source, which the next round of pre-copy has to send again."""
    migration = case.scenario.migration
    wanted = migration.precopy.dirty_tracking
    if wanted == "replay" or migration.flip_at.at_once:
        return
    works, why = _tracks(case.source)
    if works or (works is None and wanted == "auto"):
        return  # with auto a run completes either way
    field = "migration.precopy.dirty_tracking"
    kernel = f"the kernel of {case.source.called}"
    if works is None:
        message = f"nobody could tell whether {kernel} tracks dirty pages: {why}"
        remedy = Setting("migration: {precopy: {dirty_tracking: auto}}")
        yield case.of_all(field, Code.UNPROVEN, message, remedy, verdict=Verdict.UNKNOWN)
    elif wanted == "kernel":
        message = f"{kernel} can't track dirty pages: {why}"
        remedy = Setting("migration: {precopy: {dirty_tracking: auto}}")
        yield case.of_all(field, Code.DIRTY_TRACKING, message, remedy)
    else:
        message = (
            f"{kernel} can't track dirty pages: {why}; the replay does it, which sees only what the"
            " replay writes"
        )
        remedy = Setting("migration: {precopy: {dirty_tracking: replay}}")
        yield case.of_all(field, Code.DIRTY_TRACKING, message, remedy, verdict=Verdict.DEGRADED)


def _tracks(end: End) -> tuple[bool | None, str]:
    """Whether the kernel there can, and why not; None where that could not be found out."""
    if end.host.userfault.how is None:
        return False, "userfaultfd can't be opened"
    missing = [name for name in _TRACKING if name not in _granted(end)]
    if missing:
        listed = ", ".join(f"UFFD_FEATURE_{name}" for name in missing)
        return False, f"userfaultfd lacks {listed}"
    if end.here:
        return proofs.tracking_here()
    works, why = proofs.tracking(end)
    return (
        works,
        f"write protection of anonymous memory does not work: {why}" if works is False else why,
    )
