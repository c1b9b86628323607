"""Models of the result document, for whoever reads one: tests, reports, comparisons.

``vmemu run`` writes the document without them; ``docs/results.md`` says what each key means.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from vmemu.errors import InputError
from vmemu.model.base import Model
from vmemu.model.faults import Refusal, ValidationError
from vmemu.model.fields import Field, ValidationInfo, model_validator

Count = Annotated[int, Field(ge=0)]
Nanoseconds = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]
QemuBuckets = Annotated[tuple[Count, ...], Field(min_length=24, max_length=24)]
Byte = Annotated[int, Field(ge=0, le=255)]


def _inconsistent(what: str) -> Refusal:
    return Refusal("inconsistent", what)


class Userfault(Model):
    """``how`` is None when the run did not get as far as opening userfaultfd."""

    how: str | None
    features: tuple[str, ...]


class Host(Model):
    """The machine; ``cpus`` is how many the run could use."""

    kernel: str
    cpus: Annotated[int, Field(ge=1)]
    userfault: Userfault


class WaitingVcpu(Model):
    """A vCPU that waited for a page that did not come."""

    vcpu: Count
    client: str | None = None
    block: str
    offset: Bytes
    waited_ns: Nanoseconds


class Error(Model):
    """Why a run is not completed; what is not of its kind is absent."""

    kind: str
    message: str
    remedy: str | None = None
    operation: str | None = None
    errno: int | None = None
    address: Count | None = None
    waiting: tuple[WaitingVcpu, ...] | None = None


class Phase(Model):
    """A stretch of the run, from its begin."""

    name: str
    start_ns: Nanoseconds
    duration_ns: Nanoseconds


class Pages(Model):
    """Host pages of a block, each counted once by how its final content arrived."""

    total: Count
    precopied: Count
    discarded: Count
    requested: Count
    pushed: Count
    zero: Count

    @property
    def arrived(self) -> int:
        """Pages that are there."""
        return self.precopied + self.requested + self.pushed + self.zero

    @model_validator
    def _each_once(self, info: ValidationInfo) -> None:
        if self.arrived > self.total:
            raise _inconsistent(f"{self.arrived} pages arrived, of {self.total}")


class Collapse(Model):
    """What of a block was made transparent hugepages; ``failed`` are regions of 2 MiB that were
    not, by reason."""

    possible: Bytes
    collapsed: Bytes
    mapped: Bytes | None
    failed: dict[Literal["again", "memory", "busy", "refused"], Count]
    why: str
    time_ns: Nanoseconds
    longest_ns: Nanoseconds

    @model_validator
    def _parts(self, info: ValidationInfo) -> None:
        if self.collapsed > self.possible:
            raise _inconsistent("more was made hugepages than could be")


class Block(Model):
    """A RAM block."""

    name: str
    backing: Literal["anonymous", "hugetlbfs", "shared"]
    page_size: Annotated[int, Field(gt=0)]
    size: Annotated[int, Field(gt=0)]
    pages: Pages
    collapse: Collapse | None

    @model_validator
    def _whole_pages(self, info: ValidationInfo) -> None:
        if self.pages.total * self.page_size != self.size:
            raise _inconsistent(f"{self.pages.total} pages of {self.page_size} are not {self.size}")


class Map(Model):
    """Recorded pages of a trace: all, those in no block, those on memory that another one has."""

    pages: Count
    outside: Count
    merged: Count

    @model_validator
    def _parts(self, info: ValidationInfo) -> None:
        if self.outside + self.merged > self.pages:
            raise _inconsistent("more pages lie outside or are merged than there are")


class VcpuLatency(Model):
    """How long a vCPU's faults stopped it."""

    p50: Nanoseconds
    p90: Nanoseconds
    p99: Nanoseconds
    max: Nanoseconds


class Lag(Model):
    """How late accesses were; ``end`` is that of the last one."""

    mean: Nanoseconds
    max: Nanoseconds
    end: Nanoseconds


class Vcpu(Model):
    """What a vCPU did and what it suffered."""

    id: Count
    accesses: Count | None
    reads: Count | None
    writes: Count | None
    dropped: Count | None
    faults: Count
    blocktime_ns: Nanoseconds
    accesses_at_source: Count | None
    lag_ns: Lag | None
    latency_ns: VcpuLatency
    qemu_buckets: QemuBuckets


class Pace(Model):
    """When accesses were made; what is not of its kind is absent."""

    kind: Literal["asap", "recorded", "rate"]
    factor: Annotated[float, Field(gt=0)] | None = None
    accesses_per_second: Annotated[int, Field(ge=1)] | None = None


class CpusByRole(Model):
    """Where the threads of each role ran, as lists of CPUs; None: there were none of it."""

    vcpus: str
    clients: str | None
    fault: str | None
    urgent: str
    listen: str
    push: str | None


class Placement(Model):
    """On which CPUs a fault was served, and why; the costs are None where nothing depended on
    them."""

    asked: Literal["auto", "colocate", "spread", "none", "explicit"]
    chosen: Literal["colocate", "spread", "none", "explicit"]
    why: str
    wakeup_same_ns: Nanoseconds | None
    wakeup_other_ns: Nanoseconds | None
    cpus: CpusByRole


class Client(Model):
    """What a process beside the guest did and what it suffered, its threads together."""

    name: str
    block: str
    vcpus: Annotated[int, Field(ge=1)]
    map: Map
    accesses: Count
    reads: Count
    writes: Count
    dropped: Count
    faults: Count
    blocktime_ns: Nanoseconds
    reads_checked: Count
    reads_wrong: Count
    latency_ns: VcpuLatency


class Latency(Model):
    """How long faults of all vCPUs stopped them."""

    p50: Nanoseconds
    p90: Nanoseconds
    p99: Nanoseconds
    p999: Nanoseconds
    max: Nanoseconds
    mean: Nanoseconds


class Bucket(Model):
    """Faults that took at most ``le_ns`` and more than the bucket before."""

    le_ns: Nanoseconds
    count: Count


class Stages(Model):
    """How long each stage of a requested page took."""

    request: Latency
    queue: Latency
    transfer: Latency
    place: Latency


class Others(Model):
    """Faults of threads that are no vCPU, from the fault to the page's place."""

    count: Count
    latency_ns: Latency
    qemu_buckets: QemuBuckets


class Placing(Model):
    """What placing pages met on the way; none of it is an error."""

    exists: Count
    again: Count
    partial: Count


class WorstFault(Model):
    """One of the longest faults of a run: the access that was stopped, when and for how long."""

    vcpu: Count
    block: str
    offset: Bytes
    write: bool
    start_ns: Nanoseconds
    latency_ns: Nanoseconds


class Carried(Model):
    """Pages that came along with answers; ``overtaken``: somebody came to wait for it meanwhile."""

    around: Count
    ahead: Count
    overtaken: Count

    @model_validator
    def _parts(self, info: ValidationInfo) -> None:
        if self.overtaken > self.around + self.ahead:
            raise _inconsistent("more pages were overtaken than came along")


class Faults(Model):
    """Faults of all vCPUs, and what was seen of them by who served them: ``delivery`` says who."""

    count: Count
    requests_sent: Count
    messages: Count
    shared: Count
    late: Count
    spurious: Count
    foreign: Count
    of_clients: Count
    deferred: Count
    delivery: Literal["thread", "sigbus"] = "thread"
    latency_ns: Latency
    histogram: tuple[Bucket, ...]
    stages_ns: Stages
    others: Others
    placing: Placing
    carried: Carried
    worst: Annotated[tuple[WorstFault, ...], Field(max_length=10)]


class Blocktime(Model):
    """``overlapped_ns``: all vCPUs were stopped at once; ``total_ns``: the sum over vCPUs."""

    overlapped_ns: Nanoseconds
    total_ns: Nanoseconds


class Throughput(Model):
    """Page content that came while pages were coming."""

    bytes: Bytes
    seconds: Annotated[float, Field(ge=0)]
    bytes_per_second: Bytes


class Placed(Model):
    """Host pages by what placed them: a copy, or the kernel's mapping of what is there."""

    copied: Count
    continued: Count


class Channel(Model):
    """What pages came through after the flip; those of zeros are not counted."""

    kind: Literal["pipe", "shm"]
    pages: Placed


class Discards(Model):
    """What the source told the destination to forget of pre-copy."""

    commands: Count
    ranges: Count
    bytes: Bytes


class DirtyTracking(Model):
    """Who noted which pages the guest wrote at the source, and why."""

    method: Literal["kernel", "replay"]
    reason: str


class Precopy(Model):
    """What was sent before the flip: target pages, counted each time that they went.

    ``dirty_tracking`` is None when the guest did not run at the source.
    """

    rounds: Count | None
    pages_sent: Count | None
    bytes_sent: Bytes | None
    dirty_tracking: DirtyTracking | None


class State(Model):
    """A state that the destination entered."""

    state: Literal["advise", "discard", "listening", "running", "paused", "end"]
    at_ns: Nanoseconds


class Balloon(Model):
    """What a balloon gave back, and how often it was refused."""

    done: Count
    refused: Count
    bytes_given_back: Bytes


class Mismatch(Model):
    """A byte that is not what it must be."""

    block: str
    offset: Bytes
    expected: Byte
    found: Byte


class Verify(Model):
    """``ok`` is None when nothing was checked, or the run ended before all of it was."""

    ok: bool | None
    reads_checked: Count
    reads_wrong: Count
    bytes_checked: Bytes
    bytes_wrong: Bytes
    mismatches: tuple[Mismatch, ...]


class Result(Model):
    """The whole document."""

    schema_: Literal["vmemu-result/1"] = Field(alias="schema")
    vmemu: str
    host: Host
    scenario: dict[str, Any]
    seed: Annotated[int, Field(ge=0, le=(1 << 64) - 1)]
    status: Literal["completed", "failed", "interrupted", "skipped"]
    error: Error | None
    phases: tuple[Phase, ...]
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    placement: Placement | None
    pace: Pace
    map: Map
    vcpus: Annotated[tuple[Vcpu, ...], Field(min_length=1)]
    clients: tuple[Client, ...]
    faults: Faults
    blocktime: Blocktime
    throughput: Throughput
    channel: Channel
    precopy: Precopy
    discards: Discards
    downtime_ns: Nanoseconds
    states: tuple[State, ...]
    verify: Verify
    balloon: Balloon | None
    warnings: tuple[str, ...]

    @model_validator
    def _consistent(self, info: ValidationInfo) -> None:
        if (self.error is None) != (self.status == "completed"):
            raise _inconsistent("exactly the runs that are not completed have an error")
        if self.status == "completed":
            for block in self.blocks:
                if block.pages.arrived != block.pages.total:
                    raise _inconsistent(f"block {block.name} is not complete, but the run is")
            if self.verify.ok is False:
                raise _inconsistent("a run with wrong bytes is not completed")
        unknown = self.precopy.rounds is None
        if unknown and self.status == "completed":
            raise _inconsistent("a completed run knows what the source did")
        for vcpu in self.vcpus:
            if vcpu.accesses is None and not unknown:
                raise _inconsistent("accesses are only unknown of a run that ended in pre-copy")
            if (vcpu.lag_ns is None) != (self.pace.kind == "asap" or vcpu.accesses is None):
                raise _inconsistent("exactly the vCPUs of a guest with a pace have a lag")


def validate(document: object) -> Result:
    """The document as models. Raises InputError with a line for each thing wrong."""
    try:
        return Result.model_validate(document)
    except ValidationError as error:
        lines = [f"{_key(fault.loc)}: {fault.message}" for fault in error.faults]
        raise InputError("this is no result of vmemu-result/1:\n" + "\n".join(lines)) from None


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place)) or "document"
