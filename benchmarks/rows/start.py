"""What a run takes before and after it does anything."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from context import Context
from frame import Of, Row
from workloads import GIB, MIB, block, phase_ns, pushed

_TINY = {
    "name": "tiny",
    "blocks": [{"name": "ram", "backing": "anonymous", "size": "1MiB"}],
    "guest": {"trace": {"synthetic": {"kind": "permutation"}}},
}


def rows(context: Context) -> Iterable[Row]:
    def vmemu() -> float:
        begin = time.perf_counter()
        context.vmemu(_TINY, context.all_cpus)
        return (time.perf_counter() - begin) * 1e3

    def interpreter() -> float:
        begin = time.perf_counter()
        context.run([sys.executable, "-c", ""], context.all_cpus)
        return (time.perf_counter() - begin) * 1e3

    yield Row(
        "start",
        "vmemu run of a scenario of 1 MiB, from its command line to its end",
        "ms",
        "all CPUs",
        vmemu,
        interpreter,
        "a bare interpreter",
        target=250,
        of=Of.DIFFERENCE,
        held_by="imports are most of it, in two processes: of their CPU time numpy takes 45 to 80"
        " ms, the methods of 64 dataclasses 40 to 65, click and yaml 25; and multiprocessing starts"
        " its tracker of resources beside the source",
    )
    yield Row(
        "set-up",
        "setting up and tearing down besides copying: the phases map, source, listen and cleanup"
        " of 1 GiB, beyond those of 1 MiB, a GiB",
        "ms",
        "all CPUs",
        lambda: _set_up_ms(context),
        target=60,
        of=Of.FIGURE,
        held_by="freeing memory is most of it: to unmap 1 GiB of 4 KiB pages takes one thread 59 ms"
        " of the kernel's time, and two on two CPUs 40 to 53 ms, as the lists of pages have locks",
    )


def _set_up_ms(context: Context) -> float:
    """The image that the source makes is in the phase precopy, and so not counted."""
    size = GIB // 2 if context.quick else GIB

    def phases_ms(size: int) -> float:
        scenario = pushed(block(size), verify={"reads": False, "final": False})
        result = context.vmemu(scenario, context.all_cpus)
        return phase_ns(result, "map", "source", "listen", "cleanup") / 1e6

    return (phases_ms(size) - phases_ms(MIB)) * GIB / size
