"""What a person sees of a result: a verdict, a few tables, what to run next.

Everything is drawn from the result document. Rich draws it on a terminal; anywhere else it is plain
aligned text, and rich is not imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from vmemu.units import counted, format_duration, format_rate, format_size

Document = dict[str, Any]

_STYLES = {"completed": "green", "failed": "red", "interrupted": "yellow", "skipped": "yellow"}
_GAP = "  "
_UNKNOWN = "?"
_NARROWEST = 60


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first ``left`` columns are words, the others figures."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1

    @property
    def figures(self) -> bool:
        """Whether the columns need headings."""
        return any(self.columns)


def verdict(document: Document) -> str:
    """The first line: how the run ended, and why."""
    status, error = document["status"], document["error"]
    if status == "completed":
        return f"completed: {_verified(document['verify'])}"
    if status == "interrupted":
        return f"interrupted in phase {_last_phase(document)}: the figures are those until then"
    return f"{status}: {error['message']}"


def sections(document: Document, command: str = "") -> Iterator[str | Table]:
    """Everything but the verdict, in order; ``command`` is the run's own command line."""
    if document["status"] != "skipped":
        yield f"{document['scenario']['name']}, seed {document['seed']}"
        if document["verify"]["mismatches"]:
            yield _mismatches(document["verify"])
        yield _blocks(document["blocks"])
        yield _vcpus(document)
        if document.get("clients"):
            yield _clients(document["clients"])
        yield _figures(document)
    hint = _hint(document, command)
    if hint:
        yield f"next: {hint}"


def plain(document: Document, command: str = "") -> str:
    """The whole as aligned text."""
    below = (
        section if isinstance(section, str) else f"\n{align(section)}\n"
        for section in sections(document, command)
    )
    return "\n".join([verdict(document), *below]).replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


def show(document: Document, stream: TextIO, command: str = "") -> None:
    """Write it to ``stream``: with colour and lines if that is a terminal, else as plain text."""
    if stream.isatty():
        _show_rich(document, stream, command)
    else:
        write_text(plain(document, command), stream)


def write_text(text: str, stream: TextIO) -> None:
    """Write text and flush; what the stream's encoding lacks is escaped, not an error."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def columns(stream: TextIO, most: int) -> int:
    """How wide text may be there: as a terminal is, but for a very narrow one, and ``most``
    anywhere else."""
    if not stream.isatty():
        return most
    return max(min(shutil.get_terminal_size().columns, most), _NARROWEST)


# ---- the pieces ----


def _verified(verify: Document) -> str:
    compared, reads = verify["bytes_checked"], verify["reads_checked"]
    if compared:
        also = f"; {counted(reads, 'read')} checked as well" if reads else ""
        return f"all {counted(compared, 'byte')} right{also}"
    if reads:
        return f"all {counted(reads, 'read')} right; memory was not compared at the end"
    return "nothing was verified"


def _last_phase(document: Document) -> str:
    names = [phase["name"] for phase in document["phases"] if phase["name"] != "cleanup"]
    return names[-1] if names else "prepare"


def _mismatches(verify: Document) -> Table:
    rows = [
        (one["block"], f"{one['offset']:#x}", f"{one['expected']:#04x}", f"{one['found']:#04x}")
        for one in verify["mismatches"]
    ]
    return Table(("wrong in block", "offset", "expected", "found"), rows)


_LAGS = ("mean", "max", "end")
_ARRIVALS = ("precopied", "requested", "pushed", "zero")


def _blocks(blocks: list[Document]) -> Table:
    """The columns that say something: nothing pre-copied and nothing missing is the usual case."""
    pages = [dict(block["pages"]) for block in blocks]
    for one in pages:
        one["missing"] = one["total"] - sum(one[name] for name in _ARRIVALS)
    shown = [
        name
        for name in (*_ARRIVALS, "missing")
        if name not in ("precopied", "missing") or any(one[name] for one in pages)
    ]
    rows = [
        (
            block["name"],
            block["backing"],
            format_size(block["page_size"]),
            f"{one['total']:,}",
            *(f"{one[name]:,}" for name in shown),
        )
        for block, one in zip(blocks, pages, strict=True)
    ]
    return Table(("block", "backing", "page size", "pages", *shown), rows, left=2)


def _vcpus(document: Document) -> Table:
    guest_ns = sum(p["duration_ns"] for p in document["phases"] if p["name"] == "guest")
    paced = document["pace"]["kind"] != "asap"
    rows = []
    for vcpu in document["vcpus"]:
        latency = vcpu["latency_ns"]
        rows.append(
            (
                str(vcpu["id"]),
                _known(vcpu["accesses"]),
                f"{vcpu['faults']:,}",
                *(_time(latency[name]) for name in ("p50", "p99", "max")),
                _time(vcpu["blocktime_ns"]),
                f"{vcpu['blocktime_ns'] / guest_ns:.1%}" if guest_ns else "-",
                *(_lags(vcpu["lag_ns"]) if paced else ()),
            )
        )
    columns = ("vCPU", "accesses", "faults", "p50", "p99", "max", "blocked", "of guest time")
    return Table((*columns, *(f"lag {name}" for name in _LAGS if paced)), rows)


def _lags(lag: Document | None) -> Iterator[str]:
    return (_time(lag[name]) if lag else _UNKNOWN for name in _LAGS)


def _known(count: int | None) -> str:
    return _UNKNOWN if count is None else f"{count:,}"


def _pace(pace: Document) -> str:
    if pace["kind"] == "rate":
        return f"{counted(pace['accesses_per_second'], 'access')} a second of each vCPU"
    factor = "" if pace["factor"] == 1 else f", {pace['factor']:g} times as fast"
    return f"at recorded times{factor}"


def _clients(clients: list[Document]) -> Table:
    rows = [
        (
            client["name"],
            client["block"],
            f"{client['accesses']:,}",
            f"{client['faults']:,}",
            *(_time(client["latency_ns"][name]) for name in ("p50", "p99", "max")),
            _time(client["blocktime_ns"]),
        )
        for client in clients
    ]
    columns = ("client", "block", "accesses", "faults", "p50", "p99", "max", "blocked")
    return Table(columns, rows, left=2)


def _figures(document: Document) -> Table:
    rows = [
        ("faults", _faults(document["faults"])),
        ("requests", _requests(document["faults"])),
        ("blocked", f"all vCPUs at once for {_time(document['blocktime']['overlapped_ns'])}"),
        ("stages", _stages(document["faults"]["stages_ns"])),
        ("throughput", _throughput(document["throughput"], document["channel"])),
        ("phases", _phases(document["phases"])),
        ("userfaultfd", _userfault(document["host"]["userfault"])),
    ]
    if _carries(document["scenario"]):
        rows.insert(2, ("came along", _carried(document["faults"]["carried"]) or "none"))
    if document["placement"]:
        rows.append(("placement", _placement(document["placement"])))
    if document["precopy"]["rounds"] is None:
        rows.insert(0, ("pre-copy", "not over: what was done at the source is not known"))
    elif document["precopy"]["rounds"] or any(v["accesses_at_source"] for v in document["vcpus"]):
        rows.insert(0, ("pre-copy", _precopy(document)))
    if document["downtime_ns"]:
        rows.insert(1, ("downtime", _time(document["downtime_ns"])))
    if document["pace"]["kind"] != "asap":
        rows.insert(0, ("pace", _pace(document["pace"])))
    rows += _collapse(document["blocks"])
    rows += [("warning", warning) for warning in document["warnings"]]
    if asked := _asked(document["scenario"]):
        rows.insert(0, ("settings", asked))
    rows[:0] = _map_notes(document)
    return Table(("", ""), rows, left=2)


_BROUGHT = ("delivery", "fault_around", "prefetch", "push_order")
"""Settings of post-copy that are told where they are not as usual."""


def _asked(scenario: Document) -> str:
    """How pages were brought, as far as it was not in the usual way; empty when it was."""
    from vmemu._config.models import Channel, Postcopy

    postcopy, of_postcopy = scenario["migration"]["postcopy"], Postcopy.model_fields
    given = {"channel": scenario["channel"]["kind"]} | {name: postcopy[name] for name in _BROUGHT}
    usual = {"channel": Channel.model_fields["kind"].default}
    usual |= {name: of_postcopy[name].default for name in _BROUGHT}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value != usual[name])


def _collapse(blocks: list[Document]) -> list[tuple[str, str]]:
    """What was made hugepages, of all blocks that were to be."""
    of = {block["name"]: block["collapse"] for block in blocks if block.get("collapse")}
    told = list(of.values())
    if not told:
        return []
    done, possible, time_ns = (
        sum(one[name] for one in told) for name in ("collapsed", "possible", "time_ns")
    )
    longest_ns = max(one["longest_ns"] for one in told)
    took = f" in {_time(time_ns)}, {_time(longest_ns)} at most for one" if done else ""
    what = (
        f"{format_size(done, digits=4)} of {format_size(possible, digits=4)} made hugepages{took}"
    )
    return [("collapse", what)]


def _map_notes(document: Document) -> list[tuple[str, str]]:
    """What did not find a place of its own in the blocks, of the guest and of each client."""
    guest = {"name": "", "map": document["map"]}
    guest["dropped"] = sum(vcpu["dropped"] or 0 for vcpu in document["vcpus"])
    rows = []
    for one in (guest, *document["clients"]):
        of, pages = (f" of {one['name']}" if one["name"] else ""), one["map"]
        if one["dropped"]:
            what = f"{counted(one['dropped'], 'access')}{of} outside every block, in part at least"
            rows.append(("dropped", what))
        if pages["outside"]:
            what = f"{pages['outside']:,} of {counted(pages['pages'], 'recorded page')}{of}"
            rows.append(("outside", f"{what} in no block"))
        if pages["merged"]:
            what = f"{pages['merged']:,} of {counted(pages['pages'], 'recorded page')}{of}"
            rows.append(("merged", f"{what} on memory that another one has"))
    return rows


def _faults(faults: Document) -> str:
    if not faults["count"]:
        return "none"
    names = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max"}
    latency = faults["latency_ns"]
    quantiles = ", ".join(f"{shown} {_time(latency[name])}" for name, shown in names.items())
    return f"{faults['count']:,}, {quantiles}"


def _carries(scenario: Document) -> bool:
    """Whether pages may come along with others: that none did is worth telling then."""
    postcopy = scenario["migration"]["postcopy"]
    return bool(postcopy["fault_around"] > 1 or postcopy["prefetch"] != "none")


def _carried(carried: Document) -> str:
    what = {
        "around": "from around pages that were asked for",
        "ahead": "from where vCPUs were going",
        "overtaken": "of them waited for on their way",
    }
    return "; ".join(f"{carried[name]:,} {said}" for name, said in what.items() if carried[name])


def _requests(faults: Document) -> str:
    what = {
        "shared": "for a page asked for already",
        "late": "for a page that had just come",
        "deferred": "held back by a full return path",
        "foreign": "outside every block",
    }
    notes = [f"{faults[name]:,} {said}" for name, said in what.items() if faults[name]]
    return "; ".join([f"{faults['requests_sent']:,} sent", *notes])


def _stages(stages: Document) -> str:
    """Where a requested page spends its time; empty without any."""
    shown = [f"{name} {_time(one['p50'])}" for name, one in stages.items() if one["max"]]
    return "p50 of " + ", ".join(shown) if shown else "none"


def _precopy(document: Document) -> str:
    sent, discards = document["precopy"], document["discards"]
    at_source = sum(vcpu["accesses_at_source"] for vcpu in document["vcpus"])
    return (
        f"{counted(sent['rounds'], 'round')}, {format_size(sent['bytes_sent'], digits=4)} sent; "
        f"{counted(at_source, 'access')} at the source; "
        f"{counted(discards['commands'], 'discard')} of {counted(discards['ranges'], 'range')}"
    )


def _throughput(throughput: Document, channel: Document) -> str:
    size = format_size(throughput["bytes"], digits=4)
    rate = format_rate(throughput["bytes_per_second"], digits=3)
    text = f"{size} of pages in {_time(round(throughput['seconds'] * 1e9))}: {rate}"
    if channel["kind"] == "pipe":
        return text
    pages = channel["pages"]
    return f"{text}; {pages['continued']:,} pages mapped in place, {pages['copied']:,} copied"


def _phases(phases: list[Document]) -> str:
    return ", ".join(f"{p['name']} {_time(p['duration_ns'])}" for p in phases) or "none"


def _placement(placement: Document) -> str:
    """Where the threads ran, those of one place together, and why."""
    chosen = placement["chosen"]
    places: dict[str, list[str]] = {}
    for role, cpus in placement["cpus"].items():
        if cpus is not None:
            places.setdefault(cpus, []).append(role)
    if chosen == "none":
        return f"left to the scheduler: {placement['why']}"
    told = "; ".join(f"{', '.join(roles)} on {_cpus(cpus)}" for cpus, roles in places.items())
    return f"{told} ({chosen}: {placement['why']})"


def _cpus(numbers: str) -> str:
    return f"CPU {numbers}" if numbers.isdigit() else f"CPUs {numbers}"


def _userfault(userfault: Document) -> str:
    how = userfault["how"]
    if how is None:
        return "not opened"
    if "user-mode faults only" in how:
        return "user-mode faults only (vm.unprivileged_userfaultfd=0)"
    return str(how)


def _time(ns: int) -> str:
    return format_duration(ns, digits=3) if ns else "-"


def _hint(document: Document, command: str) -> str:
    error = document["error"] or {}
    remedy = error.get("remedy")
    if remedy:
        return f"{remedy} && {command}" if command else str(remedy)
    if error.get("kind") == "peer_gone" and "SIGKILL" in error["message"]:
        return "sudo dmesg | grep -i 'out of memory'   if nobody here killed the source"
    if not command:
        return ""
    if document["verify"]["ok"] is False:
        seed = "" if "--seed" in command else f" --seed {document['seed']}"
        return f"{command}{seed}   the seed makes the same run again"
    if document["status"] == "completed" and "--json" not in command:
        return f"{command} --json result.json   keeps these figures"
    return ""


# ---- drawing ----


def align(table: Table) -> str:
    """The table as lines of text."""
    lines = [table.columns, *table.rows] if table.figures else table.rows
    widths = [max(len(row[i]) for row in lines) for i in range(len(table.columns))]
    return "\n".join(
        _GAP.join(
            cell.ljust(width) if i < table.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )


def _show_rich(document: Document, stream: TextIO, command: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    console.print(Text(verdict(document), style=f"bold {_STYLES[document['status']]}"))
    for section in sections(document, command):
        if isinstance(section, str):
            console.print(Text(section), soft_wrap=True)
        else:
            console.print(_rich_table(section))


def _rich_table(table: Table) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=box.SIMPLE_HEAD if table.figures else None, show_header=table.figures)
    for i, name in enumerate(table.columns):
        drawn.add_column(Text(name), justify="left" if i < table.left else "right")
    for row in table.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    return drawn
