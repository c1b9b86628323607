"""The result document: everything that a run showed, as plain data for JSON.

``docs/results.md`` explains each key and ``vmemu/results/schema.py`` checks them. Sizes are bytes,
times are integer nanoseconds under names that end in ``_ns``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from vmemu import unfinished
from vmemu.errors import (
    Advice,
    CoreError,
    HostError,
    InputError,
    OutputError,
    PageRefused,
    VmemuError,
)
from vmemu.version import installed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmemu.guest_worker import GuestWorker, Mismatch, Waiting
    from vmemu.runstate import Run
    from vmemu.workload import Workload

SCHEMA = "vmemu-result/1"
"""Changes its number when a key goes away or changes its meaning; new keys keep it."""

Document = dict[str, Any]

_LAG = ("paced", "lag_mean_ns", "lag_max_ns", "lag_end_ns")
_VCPU_QUANTILES = ("p50", "p90", "p99", "max")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def build(run: Run) -> Document:
    """The document of a run that has ended, however it ended: what was not reached is 0 or empty,
    what only the source knew is None.

    Only figures are read, which the run keeps; its memory is unmapped by now.
    """
    import numpy as np

    from vmemu import blocktime
    from vmemu.guest_worker import FAULT_DTYPE

    faults = [worker.faults() for worker in run.workers]
    everything = np.concatenate([np.empty(0, FAULT_DTYPE), *faults])
    vcpus = _vcpus(run, faults)
    return {
        "schema": SCHEMA,
        "vmemu": installed(),
        "host": _host(run),
        "scenario": run.scenario.effective(),
        "seed": run.scenario.seed,
        "status": run.status,
        "error": None if run.status == "completed" else _error(run.error),
        "phases": [
            {"name": p.name, "start_ns": p.start_ns, "duration_ns": p.duration_ns}
            for p in run.phases
        ],
        "blocks": _blocks(run),
        "placement": run.placement.described() if run.placement else None,
        "pace": run.scenario.guest.pace.model_dump(),
        "map": _map(run.workload),
        "vcpus": vcpus,
        "clients": _clients(run),
        "faults": {
            "count": sum(vcpu["faults"] for vcpu in vcpus),
            **_faults(run, everything),
            "worst": _worst(run, faults),
        },
        "blocktime": {
            "overlapped_ns": blocktime.overlapped(faults),
            "total_ns": sum(vcpu["blocktime_ns"] for vcpu in vcpus),
        },
        "throughput": _throughput(run),
        "channel": _channel(run),
        "precopy": _precopy(run),
        "discards": _discards(run),
        "downtime_ns": _downtime_ns(run),
        "states": _states(run),
        "verify": _verify(run),
        "balloon": _balloon(run),
        "warnings": _warnings(run),
    }


def _warnings(run: Run) -> list[str]:
    placed = [run.placement.warning] if run.placement and run.placement.warning else []
    return [*placed, *run.warnings, *(run.incoming.warnings if run.incoming else [])]


def _host(run: Run) -> Document:
    from vmemu.userfault import feature_names

    uffd = run.incoming.uffd if run.incoming else None
    return {
        "kernel": os.uname().release,
        "cpus": len(os.sched_getaffinity(0)),
        "userfault": {
            "how": uffd.how.label if uffd else None,
            "features": feature_names(int(uffd.features)) if uffd else [],
        },
    }


def _error(error: BaseException | None) -> Document:
    if error is None:
        return {"kind": "unknown", "message": "the run did not come to its end"}
    if isinstance(error, KeyboardInterrupt):
        return {"kind": "interrupted", "message": str(error) or "interrupted"}
    described: Document = {"kind": getattr(error, "kind", "internal"), "message": str(error)}
    if isinstance(error, (HostError, PageRefused)):
        described["remedy"] = "" if isinstance(error.remedy, Advice) else error.remedy
    if isinstance(error, CoreError):
        described |= {
            "operation": error.operation,
            "errno": error.errno,
            "address": error.address,
        }
    waiting: list[Waiting] | None = getattr(error, "waiting", None)
    if waiting is not None:
        described["waiting"] = [_waiting(one) for one in waiting]
    return described


def _waiting(one: Waiting) -> Document:
    waited_ns = round(one.seconds * 1e9)
    client = {"client": one.client} if one.client else {}
    where = {"block": one.block, "offset": one.offset, "waited_ns": waited_ns}
    return {"vcpu": one.vcpu, **client, **where}


def _map(workload: Workload | None) -> Document:
    """How the pages of a trace lie on the blocks."""
    return {
        "pages": len(workload.block) if workload else 0,
        "outside": workload.outside if workload else 0,
        "merged": workload.merged if workload else 0,
    }


def _clients(run: Run) -> list[Document]:
    from vmemu.client_worker import ClientFigures

    figures = {client.spec.name: client.figures for client in run.clients}
    nothing = ClientFigures.nothing()
    workloads = {client.spec.name: client.workload for client in run.clients}
    told = [(client, figures.get(client.name, nothing)) for client in run.scenario.clients]
    return [
        {
            "name": client.name,
            "block": client.block,
            "vcpus": client.vcpus,
            "map": _map(workloads.get(client.name)),
            **one.counters,
            "latency_ns": one.latency_ns,
        }
        for client, one in told
    ]


def _blocks(run: Run) -> list[Document]:
    ram = run.incoming.ram if run.incoming else None
    blocks = []
    for index, block in enumerate(run.scenario.blocks):
        arrived = ram.block[index].arrived if ram is not None else None
        blocks.append(
            {
                "name": block.name,
                "backing": block.backing,
                "page_size": block.page_size,
                "size": block.size,
                "pages": {
                    "total": block.size // block.page_size,
                    "precopied": int(arrived.precopied) if arrived else 0,
                    "discarded": int(ram.block[index].discarded) if ram is not None else 0,
                    "requested": int(arrived.requested) if arrived else 0,
                    "pushed": int(arrived.pushed) if arrived else 0,
                    "zero": int(arrived.zero) if arrived else 0,
                },
                "collapse": _collapse(run, index),
            }
        )
    return blocks


def _collapse(run: Run, index: int) -> Document | None:
    figures = run.incoming.collapse.figures(index) if run.incoming else None
    if figures is None:
        return None
    return {
        "possible": figures.possible,
        "collapsed": figures.collapsed,
        "mapped": figures.mapped if run.status == "completed" else None,
        "failed": dict(figures.failed),
        "why": figures.why,
        "time_ns": figures.time_ns,
        "longest_ns": figures.longest_ns,
    }


def _precopy(run: Run) -> Document:
    flip = run.flip
    none = None if run.ended_in_precopy else 0
    return {
        "rounds": flip.rounds if flip else none,
        "pages_sent": flip.precopy_pages if flip else none,
        "bytes_sent": flip.precopy_bytes if flip else none,
        "dirty_tracking": asdict(flip.dirty_tracking) if flip and flip.dirty_tracking else None,
    }


def _discards(run: Run) -> Document:
    discards = run.incoming.discards if run.incoming else None
    names = ("commands", "ranges", "bytes")
    return {name: getattr(discards, name) if discards else 0 for name in names}


def _balloon(run: Run) -> Document | None:
    if run.balloon is None:
        return None
    figures = run.balloon.figures
    return {
        "done": figures.done,
        "refused": figures.refused,
        "bytes_given_back": figures.bytes_given_back,
    }


def _downtime_ns(run: Run) -> int:
    """From the last vCPU's stop at the source until the first one could go on here."""
    started = [int(worker.figures.started_ns) for worker in run.workers]
    if run.flip is None or not any(started):
        return 0
    return max(min(filter(None, started)) - run.flip.stopped_ns, 0)


def _states(run: Run) -> list[Document]:
    if run.incoming is None:
        return []
    return [
        {"state": state.value, "at_ns": at_ns - run.started_ns}
        for state, at_ns in run.incoming.states
    ]


def _vcpus(run: Run, faults: list[NDArray[Any]]) -> list[Document]:
    if not run.workers:
        return [_vcpu(run, index, None, None) for index in range(run.scenario.guest.vcpus)]
    return [
        _vcpu(run, worker.index, worker, own)
        for worker, own in zip(run.workers, faults, strict=True)
    ]


def _vcpu(
    run: Run, index: int, worker: GuestWorker | None, faults: NDArray[Any] | None
) -> Document:
    import numpy as np

    from vmemu import blocktime

    before = run.flip.vcpus[index] if run.flip and run.flip.vcpus else {}
    unknown = _lost_at_source(run)
    vcpu: Document = {"id": index}
    for name in ("accesses", "reads", "writes", "dropped", "faults", "blocktime_ns"):
        here = int(getattr(worker.figures, name)) if worker else 0
        vcpu[name] = here + before.get(name, 0)
    vcpu["accesses_at_source"] = before.get("accesses", 0)
    if unknown:
        vcpu |= dict.fromkeys(("accesses", "reads", "writes", "dropped", "accesses_at_source"))
    timeless = unknown or run.scenario.guest.pace.kind == "asap"
    vcpu["lag_ns"] = None if timeless else _lag(before, worker)
    latency = blocktime.latencies(faults) if faults is not None else np.empty(0, np.uint64)
    summary = blocktime.summary(latency)
    vcpu["latency_ns"] = {name: summary[name] for name in _VCPU_QUANTILES}
    vcpu["qemu_buckets"] = blocktime.qemu_buckets(latency)
    return vcpu


def _lost_at_source(run: Run) -> bool:
    """Whether the guest ran at the source and never came to tell what it did there."""
    from vmemu.source_plan import runs_at_source

    return (
        run.ended_in_precopy
        and run.workload is not None
        and runs_at_source(run.scenario, run.workload)
    )


def _lag(before: Mapping[str, int], worker: GuestWorker | None) -> Document:
    """How late a vCPU's accesses were, at the source and here."""
    here = worker.figures if worker else None
    parts = [
        {name: int(getattr(here, name)) for name in _LAG} if here else {},
        {name: before.get(name, 0) for name in _LAG},
    ]
    paced = [part for part in parts if part.get("paced")]
    count = sum(part["paced"] for part in paced)
    total = sum(part["paced"] * part["lag_mean_ns"] for part in paced)
    return {
        "mean": total // count if count else 0,
        "max": max((part["lag_max_ns"] for part in paced), default=0),
        "end": paced[0]["lag_end_ns"] if paced else 0,
    }


def _faults(run: Run, faults: NDArray[Any]) -> Document:
    import numpy as np

    from vmemu import blocktime

    stats = run.incoming.figures.stats if run.incoming else None
    names = {"requests_sent": "requests"} | {
        name: name
        for name in (
            "messages",
            "shared",
            "late",
            "spurious",
            "foreign",
            "of_clients",
            "deferred",
        )
    }
    counts = {key: int(getattr(stats, name)) if stats else 0 for key, name in names.items()}
    latency = blocktime.latencies(faults)
    requested = (
        run.incoming.requested_pages() if run.incoming else np.empty(0, blocktime.STAGE_DTYPE)
    )
    others = blocktime.of_others(requested, [int(w.figures.thread) for w in run.workers])
    return {
        **counts,
        "delivery": run.scenario.migration.postcopy.delivery,
        "latency_ns": blocktime.summary(latency),
        "histogram": blocktime.histogram(latency),
        "stages_ns": blocktime.stages(requested),
        "others": {
            "count": len(others),
            "latency_ns": blocktime.summary(others),
            "qemu_buckets": blocktime.qemu_buckets(others),
        },
        "placing": _placing(run),
        "carried": _carried(run),
    }


def _worst(run: Run, faults: list[NDArray[Any]]) -> list[Document]:
    from vmemu import blocktime

    return [
        {
            "vcpu": vcpu,
            "block": run.scenario.blocks[int(fault["block"])].name,
            "offset": int(fault["offset"]),
            "write": bool(fault["write"]),
            "start_ns": int(fault["start_ns"]) - run.started_ns,
            "latency_ns": int(fault["end_ns"] - fault["start_ns"]),
        }
        for vcpu, fault in blocktime.worst(faults)
    ]


def _placing(run: Run) -> Document:
    """What placing pages met on the way, on both channels."""
    names = ("exists", "again", "partial")
    return {name: sum(int(getattr(part, name)) for part in _placed(run)) for name in names}


def _carried(run: Run) -> Document:
    """Pages that came along with the answers to faults."""
    carried = run.incoming.figures.carried if run.incoming else None
    names = ("around", "ahead", "overtaken")
    return {name: int(getattr(carried, name)) if carried else 0 for name in names}


def _channel(run: Run) -> Document:
    """How pages came after the flip, but for those of zeros."""
    names = ("copied", "continued")
    placed = {name: sum(int(getattr(part, name)) for part in _placed(run)) for name in names}
    return {"kind": run.scenario.channel.kind, "pages": placed}


def _placed(run: Run) -> Sequence[Any]:
    """What was placed, by each who places: a ``struct vm_place_stats`` each."""
    if run.incoming is None:
        return ()
    figures = run.incoming.figures
    listening = (figures.placed_main, figures.placed_beside)
    return (*listening, figures.placed_urgent, *run.incoming.deliveries.placed)


def _throughput(run: Run) -> Document:
    received = int(run.incoming.figures.bytes_received) if run.incoming else 0
    elapsed_ns = 0
    if run.postcopy_started_ns:
        elapsed_ns = max((run.postcopy_ended_ns or _gave_up_ns(run)) - run.postcopy_started_ns, 0)
    rate = round(received * 1e9 / elapsed_ns) if elapsed_ns else 0
    return {"bytes": received, "seconds": elapsed_ns / 1e9, "bytes_per_second": rate}


def _gave_up_ns(run: Run) -> int:
    """When a run that did not complete stopped taking pages."""
    starts = [p.start_ns for p in run.phases if p.name == "cleanup"]
    return run.started_ns + starts[0] if starts else 0


def _verify(run: Run) -> Document:
    final = run.verification
    found = list(run.flip.mismatches) if run.flip else []
    found += [one for worker in run.workers for one in worker.mismatches()]
    found += [one for client in run.clients for one in client.figures.mismatches]
    found += final.mismatches() if final else []
    figures = [worker.figures for worker in run.workers]
    verified = {
        **{
            name: sum(int(getattr(one, name)) for one in figures)
            + (run.flip.total(name) if run.flip else 0)
            + sum(client.figures.counters[name] for client in run.clients)
            for name in ("reads_checked", "reads_wrong")
        },
        "bytes_checked": final.bytes_checked if final else 0,
        "bytes_wrong": final.bytes_wrong if final else 0,
    }
    return {
        "ok": _verdict(run.status, verified),
        **verified,
        "mismatches": [_mismatch(one) for one in dict.fromkeys(found)],
    }


def _verdict(status: str, verified: Mapping[str, int]) -> bool | None:
    """False as soon as anything is wrong, True only for a run that got to its end."""
    if verified["reads_wrong"] or verified["bytes_wrong"]:
        return False
    checked = verified["reads_checked"] or verified["bytes_checked"]
    return True if status == "completed" and checked else None


def _mismatch(one: Mismatch) -> Document:
    return {
        "block": one.block,
        "offset": int(one.offset),
        "expected": int(one.expected),
        "found": int(one.found),
    }


# ---- writing it ----


def check_place(path: str, *inputs: str | os.PathLike[str]) -> None:
    """Raise InputError when ``write`` could not write there, or would replace one of ``inputs``:
    better before the work than after it."""
    if path == "-":
        return
    if os.path.exists(path):
        for source in inputs:
            if os.path.exists(source) and os.path.samefile(path, source):
                raise InputError(f"{path}: is read by this command; name another file")
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory; name a file in it")
    directory = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(directory):
        raise InputError(f"{path}: can't be written: {directory} is no directory")
    place = directory if _replaceable(path) else path
    if not os.access(place, os.W_OK):
        raise InputError(f"{path}: can't be written: {place}: permission denied")


def write(document: Document, path: str) -> None:
    """Write the document as JSON to the file ``path``, all of it or nothing; ``-`` is stdout.

    A file is replaced by a rename, so that whoever reads it sees the old or the new one; what is no
    ordinary file (a device, a pipe) is written to. Raises InputError when the place can't be
    written, VmemuError when it is full, OutputError for a stdout that takes nothing.
    """
    write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", path)


def write_text(text: str, path: str) -> None:
    """Write ``text`` as ``write`` does its document."""
    try:
        if path == "-":
            _write_stdout(text)
        elif _replaceable(path):
            _replace(os.path.realpath(path), text)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    except BrokenPipeError:
        raise  # whoever read it has gone: not worth a message
    except OSError as error:
        kind = VmemuError if error.errno in _NO_SPACE else InputError
        raise kind(f"{path}: the result can't be written: {error.strerror}") from None


def _replaceable(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # not there yet, or whatever opening it will say


def _write_stdout(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        raise OutputError(f"standard output can't be written: {error.strerror}") from None


def silence(stream: TextIO) -> None:
    """Give a stream that can't be written to the null device: the interpreter would try again at
    its exit, and complain where nobody can read it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _replace(path: str, text: str) -> None:
    """Write a new file next to ``path`` and rename it; its mode is 0666 less the umask."""
    temporary = unfinished.temporary(path)
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
