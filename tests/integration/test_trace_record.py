"""``vmemu trace record`` with the real valgrind and perf, on real commands."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vmemu.errors import InputError, TraceError
from vmemu.traces import native
from vmemu.traces.native.trace import Trace
from vmemu.traces.reader import LOAD, STORE
from vmemu.traces.record import perf as perf_tool
from vmemu.traces.record.command import Running, check_command, how_it_ended

PAGE, PAGES = 4096, 64
TIMEOUT_S = 90
LACKEY = ("--tool", "lackey")
PERF = ("--tool", "perf")


def command_line(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vmemu", "trace", "record", *map(str, arguments)]


def record(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """In a session of its own: no terminal, and no signal but ours."""
    return subprocess.run(
        command_line(*arguments),
        **({"stdin": subprocess.DEVNULL, "timeout": TIMEOUT_S} | options),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def touch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program of ``touch.c``."""
    program = tmp_path_factory.mktemp("touch") / "touch"
    source = Path(__file__).with_name("touch.c")
    subprocess.run(["cc", "-O1", "-o", program, source], check=True, timeout=TIMEOUT_S)
    return program


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a trace goes; nothing is beside it when the test ends but what the test knows of."""
    (tmp_path / "traces").mkdir()
    return tmp_path / "traces" / "out.vmtrace"


def accesses(trace: Trace, first: int) -> list[tuple[int, int, int]]:
    """(offset, kind, bytes) of what was done to the 64 pages from an address on."""
    (stream,) = trace.streams
    where = np.asarray(stream.where)
    address = (trace.pages[where >> 12] << np.uint64(12)) + (where & 0xFFF)
    what = np.asarray(stream.what)
    there = (address >= first) & (address < first + PAGES * PAGE)
    columns: tuple[NDArray[Any], ...] = (address - first, what & 3, trace.sizes[what >> 2])
    return [*zip(*(column[there].tolist() for column in columns), strict=True)]


EXPECTED = [
    access
    for page in reversed(range(PAGES))
    for access in ((page * PAGE + 8, STORE, 2), (page * PAGE + 3, LOAD, 1))
]


# ---- lackey ----


@pytest.mark.usefixtures("valgrind", "userfault")
@pytest.mark.timeout(600)  # some 40 million lines, each of which valgrind writes by itself
def test_ten_million_accesses_of_sort_replay_and_verify(out: Path, tmp_path: Path) -> None:
    words = [f"{word * 2654435761 % 2**32:08x}\n" for word in range(21_000)]
    command = ["sort", "--parallel=1", "--buffer-size=4M", "words"]
    (tmp_path / "words").write_text("".join(words))
    options = {"cwd": tmp_path, "env": os.environ | {"LC_ALL": "C"}, "timeout": 500}
    done = record(*LACKEY, "-o", out, "--", *command, **options)
    assert (done.returncode, done.stdout) == (0, "".join(sorted(words))), done.stderr
    meta = native.open(out).meta
    assert meta.counts.accesses >= 10_000_000
    assert (meta.truncated, meta.counts.unknown_lines) == (False, 0)

    size = (meta.pages + 511) // 512 * 2
    (tmp_path / "sort.yaml").write_text(f"""\
name: sort
blocks: [{{name: ram, backing: anonymous, size: {size}MiB}}]
guest: {{vcpus: 2, trace: {{file: {out}, map: {{kind: compact}}}}}}
""")
    command = [sys.executable, "-m", "vmemu", "run", "sort.yaml", "--json", "result.json"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=TIMEOUT_S)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["verify"]["ok"]) == ("completed", True)
    assert sum(vcpu["accesses"] for vcpu in result["vcpus"]) == meta.counts.accesses


@pytest.mark.usefixtures("valgrind")
def test_every_access_is_there_in_order_with_its_size(out: Path, touch: Path) -> None:
    done = record(*LACKEY, "-o", out, "--", touch)
    assert done.returncode == 0, done.stderr
    first = int(done.stdout.split()[0], 16)
    assert accesses(native.open(out), first) == EXPECTED
    said = done.stderr.splitlines()
    assert said[0].startswith(f"{out}: {native.open(out).meta.counts.accesses:,} accesses")
    assert said[0].endswith("recorded with valgrind lackey")
    assert said[-1] == f"next: vmemu trace info {out}"
    assert any(line.startswith("note: not in it: what the kernel did") for line in said)


@pytest.mark.usefixtures("valgrind")
def test_the_command_has_its_standard_input_output_and_error(out: Path) -> None:
    script = "read line; echo got $line; echo trouble >&2"
    done = record(*LACKEY, "-o", out, "sh", "-c", script, stdin=None, input="hello\n")
    assert (done.returncode, done.stdout) == (0, "got hello\n")
    assert done.stderr.startswith(f"trouble\n{out}: ")
    assert native.open(out).meta.counts.unknown_lines == 0


@pytest.mark.usefixtures("valgrind")
def test_a_packed_trace_is_named_after_the_command_by_default(out: Path) -> None:
    assert record(*LACKEY, "/bin/true", cwd=out.parent).returncode == 0
    assert record(*LACKEY, "-o", "packed.vmtrace.zst", "true", cwd=out.parent).returncode == 0
    assert sorted(os.listdir(out.parent)) == ["packed.vmtrace.zst", "true.vmtrace"]
    for name in os.listdir(out.parent):
        source = native.open(out.parent / name).meta.source
        assert (source.format, source.file) == ("lackey", "true")


@pytest.mark.usefixtures("valgrind")
def test_a_child_that_stays_is_neither_waited_for_nor_in_the_trace(out: Path, touch: Path) -> None:
    done = record(*LACKEY, "-o", out, "--", touch, "fork")
    assert done.returncode == 0, done.stderr
    own, of_child, child = done.stdout.split()
    os.kill(int(child), 0)
    os.kill(int(child), signal.SIGKILL)
    trace = native.open(out)
    assert accesses(trace, int(own, 16)) == EXPECTED
    assert accesses(trace, int(of_child, 16)) == []


@pytest.mark.usefixtures("valgrind")
@pytest.mark.parametrize(
    ("script", "ended"),
    [("exit 7", "failed with exit code 7"), ("kill -9 $$", "was ended by SIGKILL")],
)
def test_the_trace_of_a_failed_command_is_kept(out: Path, script: str, ended: str) -> None:
    done = record(*LACKEY, "-o", out, "sh", "-c", script)
    assert done.returncode == 1
    assert f"note: the command {ended}: the trace is of a failed command\n" in done.stderr
    assert native.open(out).meta.counts.accesses > 10_000


@pytest.mark.usefixtures("valgrind")
def test_a_closed_pipe_ends_the_command_as_without_us(out: Path) -> None:
    with subprocess.Popen(
        command_line(*LACKEY, "-o", out, "yes"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == 1
    assert "the command was ended by SIGPIPE" in said
    assert native.open(out).meta.counts.accesses > 10_000


# ---- Ctrl-C ----

# Counts its SIGINTs for a while after the first one.
COUNTING = """
    n=0; trap 'n=$((n + 1))' INT; echo ready
    while [ $n -eq 0 ]; do :; done
    i=0; while [ $i -lt 100 ]; do i=$((i + 1)); done
    echo interrupts: $n
"""


@pytest.fixture
def started(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A recording of ``COUNTING`` that is ready for signals."""
    with subprocess.Popen(
        command_line(*LACKEY, "-o", out, "sh", "-c", COUNTING),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.usefixtures("valgrind")
def test_an_interrupt_goes_to_the_command_and_the_trace_is_kept(
    started: subprocess.Popen[str], out: Path
) -> None:
    started.send_signal(signal.SIGINT)
    said = started.communicate(timeout=TIMEOUT_S)
    assert (started.returncode, said[0]) == (130, "interrupts: 1\n")
    assert "note: interrupted: the trace is of what the command did until then\n" in said[1]
    assert native.open(out).meta.counts.accesses > 10_000


@pytest.mark.usefixtures("valgrind")
def test_sigterm_ends_the_command_and_the_trace_is_kept(
    started: subprocess.Popen[str], out: Path
) -> None:
    started.terminate()
    assert started.communicate(timeout=TIMEOUT_S)[0] == ""
    assert started.returncode == 130
    assert native.open(out).meta.counts.accesses > 10_000


@pytest.mark.usefixtures("valgrind")
def test_ctrl_c_of_a_terminal_reaches_the_command_once(out: Path) -> None:
    arguments = command_line(*LACKEY, "-o", out, "sh", "-c", COUNTING)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(arguments[0], arguments)
    said = b""
    try:
        while chunk := _read(terminal):
            if b"ready" not in said and b"ready" in said + chunk:
                os.write(terminal, b"\x03")
            said += chunk
    finally:
        os.close(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert (status, b"interrupts: 1\r\n" in said) == (130, True), said.decode()
    assert native.open(out).meta.counts.accesses > 10_000


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how a terminal says that its last user has gone
        return b""


# ---- what can't be ----


def test_a_command_that_is_not_there_is_one_line(out: Path, tmp_path: Path) -> None:
    done = record("-o", out, "no-such-command", "--option")
    assert (done.returncode, done.stderr) == (2, "no-such-command: no such command\n")
    plain = tmp_path / "plain"
    plain.write_text("echo\n")
    done = record("-o", out, plain)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"chmod +x {plain}" in done.stderr
    assert os.listdir(out.parent) == []


def test_without_a_command_the_usage_is_shown() -> None:
    done = record()
    assert done.returncode == 2
    assert "Usage: vmemu trace record" in done.stderr


@pytest.mark.usefixtures("valgrind")
def test_a_place_that_can_not_be_is_found_before_the_command_runs(
    out: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    (out.parent / "mine").write_text("mine")
    for place in (out.parent / "nowhere/x.vmtrace", out.with_suffix(".txt"), out.parent / "mine"):
        done = record(*LACKEY, "-o", place, "touch", marker)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert (out.parent / "mine").read_text() == "mine"
    assert not marker.exists()


@pytest.mark.usefixtures("valgrind")
def test_a_trace_that_is_there_is_replaced_only_with_force(out: Path, tmp_path: Path) -> None:
    assert record(*LACKEY, "-o", out, "true").returncode == 0
    before = native.open(out).meta.counts
    marker = tmp_path / "marker"
    refused = record(*LACKEY, "-o", out, "touch", marker)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert not marker.exists()
    assert native.open(out).meta.counts == before
    assert record(*LACKEY, "--force", "-o", out, "touch", marker).returncode == 0
    assert native.open(out).meta.counts != before


@pytest.mark.usefixtures("valgrind")
def test_a_full_disk_ends_the_command_and_leaves_nothing(out: Path) -> None:
    """A limit of file sizes fails the writes of vmemu as a full disk would."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    done = record(*LACKEY, "-o", out, "sh", "-c", "while :; do :; done", preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr == f"{out}: can't be written: File too large; nothing of it was kept\n"
    assert os.listdir(out.parent) == []


def test_without_any_tool_the_remedy_is_told(out: Path, tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "true")
    done = record("-o", out, "true", env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 3
    assert done.stderr == (
        "perf is not installed; valgrind is not installed; mend it with:"
        " apt-get install valgrind linux-perf\n"
    )


@pytest.mark.usefixtures("valgrind")
def test_where_perf_is_not_allowed_lackey_records(out: Path, tmp_path: Path) -> None:
    refusing = tmp_path / "perf"
    refusing.write_text(
        "#!/bin/sh\necho Error: >&2\necho 'No permission to record.' >&2\nexit 255\n"
    )
    refusing.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = record("-o", out, "true", env=environment)
    assert done.returncode == 0, done.stderr
    assert native.open(out).meta.source.format == "lackey"
    done = record(*PERF, "-o", out, "--force", "true", env=environment)
    assert done.returncode == 3
    assert (
        "perf can't record page faults here: page-faults: No permission to record." in done.stderr
    )
    assert "--tool lackey" in done.stderr


# ---- perf ----


def perf_text(tool: perf_tool.Perf, command: Sequence[object]) -> list[str]:
    """What perf says of a command that runs here."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Running() as running,
        tool.recording([*map(str, command)], running, Path(directory)) as stream,
    ):
        text = stream.read(1 << 24).decode()
        assert running.wait() == 0
    return text.splitlines()


@pytest.mark.usefixtures("perf")
@pytest.mark.parametrize("event", perf_tool._EVENTS, ids=lambda event: event.names[0])
def test_perf_says_the_addresses_of_the_command_alone(
    touch: Path, event: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if why := perf_tool._why_not(event, tmp_path / "probe.data"):
        assert event != perf_tool.find().event
        pytest.skip(why)
    lines = perf_text(perf_tool.Perf(event), [touch, "fork"])
    own, of_child, child = capfd.readouterr().out.split()
    os.kill(int(child), signal.SIGKILL)
    assert all(line.split()[0] == "touch" for line in lines)
    said = (
        re.search(rf" (?:{'|'.join(event.names)})(?::u)?: +(?:address=0x)?([0-9a-f]+) ", x)
        for x in lines
    )
    faults = [int(match[1], 16) for match in said if match]
    assert len(faults) == len(lines)
    touched = [int(own, 16) + page * PAGE + 8 for page in reversed(range(PAGES))]
    assert [address for address in faults if address in touched] == touched
    child_area = range(int(of_child, 16), int(of_child, 16) + PAGES * PAGE)
    assert not any(address in child_area for address in faults)


@pytest.mark.usefixtures("perf", "userfault")
def test_perf_leaves_a_trace_of_first_touches(out: Path, touch: Path) -> None:
    done = record(*PERF, "-o", out, "--", touch)
    assert done.returncode == 0, done.stderr
    first = int(done.stdout.split()[0], 16)
    found = [offset for offset, _, _ in accesses(native.open(out), first)]
    assert found == [page * PAGE + 8 for page in reversed(range(PAGES))]
    assert "recorded with perf page faults" in done.stderr
    assert "first touches" in done.stderr


@pytest.mark.usefixtures("perf")
def test_perf_keeps_the_trace_of_a_failed_command(out: Path) -> None:
    done = record(*PERF, "-o", out, "sh", "-c", "exit 3")
    assert done.returncode == 1
    assert "note: the command failed with exit code 3: the trace is of a failed" in done.stderr
    assert native.open(out).meta.counts.accesses > 0


@pytest.mark.usefixtures("perf")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_is_for_the_command_and_not_for_perf(out: Path, times: int) -> None:
    script = 'trap "" INT; echo ready; read line; echo end'
    with subprocess.Popen(
        command_line(*PERF, "-o", out, "sh", "-c", script),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(times):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.2)
        said = process.communicate("\n", timeout=TIMEOUT_S)
    assert (process.returncode, said[0]) == (130, "end\n"), said
    assert native.open(out).meta.counts.accesses > 0
    assert os.listdir(out.parent) == [out.name]


@pytest.mark.usefixtures("perf", "valgrind")
@pytest.mark.parametrize("tool", [PERF, LACKEY], ids=["perf", "lackey"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_leaves_nothing_but_a_trace(
    out: Path, tmp_path: Path, tool: Sequence[str], number: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    mark = f"8{os.getpid()}.5"
    for delay in (0.05, 0.2, 0.4, 0.6, 0.9, 1.3):
        with subprocess.Popen(
            command_line(*tool, "--force", "-o", out, "sleep", mark),
            env=os.environ | {"TMPDIR": str(temporary)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            time.sleep(delay)
            process.send_signal(number)
            said = process.communicate(timeout=TIMEOUT_S)[1]
        # Before our first line runs, the signal does what it does to any program.
        assert process.returncode in (130, -number), said
        assert "Traceback" not in said
        assert os.listdir(temporary) == []
        assert set(os.listdir(out.parent)) <= {out.name}
        assert subprocess.run(["pgrep", "-f", mark], check=False, timeout=9).returncode == 1


FAKE_VALGRIND = """\
#!/bin/sh
for option; do
    case $option in --log-file=*) printf %s "$WRITES" >"${option#*=}" ;; esac
done
echo ready
exec sleep 600
"""


@pytest.mark.parametrize("writes", ["", "==7== Lac", "==7== Lackey, an example Valgrind tool\n"])
def test_a_signal_before_the_first_access_is_an_interrupt(
    out: Path, tmp_path: Path, writes: str
) -> None:
    valgrind = tmp_path / "bin" / "valgrind"
    valgrind.parent.mkdir()
    valgrind.write_text(FAKE_VALGRIND)
    valgrind.chmod(0o755)
    with subprocess.Popen(
        command_line(*LACKEY, "-o", out, "true"),
        env=os.environ | {"PATH": f"{valgrind.parent}:{os.environ['PATH']}", "WRITES": writes},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 130
    assert said.startswith("vmemu: interrupted; there is no trace: true: ")
    assert len(said.splitlines()) == 1
    assert os.listdir(out.parent) == []


@pytest.mark.usefixtures("perf")
def test_perf_does_not_wait_for_a_child_that_stays(out: Path, touch: Path) -> None:
    done = record(*PERF, "-o", out, "--", touch, "fork")
    assert done.returncode == 0, done.stderr
    os.kill(int(done.stdout.split()[2]), signal.SIGKILL)


@pytest.mark.usefixtures("perf")
def test_perf_gives_the_command_our_environment_and_no_descriptors(out: Path) -> None:
    script = "import os; print(sorted(os.listdir('/proc/self/fd')), os.environ['HOME'])"
    done = record(*PERF, "-o", out, "--", sys.executable, "-c", script)
    assert done.stdout == f"{['0', '1', '2', '3']} {os.environ['HOME']}\n", done.stderr


def _script_of(shell: str, directory: Path, running: Running) -> bytes:
    with (
        (directory / "errors").open("w+b") as errors,
        subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        script = perf_tool._Script(process, errors, running)
        text = b""
        while part := script.read1(100):
            text += part
        return text


def test_samples_that_perf_lost_are_noted(tmp_path: Path) -> None:
    running = Running()
    lost = "echo text; echo 'Warning:' >&2; echo 'Processed 90 events and lost 3 chunks!' >&2"
    assert _script_of(lost, tmp_path, running) == b"text\n"
    assert running.notes == ["perf could not keep up: Processed 90 events and lost 3 chunks!"]


def test_a_perf_script_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"^perf script failed: incompatible file format$"):
        _script_of("echo incompatible file format >&2; exit 1", tmp_path, Running())


# ---- the pieces ----


def test_commands_are_found_as_a_shell_finds_them(tmp_path: Path) -> None:
    check_command(["sh"])
    check_command(["/bin/sh", "-c", "true"])
    with pytest.raises(InputError, match="no such command"):
        check_command([str(tmp_path)])


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, ""),
        (7, "failed with exit code 7"),
        (-9, "was ended by SIGKILL"),
        (-33, "was ended by signal 33"),
    ],
)
def test_how_a_command_ended(status: int, words: str) -> None:
    assert how_it_ended(status) == words


def test_what_still_runs_at_the_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmemu.traces.record.command.PATIENCE_S", 0.2)
    with Running() as running:
        pid = running.start(["sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"])
        time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
