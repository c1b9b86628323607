"""What every mapping of a scenario has in common."""

from __future__ import annotations

from vmemu.model.base import Model


class Section(Model):
    """A mapping of a scenario: unknown keys are errors, and nothing changes once it is read."""
