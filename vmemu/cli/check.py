"""``vmemu check``: whether scenarios will migrate, before anything is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vmemu.cli.streams import refuse_one_place, write_json

if TYPE_CHECKING:
    from vmemu.check.verdict import ScenarioReport
    from vmemu.errors import InputError
    from vmemu.host.document import HostDocument

SCHEMA = "vmemu-check/1"
"""Changes its number when a key goes away or changes its meaning; new keys keep it."""

EXIT_OK, EXIT_INCOMPATIBLE, EXIT_NO_SCENARIO = 0, 1, 2


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--source", metavar="HOST.json", help="Check against this host as the source.")
@click.option("--destination", metavar="HOST.json", help="The same as the destination.")
@click.option("--json", "json_file", metavar="FILE", help="Write the verdicts; - for stdout.")
@click.option("--junit", metavar="FILE", help="Write them as JUnit XML; - for stdout.")
@click.option("--strict", is_flag=True, help="Fail where something works, but ...: degraded.")
@click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="In the place of the scenarios' value, such as guest.vcpus=4; may be repeated.",
)
def check(
    paths: tuple[str, ...],
    *,
    source: str | None,
    destination: str | None,
    json_file: str | None,
    junit: str | None,
    strict: bool,
    overrides: tuple[str, ...],
) -> int:
    """Say of scenarios whether they will migrate here, and why not; nothing is run.

    PATH is a scenario, a directory of them, or a pattern in quotes such as 'fleet/**/*.yaml'.
    HOST.json is what `vmemu doctor --json` wrote on another host; without, it is this one.

    Ends with 0 when all are ok or degraded, 1 when one is incompatible or unknown (with --strict:
    or degraded), 2 when a file is no scenario; the others are judged all the same.
    """
    from vmemu.check.paths import scenarios

    files = scenarios(paths)
    _check_places(json_file, junit, [*files, *(host for host in (source, destination) if host)])
    judged = _judge(files, _host(source), _host(destination), overrides)
    if json_file is not None:
        write_json(judged.document(), json_file)
    if junit is not None:
        from vmemu.check.junit import xml
        from vmemu.results.document import write_text

        write_text(xml(judged.reports, judged.refused, strict=strict), junit)
    _show(judged, to_stderr="-" in (json_file, junit))
    return judged.exit_code(strict)


@dataclass
class _Judged:
    """What became of each file: a report, or the error for which it is no scenario."""

    reports: list[ScenarioReport] = field(default_factory=list)
    refused: list[tuple[str, InputError]] = field(default_factory=list)

    def exit_code(self, strict: bool) -> int:
        """What can't be answered is no yes."""
        from vmemu.check.verdict import Verdict

        good = {Verdict.OK} if strict else {Verdict.OK, Verdict.DEGRADED}
        if self.refused:
            return EXIT_NO_SCENARIO
        return EXIT_OK if {one.verdict for one in self.reports} <= good else EXIT_INCOMPATIBLE

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": SCHEMA,
            "scenarios": [report.document() for report in self.reports],
            "refused": [
                {"path": path, "message": str(error), "problems": _problems(error)}
                for path, error in self.refused
            ],
        }


def _problems(error: InputError) -> list[dict[str, Any]]:
    """Everything that is wrong with a file, if that is a matter of places in it."""
    from vmemu.errors import ConfigError

    if not isinstance(error, ConfigError):
        return []
    keys = ("file", "line", "column", "field", "what", "remedy")
    return [{key: getattr(problem, key) for key in keys} for problem in error.problems]


def _judge(
    files: Sequence[str],
    source: HostDocument | None,
    destination: HostDocument | None,
    overrides: Sequence[str],
) -> _Judged:
    from vmemu.check.judge import judge
    from vmemu.config import split_override
    from vmemu.errors import InputError

    judged, replaced = _Judged(), [split_override(text) for text in overrides]
    for file in files:
        try:
            report = judge(file, source=source, destination=destination, overrides=replaced)
        except InputError as error:
            judged.refused.append((file, error))
        else:
            judged.reports.append(report)
    return judged


def _host(file: str | None) -> HostDocument | None:
    if file is None:
        return None
    from vmemu.doctor.reading import read

    return read(file)


def _check_places(json_file: str | None, junit: str | None, inputs: Sequence[str]) -> None:
    """Raise InputError for a place that can't be written, before anything is judged."""
    if json_file is None and junit is None:
        return
    from vmemu.results import document

    for file in (json_file, junit):
        if file is not None:
            document.check_place(file, *inputs)
    refuse_one_place(("--json", json_file), ("--junit", junit))


def _show(judged: _Judged, *, to_stderr: bool) -> None:
    from vmemu.check import terminal
    from vmemu.results.terminal import columns, write_text

    told = (line for _, error in judged.refused for line in str(error).splitlines())
    for line in dict.fromkeys(told):  # what is wrong with an option is so for all files
        write_text(f"{line}\n", sys.stderr)
    stream = sys.stderr if to_stderr else sys.stdout
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    width = columns(stream, terminal.WIDTH)
    parts = [
        "\n".join(terminal.lines(report, colour=colour, width=width)) for report in judged.reports
    ]
    parts.append(terminal.summary(judged.reports, len(judged.refused), colour=colour))
    write_text("\n\n".join(parts) + "\n", stream)
