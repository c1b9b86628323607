"""The click group that knows its verbs by name and imports none before it runs."""

from __future__ import annotations

import importlib
import sys

import click

from vmemu.cli.streams import CANT_WRITE
from vmemu.errors import OutputError


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; ``--help`` imports none."""

    def __init__(self, verbs: dict[str, tuple[str, str]]) -> None:
        super().__init__(
            name="vmemu",
            help="A laboratory for post-copy live migration of guest memory, on real userfaultfd.",
            params=[click.Option(["--version"], is_flag=True, help="Show the version.")],
            invoke_without_command=True,
            callback=_root,
        )
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._verbs:
            return None
        command: click.Command = getattr(
            importlib.import_module(self._verbs[cmd_name][0]), cmd_name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, what) for verb, (_, what) in self._verbs.items()])


def _root(version: bool) -> None:
    context = click.get_current_context()
    if version:
        from vmemu.version import installed

        click.echo(f"vmemu {installed()}")
    elif context.invoked_subcommand is None:
        click.echo(context.get_help())


def invoke(verbs: dict[str, tuple[str, str]]) -> int:
    """Run the command line; its exit code. Usage errors are 2. Raises ``OutputError`` when what it
    prints can't be written."""
    try:
        result = LazyGroup(verbs).main(prog_name="vmemu", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Files have a name in their errors, or raise ours.
        if error.filename is not None or error.errno not in CANT_WRITE:
            raise
        from vmemu.results.document import silence

        silence(sys.stdout)
        raise OutputError(f"standard output can't be written: {error.strerror}") from None
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    return result if isinstance(result, int) else 0
