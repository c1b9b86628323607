"""The command line: one file a verb, imported when it runs."""

from __future__ import annotations

import atexit
import gc
import os
import sys

from vmemu.cli.signals import EXIT_INTERRUPTED, ending_at_once

VERBS = {
    "run": ("vmemu.cli.run", "Run a scenario: a guest migrates by post-copy, every byte checked."),
    "check": ("vmemu.cli.check", "Say of scenarios whether they will migrate, and why not."),
    "doctor": ("vmemu.cli.doctor", "Say what post-copy can do on this host, and what mends it."),
    "stress": ("vmemu.cli.stress", "Run random variations of a scenario until one fails."),
    "compare": ("vmemu.cli.compare", "Lay event logs of migrations side by side, ours and QEMU's."),
    "config": ("vmemu.cli.config", "Explain the fields of a scenario; show a whole one."),
    "trace": ("vmemu.cli.trace", "Look at recorded traces and convert them."),
}
"""Verb: (module that has a click command of that name, what it does)."""

EXIT_FAILED, EXIT_HOST = 1, 3

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""What modules make at import stays: to look for garbage among it would be a tenth of a start."""


def main() -> None:
    """Run a verb and end with its exit code: 0 done, 1 failed, 2 wrong input, 3 not on this host,
    130 interrupted. No traceback reaches a user, unless VMEMU_DEBUG is set."""
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)  # nor is there any need to look when all of it goes
    with ending_at_once():
        code = _guarded()
    sys.exit(code)


def _guarded() -> int:
    from vmemu.cli.streams import open_missing
    from vmemu.errors import HostError, VmemuError

    open_missing()
    try:
        if sys.platform != "linux":
            raise HostError(f"vmemu needs Linux and its userfaultfd; this is {sys.platform}")
        from vmemu.cli.group import invoke

        return invoke(VERBS)
    except VmemuError as error:
        if os.environ.get("VMEMU_DEBUG"):
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vmemu: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except MemoryError:
        print(_no_memory(), file=sys.stderr)
        return EXIT_HOST
    except BrokenPipeError:
        # Whoever read our output has closed it; nothing more can be said to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        if os.environ.get("VMEMU_DEBUG"):
            raise
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Say what it is: a limit of this process that was met where nobody asked for it, or a bug."""
    if isinstance(error, OSError):
        from vmemu.processlimits import refusal

        refused = refusal(error)
        if refused is not None:
            print(refused, file=sys.stderr)
            return EXIT_HOST
    print(
        f"vmemu: internal error: {type(error).__name__}: {error}\n"
        "This is a bug in vmemu; VMEMU_DEBUG=1 shows where.",
        file=sys.stderr,
    )
    return EXIT_FAILED


def _no_memory() -> str:
    """A limit of the process is the reason more often than the machine, and can be lifted."""
    from vmemu.addressspace import limit
    from vmemu.errors import mending

    said, found = "vmemu: this host has too little memory for that", limit()
    return said if found is None else f"{said}, by {found.what}; {mending(found.remedy)}"
