"""``vmemu doctor``: this host as post-copy sees it, and what mends it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

import click

from vmemu.cli.signals import strike

if TYPE_CHECKING:
    from vmemu.doctor.support import KindAsked
    from vmemu.host.document import HostDocument, Proof

EXIT_OK, EXIT_NO, EXIT_HOST = 0, 1, 3


@click.command()
@click.option("--json", "json_file", metavar="FILE", help="Write all of it; - for stdout.")
@click.option(
    "--feature",
    "features",
    metavar="NAME",
    multiple=True,
    help="Only say whether this works; may be repeated.",
)
def doctor(*, json_file: str | None, features: tuple[str, ...]) -> int:
    """Say what post-copy can do on this host, proven by doing it, and what mends the rest.

    Needs no privilege, changes nothing and leaves nothing behind. What is wrong comes first, each
    with the command that mends it. The JSON is what `vmemu check --source` and `--destination`
    read.

    Ends with 0 when ordinary memory can migrate here by post-copy, and with 3 when it can't.

    NAME is a feature of userfaultfd (MINOR_SHMEM), a way to open it (syscall, device,
    user_mode_only), what a scenario may ask for (shm, collapse, sigbus) or a kind of memory and
    fault: hugetlbfs:2MiB, shared:minor, anonymous:thp, hugetlbfs:1GiB:write_protect. Each is
    answered in a line. Ends with 0 when all of them work, 1 when one does not, 2 for a name that
    means nothing.
    """
    if features:
        if json_file is not None:
            raise click.UsageError("--feature answers in lines of text: leave --json out")
        return _answer(features)
    if json_file is not None:
        from vmemu.results import document

        document.check_place(json_file)
    return _survey(json_file)


def _survey(json_file: str | None) -> int:
    from vmemu.doctor import support
    from vmemu.doctor.survey import survey

    # A page of 1 GiB takes a second, and has to be given back.
    strike()
    host = survey(proofs=True, wakeups=True)
    if json_file is not None:
        from vmemu.results import document

        document.write(host.model_dump(by_alias=True), json_file)
    _show(host, sys.stderr if json_file == "-" else sys.stdout)
    return EXIT_OK if support.ordinary(host).works else EXIT_HOST


def _show(host: HostDocument, stream: TextIO) -> None:
    from vmemu.doctor import terminal
    from vmemu.results.terminal import columns, write_text

    width = columns(stream, terminal.WIDTH)
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    write_text("\n".join(terminal.lines(host, colour=colour, width=width)) + "\n", stream)


def _answer(names: tuple[str, ...]) -> int:
    """Answer each; all names are understood before anything is tried."""
    from vmemu.doctor import support
    from vmemu.doctor.survey import survey
    from vmemu.errors import mending

    asked = {name.strip(): support.parse(name) for name in names}
    strike()
    host = survey(collapse=support.SettingAsked("collapse") in asked.values())
    answers = {name: support.answer(host, one, _prove) for name, one in asked.items()}
    for name, answer in answers.items():
        if answer.works:
            click.echo(f"{name}: works{answer.why and f'; {answer.why}'}")
        else:
            remedy = f"; {mending(answer.remedy)}" if answer.remedy else ""
            click.echo(f"{name}: {answer.why}{remedy}", err=True)
    return EXIT_OK if all(answer.works for answer in answers.values()) else EXIT_NO


def _prove(asked: KindAsked) -> Proof | None:
    """The proof of one kind; None when this host has none of it."""
    from vmemu.doctor import support
    from vmemu.doctor.proofs import every_kind, prove

    kinds = [kind for kind in every_kind() if kind.page_size == (asked.page_size or kind.page_size)]
    wanted = (asked.backing, asked.fault, asked.thp)
    same = [kind for kind in kinds if (kind.backing, kind.fault, kind.thp) == wanted]
    return support.find(tuple(prove(same[:1])), asked)
