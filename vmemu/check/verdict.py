"""What ``vmemu check`` says: a verdict for each block and each scenario, with reasons."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vmemu import errors


class Verdict(enum.StrEnum):
    """From the best to the worst; the verdict of a whole is the worst of its parts."""

    OK = "ok"
    DEGRADED = "degraded"
    """It works, but not as one would expect."""
    UNKNOWN = "unknown"
    """It could not be found out here."""
    INCOMPATIBLE = "incompatible"

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(Verdict).index(self)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of them; ok for none."""
    return max(verdicts, key=lambda verdict: verdict.rank, default=Verdict.OK)


@dataclass(frozen=True)
class Reason:
    """Why a verdict is not ok. ``code`` is for programs and stays as it is; ``remedy`` is a
    command, Advice, or a Setting for the scenario, empty where nothing helps; ``place`` is where
    the scenario says so (``boot.yaml:4:11``)."""

    code: str
    message: str
    remedy: str = ""
    verdict: Verdict = Verdict.INCOMPATIBLE
    place: str = ""

    @property
    def mending(self) -> str:
        """The remedy for people; empty where there is none."""
        return errors.mending(self.remedy) if self.remedy else ""

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "code": self.code,
            "verdict": str(self.verdict),
            "message": self.message,
            "remedy": self.remedy,
            "place": self.place,
        }


@dataclass(frozen=True)
class BlockReport:
    """One block; ``backing`` is empty and the sizes None where the scenario has none that can be
    read."""

    name: str
    backing: str
    page_size: int | None
    size: int | None
    reasons: tuple[Reason, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of its reasons."""
        return worst(reason.verdict for reason in self.reasons)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "backing": self.backing,
            "page_size": self.page_size,
            "size": self.size,
            "verdict": str(self.verdict),
            "reasons": [reason.document() for reason in self.reasons],
        }


@dataclass(frozen=True)
class ScenarioReport:
    """One scenario; ``reasons`` are of the migration as a whole."""

    path: str
    blocks: tuple[BlockReport, ...]
    reasons: tuple[Reason, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of its own reasons and its blocks."""
        own = [reason.verdict for reason in self.reasons]
        return worst([*own, *(block.verdict for block in self.blocks)])

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": self.path,
            "verdict": str(self.verdict),
            "reasons": [reason.document() for reason in self.reasons],
            "blocks": [block.document() for block in self.blocks],
        }
