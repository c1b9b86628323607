"""Processes beside the guest on the same memory: every byte right, and nothing left when one, or
whoever it needs, is gone."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import MIB, accesses_of, await_true, scenario, shared, synthetic

from vmemu.config import Scenario, load
from vmemu.errors import ConfigError
from vmemu.migration import Migration, Progress
from vmemu.ramblock import BASE_PAGE, RAMBlock
from vmemu.results import document, schema
from vmemu.runstate import Run
from vmemu.userfault import Feature, Userfaultfd

pytestmark = pytest.mark.usefixtures("userfault", "nothing_left")

CONFIGS = Path(__file__).parents[2] / "configs"
LOCAL = {"name": "local", "backing": "anonymous", "size": "128KiB"}
SHARED = {
    "name": "vram",
    "backing": "shared",
    "size": "512KiB",
    "content": {"kind": "seeded", "zero_share": 0.25},
}
HUGEPAGES = {"name": "huge", "backing": "hugetlbfs", "page_size": "2MiB", "size": "4MiB"}
ENDLESS = 1 << 40
"""Accesses that no run finishes."""


@pytest.fixture(params=["vram", "huge"])
def block(request: pytest.FixtureRequest) -> str:
    """The block that is shared."""
    if request.param == "huge":
        request.getfixturevalue("hugetlb")
    return str(request.param)


def client(name: str, block: str, vcpus: int = 1, **trace: Any) -> dict[str, Any]:
    fields = {"kind": "uniform", "accesses": 2000, "write_share": 0.5} | trace
    return {"name": name, "block": block, "vcpus": vcpus, "trace": synthetic(**fields)}


def with_clients(
    *clients: dict[str, Any], accesses: int = 2000, push: bool = True, **sections: Any
) -> Scenario:
    """A guest on three blocks (two without hugepages), and clients on some of them."""
    huge = any(one["block"] == "huge" for one in clients)
    blocks = [LOCAL, SHARED, *([HUGEPAGES] if huge else [])]
    trace = synthetic("uniform", accesses=accesses, write_share=0.4)
    data = {
        "guest": {"vcpus": 2, "trace": trace},
        "clients": list(clients),
        "migration": {"postcopy": {"push": push}},
    }
    return scenario(blocks, **(data | sections))


def figures(run: Run, name: str) -> list[int]:
    return [one.figures.counters[name] for one in run.clients]


def completed(wanted: Scenario) -> Run:
    """Run it: every byte was checked, every client did all of its work, the result is valid."""
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    assert run.verification is not None
    size = sum(block.size for block in wanted.blocks)
    assert (run.verification.bytes_checked, run.verification.bytes_wrong) == (size, 0)
    assert figures(run, "reads_wrong") == [0] * len(run.clients)
    assert figures(run, "accesses") == [one.trace.synthetic.accesses for one in wanted.clients]
    schema.validate(document.build(run))
    return run


# ---- every byte ----


@pytest.mark.parametrize("preempt", [True, False])
@pytest.mark.parametrize("push", [True, False])
def test_every_byte_is_right_with_two_clients(block: str, preempt: bool, push: bool) -> None:
    clients = [client("one", block, vcpus=2), client("two", block)]
    migration = {"postcopy": {"preempt": preempt, "push": push}}
    run = completed(with_clients(*clients, migration=migration))
    assert run.incoming is not None
    stats = run.incoming.figures.stats
    # A fault is a client's when the fault thread has read it; one that is read while the page is
    # being placed may be over before it is counted.
    assert sum(figures(run, "faults")) <= stats.of_clients <= stats.messages


@pytest.mark.parametrize("seed", range(6))
def test_several_fault_threads_answer_for_clients_too(seed: int) -> None:
    clients = [client(f"c{n}", "vram", vcpus=2, accesses=3000) for n in range(3)]
    migration = {"postcopy": {"fault_threads": 3, "preempt": seed % 2 == 0}}
    completed(with_clients(*clients, seed=seed, migration=migration))


def test_what_was_pre_copied_and_discarded_is_right_for_clients(block: str) -> None:
    migration = {"precopy": {"rounds": 3}, "flip_at": "60%"}
    completed(with_clients(client("one", block, vcpus=2), migration=migration))


def test_a_client_alone_faults_on_each_page_once() -> None:
    """Nothing brings a page but its touches, and the guest stays on its own block."""
    wanted = with_clients(
        client("one", "vram", kind="permutation", accesses=128, write_share=0.0), push=False
    )
    only_local = {"vcpus": 1, "trace": synthetic("sequential", accesses=1)}
    run = completed(wanted.model_copy(update={"guest": wanted.guest.model_validate(only_local)}))
    assert run.incoming is not None
    assert figures(run, "faults") == [128]
    assert figures(run, "reads_checked") == [128]
    (one,) = document.build(run)["clients"]
    assert 0 < one["latency_ns"]["p50"] <= one["latency_ns"]["max"] <= one["blocktime_ns"]


def test_a_page_placed_once_wakes_the_waiters_of_every_process() -> None:
    """Guest and clients walk over the same pages in the same order, and wait for the same page
    again and again."""
    walk = {"kind": "sequential", "accesses": 128, "stride": "4KiB", "write_share": 0.0}
    blocks = [SHARED]
    run = completed(
        scenario(
            blocks,
            guest={"vcpus": 1, "trace": synthetic(**walk)},
            clients=[client(f"c{n}", "vram", **walk) for n in range(2)],
            migration={"postcopy": {"push": False}},
        )
    )
    assert run.incoming is not None
    assert run.incoming.figures.stats.requests == 128  # each page was asked for once


def test_without_verification_no_marks_are_kept() -> None:
    wanted = with_clients(client("one", "vram"), verify={"reads": False, "final": False})
    run = Migration(wanted).run()
    assert (run.status, run.error) == ("completed", None)
    assert figures(run, "reads_checked") == [0]
    assert figures(run, "accesses") == [2000]


def test_what_a_client_wrote_is_checked_at_the_end() -> None:
    """Where only the client writes: without its marks, each of its writes would be an error."""
    wanted = with_clients(client("one", "vram", write_share=1.0))
    reads = {"vcpus": 1, "trace": synthetic("uniform", accesses=100, write_share=0.0)}
    run = completed(wanted.model_copy(update={"guest": wanted.guest.model_validate(reads)}))
    assert figures(run, "writes") == [2000]


def test_a_wrong_byte_that_a_client_reads_is_named() -> None:
    wanted = with_clients(
        client("one", "vram", kind="permutation", accesses=128, write_share=0.0),
        verify={"reads": True, "final": False},
        seed=3,
    )
    wrong = tuple(("vram", offset) for offset in range(512 * 1024))
    run = Migration(wanted, flips=wrong).run()
    assert run.status == "failed"
    built = document.build(run)
    assert built["error"]["kind"] == "verification"
    assert built["clients"][0]["reads_wrong"] > 0
    assert {one["block"] for one in built["verify"]["mismatches"]} == {"vram"}


def vmemu_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmemu", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("hugetlb")
def test_the_scenario_with_clients_runs(tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    done = vmemu_run(CONFIGS / "clients.yaml", "--json", kept)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(kept.read_text())
    schema.validate(result)
    assert [one["accesses"] for one in result["clients"]] == [100_000, 4]
    assert result["verify"]["ok"] is True
    assert "vhost-net  pc.ram" in done.stdout


# ---- why a client has to register ----


CHILD = """
import sys
from vmemu import core
from vmemu.ramblock import Backing, RAMBlock
block = RAMBlock("vram", Backing.SHARED, {size}, {page})
block.attach({fd})
print(block.read(0, 8).hex())
"""


def _read_by_another_process(block: RAMBlock) -> bytes:
    fd = block.share()
    try:
        code = CHILD.format(size=block.size, page=block.page_size, fd=fd)
        done = subprocess.run(
            [sys.executable, "-c", code], pass_fds=[fd], capture_output=True, text=True, check=True
        )
    finally:
        os.close(fd)
    return bytes.fromhex(done.stdout)


def test_a_client_that_does_not_register_reads_zeros_from_a_hole() -> None:
    """Silently: and it fills the hole, so that the page which comes later is not even placed."""
    block = shared(pages=1)
    block.map()
    wanted = Feature.MISSING_SHMEM
    try:
        with Userfaultfd(wanted) as uffd:
            uffd.register(block.address, block.size)
            assert _read_by_another_process(block) == bytes(8)
            poll = select.poll()
            poll.register(uffd.fd, select.POLLIN)
            assert poll.poll(0) == []  # no fault was told to the one who has the page
            page = b"\xa5" * BASE_PAGE
            assert uffd.copy(block.address, page, BASE_PAGE, BASE_PAGE)
            assert block.read(0, 8) == bytes(8)
            uffd.unregister(block.address, block.size)
    finally:
        block.unmap()


# ---- when somebody is gone ----


class Meddle:
    """Called with the progress of a run: does something to it once a client is at work."""

    def __init__(self, what: Callable[[Migration], None]) -> None:
        self.migration: Migration | None = None
        self.done = False
        self._what = what

    def __call__(self, now: Progress) -> None:
        assert self.migration is not None
        clients = self.migration.run_state.clients
        if not self.done and clients and all(one.accesses for one in clients):
            self.done = True
            self._what(self.migration)


def meddled(wanted: Scenario, what: Callable[[Migration], None]) -> Run:
    meddle = Meddle(what)
    meddle.migration = Migration(wanted, progress=meddle)
    return meddle.migration.run()


def _kill_client(migration: Migration) -> None:
    pid = migration.run_state.clients[0].process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _kill_source(migration: Migration) -> None:
    assert migration._source is not None
    pid = migration._source.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _stop_source(migration: Migration) -> None:
    """Nothing comes any more, and nothing says so."""
    assert migration._source is not None
    pid = migration._source.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


def _interrupt(migration: Migration) -> None:
    raise KeyboardInterrupt("interrupted by SIGINT")


def test_a_client_that_is_killed_fails_the_run(block: str) -> None:
    run = meddled(with_clients(client("one", block, accesses=ENDLESS)), _kill_client)
    assert run.status == "failed"
    assert str(run.error) == (
        "client one was killed by SIGKILL while the guest's memory was in its hands"
    )
    built = document.build(run)
    schema.validate(built)
    assert built["error"]["kind"] == "client_gone"
    assert built["verify"]["ok"] is None


def test_a_killed_client_leaves_the_others_to_be_ended() -> None:
    clients = [client("one", "vram", accesses=ENDLESS), client("two", "vram", accesses=ENDLESS)]
    run = meddled(with_clients(*clients, accesses=ENDLESS), _kill_client)
    assert "client one was killed by SIGKILL" in str(run.error)
    assert figures(run, "accesses")[0] == 0  # it told nothing any more
    assert figures(run, "accesses")[1] > 0
    assert figures(run, "reads_wrong") == [0, 0]


def _before_the_guest(migration: Migration, what: Callable[[Migration], None]) -> None:
    """Do it when all is registered and nothing has been touched."""
    listen = migration._listen

    def then_what() -> None:
        listen()
        what(migration)

    migration._listen = then_what  # type: ignore[method-assign]


def test_a_source_that_is_killed_while_clients_wait(block: str) -> None:
    migration = Migration(with_clients(client("one", block, vcpus=4), push=False))
    _before_the_guest(migration, _kill_source)
    run = migration.run()
    assert run.status == "failed"
    assert "the source process was killed by SIGKILL" in str(run.error)
    assert figures(run, "accesses") == figures(run, "reads_wrong") == [0]


def test_the_start_of_clients_is_no_downtime(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest stops at the source only when everybody is there."""
    migration = Migration(with_clients(client("one", block)))
    await_clients, there_ns = migration._await_clients, []

    def await_and_note() -> None:
        await_clients()
        there_ns.append(time.monotonic_ns())

    monkeypatch.setattr(migration, "_await_clients", await_and_note)
    run = migration.run()
    assert (run.status, run.error) == ("completed", None)
    assert run.flip is not None
    assert run.flip.stopped_ns >= there_ns[0]


def test_an_interrupted_run_keeps_the_clients_figures(block: str) -> None:
    run = meddled(with_clients(client("one", block, accesses=ENDLESS)), _interrupt)
    assert run.status == "interrupted"
    built = document.build(run)
    schema.validate(built)
    assert built["clients"][0]["accesses"] > 0
    assert built["verify"]["ok"] is None


def test_ctrl_c_of_a_terminal_goes_to_clients_too_and_is_not_theirs(tmp_path: Path) -> None:
    path, kept = tmp_path / "endless.yaml", tmp_path / "result.json"
    trace = synthetic("uniform", accesses=ENDLESS, write_share=0.5)
    one = {"name": "one", "block": "vram", "vcpus": 2, "trace": trace}
    data = {"blocks": [LOCAL, SHARED], "guest": {"trace": trace}, "clients": [one]}
    path.write_text(json.dumps(data))
    command = [sys.executable, "-m", "vmemu", "run", str(path), "--json", str(kept)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        await_true(lambda: process.poll() is not None or accesses_of(process.pid) > 0)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, "")
    result = json.loads(kept.read_text())
    schema.validate(result)
    assert result["status"] == "interrupted"
    assert result["clients"][0]["reads_wrong"] == 0


def test_a_stall_names_the_client_that_waits() -> None:
    """The source is stopped as soon as all are ready: whatever is touched then never comes."""
    big = {"name": "big", "backing": "shared", "size": 16 * MIB}
    wanted = scenario(
        [big],
        guest={"vcpus": 1, "trace": synthetic("uniform", accesses=1)},
        clients=[client("one", "big", vcpus=2, kind="permutation", accesses=4096)],
        migration={"postcopy": {"push": False}},
        limits={"stall": "600ms"},
    )
    migration = Migration(wanted)
    _before_the_guest(migration, _stop_source)
    run = migration.run()
    assert run.status == "failed"
    built = document.build(run)
    schema.validate(built)
    assert built["error"]["kind"] == "stall"
    assert "of client one waits for big+0x" in built["error"]["message"]
    assert {one["vcpu"] for one in built["error"]["waiting"] if "client" in one} == {0, 1}


def test_a_destination_that_is_killed_takes_its_clients_along(tmp_path: Path) -> None:
    """However it ends: their vCPUs wait for pages that nobody will place."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support import scenario, synthetic
from vmemu.migration import Migration
trace = synthetic("uniform", accesses={ENDLESS}, write_share=0.5)
wanted = scenario(
    [{{"name": "vram", "backing": "shared", "size": "64MiB"}}],
    guest={{"vcpus": 1, "trace": trace}},
    clients=[{{"name": "one", "block": "vram", "vcpus": 4, "trace": trace}}],
    migration={{"postcopy": {{"push": False}}}},
)
def progress(now):
    if now.phase == "guest":
        print(migration.run_state.clients[0].process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
migration = Migration(wanted, progress=progress)
migration.run()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout.split()[0])
    deadline = time.monotonic() + 30
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# ---- what a scenario may say ----


@pytest.mark.parametrize(
    ("clients", "place", "said"),
    [
        ("[{name: a, block: ram}]", "clients[0].block", "did you mean 'vram'?"),
        ("[{name: a, block: local}]", "clients[0].block", "anonymous memory, which no other"),
        ("[{name: a, block: vram}, {name: a, block: vram}]", "clients[1].name", "named 'a' too"),
        ("[{name: a, block: vram, vcpus: 0}]", "clients[0].vcpus", "1"),
        ("[{block: vram}]", "clients[0].name", "is missing"),
        ("[{name: a, block: vram, blok: 1}]", "clients[0].blok", "did you mean 'block'?"),
    ],
)
def test_a_wrong_client_is_refused_at_its_place(
    tmp_path: Path, clients: str, place: str, said: str
) -> None:
    path = tmp_path / "wrong.yaml"
    trace = "trace: {synthetic: {kind: permutation}}"
    blocks = [LOCAL, SHARED]
    clients = clients.replace("}", f", {trace}}}")
    path.write_text(f"blocks: {json.dumps(blocks)}\nguest: {{{trace}}}\nclients: {clients}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    problems = [one for one in caught.value.problems if one.field == place]
    assert any(said in str(one) for one in problems), str(caught.value)
    assert all(one.line == 3 for one in problems)


@pytest.mark.parametrize(
    ("mapping", "place"),
    [
        ({"kind": "compact", "block": "local"}, "clients[0].trace.map.block"),
        ({"kind": "blocks", "rename": {"a": "local"}}, "clients[0].trace.map.rename.a"),
        ({"kind": "regions", "regions": ["0x0-64KiB=local"]}, "clients[0].trace.map.regions[0]"),
    ],
)
def test_a_client_touches_no_block_but_its_own(
    tmp_path: Path, mapping: dict[str, Any], place: str
) -> None:
    path = tmp_path / "wrong.yaml"
    recording = CONFIGS / "traces" / "sort.vmtrace.zst"
    trace = {"file": str(recording), "map": mapping}
    data = {
        "blocks": [LOCAL, SHARED],
        "guest": {"trace": synthetic("permutation")},
        "clients": [{"name": "a", "block": "vram", "trace": trace}],
    }
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.field == place
    assert "the client has mapped 'vram' alone" in problem.what


def test_a_trace_that_does_not_fit_the_block_is_an_error_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    recording = CONFIGS / "traces" / "sort.vmtrace.zst"
    data = {
        "blocks": [{"name": "tiny", "backing": "shared", "size": "4KiB"}],
        "guest": {"trace": synthetic("permutation")},
        "clients": [{"name": "a", "block": "tiny", "trace": {"file": str(recording)}}],
    }
    path.write_text(json.dumps(data))
    done = vmemu_run(path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{path}:1:")
    assert " clients[0].trace.map: " in done.stderr


# ---- blocks that are shared ----


def test_only_memory_with_a_descriptor_can_be_shared() -> None:
    block = shared(pages=2)
    with pytest.raises(ValueError, match="can be shared"):
        block.share()
    block.map()
    other = shared(pages=2)
    try:
        other.attach(block.share())
        with pytest.raises(ValueError, match="is mapped already"):
            other.attach(-1)
        block.write(5, b"seen")
        assert other.read(5, 4) == b"seen"
    finally:
        other.unmap()
        block.unmap()
