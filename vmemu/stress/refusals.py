"""Whether a refused variation should have been: what a run says of this host is held against what
``vmemu check`` does."""

from __future__ import annotations

from pathlib import Path

from vmemu.check.judge import judge
from vmemu.check.verdict import Verdict
from vmemu.config import split_override
from vmemu.stress.variations import Variation


def would_run(file: Path | str, variation: Variation) -> bool:
    """Whether nothing speaks against that variation of ``file`` on this host now."""
    overrides = map(split_override, variation.overrides)
    report = judge(file, overrides=overrides, seed=variation.seed)
    return report.verdict in (Verdict.OK, Verdict.DEGRADED)
