"""What a trace holds, for people: as ``vmemu trace info`` shows it, and in a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmemu.units import counted, format_size

if TYPE_CHECKING:
    from vmemu.traces.figures.stats import TraceStats
    from vmemu.traces.native.meta import Meta

_BAR = 40
_STREAMS_SHOWN = 8


def lines(stats: TraceStats) -> Iterator[str]:
    """The figures for people: tables, and what the recording can't say."""
    yield from _table(_facts(stats))
    for title, rows in (
        ("reuse of 4 KiB pages", _reuse(stats)),
        ("mean working set of a stream", _windows(stats)),
    ):
        if rows:
            yield from ("", title, *_table(rows))
    if stats.working_set:
        yield from ("", "pages touched by then, by share of the accesses", *_curve(stats))
    if len(stats.streams) > 1:
        yield from ("", "busiest streams", *_table(_streams(stats)))
    if stats.blocks:
        yield from ("", "recorded RAM blocks", *_table(_blocks(stats)))
    if stats.missing:
        yield from ("", "not recorded, and what that means for a replay", *_missing(stats))


def notes(dropped: dict[str, int], unknown: int, first: str, truncated: bool) -> list[str]:
    """What was left out on the way, a line each."""
    from vmemu.traces.figures.missing import LEFT_OUT

    found = [
        f"{counted(count, 'access')} left out: {LEFT_OUT.get(reason, reason)}"
        for reason, count in dropped.items()
    ]
    if unknown:
        what = "1 line or record means" if unknown == 1 else f"{unknown:,} lines or records mean"
        found.append(f"{what} nothing" + (f"; {first}" if first else ""))
    if truncated:
        found.append("the recording ends in the middle of something; what was whole is here")
    return found


def _facts(stats: TraceStats) -> list[tuple[str, str]]:
    missing = stats.missing
    rows = [
        ("format", stats.format),
        ("recorded format", stats.recorded_format or "not told"),
        ("addresses", stats.address_kind),
        ("accesses", f"{stats.accesses:,}"),
    ]
    if "writes" in missing:
        rows.append(("  reads and writes", "not told apart"))
    else:
        rows.append(("  reads", _share(stats.reads, stats.accesses)))
        rows.append(("  writes", _share(stats.writes, stats.accesses)))
        rows.append(
            ("  modifies", _unless("modifies", _share(stats.modifies, stats.accesses), missing))
        )
    rows += [
        ("  straddling two pages", _unless("sizes", f"{stats.straddling:,}", missing)),
        (
            "instruction fetches",
            _unless("instruction_fetches", f"{stats.instruction_fetches:,}", missing),
        ),
        ("pages of 4 KiB", f"{stats.pages_4k:,} ({_size(stats.pages_4k << 12)})"),
        ("  written", _unless("writes", _share(stats.pages_written, stats.pages_4k), missing)),
        ("pages of 2 MiB", f"{stats.pages_2m:,} ({_size(stats.pages_2m << 21)})"),
        ("span", f"{_size(stats.span_bytes)} ({counted(stats.span_bytes, 'byte')})"),
        ("threads or vCPUs", _unless("threads", f"{stats.threads:,}", missing)),
        ("time", _time(stats)),
        ("left out", _dropped(stats.dropped)),
    ]
    return rows


def _time(stats: TraceStats) -> str:
    if stats.time_range_ns is None:
        return "not recorded"
    seconds = (stats.time_range_ns[1] - stats.time_range_ns[0]) / 1e9
    rate = f", {stats.accesses / seconds:,.0f} accesses/s" if seconds else ""
    first, last = (time / 1e9 for time in stats.time_range_ns)
    return f"{seconds:,.6f} s (from {first:.6f} to {last:.6f}){rate}"


def _reuse(stats: TraceStats) -> list[tuple[str, str]]:
    reuse = stats.reuse
    if reuse is None:
        return []
    pages = reuse.accesses_per_page
    rows = [
        (
            "  accesses a page",
            f"mean {pages.mean:,.1f}, median {pages.median:,.0f}, max {pages.max:,}",
        ),
        ("  pages touched once", f"{reuse.pages_touched_once:.1%}"),
        ("  accesses to known pages", f"{reuse.accesses_to_known_pages:.2%}"),
    ]
    if reuse.time:
        time = reuse.time
        again = f"p50 {time.p50:,}, p90 {time.p90:,}, p99 {time.p99:,} accesses"
        rows.append(("  until the next touch", again))
    if reuse.pages_per_watched > 1:
        rows.append(("  estimated", f"from one page in {reuse.pages_per_watched}"))
    return rows


def _windows(stats: TraceStats) -> list[tuple[str, str]]:
    return [
        (
            f"  last {counted(window.accesses, 'access')}",
            f"{window.mean_pages:,.1f} pages ({_size(round(window.mean_pages * 4096))})",
        )
        for window in stats.windows
    ]


def _curve(stats: TraceStats) -> Iterator[str]:
    width = len(f"{stats.pages_4k:,}")
    for point in stats.working_set:
        bar = "#" * round(_BAR * point.pages / stats.pages_4k)
        yield f"  {point.percent:>3} %  {point.pages:>{width},}  {bar}"


def _streams(stats: TraceStats) -> list[tuple[str, str]]:
    busiest = sorted(stats.streams, key=lambda stream: -stream.accesses)
    rows = [
        (f"  {stream.id}", _share(stream.accesses, stats.accesses))
        for stream in busiest[:_STREAMS_SHOWN]
    ]
    rest = busiest[_STREAMS_SHOWN:]
    if rest:
        others = sum(stream.accesses for stream in rest)
        rows.append((f"  {counted(len(rest), 'other')}", _share(others, stats.accesses)))
    return rows


def _blocks(stats: TraceStats) -> list[tuple[str, str]]:
    known = "writes" not in stats.missing
    return [
        (
            f"  {block.name}",
            counted(block.pages_4k, "page")
            + (f", {block.pages_written:,} written" if known else "")
            + f", span {_size(block.span_bytes)}",
        )
        for block in stats.blocks
    ]


def _missing(stats: TraceStats) -> list[str]:
    from vmemu.traces.figures.missing import MEANING

    known = [key for key in MEANING if key in stats.missing]
    others = [key for key in stats.missing if key not in MEANING]
    return [f"  {MEANING.get(key, key)}" for key in (*known, *others)]


def _table(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _unless(key: str, value: str, missing: tuple[str, ...]) -> str:
    """A figure that the recording may know nothing of."""
    return "not recorded" if key in missing else value


def _dropped(dropped: dict[str, int]) -> str:
    """Accesses left out on purpose, by reason."""
    reasons = [f"{counted(count, 'access')} ({reason})" for reason, count in dropped.items()]
    return ", ".join(reasons) or "-"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else f"{part:,}"


def _size(size: int) -> str:
    return format_size(size, digits=4)


def converted(meta: Meta) -> str:
    """What a trace that was just made holds, in a line."""
    counts = meta.counts
    held = sum(stream.accesses for stream in meta.streams)
    fetches = held - counts.accesses
    fetched = f", {counted(fetches, 'instruction fetch')}" if fetches > 0 else ""
    pages, streams = counted(meta.pages, "page"), counted(len(meta.streams), "stream")
    text = f"{counted(counts.accesses, 'access')}{fetched}, {pages}, {streams}"
    repeats = counts.dropped.get("repeats", 0)
    if not repeats:
        return text
    factor = (held + repeats) / held
    times = f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}"
    return f"{text}; {counted(repeats, 'repeat')} left out: {times} times fewer accesses"
