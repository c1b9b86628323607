"""How fast lackey text becomes a native trace on one core, and in how much memory.

    python benchmarks/convert.py RECORDING.txt[.zst] [--times 8]

The recording is unpacked, repeated, and converted: as plain text and as zstd, with fetches,
collapsed, and to a packed trace. Nothing is asserted; the figures are for people.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vmemu.traces.opening import open_stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recording", type=Path)
    parser.add_argument("--times", type=int, default=8, help="how often it is repeated")
    arguments = parser.parse_args()
    # What is measured inherits this.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="vmemu-bench-") as directory:
        text, packed, lines = prepare(arguments.recording, arguments.times, Path(directory))
        print(f"{lines:,} lines, {text.stat().st_size:,} bytes")
        for what, source, name, *options in (
            ("plain text", text, "a.vmtrace"),
            ("zstd", packed, "b.vmtrace"),
            ("fetches kept", text, "c.vmtrace", "--fetches"),
            ("collapsed", text, "d.vmtrace", "--collapse"),
            ("to a packed trace", text, "e.vmtrace.zst"),
        ):
            paths = [str(source), str(Path(directory) / name)]
            measure(what, [*paths, *options], lines, Path(directory) / "peak")


def prepare(recording: Path, times: int, directory: Path) -> tuple[Path, Path, int]:
    """The text so many times, the same packed, and its lines."""
    text = directory / "recording.txt"
    lines = 0
    with text.open("wb") as out:
        for _ in range(times):
            with open_stream(recording) as stream:
                while piece := stream.read(_PIECE):
                    out.write(piece)
                    lines += piece.count(b"\n")
    packed = directory / "recording.txt.zst"
    with zstd.ZstdFile(packed, "wb", level=3) as out, text.open("rb") as plain:
        shutil.copyfileobj(plain, out, _PIECE)
    return text, packed, lines


def measure(what: str, arguments: list[str], lines: int, peak: Path) -> None:
    """``peak`` is a file for the peak of its memory, see peak.py."""
    program = [sys.executable, "-P", str(Path(__file__).with_name("peak.py")), str(peak)]
    start = time.perf_counter()
    process = subprocess.Popen([*program, "trace", "convert", "--quiet", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - start
    busy = usage.ru_utime + usage.ru_stime
    verdict = "" if status == 0 else f"  failed: {os.waitstatus_to_exitcode(status)}"
    print(
        f"{what:<18} {lines / elapsed / 1e6:6.1f} M lines/s ({lines / busy / 1e6:6.1f} of CPU time)"
        f"  {elapsed:6.2f} s  peak {int(peak.read_text()) / 1e6:6.1f} MB{verdict}"
    )


if __name__ == "__main__":
    main()
