"""What marks, ids and lines of the ini file mean to a session of pytest, the wrong ones too."""

from __future__ import annotations

import pytest
from plugin_project import SCENARIO, SLOW, output, run, section, write

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("userfault")


def test_marks_that_nothing_uses_are_no_green_tests(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.vmemu("boot.vmemu.yaml")
        def test_no_fixture():
            pass

        @pytest.mark.vmemu("boot.vmemu.yaml")
        def test_not_called(vmemu_run):
            pass

        @pytest.mark.vmemu_features("THREAD_ID")
        def test_features():
            pass

        @pytest.mark.vmemu_limit(p99="1s")
        def test_limit():
            pass

        @pytest.mark.vmemu("boot.vmemu.yaml")
        def test_scenario(vmemu_scenario):
            pass

        @pytest.mark.vmemu("boot.vmemu.yaml", seeds=2)
        def test_seed(vmemu_seed):
            pass

        @pytest.mark.vmemu("boot.vmemu.yaml")
        def test_dynamically(request):
            request.getfixturevalue("vmemu_scenario")

        @pytest.mark.vmemu("boot.vmemu.yaml")
        def test_skipped(vmemu_run):
            pytest.skip("for a reason")

        @pytest.mark.vmemu("boot.vmemu.yaml")
        @pytest.mark.vmemu_limit(p99="1s")
        @pytest.mark.vmemu_features("THREAD_ID")
        class TestAll:
            def test_inside(self):
                pass

            def test_not_judged(self, vmemu_run):
                assert vmemu_run(check=False).ok
        """
    )
    result = run(project, "test_it.py")
    result.assert_outcomes(failed=4, passed=6, skipped=1)
    unused = "mark vmemu: the test does not use it; take the fixture vmemu_run and call it"
    assert unused in section(result, "test_no_fixture")
    assert unused in section(result, "test_not_called")
    assert "mark vmemu_features: the test does not use it" in section(result, "test_features")
    assert "mark vmemu_limit: no run was judged by it" in section(result, "test_limit")


def test_a_bad_mark_is_the_error_of_its_own_test(project: pytest.Pytester) -> None:
    """The others of the file run, and each that is bad is told."""
    project.makepyfile(
        test_it="""
        import pytest

        def test_good():
            pass

        @pytest.mark.vmemu("missing.yaml")
        def test_file(vmemu_run):
            vmemu_run()

        @pytest.mark.vmemu("boot.vmemu.yaml", overrides={"guest.vcpu": 4})
        def test_override(vmemu_seed):
            pass

        class TestIt:
            @pytest.mark.vmemu("boot.vmemu.yaml", seeds="x")
            @pytest.mark.parametrize("push", [True, False])
            def test_seeds(self, vmemu_run, push):
                vmemu_run()

        @pytest.mark.vmemu()
        def test_nothing(vmemu_scenario):
            pass
        """
    )
    result = run(project, "test_it.py", "--vmemu-seeds", "2", "-rE")
    result.assert_outcomes(passed=1, errors=5)
    for name, said in (
        ("test_file", "mark vmemu: missing.yaml: no such file"),
        ("test_override", "mark vmemu: --set: guest.vcpu: unknown key; did you mean 'vcpus'?"),
        ("TestIt.test_seeds[[]True[]]", "mark vmemu: seeds='x': write how many runs, or a list"),
        ("test_nothing", "mark vmemu: missing 1 required positional argument: 'config'; write"),
    ):
        result.stdout.fnmatch_lines([f"*_ ERROR at setup of {name} _*", f"{said}*"])
    assert "Traceback" not in output(result)


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_an_id_with_a_seed_works_by_itself(project: pytest.Pytester, workers: str) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        class TestIt:
            @pytest.mark.vmemu("boot.vmemu.yaml")
            @pytest.mark.parametrize("push", [True, False])
            def test_seeds(self, vmemu_scenario, push):
                assert vmemu_scenario.seed in (7, 5)

        @pytest.mark.vmemu("boot.vmemu.yaml", seeds=[3])
        def test_list(vmemu_scenario):
            assert vmemu_scenario.seed == 3
        """
    )
    ids = ("boot.vmemu.yaml::seed1808820083", "test_it.py::TestIt::test_seeds[seed5-True]")
    result = run(project, workers, "-v", "-rA", *ids)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines_random([f"PASSED {name.replace('[', '[[]')}" for name in ids])
    assert "not found: " in run(project, "test_it.py::test_list[seed4]").stderr.str()
    run(project, "boot.vmemu.yaml::seed1x").assert_outcomes()


def test_a_line_of_the_ini_file_that_fits_no_file_is_told_at_the_end(
    project: pytest.Pytester,
) -> None:
    write(project, "slow.vmemu.yaml", SLOW)
    write(project, "misnamed.yaml", SCENARIO)
    with (project.path / "tox.ini").open("a") as ini:
        ini.write(
            "vmemu_limits =\n    slow*: p99=1s\n    misnamed*: p99=1s\n    b?ot.v*: max=9min\n"
        )
    for more in ((), ("-n1",)):
        result = run(project, "boot.vmemu.yaml", *more)
        result.assert_outcomes(passed=1)
        told = [line for line in output(result).splitlines() if "vmemu_limits" in line]
        assert told == ["warning: vmemu_limits: no scenario or test file fits 'misnamed*'"]
