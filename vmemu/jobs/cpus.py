"""CPUs dealt to workers that run beside each other, so that each keeps to its own.

The CPUs are those that this process may use, which is where cgroups and ``taskset`` show. They are
dealt in the order of the machine, so that the hyperthreads of a core, and the cores of a NUMA node,
stay together as far as equal shares let them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping

from vmemu.topology import place

_XDIST_WORKER = re.compile(r"gw(\d+)")


def deal(worker: int, workers: int, allowed: Collection[int] | None = None) -> frozenset[int]:
    """The CPUs of ``worker``, which counts from 0, of ``workers``.

    Shares are disjoint and equal within one, and together they are all that is ``allowed`` (by
    default what this process may use). Where there are more workers than CPUs each has one, and
    they go round. Raises ValueError for a worker that is none of them, and without CPUs.
    """
    cpus = sorted(os.sched_getaffinity(0) if allowed is None else set(allowed), key=place)
    if not 0 <= worker < workers or not cpus:
        raise ValueError(f"no worker {worker} of {workers} on {len(cpus)} CPUs")
    if workers > len(cpus):
        return frozenset({cpus[worker % len(cpus)]})
    begin, end = (len(cpus) * at // workers for at in (worker, worker + 1))
    return frozenset(cpus[begin:end])


def share_of_xdist(environ: Mapping[str, str] = os.environ) -> frozenset[int]:
    """The CPUs of this worker of pytest-xdist; without xdist, all that this process may use.

    A worker that stands in for one that has crashed has a number beyond their count: it gets the
    share of one of the others.
    """
    name = _XDIST_WORKER.fullmatch(environ.get("PYTEST_XDIST_WORKER", ""))
    count = environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    if name is None or not count.isdecimal() or int(count) == 0:
        return deal(0, 1)
    return deal(int(name[1]) % int(count), int(count))
