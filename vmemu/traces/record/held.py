"""A command that is held just before it begins, so that a recorder can attach to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmemu.traces.record.command import Running, fifo

NAME = "vmemu-held"
"""What the kernel calls the process until it is the command: the name of the file it runs."""

_SHELL = "/bin/sh"
# Reads nothing and ends when we are gone. It leaves no descriptor behind for the command.
_SCRIPT = 'read -r go <"$0" && exec "$@"'


@dataclass(frozen=True)
class Holder:
    """The process that will be the command."""

    pid: int
    _gate: int
    _running: Running

    def let_go(self) -> None:
        """Begins the command. Raises ``KeyboardInterrupt`` if there was a signal for it before."""
        if self._running.interrupted:
            raise KeyboardInterrupt
        os.write(self._gate, b"go\n")


@contextmanager
def holding(command: Sequence[str], running: Running, directory: Path) -> Iterator[Holder]:
    """Starts the process; ``directory``: for what is needed meanwhile. It is ``running`` that ends
    it."""
    gate, shell = directory / "gate", directory / NAME
    shell.symlink_to(_SHELL)
    with fifo(gate) as fd:
        # Some shells look at the name they are called by, so that is still sh.
        arguments = ["sh", "-c", _SCRIPT, str(gate), *command]
        yield Holder(running.start(arguments, executable=shell), fd, running)
