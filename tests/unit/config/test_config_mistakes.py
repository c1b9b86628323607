"""Every mistake in a scenario is named at its place with a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scenarios import BLOCK_LINE, FULL, SMALL, TRACE_LINE, found, problems, relaxed, write

from vmemu import config

# A trace of a memory of 1 MiB; where in it the mistake is, and the field.
ONE = "kind: uniform, accesses: 9, "
PHASE = "kind: phases, phases: [{accesses: 9, patterns: ["
WRONG_SYNTHETIC: list[tuple[str, str, str, str, str]] = [
    ("kind: zipff, accesses: 9", "zipff", "kind", "'zipff' is not known", "'zipf'?"),
    ("kind: strided, accesses: 9", "{", "stride", "is missing", "stride: 4KiB"),
    (
        "kind: strided, accesses: 9, stride: 100",
        "100",
        "stride",
        "100B is no multiple of access_size, 8B",
        "use 96B or 104B",
    ),
    (
        "kind: strided, accesses: 9, access_size: 64, stride: 8",
        "8}",
        "stride",
        "8B is no multiple of access_size, 64B",
        "use 64B",
    ),
    (ONE + "access_size: 24", "24", "access_size", "24B is no power of two", "16B or 32B"),
    (ONE + "access_size: 0", "0}", "access_size", "0 is out of range", "from 1 to 4096"),
    (ONE + "access_size: 8KiB", "8KiB", "access_size", "8192 is out of range", "from 1 to 4096"),
    (ONE + "stop: 5000", "5000", "stop", "5000 is no multiple of 4KiB", "use 4KiB or 8KiB"),
    (ONE + "stop: 101%", "101%", "stop", "outside 0 to 1", "0% to 100%"),
    (ONE + "stop: 0.5", "0.5", "stop", "0.5 is no place in memory", "25%"),
    (ONE + "stop: x", "x}", "stop", "'x' is no size", "2MiB"),
    (ONE + "stop: 2MiB", "2MiB", "stop", "2MiB is beyond the end of memory, 1MiB", "1MiB at most"),
    (ONE + "start: 2MiB", "2MiB", "start", "beyond the end of memory", "1MiB at most"),
    (ONE + "block: pc.ram, stop: 2MiB", "2MiB", "stop", "beyond the end of 'pc.ram'", "at most"),
    (
        ONE + "start: 50%, stop: 50%",
        "50%}",
        "stop",
        "the range from 50% to 50% of memory holds no",
        "4KiB or more between start and stop",
    ),
    (
        ONE + "start: 8KiB, stop: 1%",
        "1%}",
        "stop",
        "from 8KiB to 1% of memory holds no page",
        "4KiB",
    ),
    (ONE + "stop: 0.3%", "0.3%}", "stop", "from 0% to 0.3% of memory holds no page", "are 1MiB"),
    (ONE + "start: 100%", "100%}", "start", "holds no page", "4KiB or more"),
    (ONE + "block: pc.rom", "pc.rom", "block", "no block is named 'pc.rom'", "'pc.ram'?"),
    ("kind: zipf, accesses: 9, theta: 0", "0}", "theta", "0 is no exponent", "such as 0.99"),
    ("kind: zipf, accesses: 9, theta: -1", "-1}", "theta", "-1 is no exponent", "above 0"),
    ("kind: zipf, accesses: 9, theta: x", "x}", "theta", "'x' is no exponent", "above 0"),
    ("kind: zipf, accesses: 9, theta: true", "true", "theta", "true is no exponent", "above 0"),
    ("kind: zipf, accesses: 9, theta: 11", "11}", "theta", "11 is no exponent", "10 at most"),
    ("kind: zipf, accesses: 9, unit: 100", "100}", "unit", "no power of two", "64B or 128B"),
    (
        "kind: zipf, accesses: 9, unit: 64, access_size: 128",
        "64,",
        "unit",
        "64B holds no access of 128B",
        "128B or more",
    ),
    ("kind: zipf, accesses: 9, scatter: 1", "1}", "scatter", "1 is not true or false", "write"),
    (
        "kind: hot_cold, accesses: 9, hot_share: 0",
        "0}",
        "hot_share",
        "leaves nothing hot",
        "between 0 and 1",
    ),
    (
        "kind: hot_cold, accesses: 9, hot_share: 100%",
        "100%",
        "hot_share",
        "nothing cold",
        "between 0 and 1",
    ),
    ("kind: hot_cold, accesses: 9, hot_accesses: 2", "2}", "hot_accesses", "outside 0 to 1", "1.0"),
    ("kind: hot_cold, accesses: 9, period: 0", "0}", "period", "0 is out of range", "from 1 to"),
    (
        "kind: pointer_chase, node: 4, access_size: 8",
        "4,",
        "node",
        "4B holds no access of 8B",
        "8B or more",
    ),
    ("kind: phases", "{", "phases", "is missing", "patterns: [{kind: uniform"),
    ("kind: phases, phases: []", "[]", "phases", "the list is empty", "{accesses: 100000"),
    (
        "kind: phases, phases: [{patterns: [{kind: uniform}]}]",
        "{patterns",
        "phases[0].accesses",
        "is missing",
        "accesses: 100000",
    ),
    (
        "kind: phases, phases: [{accesses: 0, patterns: [{kind: uniform}]}]",
        "0,",
        "phases[0].accesses",
        "0 is out of range",
        "from 1 to",
    ),
    (PHASE + "]}]", "[]}", "phases[0].patterns", "the list is empty", "{kind: uniform, stop: 10%}"),
    (
        PHASE + "{kind: uniform, weight: 0}]}]",
        "[{kind: uniform",
        "phases[0].patterns",
        "all weights are 0",
        "a weight of 1 or more",
    ),
    (
        PHASE + "{kind: uniform, weight: -1}]}]",
        "-1",
        "phases[0].patterns[0].weight",
        "-1 is out of range",
        "from 0 to 1000000",
    ),
    (
        PHASE + "{kind: uniform, accesses: 9}]}]",
        "accesses: 9}",
        "phases[0].patterns[0].accesses",
        "unknown key",
        "access_size",
    ),
    (
        PHASE + "{kind: unifrom}]}]",
        "unifrom",
        "phases[0].patterns[0].kind",
        "is not known",
        "'uniform'?",
    ),
    (
        PHASE + "{kind: phases, phases: []}]}]",
        "phases, phases: []",
        "phases[0].patterns[0].kind",
        "a phase can't have phases",
        "as further phases",
    ),
    (
        PHASE + "{kind: uniform}, {kind: zipf, block: x}]}]",
        "x}",
        "phases[0].patterns[1].block",
        "no block is named 'x'",
        "pc.ram",
    ),
    (
        PHASE + "{kind: uniform, stop: 2MiB}]}]",
        "2MiB",
        "phases[0].patterns[0].stop",
        "beyond the end",
        "1MiB at most",
    ),
    (PHASE + "{kind: uniform}]}], repeat: 0", "0}", "repeat", "0 is out of range", "from 1 to"),
    (
        PHASE + "{kind: uniform}]}], repeat: 9223372036854775807",
        "9223372036854775807",
        "repeat",
        "times 9 accesses are more than",
        "use 1024819115206086200 at most",
    ),
]
# What replaces the line, the line and column at which it is found wrong, the field, words of what
# is wrong, words of the remedy. The line is counted in SMALL, whose text is replaced.
WRONG: list[tuple[str, str, int, int, str, str, str]] = [
    (BLOCK_LINE, "    sise: 1MiB\n", 4, 5, "blocks[0].sise", "unknown key", "'size'?"),
    (BLOCK_LINE, "", 2, 5, "blocks[0].size", "is missing", "add it, such as 'size: 128MiB'"),
    (BLOCK_LINE, "    size: 5000\n", 4, 11, "blocks[0].size", "no multiple of its page size, 4KiB",
     "use 4KiB or 8KiB"),
    (BLOCK_LINE, "    size: 100\n", 4, 11, "blocks[0].size", "no multiple", "use 4KiB"),
    (BLOCK_LINE, "    size: 0\n", 4, 11, "blocks[0].size", "can't be empty", "4KiB or more"),
    (BLOCK_LINE, "    size: 1MB\n", 4, 11, "blocks[0].size", "'1MB'", "MiB is meant"),
    (BLOCK_LINE, "    size: 128TiB\n", 4, 11, "blocks[0].size", "more than", "at most 64TiB"),
    (BLOCK_LINE, "    size: true\n", 4, 11, "blocks[0].size", "is no size", "2MiB"),
    (BLOCK_LINE, "    size: [1]\n", 4, 11, "blocks[0].size", "is no size", "2MiB"),
    (BLOCK_LINE, "    size: no\n", 4, 11, "blocks[0].size", "truth value", "such as 2MiB"),
    (BLOCK_LINE, "    size:\n", 4, 10, "blocks[0].size", "no value", "give a value"),
    (BLOCK_LINE, BLOCK_LINE * 2, 5, 5, "blocks[0].size", "given twice, first on line 4",
     "keep one"),
    (BLOCK_LINE, BLOCK_LINE + "    page_size: 3KiB\n", 5, 16, "blocks[0].page_size",
     "no power of two", "4KiB"),
    (BLOCK_LINE, BLOCK_LINE + "    page_size: 0\n", 5, 16, "blocks[0].page_size",
     "no power of two", "4KiB"),
    (BLOCK_LINE, BLOCK_LINE + "    page_size: 2MiB\n", 5, 16, "blocks[0].page_size",
     "impossible for anonymous", "'backing: hugetlbfs'"),
    (BLOCK_LINE, BLOCK_LINE + "    path: /dev/shm/x\n", 5, 11, "blocks[0].path",
     "anonymous memory has no file", "leave path out"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: seed}\n", 5, 21, "blocks[0].content.kind",
     "'seed' is not known", "'seeded'?"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: 5}\n", 5, 21, "blocks[0].content.kind",
     "5 is not known", "use one of seeded, file"),
    (BLOCK_LINE, BLOCK_LINE + "    content: seeded\n", 5, 14, "blocks[0].content",
     "'seeded' is not a mapping", "{kind: seeded}"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {zero_share: 1.5}\n", 5, 27,
     "blocks[0].content.zero_share", "outside 0 to 1", "0.0 to 1.0"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: seeded, path: x}\n", 5, 29,
     "blocks[0].content.path", "is for 'kind: file', not for", "leave it out, or use that kind"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file}\n", 5, 14, "blocks[0].content.path",
     "is missing", "path: dump.raw"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file, path: nix}\n", 5, 33,
     "blocks[0].content.path", "no such file", "existing path"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file, path: 5}\n", 5, 33,
     "blocks[0].content.path", "5 is no path", "as text"),
    (BLOCK_LINE, BLOCK_LINE + "    content: {kind: file, path: boot.vmtrace}\n", 5, 33,
     "blocks[0].content.path", "no ordinary file", "the bytes"),
    (BLOCK_LINE, "    size: 4KiB\n    content: {kind: file, path: dump.raw}\n", 5, 33,
     "blocks[0].content.path", "has 8,192 bytes, more than the block's 4,096", "larger block"),
    ("anonymous", "anonymus", 3, 14, "blocks[0].backing", "'anonymus' is not known",
     "'anonymous'?"),
    ("name: pc.ram", "name: ''", 2, 11, "blocks[0].name", "is empty", "1 to 255 bytes"),
    ("name: pc.ram", "name: 5", 2, 11, "blocks[0].name", "5 is not text", "in quotes: '5'"),
    ("name: pc.ram", f"name: {'é' * 128}", 2, 11, "blocks[0].name", "256 bytes long",
     "at most 255"),
    ("name: pc.ram", 'name: "a\\nb"', 2, 11, "blocks[0].name", "unprintable character", "letters"),
    ("blocks:\n", "blocks:\n  - {name: pc.ram, backing: shared, size: 4KiB}\n", 3, 11,
     "blocks[1].name", "another block is named 'pc.ram'", "name of its own"),
    ("blocks:\n", "blocks:\n  - 5\n", 2, 5, "blocks[0]", "5 is not a mapping", "'key: value'"),
    (TRACE_LINE, "  trace: {}\n", 6, 10, "guest.trace", "exactly one of 'file'", "{file: PATH}"),
    (TRACE_LINE, "  trace: {file: dump.raw, synthetic: {kind: permutation}}\n", 6, 10,
     "guest.trace", "exactly one of 'file'", "{file: PATH}"),
    (TRACE_LINE, "  trace: 5\n", 6, 10, "guest.trace", "exactly one of 'file'", "{file: PATH}"),
    (TRACE_LINE, "  trace: {file: nix}\n", 6, 17, "guest.trace.file", "no such file", "existing"),
    (TRACE_LINE, "  trace: {synthetic: {}}\n", 6, 22, "guest.trace.synthetic.kind", "is missing",
     "sequential, strided, uniform, permutation, zipf, hot_cold, pointer_chase, phases"),
    (TRACE_LINE, "  trace: {synthetic: {kind: unifrom}}\n", 6, 29, "guest.trace.synthetic.kind",
     "'unifrom' is not known", "'uniform'?"),
    (TRACE_LINE, "  trace: {synthetic: {kind: uniform}}\n", 6, 22, "guest.trace.synthetic.accesses",
     "is missing", "accesses: 100000"),
    (TRACE_LINE, "  trace: {synthetic: {kind: uniform, accesses: 0}}\n", 6, 48,
     "guest.trace.synthetic.accesses", "0 is out of range", "from 1 to"),
    (TRACE_LINE, "  trace: {synthetic: {kind: uniform, accesses: 1, stride: 1}}\n", 6, 51,
     "guest.trace.synthetic.stride", "'kind: strided', not for 'kind: uniform'",
     "leave it out"),
    (TRACE_LINE, "  trace: {synthetic: {kind: sequential, accesses: 1, stride: 0}}\n", 6, 62,
     "guest.trace.synthetic.stride", "0 is out of range", "from 1 to"),
    *(
        (TRACE_LINE, f"  trace: {{synthetic: {{{made}}}}}\n", 6, 22 + f"{{{made}}}}}".index(at),
         f"guest.trace.synthetic.{field}", what, remedy)
        for made, at, field, what, remedy in WRONG_SYNTHETIC
    ),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {block: pc.rom}}\n", 6, 40,
     "guest.trace.map.block", "no block is named 'pc.rom'", "'pc.ram'?"),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {kind: regions}}\n", 6, 32,
     "guest.trace.map.regions", "is missing", "0x0-128MiB=pc.ram"),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {kind: regions, regions: []}}\n", 6, 57,
     "guest.trace.map.regions", "the list is empty", "0x0-128MiB=pc.ram"),
    (TRACE_LINE, "  trace: {file: dump.raw, map: {kind: regions, regions: x}}\n", 6, 57,
     "guest.trace.map.regions", "'x' is not a list", "[item, item]"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {stop: 101%}}\n", 6, 42,
     "guest.trace.window.stop", "outside 0 to 1", "0% to 100%"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {stop: 0.5}}\n", 6, 42,
     "guest.trace.window.stop", "0.5 is no place in a trace", "25%"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {start: -1}}\n", 6, 43,
     "guest.trace.window.start", "-1 is no place in a trace", "25%"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {start: 50%, stop: 50%}}\n", 6, 54,
     "guest.trace.window.stop", "holds nothing", "above the start"),
    (TRACE_LINE, "  trace: {file: dump.raw, window: {start: 5, stop: 4}}\n", 6, 52,
     "guest.trace.window.stop", "holds nothing", "above the start"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: 0\n", 7, 10, "guest.vcpus", "0 is out", "from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: 257\n", 7, 10, "guest.vcpus", "257 is out", "1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: 1.5\n", 7, 10, "guest.vcpus", "1.5 is not a whole number",
     "from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: true\n", 7, 10, "guest.vcpus", "true is not a whole number",
     "from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: '4'\n", 7, 10, "guest.vcpus", "'4' is not a whole number",
     "write 4 without quotes"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: '256'\n", 7, 10, "guest.vcpus", "'256' is not a whole",
     "write 256 without quotes"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: '257'\n", 7, 10, "guest.vcpus", "'257' is not a whole",
     "give a whole number from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: '0'\n", 7, 10, "guest.vcpus", "'0' is not a whole",
     "give a whole number from 1 to 256"),
    (TRACE_LINE, TRACE_LINE + "  vcpus: four\n", 7, 10, "guest.vcpus", "'four' is not a whole",
     "from 1 to 256"),
    (BLOCK_LINE, BLOCK_LINE + "    collapse: yes\n", 5, 15, "blocks[0].collapse", "truth value",
     "write on_complete"),
    (BLOCK_LINE, BLOCK_LINE + "    collapse: true\n", 5, 15, "blocks[0].collapse", "true is not",
     "write on_complete"),
    (TRACE_LINE, TRACE_LINE + "channel: shm\n", 7, 10, "channel", "'shm' is not a mapping",
     "write 'channel: {kind: shm}'"),
    (TRACE_LINE, TRACE_LINE + "channel: memory\n", 7, 10, "channel", "'memory' is not a mapping",
     "write 'channel: {kind: pipe}' or 'channel: {kind: shm}'"),
    (TRACE_LINE, TRACE_LINE + "channel: {type: shm}\n", 7, 11, "channel.type", "unknown key",
     "use kind"),
    (TRACE_LINE, TRACE_LINE + "  pace: rate\n", 7, 9, "guest.pace", "'rate' is not a mapping",
     "write 'pace: {kind: rate}'"),
    (TRACE_LINE, TRACE_LINE + "  pace: often\n", 7, 9, "guest.pace", "'often' is not a mapping",
     "write 'pace: {kind: KIND}', where KIND is one of asap, recorded, rate"),
    (TRACE_LINE, TRACE_LINE + "placement: off\n", 7, 12, "placement", "truth value",
     "use auto, colocate, spread, none or"),
    (TRACE_LINE, TRACE_LINE + "fault_around: 16\n", 7, 1, "fault_around", "unknown key",
     "did you mean 'migration.postcopy.fault_around'?"),
    (TRACE_LINE, TRACE_LINE + "bandwidth: 1GiB/s\n", 7, 1, "bandwidth", "unknown key",
     "'migration.precopy.bandwidth' or 'migration.postcopy.bandwidth'?"),
    (TRACE_LINE, TRACE_LINE + "kind: shm\n", 7, 1, "kind", "unknown key", "use one of name, seed"),
    (TRACE_LINE, TRACE_LINE + "  placement: auto\n", 7, 3, "guest.placement", "unknown key",
     "did you mean 'placement'?"),
    (TRACE_LINE, TRACE_LINE + "  peace: {kind: asap}\n", 7, 3, "guest.peace", "unknown key",
     "'pace'?"),
    (TRACE_LINE, TRACE_LINE + "  pace: {}\n", 7, 9, "guest.pace.kind", "is missing",
     "asap, recorded, rate"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: fast}\n", 7, 16, "guest.pace.kind",
     "'fast' is not known", "asap, recorded, rate"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: rate}\n", 7, 9, "guest.pace.accesses_per_second",
     "is missing", "accesses_per_second: 1000000"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: rate, accesses_per_second: 0}\n", 7, 43,
     "guest.pace.accesses_per_second", "0 is out of range", "from 1 to 1000000000"),
    (TRACE_LINE, TRACE_LINE + "  pace: {kind: recorded}\n", 7, 16, "guest.pace.kind",
     "guest.trace.synthetic have no recorded times", "'kind: rate'"),
    (TRACE_LINE, "  trace: {file: dump.raw}\n  pace: {kind: recorded, factor: 0}\n", 7, 34,
     "guest.pace.factor", "0 is out of range", "more than 0"),
    (TRACE_LINE, "  trace: {file: dump.raw}\n  pace: {kind: recorded, factor: fast}\n", 7, 34,
     "guest.pace.factor", "'fast' is not a number", "more than 0"),
    (TRACE_LINE, "  trace: {file: dump.raw}\n  pace: {kind: recorded, factor: true}\n", 7, 34,
     "guest.pace.factor", "true is not a number", "more than 0"),
    (TRACE_LINE, "  trace: {file: dump.raw, loops: 0}\n", 6, 34, "guest.trace.loops",
     "0 is out of range", "from 1 to 1000000"),
    (TRACE_LINE, "  trace: {file: dump.raw, threads: id}\n", 6, 36, "guest.trace.threads",
     "'id' is not known", "use one of round_robin, by_id"),
    (TRACE_LINE, "  trace: []\n", 6, 10, "guest.trace", "the list is empty", "{file: "),
    (TRACE_LINE, "  trace: [5]\n", 6, 11, "guest.trace[0]", "exactly one of 'file'",
     "{file: PATH}"),
    (TRACE_LINE, "  trace:\n    - {file: dump.raw}\n    - {file: nix}\n", 8, 14,
     "guest.trace[1].file", "no such file", "existing"),
    (TRACE_LINE, "  trace: [{file: dump.raw}, {synthetic: {kind: unifrom}}]\n", 6, 48,
     "guest.trace[1].synthetic.kind", "'unifrom' is not known", "'uniform'?"),
    (TRACE_LINE, "  trace: [{file: dump.raw, map: {block: pc.rom}}]\n", 6, 41,
     "guest.trace[0].map.block", "no block is named 'pc.rom'", "'pc.ram'?"),
    (TRACE_LINE, "  trace: [{file: dump.raw}, {synthetic: {kind: permutation}}]\n"
     "  pace: {kind: recorded}\n", 7, 16, "guest.pace.kind",
     "guest.trace[1].synthetic have no recorded times", "'kind: rate'"),
    (TRACE_LINE, TRACE_LINE + "seed: -1\n", 7, 7, "seed", "-1 is out of range", "from 0 to 1844"),
    (TRACE_LINE, TRACE_LINE + "seed: 18446744073709551616\n", 7, 7, "seed", "is out of range",
     "to 18446744073709551615"),
    (TRACE_LINE, TRACE_LINE + "seed: 1e3\n", 7, 7, "seed", "a number to some", "1000"),
    (TRACE_LINE, TRACE_LINE + "channel: {kind: carrier}\n", 7, 17, "channel.kind",
     "'carrier' is not known", "use one of pipe, shm"),
    (TRACE_LINE, TRACE_LINE + "channel: pipe\n", 7, 10, "channel", "'pipe' is not a mapping",
     "kind"),
    (TRACE_LINE, TRACE_LINE + "limits: {stall: 30}\n", 7, 17, "limits.stall", "no unit", "ns, us"),
    (TRACE_LINE, TRACE_LINE + "limits: {stall: 0s}\n", 7, 17, "limits.stall", "out of range",
     "more than 0"),
    (TRACE_LINE, TRACE_LINE + "verify: {reads: 'yes'}\n", 7, 17, "verify.reads",
     "'yes' is not true or false", "write true or false"),
    (TRACE_LINE, TRACE_LINE + "verify: {reads: yes}\n", 7, 17, "verify.reads", "truth value",
     "write true"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: later\n", 7, 17, "on_unavailable",
     "'later' is not known", "fail, skip"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: 5\n", 7, 17, "on_unavailable", "word or {wait",
     "fail, skip or {wait: 30s}"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: {wait: 1:30}\n", 7, 24, "on_unavailable.wait",
     "base 60", "90s"),
    (TRACE_LINE, TRACE_LINE + "on_unavailable: {}\n", 7, 17, "on_unavailable.wait", "is missing",
     "wait: 30s"),
    (TRACE_LINE, TRACE_LINE + "migration: {postcopy: *p}\n", 7, 23, "migration.postcopy",
     "alias *p", "write the value out"),
    (TRACE_LINE, TRACE_LINE + "? [a]\n: b\n", 7, 3, "", "not a word", "names"),
    (TRACE_LINE, TRACE_LINE + "\tx: 1\n", 7, 1, "", "a tab", "spaces"),
    (SMALL[: SMALL.index("guest")], "blocks: []\n", 1, 9, "blocks", "the list is empty", "pc.ram"),
    (SMALL[: SMALL.index("guest")], "", 1, 1, "blocks", "is missing", "blocks: ["),
    (SMALL[SMALL.index("guest") :], "guest: {}\n", 5, 8, "guest.trace", "is missing", "trace: {"),
    (SMALL, "", 1, 1, "", "the file is empty", "'blocks' and 'guest'"),
    (SMALL, "- 1\n", 1, 1, "", "a scenario is a mapping", "blocks:"),
    (SMALL, "# nothing\n", 1, 1, "", "the file is empty", "'blocks' and 'guest'"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "column", "field", "what", "remedy"), WRONG)
def test_one_mistake_is_one_problem_at_its_place(
    directory: Path,
    *,
    old: str,
    new: str,
    line: int,
    column: int,
    field: str,
    what: str,
    remedy: str,
) -> None:
    assert old in SMALL
    file = write(directory, SMALL.replace(old, new, 1))
    (problem,) = problems(file)
    assert (problem.file, problem.field) == (str(file), field)
    assert (problem.line, problem.column) == (line, column)
    assert what in problem.what
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("size", "page_size", "field", "what", "remedy"),
    [
        ("4MiB", "32KiB", "page_size", "no size of a hugepage", "2MiB or 1GiB"),
        ("4MiB", "3MiB", "page_size", "no power of two", "2MiB or 4MiB"),
        ("3MiB", "2MiB", "size", "no multiple of its page size, 2MiB", "use 2MiB or 4MiB"),
        ("1MiB", "2MiB", "size", "no multiple of its page size, 2MiB", "use 2MiB"),
    ],
)
def test_hugepage_sizes(
    directory: Path, *, size: str, page_size: str, field: str, what: str, remedy: str
) -> None:
    block = f"{{name: h, backing: hugetlbfs, size: {size}, page_size: {page_size}}}"
    (problem,) = problems(write(directory, SMALL), ("blocks.0", block))
    assert (problem.file, problem.line, problem.field) == ("--set", 0, f"blocks[0].{field}")
    assert what in problem.what
    assert remedy in problem.remedy


def test_a_relative_path_of_a_block_and_a_shared_file(directory: Path) -> None:
    blocks = "[{name: a, backing: shared, size: 4KiB, path: shm/x}]"
    (problem,) = problems(write(directory, SMALL), ("blocks", blocks))
    assert "no absolute path" in problem.what
    blocks = ", ".join(
        f"{{name: {n}, backing: shared, size: 4KiB, path: /dev/shm/x}}" for n in "ab"
    )
    (problem,) = problems(write(directory, SMALL), ("blocks", f"[{blocks}]"))
    assert problem.field == "blocks[1].path"
    assert "another block is in this file" in problem.what


def test_all_problems_come_at_once_in_the_order_of_the_file(directory: Path) -> None:
    text = (
        SMALL.replace("1MiB", "5000")
        .replace(
            "blocks:\n", "sed: 1\nname: no\nblocks:\n  - {name: pc.ram, backing: x, size: 0}\n"
        )
        .replace("permutation", "permute")
    ) + "limits: {stall: 3}\nlimits: {}\n"
    some = problems(write(directory, text), ("guest.vcpus", "0"), ("nix.x", "1"))
    assert [(p.file == "--set", p.line, p.field) for p in some] == [
        (True, 0, "guest.vcpus"),
        (True, 0, "nix"),
        (False, 1, "sed"),
        (False, 2, "name"),
        (False, 4, "blocks[0].backing"),
        (False, 4, "blocks[0].size"),
        (False, 5, "blocks[1].name"),
        (False, 7, "blocks[1].size"),
        (False, 9, "guest.trace.synthetic.kind"),
        (False, 10, "limits.stall"),
        (False, 11, "limits"),
    ]


def test_a_misspelt_kind_hides_nothing_next_to_it(directory: Path) -> None:
    trace = "{synthetic: {kind: unifrom, accesses: -3, stride: 8}}"
    kind, accesses, stride = problems(write(directory, SMALL), ("guest.trace", trace))
    assert "did you mean 'uniform'?" in kind.remedy
    assert (accesses.field, stride.field) == (
        "guest.trace.synthetic.accesses",
        "guest.trace.synthetic.stride",
    )
    # What is not a bit like any kind is not guessed at.
    (kind,) = problems(write(directory, SMALL), ("guest.trace", trace.replace("unifrom", "x")))
    assert kind.field == "guest.trace.synthetic.kind"


@pytest.mark.parametrize(
    ("backing", "page_size", "size"),
    [("anonymous", "3KiB", "5000"), ("hugetlbfs", "2MB", "100KiB"), ("shared", "no", "4097")],
)
def test_a_wrong_page_size_hides_no_wrong_size(
    directory: Path, backing: str, page_size: str, size: str
) -> None:
    block = f"{{name: b, backing: {backing}, size: {size}, page_size: {page_size}}}"
    some = problems(write(directory, SMALL), ("blocks.0", block))
    assert sorted(p.field for p in some) == ["blocks[0].page_size", "blocks[0].size"]
    assert any("smallest" in p.what for p in some)


def test_an_override_without_an_equals_sign_hides_no_other(directory: Path) -> None:
    texts = ["foo", "guest.vcpus=0", "=3", "seed=x=y"]
    some = problems(write(directory, SMALL), *map(config.split_override, texts))
    assert [p.field or p.what for p in some] == [
        "'foo' is no path=value",
        "'=3' is no path=value",
        "seed",
        "guest.vcpus",
    ]


def test_every_wrong_value_of_any_field_is_a_config_error(directory: Path) -> None:
    """Each leaf and mapping of a full scenario is replaced by values of every type."""
    file = write(directory, FULL)
    wrong = ["[]", "{}", "-1", "1.5", "true", "''", "x", "[1]", "{a: 1}", "'\0'", "9" * 20]

    def paths(node: Any, path: str) -> list[str]:
        if isinstance(node, dict):
            below = [paths(value, f"{path}.{key}") for key, value in node.items()]
        elif isinstance(node, list):
            below = [paths(value, f"{path}[{index}]") for index, value in enumerate(node)]
        else:
            below = []
        return [path, *(p for some in below for p in some)]

    for path in paths(yaml.safe_load(FULL), "")[1:]:
        for value in wrong:
            for problem in found(file, (path.lstrip("."), value)):
                # A block renamed, shrunk or lost leaves the regions that named it behind.
                spanning = path.startswith(".blocks") and "regions" in problem.field
                assert problem.file == "--set" or spanning


words = st.sampled_from(
    ["blocks", "guest", "name", "size", "trace", "kind", "file", "seeded", "{", "}", "[", "]", ":",
     ": ", ", ", "- ", "\n", "  ", "'", '"', "#", "&a ", "*a", "<<", "!!int ", "1", "4KiB", "no",
     "~", "---\n", "synthetic", "uniform", "\t", "|", ">", "? ", "%", "\u2028", "é"]
)  # fmt: skip


@relaxed
@given(st.one_of(st.lists(words, max_size=60).map("".join), st.text(max_size=200)))
def test_no_text_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    assert problems(file)


values = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from(["file", "seeded", "regions", "2MiB", "10%", "0-4KiB=a", "anonymous", "a"]),
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["kind", "file", "path", "map", "window", "start", "stop", "synthetic",
                         "name", "size", "backing", "page_size", "content", "regions", "block",
                         "trace", "vcpus", "wait", "postcopy", "zero_share"]),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@relaxed
@given(
    st.sampled_from(
        [
            "blocks",
            "blocks[0]",
            "blocks[0].content",
            "guest",
            "guest.trace",
            "guest.trace.map",
            "guest.trace.window",
            "on_unavailable",
            "limits",
            "migration",
            "name",
            "seed",
        ]
    ),
    values,
)
def test_no_value_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, path: str, value: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(SMALL)
    found(file, (path, json.dumps(value)))


@pytest.mark.parametrize(
    ("beside", "field", "what"),
    [
        ("preempt: false", "preempt", "each vCPU has a channel of its own for urgent pages"),
        ("fault_threads: 2", "fault_threads", "each vCPU serves itself: nobody else reads"),
    ],
)
def test_what_makes_no_sense_beside_vcpus_that_serve_themselves(tmp_path, beside, field, what):
    text = f"migration: {{postcopy: {{delivery: sigbus, {beside}}}}}\n"
    (problem,) = problems(write(tmp_path, SMALL + text))
    assert problem.field == f"migration.postcopy.{field}"
    assert what in problem.what
    assert "use 'delivery: thread'" in problem.remedy
    assert not found(write(tmp_path, SMALL + text.replace("sigbus", "thread")))
    right = text.replace("false", "true").replace("2", "1")
    assert not found(write(tmp_path, SMALL + right))


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ("prefetch: on", "write adaptive"),
        ("prefetch: true", "write adaptive"),
        ("prefetch: off", "write none"),
        ("prefetch: 2", "use one of none, adaptive"),
        ("delivery: yes", "use one of thread, sigbus"),
        ("push_order: true", "use one of sequential, around_faults, recorded"),
        ("fault_around: '16'", "write 16 without quotes"),
        ("fault_around: off", "give a whole number from 0 to 256"),
        ("push: off", "write false, or 'off' in quotes if text is meant"),
    ],
)
def test_the_value_to_write_is_named(tmp_path, wrong, remedy):
    (problem,) = problems(write(tmp_path, SMALL + f"migration: {{postcopy: {{{wrong}}}}}\n"))
    assert problem.remedy == remedy


@pytest.mark.parametrize(
    ("placement", "field", "what", "remedy"),
    [
        ("{}", "placement", "names no CPUs", "{vcpus: 0-1, fault: 0}, or use none"),
        ("{vcpus: 0, clients: 0}", "placement.clients", "has no clients", "leave out clients"),
    ],
)
def test_cpus_are_for_threads_that_there_are(tmp_path, placement, field, what, remedy):
    (problem,) = problems(write(tmp_path, SMALL + f"placement: {placement}\n"))
    assert problem.field == field
    assert what in problem.what
    assert remedy in problem.remedy


def test_an_unknown_key_is_asked_about_once(tmp_path):
    key, value = problems(write(tmp_path, SMALL + "collapse: on\n"))
    assert key.remedy == "did you mean 'blocks[].collapse'?"
    assert "truth value" in value.what
    assert value.remedy == "write true, or 'on' in quotes if text is meant"


def test_the_push_has_cpus_where_it_has_a_thread(tmp_path):
    text = SMALL + "placement: {push: 0}\nmigration: {postcopy: {preempt: false}}\n"
    (problem,) = problems(write(tmp_path, text))
    assert problem.field == "placement.push"
    assert "what answers requests pushes too" in problem.what
    assert problem.remedy.startswith("name its CPUs for urgent")
    assert not found(write(tmp_path, text.replace("push: 0", "urgent: 0")))
    assert not found(write(tmp_path, text.replace("false", "true")))
