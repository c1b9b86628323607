"""The pytest plugin as a project has it that tests with it: sessions of pytest in a process of
their own, with real migrations."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from plugin_project import FLIP, READS, SCENARIO, SLOW, kept, output, run, section, write

from vmemu.results import schema

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("userfault")

NEVER = """\
blocks: [{name: ram, backing: hugetlbfs, size: 16GiB}]
guest: {trace: {synthetic: {kind: permutation}}}
"""


# ---- scenario files ----


def test_a_scenario_file_is_a_test_a_seed(project: pytest.Pytester) -> None:
    ids = output(run(project, "--collect-only", "-q", "--vmemu-seeds", "3")).splitlines()[:3]
    assert ids[0] == "boot.vmemu.yaml::seed7"
    assert len(set(ids)) == 3
    result = run(project, "-v", "--vmemu-seeds", "2")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["boot.vmemu.yaml::seed7 PASSED*", f"{ids[1]} PASSED*"])
    assert not list(project.path.rglob("*.json"))  # those of a test that passed are deleted


def test_other_yaml_files_are_left_alone(project: pytest.Pytester) -> None:
    (project.path / "boot.vmemu.yaml").rename(project.path / "boot.yaml")
    run(project).assert_outcomes()


def test_both_endings_of_yaml_are_tests(project: pytest.Pytester) -> None:
    shutil.copy(project.path / "boot.vmemu.yaml", project.path / "other.vmemu.yml")
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("vmemu_limits = other*.yml: max=9min\n")
    result = run(project)
    result.assert_outcomes(passed=2)
    assert "no scenario or test file fits" not in output(result)


def test_a_file_that_is_no_scenario_is_an_error_of_collection(project: pytest.Pytester) -> None:
    write(project, "bad.vmemu.yaml", "blocks: [{name: ram, backing: anonymos, size: 1MB}]\n")
    result = run(project, "--continue-on-collection-errors")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR collecting bad.vmemu.yaml*",
            "bad.vmemu.yaml:1:1: guest: is missing; *",
            "bad.vmemu.yaml:1:31: blocks?0?.backing: 'anonymos' is not known here; *",
            "bad.vmemu.yaml:1:47: blocks?0?.size: *write 1MiB",
        ]
    )
    assert "Traceback" not in output(result)
    assert "vmemu/testing" not in output(result)


def test_overrides_of_the_command_line(project: pytest.Pytester) -> None:
    result = run(project, "--vmemu-set", "seed=9", "--vmemu-set", "guest.vcpus=1", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["boot.vmemu.yaml::seed9 PASSED*"])


def test_options_that_mean_nothing(project: pytest.Pytester) -> None:
    for option, value, said in (
        ("--vmemu-seeds", "0", "'0' is no number of runs; write such as 3"),
        ("--vmemu-timeout", "soon", "soon"),
        ("--vmemu-set", "vcpus", "--vmemu-set: 'vcpus' is no path=value; write such as on_unavail"),
        ("--vmemu-report", "tox.ini", "--vmemu-report tox.ini: File exists"),
        ("--vmemu-report", "/proc/self", "--vmemu-report /proc/self: nothing may be written there"),
        ("-o", "vmemu_limits=boot*: p98=1ms", "vmemu_limits: boot*: no figure is called 'p98'"),
        ("-o", "vmemu_limits=boot", "vmemu_limits: 'boot': write 'boot*.vmemu.yaml: p99=2ms"),
    ):
        result = run(project, option, value)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert said in result.stderr.str()


def test_marks_of_a_conftest_and_limits_of_the_ini_file_count(project: pytest.Pytester) -> None:
    write(project, "other.vmemu.yaml", SCENARIO)
    write(project, "free.vmemu.yaml", SCENARIO)
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("vmemu_limits =\n    other*: p99=1ns blocktime=10min\n    no*.yaml: max=1ns\n")
    project.makeconftest(
        """
        import pytest
        def pytest_collection_modifyitems(items):
            for item in items:
                if item.nodeid.startswith("boot"):
                    item.add_marker(pytest.mark.vmemu_limit(faults=3))
        """
    )
    result = run(project)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*_ boot.vmemu.yaml, seed 7 _*",
            "limit exceeded: faults is *, the limit 3 (accesses that were stopped)",
            "*_ other.vmemu.yaml, seed 7 _*",
            "limit exceeded: p99 is *s, the limit 1ns (99 % of the faults took no longer)",
        ]
    )


# ---- tests that run scenarios ----


def test_a_marked_test_has_a_run_a_seed_and_its_figures(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.vmemu("boot.vmemu.yaml", seeds=[3, 1], overrides={"guest.vcpus": 3})
        @pytest.mark.vmemu_limit(downtime="10min")
        def test_boot(vmemu_run, vmemu_scenario, vmemu_seed):
            run = vmemu_run()
            assert run.ok and run.status == "completed" and run.message == ""
            assert run.seed == run.result["seed"] == vmemu_scenario.seed == vmemu_seed
            assert len(run.result["vcpus"]) == vmemu_scenario.guest.vcpus == 3
            assert run.faults == run.result["faults"]["count"] > 0
            assert 0 < run.p50_ns <= run.p99_ns <= run.max_ns
            assert run.worst_faults[0]["latency_ns"] == run.max_ns
            assert run.result_file.exists() and run.events_file.exists()
            with pytest.raises(AttributeError, match="a run has no 'p98_ns'"):
                run.p98_ns

        def test_unmarked(vmemu_run):
            fast = vmemu_run("boot.vmemu.yaml", seed=5)
            slow = vmemu_run("boot.vmemu.yaml", overrides=["migration.postcopy.preempt=false"])
            assert (fast.seed, slow.seed) == (5, 7)
            assert fast.result_file != slow.result_file

        def test_what_happens_when_it_goes_wrong(vmemu_run):
            run = vmemu_run("boot.vmemu.yaml", check=False, INJECT,
                            overrides={"guest.trace.synthetic.write_share": 0})
            assert run.status == "failed" and not run.ok and "ram+0x1001" in run.message
            assert run.result["verify"]["bytes_wrong"] == 1

        def test_nothing_at_all(vmemu_run):
            run = vmemu_run("missing.yaml", check=False)
            assert run.status == "refused" and "missing.yaml" in run.message
            with pytest.raises(AttributeError, match="a run that is refused has no figures"):
                run.p99_ns
        """.replace("INJECT", FLIP)
    )
    result = run(project, "-v", "test_a_marked_test_has_a_run_a_seed_and_its_figures.py")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["*::test_boot?seed3? PASSED*", "*::test_boot?seed1? PASSED*"])


def test_failures_say_what_was_wrong_and_how_to_see_it_again(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=f"""
        import pytest
        pytestmark = pytest.mark.vmemu("boot.vmemu.yaml")

        def test_flip(vmemu_run):
            vmemu_run({FLIP}, overrides="{READS}")

        @pytest.mark.vmemu_limit(p99="1ns", p50="10min")
        def test_limit(vmemu_run):
            vmemu_run(seed=9)

        def test_own(vmemu_run):
            assert vmemu_run().faults == 0

        @pytest.mark.vmemu_limit(p99="10min")
        def test_nothing_judged(vmemu_run):
            vmemu_run(check=False)

        @pytest.mark.vmemu_limit(p98="10min")
        def test_no_limit(vmemu_run):
            vmemu_run()
        """
    )
    result = run(project, "test_it.py", "--junitxml=junit.xml")
    result.assert_outcomes(failed=5)
    flip = section(result, "test_flip")
    assert "\n1 byte of memory and 0 reads of the guest are wrong; first ram+0x1001" in flip
    assert re.search(r"wrong bytes:\n  block  offset  expected +found\n  ram    0x1001  0x", flip)
    assert re.search(
        r"^called:  test_it\.py:5 in test_flip: vmemu_run\(inject=", flip, re.MULTILINE
    )
    assert "runs.py" not in flip  # where the plugin notices is nobody's concern
    command = re.search(r"^replay:  (.*)$", flip, re.MULTILINE)
    assert command is not None
    # The command that it says shows the same again.
    replayed = subprocess.run(
        f"{sys.executable} -m {command[1]} --json again.json",
        shell=True,
        check=False,
        capture_output=True,
        cwd=project.path,
    )
    assert replayed.returncode == 1
    again = json.loads((project.path / "again.json").read_text())
    first = json.loads(kept(flip, "result").read_text())
    assert again["verify"]["mismatches"] == first["verify"]["mismatches"]
    assert kept(flip, "events").stat().st_size > 0

    limit = section(result, "test_limit")
    assert re.search(r"limit exceeded: p99 is \d.*s, the limit 1ns", limit)
    rows = limit.partition("worst faults:\n")[2].splitlines()
    assert rows[0].split() == ["vCPU", "block", "offset", "access", "latency", "at"]
    worst = schema.validate(json.loads(kept(limit, "result").read_text())).faults.worst
    assert [(row.split()[0], int(row.split()[2], 16)) for row in rows[1 : len(worst) + 1]] == [
        (str(fault.vcpu), fault.offset) for fault in worst
    ]
    assert "--seed 9" in limit
    assert "(the limit is the test's: there it completes, and shows its figures" in limit

    own = section(result, "test_own")
    assert "vmemu_run().faults == 0" in own
    assert "replay:  vmemu run boot.vmemu.yaml\n" in own
    assert kept(own, "result").exists()
    assert "no run was judged by it; call vmemu_run() in the test" in output(result)
    assert "limit: no figure is called 'p98'" in section(result, "test_no_limit")
    assert "replay:" not in section(result, "test_no_limit")
    assert "During handling" not in output(result)
    cases = {
        case.get("name"): case for case in ET.parse(project.path / "junit.xml").iter("testcase")
    }
    properties = {one.get("name"): one.get("value") for one in cases["test_limit"].iter("property")}
    assert properties["vmemu_command"] == "vmemu run boot.vmemu.yaml --seed 9"
    assert int(properties["vmemu_p99_ns"] or 0) > 1


def test_what_to_type_where_the_program_is_not_on_path(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = project.mkdir("other")
    write(project, "other/vmemu", "#!/bin/sh\nexit 9\n").chmod(0o755)  # another installation's
    monkeypatch.setenv("PATH", f"{other}:/usr/bin:/bin")
    project.makepyfile(
        test_it="""
        def test_it(vmemu_run):
            print("<" + vmemu_run("boot.vmemu.yaml").command + ">")
        """
    )
    result = run(project, "test_it.py", "-s")
    command = output(result).partition("<")[2].partition(">")[0]
    assert command == f"{Path(sys.executable).parent / 'vmemu'} run boot.vmemu.yaml"
    done = subprocess.run(command, shell=True, check=False, capture_output=True, cwd=project.path)
    assert done.returncode == 0


def test_runs_of_one_test_beside_each_other(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        from concurrent.futures import ThreadPoolExecutor
        from threading import Thread

        SEEDS = [1, 2, 3]

        def test_each_has_its_own(vmemu_run):
            with ThreadPoolExecutor(3) as pool:
                runs = list(pool.map(lambda seed: vmemu_run("boot.vmemu.yaml", seed=seed), SEEDS))
            assert [run.result["seed"] for run in runs] == SEEDS
            assert len({run.result_file for run in runs}) == 3

        def test_a_failure_that_nobody_waits_for(vmemu_run):
            def flip():
                vmemu_run("boot.vmemu.yaml", INJECT, overrides="WRITES")
            thread = Thread(target=flip)
            thread.start()
            thread.join()
        """.replace("INJECT", FLIP).replace("WRITES", READS)
    )
    result = run(project, "test_it.py", "-p", "no:threadexception")
    result.assert_outcomes(passed=1, failed=1)
    text = section(result, "test_a_failure_that_nobody_waits_for")
    assert "\n1 byte of memory and 0 reads of the guest are wrong" in text


def test_no_thread_of_a_test_fails_or_skips_it_unheard(project: pytest.Pytester) -> None:
    write(project, "never.yaml", NEVER + "on_unavailable: skip\n")
    project.makepyfile(
        test_it="""
        import sys
        from threading import Thread

        import pytest

        def elsewhere(run, *arguments, **more):
            thread = Thread(target=lambda: run(*arguments, **more))
            thread.start()
            thread.join()

        def test_no_start(vmemu_run, monkeypatch):
            monkeypatch.setattr(sys, "executable", "/nowhere/python")
            elsewhere(vmemu_run, "boot.vmemu.yaml")

        def test_wrong_argument(vmemu_run):
            elsewhere(vmemu_run, "never.yaml")
            elsewhere(vmemu_run, "boot.vmemu.yaml", seed="x")

        @pytest.mark.vmemu_limit(p98="1s")
        def test_wrong_limit(vmemu_run):
            elsewhere(vmemu_run, "boot.vmemu.yaml")

        def test_skip(vmemu_run):
            elsewhere(vmemu_run, "never.yaml")
        """
    )
    result = run(project, "test_it.py", "-rs", "-p", "no:threadexception", "--vmemu-report", "out")
    result.assert_outcomes(failed=3, skipped=1)
    said = "a run can't be started, with its files in .*/out: .*/nowhere/python"
    assert re.search(f"^{said}", section(result, "test_no_start"), re.MULTILINE)
    (text,) = (file.read_text() for file in project.path.glob("out/*.txt"))
    assert re.match(rf"{said}'\n\ncalled: .*test_it\.py:\d+.*\nreplay:  .* run \S", text, re.DOTALL)
    assert "vmemu_run: seed='x': write a whole" in section(result, "test_wrong_argument")
    assert "limit" in section(result, "test_wrong_limit")
    assert re.search(
        r"^SKIPPED .* test_it\.py:\d+: never\.yaml:1:\d+: ", output(result), re.MULTILINE
    )


def test_what_wants_one_line_has_the_line_of_the_test(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it=f"""
        def test_flip(vmemu_run):
            vmemu_run("boot.vmemu.yaml", {FLIP}, overrides="{READS}")
        """
    )
    result = run(project, "test_it.py", "--tb=line")
    result.stdout.fnmatch_lines(["*/test_it.py:2: Failed: 1 byte of memory and 0 reads *"])


def test_a_run_is_replayed_from_where_pytest_was_started(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import os, shutil

        def test_elsewhere(vmemu_run, tmp_path, monkeypatch):
            other = shutil.copy("boot.vmemu.yaml", tmp_path / "other.yaml")
            start = os.getcwd()
            monkeypatch.chdir(tmp_path)
            assert vmemu_run("boot.vmemu.yaml").command == "vmemu run boot.vmemu.yaml"
            assert vmemu_run(other).command == f"vmemu run {os.path.relpath(other, start)}"
        """
    )
    run(project, "test_it.py").assert_outcomes(passed=1)


def test_wrong_uses_are_told_without_a_traceback(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        def test_overrides(vmemu_run):
            vmemu_run("boot.vmemu.yaml", overrides=5)

        def test_config(vmemu_run):
            vmemu_run(5)

        def test_seed(vmemu_run):
            vmemu_run("boot.vmemu.yaml", seed="x")

        def test_inject(vmemu_run):
            vmemu_run("boot.vmemu.yaml", inject=5)

        def test_backing(ram_block):
            ram_block("nothing")

        def test_size(ram_block):
            ram_block("shared", "1MB")

        def test_page_size(ram_block):
            ram_block("hugetlbfs", "3MiB", page_size="3MiB")

        def test_wait(ram_block):
            ram_block(wait="soon")

        @pytest.mark.vmemu_limit(p99="1s")
        def test_no_run():
            pass

        def test_a_text_is_one_point(vmemu_run):
            assert vmemu_run("boot.vmemu.yaml", check=False, INJECT,
                             overrides="WRITES").status == "failed"
        """.replace("INJECT", FLIP.translate({ord("["): None, ord("]"): None})).replace(
            "WRITES", READS
        )
    )
    result = run(project, "test_it.py", "-rf")
    result.assert_outcomes(passed=1, failed=9)
    for name, said in (
        ("overrides", "test_it.py:4: overrides=5: write a mapping, or texts such as 'guest.vcpus"),
        ("config", "test_it.py:7: vmemu_run: a scenario is a path, not 5"),
        ("seed", "test_it.py:10: vmemu_run: seed='x': write a whole number"),
        ("inject", "test_it.py:13: vmemu_run: inject=5: write fault points as texts"),
        ("backing", "test_it.py:16: ram_block: backing='nothing'; known: anonymous, hugetlb"),
        ("size", "test_it.py:19: ram_block: '1MB' has no unit of size that is known"),
        ("page_size", "test_it.py:22: ram_block: page_size='3MiB' is no page size; write such as"),
        ("wait", "test_it.py:25: ram_block: 'soon' is no duration; write a duration such as 30s"),
        ("no_run", "mark vmemu_limit: no run was judged by it; call vmemu_run() in the test"),
    ):
        assert said in section(result, f"test_{name}")
    assert "/vmemu/" not in output(result)


def test_a_run_that_does_not_end_is_killed_and_fails(project: pytest.Pytester) -> None:
    write(project, "slow.vmemu.yaml", SLOW)
    result = run(project, "slow.vmemu.yaml", "--vmemu-timeout", "4s")
    result.assert_outcomes(failed=1)
    text = section(result, "slow.vmemu.yaml, seed 7")
    assert re.search(r"^timeout: not done after .*s: in phase guest for .* accesses", text, re.M)
    assert "replay:  vmemu run slow.vmemu.yaml --seed 7\n" in text
    assert "(there nothing kills it: it goes on)" in text


def test_a_stuck_run_is_killed_and_says_what_waits_where(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        def test_stuck(vmemu_run):
            stall = "loader.stall@block=ram,offset=0x3000"
            vmemu_run("boot.vmemu.yaml", inject=[stall], timeout=8)
        """
    )
    result = run(project, "test_it.py")
    result.assert_outcomes(failed=1)
    text = section(result, "test_stuck")
    assert "stuck: " in text
    assert re.search(r"stopped:\n  vCPU \d .*ram.*0x3", text)
    assert "stacks:\n" in text
    assert "--inject loader.stall@block=ram,offset=0x3000\n" in text
    assert "(there nothing kills it: the scenario's limits.stall ends it, or Ctrl-C)" in text


def test_the_time_limit_of_pytest_timeout_leaves_room_to_tell(project: pytest.Pytester) -> None:
    """Its own way out, with its method ``thread``, ends the whole session."""
    write(project, "slow.vmemu.yaml", SLOW)
    result = run(project, "--timeout=20", "--timeout-method=thread")
    result.assert_outcomes(passed=1, failed=1)
    assert "timeout: not done after " in output(result)


def test_what_this_host_has_not_is_a_failure_or_a_skip_as_the_scenario_wishes(
    project: pytest.Pytester,
) -> None:
    write(project, "fails.vmemu.yaml", NEVER)
    write(project, "skips.vmemu.yaml", NEVER + "on_unavailable: skip\n")
    far_too_large = NEVER.replace("16GiB", "64TiB")
    write(project, "large.vmemu.yaml", far_too_large + "on_unavailable: skip\n")
    project.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.vmemu("fails.vmemu.yaml", overrides={"on_unavailable": "skip"})
        def test_skips(vmemu_run):
            vmemu_run()
            raise AssertionError("not reached")
        """
    )
    result = run(project, "-rs", "--deselect", "boot.vmemu.yaml")
    result.assert_outcomes(failed=1, skipped=3)
    assert "refused: " in section(result, "fails.vmemu.yaml, seed 1")
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED ?1? skips.vmemu.yaml:1: skips.vmemu.yaml:1:48: *",
            "SKIPPED ?1? test_it.py:*: fails.*",
        ]
    )
    forced = run(project, "--vmemu-set", "on_unavailable=skip", "--deselect", "boot.vmemu.yaml")
    forced.assert_outcomes(skipped=4)


# ---- memory of the test's own ----


def test_memory_of_the_test_is_mapped_served_and_given_back(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import threading
        from pathlib import Path
        import pytest

        held = []

        def test_anonymous(ram_block, userfaultfd):
            block, other = ram_block(), ram_block("shared", "64KiB")
            userfaultfd.register(block.address, block.size)
            reader = threading.Thread(target=lambda: held.append(block.read(4096, 2)))
            reader.start()
            userfaultfd.copy(block.address + 4096, b"ab" * 2048, 4096, 4096)
            reader.join()
            assert held == [b"ab"]
            held[:] = block, other, userfaultfd

        def test_given_back():
            assert [one.address for one in held[:2]] == [0, 0]
            assert held[2].fd == -1

        @pytest.mark.vmemu_features("THREAD_ID", "MISSING_SHMEM")
        def test_features(userfaultfd):
            assert {"THREAD_ID", "MISSING_SHMEM"} <= {f.name for f in userfaultfd.features}

        @pytest.mark.vmemu_features("THREAD")
        def test_no_feature(userfaultfd):
            pass

        def test_too_much(ram_block):
            ram_block("hugetlbfs", "16GiB", wait="1ms")

        def test_no_whole_page(ram_block):
            with pytest.raises(pytest.fail.Exception, match="no whole number of pages of 4096"):
                ram_block("shared", 5000, page_size=4096)
        """
    )
    result = run(project, "-rs", "test_it.py")
    result.assert_outcomes(passed=4, errors=1, skipped=1)
    assert "mark vmemu_features: no feature is called 'THREAD'; PAGEFAULT_FLAG_WP, " in output(
        result
    )


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("hugetlb")
def test_hugepages_of_the_test(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        def test_huge(ram_block, userfaultfd):
            block = ram_block("hugetlbfs", "2MiB", page_size="2MiB", wait="60s")
            userfaultfd.register(block.address, block.size)
            assert userfaultfd.copy(block.address, b"x" * (2 << 20), 2 << 20, 2 << 20)
            assert block.read(2 << 20 >> 1, 3) == b"xxx"
        """
    )
    run(project, "test_it.py").assert_outcomes(passed=1)


# ---- the documentation ----


@pytest.mark.usefixtures("hugetlb")
def test_the_examples_of_the_documentation_pass(pytester: pytest.Pytester) -> None:
    text = (Path(__file__).parents[2] / "docs/testing.md").read_text()
    files = re.findall(r"^```\w+\n# (\S+\.\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in files} >= {"boot.vmemu.yaml", "test_boot.py", "conftest.py"}
    for name, content in files:
        write(pytester, name, content)
    result = run(pytester, "--strict-markers", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=8)
