"""Which vmemu is installed."""

from __future__ import annotations

import os
import sys

_PREFIX, _SUFFIX = "vmemu-", ".dist-info"


def installed() -> str:
    """As pip has it; ``unknown`` where it was not installed.

    The name of pip's directory says it. ``importlib.metadata`` reads it there too, and imports for
    that what a mail is parsed with: a tenth of the time of a small run.
    """
    for directory in sys.path:
        try:
            names = os.listdir(directory or ".")
        except OSError:
            continue
        for name in names:
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
                return name[len(_PREFIX) : -len(_SUFFIX)]
    return "unknown"
