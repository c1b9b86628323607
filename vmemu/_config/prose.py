"""What the reference says beyond the tables that the models give."""

# ruff: noqa: E501 - rows of tables can't be wrapped

from __future__ import annotations

TITLE = """\
# Scenario reference

<!-- Made by `python -m vmemu.scenario_reference > docs/scenario.md` from the models. -->

One YAML file describes a run. `vmemu config explain guest.trace.map` shows a part of this page,
`vmemu config schema` gives the same as a JSON schema (for editors), `vmemu config show FILE` the
effective configuration of a scenario with all its defaults, as a scenario that can be run again.

## How values are written

| value | is written as |
| --- | --- |
| size | a whole number of bytes, or a number with `B`, `KiB`, `MiB`, `GiB` or `TiB`: `4096`, `2MiB`, `1.5GiB`. There is no `MB` or `M` |
| duration | a number with `ns`, `us`, `ms`, `s` or `min`: `250us`, `1.5s`. Never without a unit |
| rate | a size a second, or decimal bits as links have them (`bit`, `kbit`, `Mbit`, `Gbit`): `1GiB/s`, `10Gbit/s` |
| share | a number from 0 to 1, or a percentage: `0.25`, `25%` |
| place in a trace | a number of accesses, counted from 0, or a percentage of them: `1594333`, `12.5%` |
| list of CPUs | as the kernel writes them: `0`, `0-3,8` |
| name | text of 1 to 255 bytes without unprintable characters |
| path of what exists | text; a relative path starts at the directory of the scenario file, in `--set` too |
| absolute path | text that begins with `/` |

The YAML is strict: an unknown key is an error, and so is what YAML readers disagree about (`no`,
`1e3`, `010`, `1:30`, a key without a value), aliases, merge keys and tags. Quotes make text of
anything. All errors are told at once, each with file, line, column, field, and what would do.

`vmemu run FILE --set guest.vcpus=4 --set 'blocks[pc.ram].size=64MiB'` replaces single values: a
list's entry is named by its number from 0 or, in brackets, by its `name`, and what follows `=` is
YAML. `--seed N` is short for `--set seed=N`.
"""

FURTHER = {
    "channel": """\
With `channel: {kind: shm}` the pages of shared blocks lie in memory that the destination has mapped as well: there
they are only mapped, and nothing is copied. Those of other backings are copied once, from the source's image to
their place, and so are all where the kernel can't do the former (`vmemu doctor --feature shm`).
""",
    "placement": """\
A fault passes four threads, and where they run matters more than what they do: waking one on another CPU
that is at rest costs many times what a switch does. The words:

| word | meaning |
| --- | --- |
| `auto` | measures at the start what waking a thread costs on its own CPU and on another one, and chooses `colocate` or `none` by that, by how many threads may fault, how much they compute between two faults, and how large their pages are |
| `colocate` | vCPUs, clients, fault threads and the source's server share the CPU on which the run began, and what only moves bulk is kept off it; without `preempt` pages that are asked for come with the bulk, so the listen thread is there as well. With `delivery: sigbus` each vCPU and the thread of the source that serves it share a CPU, and each such pair has one of its own as long as there are any |
| `spread` | those that hand a page to each other have different CPUs, and so do vCPUs and threads of clients, as far as there are enough; where there are not, check and run warn |
| `none` | the scheduler decides |

With a word, all threads may run anywhere again once the last page is there or the guest is done, and the guest
at the source runs anywhere. CPUs that are named are kept from beginning to end. No placement ever goes
beyond the CPUs that the process was given (`taskset`, the cpuset of a control group): to name others is an error, and so is to name
some for threads that there are not: `clients` without clients, `fault` with `delivery: sigbus` and without clients, `push` with `preempt: false`.
""",
    "blocks[]": """\
A block is what QEMU calls a RAMBlock. Its host pages are what is requested, sent and placed as one:
4 KiB for anonymous and shared memory (the base page size of the host), or the hugepages of
`hugetlbfs`, which come from the machine's pool (`sysctl vm.nr_hugepages`).

**Hugepages with the latency of small pages.** A fault on a page of 2 MiB waits for all of it. With
`collapse: on_complete` a block comes in pages of 4 KiB, and each 2 MiB of it becomes a transparent
hugepage (`MADV_COLLAPSE`) as soon as all of it is there, while the rest still arrives; a run is over when
this is done too. It gives way to faults, and nothing is collapsed that has a page missing. Pages of zeros
take memory then. What of a block is less than 2 MiB at its end stays as it is, and so does all of it on a
host that can't do this; the result says how much was collapsed, and `vmemu check` says so before.
""",
    "guest.trace": """\
**Which vCPU replays what.** A recording holds streams, one for each recorded thread or vCPU. With
`threads: round_robin`, stream *i* goes to vCPU *i* modulo `vcpus`; with more vCPUs than streams, those
that would get the same stream each get a contiguous part of it. With `threads: by_id`, the stream with
the id *N* goes to vCPU *N* modulo `vcpus`, and there may be vCPUs without any. Several streams of one
vCPU are replayed in turn, some thousand accesses of each, or, at recorded times, in the order of these.
Synthetic accesses are split evenly.

**Several traces.** A list has its traces replayed side by side: each is dealt to all vCPUs, with its own
map, window, loops and threads. What two of them write to the same bytes is the same.

```yaml
trace:
  - {file: traces/linux-boot.vmtrace, map: {block: pc.ram}}
  - {file: traces/sort.vmtrace, map: {block: vga.vram}, loops: 10, threads: by_id}
  - {synthetic: {kind: uniform, accesses: 100000}}
```

**Loops.** The window is replayed `loops` times: each stream begins again where it ends. Positions of
`window` are those in the trace, once; those of `migration.flip_at`, and the accesses of the result,
count all loops of all traces. At recorded times, one loop begins when the whole window of the trace is
over.

[docs/traces.md](traces.md) says how traces are recorded and what they hold,
[docs/formats.md](formats.md) which recordings can be converted.
""",
    "guest.trace.map": """\
**Compaction** is for recordings whose addresses say nothing about RAM, such as those of a process.
The pages that the trace touches are laid one behind the other, in the order of their addresses, on
the first block, then on the second, and so on: it fills from the front, so later blocks stay
untouched when the first ones have room. `block` names the one block to use. To make a trace touch
several blocks, give each its part by `kind: regions`.

**Regions** are for guest-physical recordings. Each is a text

```
START-END=block
START-END=block+OFFSET
```

The recorded addresses from START up to END, which is exclusive, lie in `block` from OFFSET on (0
when it is left out). Each number is a size (`128MiB`, `4096`) or hexadecimal (`0x107fc0000`), and a
multiple of 4 KiB. Regions may not overlap, and must fit into their blocks; the same bytes of a block
may be given to two regions. A PC has its RAM below a hole that ends at 4 GiB, and the rest above it.

```yaml
map:
  kind: regions
  regions:
    - 0-64MiB=pc.ram
    - 64MiB-128MiB=huge0
    - 0x107fc0000-0x108000000=pc.bios+0x0
  outside: drop
```

**Recorded blocks** (`kind: blocks`) are for traces that name places by RAM block and offset, as QEMU's
log does. [docs/traces.md](traces.md#how-a-trace-is-laid-on-memory) compares all kinds, and `vmemu trace
map SCENARIO.yaml` shows where everything will lie.
""",
    "guest.trace.synthetic": """\
[docs/traces.md](traces.md#synthetic-traces) says what each kind does, and what several vCPUs make of
it.
""",
    "guest.trace.synthetic.phases[]": """\
```yaml
kind: phases
repeat: 10
phases:
  - accesses: 100000
    patterns:
      - {kind: sequential, stop: 50%, write_share: 1.0}
  - accesses: 400000
    patterns:
      - {kind: zipf, block: pc.ram, weight: 3}
      - {kind: uniform, start: 50%, weight: 1}
```
""",
    "guest.pace": """\
**`recorded`**: a trace begins with the earliest time in its window, so that what its threads did at
the same time is done at the same time; several traces begin together. `factor: 2.0` takes half the
time. A time that is earlier than that of an access before it in the same stream counts as that one.
A trace without times (`vmemu trace info` says so), or a synthetic one, is refused.
`configs/recorded-faults.yaml` is an example.

**`rate`**: access number *n* of a vCPU is due *n* / `accesses_per_second` after its begin. The rate is
that of each vCPU, not of all together.

An access is never made before it is due. One whose vCPU waits for a page meanwhile, or that the host
is too slow for, is late, and those behind it follow at once until nothing is due; how late they are is
the *lag* in the [result](results.md). A vCPU that sleeps leaves its CPU to others, and wakes some ten
microseconds late, on a busy host later. After the flip the clock goes on with the earliest access of
all vCPUs that is not yet done (with `rate`, each vCPU with its own): downtime makes nothing late. A
`flip_at` at a place of the trace is, with recorded times, the moment at which that many accesses are
due, for all vCPUs; otherwise each vCPU stops at the same share of its own accesses. Clients make their
accesses as fast as they can.
""",
    "guest.balloon": """\
Host pages of all blocks are given back, in an order made from the seed. They must read as zeros
afterwards; `balloon` in the [result](results.md) counts what was refused and what was given back.
""",
    "on_unavailable": """\
What can be waited for is hugepages that others hold now. Runs that wait come in turn, whatever each
needs; one that needs more than the pool has lets the others pass until the pool is larger. A run that
fails or is skipped for want of hugepages found them held, not only proven by another run at that moment.

What else the host lacks, such as memory for both sides, is not waited for. With `skip` it skips the run
too: a run that was skipped says so and ends with 0.
""",
    "guest.trace.window": """\
The window is taken of all streams side by side: `start: 25%` begins each stream at a quarter of it.
""",
}
