"""Rules on what the run's processes may have open, and how large a file they may make."""

from __future__ import annotations

from collections.abc import Iterator

from vmemu.check.case import Case, Finding
from vmemu.check.codes import Code
from vmemu.processlimits import Granted, beyond, granted_here


def rules(case: Case) -> Iterator[Finding]:
    """All of this file. The destination has clients and files of blocks; the source has fewer."""
    end = case.destination
    for limit in beyond(case.scenario, _granted(case), end.called):
        yield case.of_all(limit.field, Code(limit.code), limit.what, limit.remedy)


def _granted(case: Case) -> Granted:
    if case.destination.here:
        return granted_here()
    host = case.destination.host
    limits = host.limits
    return Granted(
        files=limits.open_files,
        files_hard=limits.open_files_hard,
        size=limits.file_size,
        size_hard=limits.file_size_hard,
        raisable=limits.raisable,
        container=host.userfault.container,
        wrapped=case.destination.as_root,
    )
