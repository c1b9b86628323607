"""vmemu beside the floor and its peers: a table of ratios with their targets.

    python benchmarks/run.py [--quick] [--json FILE] [--list] [NAME...]

Both sides of a row run in turn (A B A B ...). NAME is a row, or a pattern such as 'fault-*'. Ends
with 0 when every row was measured or skipped with its reason, also where a target was missed, and
with 1 when a side failed. Ctrl-C, or SIGTERM, shows the rows that are done, and ends with 130.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.util
import json
import pkgutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import report
import rows
from context import Context
from frame import Measured, Row, Verdict, measure

_REPEATS, _QUICK_REPEATS = 11, 3
_QUICK_STEP_S = 40


def main() -> int:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="vmemu-bench-") as directory:
        context = Context(Path(directory), quick=arguments.quick)
        chosen = choose(all_rows(context), arguments.names)
        if arguments.list:
            print(report.listing(chosen))
            return 0
        done: list[Measured] = []
        interrupted = False
        try:
            # One by one: those that are done when Ctrl-C comes are in the list.
            done.extend(_measured(row, context, arguments.repeats) for row in chosen)
        except KeyboardInterrupt:
            interrupted = True
            print(" interrupted", file=sys.stderr)
    text = report.table(done, interrupted=interrupted)
    # A document on standard output has it for itself.
    print(text, file=sys.stderr if arguments.json == Path("-") else sys.stdout)
    if arguments.json:
        said = report.document(
            done, quick=arguments.quick, version=version("vmemu"), interrupted=interrupted
        )
        try:
            _write(json.dumps(said, indent=1) + "\n", arguments.json)
        except OSError as error:
            print(f"--json {arguments.json}: {error.strerror}", file=sys.stderr)
            return 1
    if interrupted:
        return 130
    return 1 if any(one.verdict is Verdict.FAILED for one in done) else 0


def _write(text: str, file: Path) -> None:
    if file == Path("-"):
        sys.stdout.write(text)
    else:
        file.write_text(text)


def all_rows(context: Context) -> list[Row]:
    """Of every module in rows/."""
    modules = sorted(module.name for module in pkgutil.iter_modules(rows.__path__))
    listed = [name for name in rows.ORDER if name in modules]
    found: list[Row] = []
    for module in [*listed, *(name for name in modules if name not in listed)]:
        found += importlib.import_module(f"rows.{module}").rows(context)
    names = [row.name for row in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two rows have one name: {sorted(names)}")
    return found


def choose(found: list[Row], names: list[str]) -> list[Row]:
    """The rows that one of the names or patterns means; all without any. Ends with 2 for a name of
    no row."""
    for name in names:
        if not any(fnmatch.fnmatchcase(row.name, name) for row in found):
            print(f"{name}: no row has this name; --list shows all", file=sys.stderr)
            raise SystemExit(2)
    return [row for row in found if not names or _chosen(row, names)]


def _chosen(row: Row, names: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(row.name, name) for name in names)


def _measured(row: Row, context: Context, repeats: int | None) -> Measured:
    if context.quick and row.full_only:
        return Measured(row, reason="takes too long for --quick")
    print(f"{row.name} ...", end="", flush=True, file=sys.stderr)
    done = measure(row, repeats or _repeats(context))
    print(f" {done.verdict.value}", file=sys.stderr)
    return done


def _repeats(context: Context) -> int:
    """With --quick fewer for rows that come late, so that it is quick on a slow machine too."""
    if not context.quick:
        return _REPEATS
    elapsed = time.monotonic() - context.began
    return max(1, _QUICK_REPEATS - int(elapsed / _QUICK_STEP_S))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows, or patterns of them")
    parser.add_argument("--quick", action="store_true", help="few repetitions, under 2 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures; - for stdout")
    repeats = f"repetitions of each side; {_REPEATS}, or at most {_QUICK_REPEATS} with --quick"
    parser.add_argument("--repeats", type=int, metavar="N", help=repeats)
    parser.add_argument("--list", action="store_true", help="say what each row measures, no more")
    arguments = parser.parse_args()
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error("--repeats: a number from 1 on")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no such directory")
    if arguments.json is not None and arguments.json.is_dir():
        parser.error(f"--json {arguments.json}: this is a directory; name a file in it")
    return arguments


def _program() -> int:
    if importlib.util.find_spec("vmemu") is None:
        print(f"vmemu is not installed for {sys.executable}: see README.md", file=sys.stderr)
        return 2
    # What was begun is cleaned up in either case.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main()
    except KeyboardInterrupt:
        print(" interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(_program())
