"""The TCG plugin of ours that records a guest of QEMU: its source, and the commands that use it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

NAME = "vmemu-plugin.c"
"""What the source is called in its own head."""


@dataclass(frozen=True)
class Commands:
    """From the source to a trace; to be run where ``source`` is a path."""

    build: str
    run: str
    convert: str

    @classmethod
    def of(cls, source: Path) -> Commands:
        plugin = source.with_suffix(".so")
        # A name without a slash is looked for among libraries; a comma begins an argument.
        loaded = str(plugin if plugin.is_absolute() else f"./{plugin}").replace(",", ",,")
        return cls(
            shlex.join(["cc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(source)]),
            f"qemu-system-x86_64 -accel tcg -plugin {shlex.quote(f'{loaded},out=guest.gpa')} ...",
            "vmemu trace convert guest.gpa guest.vmtrace",
        )


def source(name: str = NAME) -> str:
    """The C source; the commands in its head are those for a file of that name."""
    text = resources.files(__package__).joinpath("tcg_plugin.c").read_text(encoding="utf-8")
    ours, theirs = Commands.of(Path(NAME)), Commands.of(Path(name))
    return text.replace(ours.build, theirs.build).replace(ours.run, theirs.run)
