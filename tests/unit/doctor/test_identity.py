"""Who asks: capabilities, namespaces, seccomp, containers."""

from __future__ import annotations

import pytest

from vmemu.host.identity import capabilities, identify, status_fields

STATUS = """\
Name:\tpython
CapEff:\t{caps}
NoNewPrivs:\t0
Seccomp:\t{seccomp}
Seccomp_filters:\t1
"""
MACHINE = {
    "/proc/self/ns/user": "->user:[4026531837]",
    "/proc/self/ns/pid": "->pid:[4026531836]",
    "/proc/self/ns/ipc": "->ipc:[4026531839]",
    "/proc/self/ns/uts": "->uts:[4026531838]",
    "/proc/self/ns/cgroup": "->cgroup:[4026531835]",
}
CONTAINED = MACHINE | {"/proc/self/ns/pid": "->pid:[4026532177]"}


def status(caps: str = "0", seccomp: int = 0) -> dict[str, str]:
    return {"/proc/self/status": STATUS.format(caps=caps, seccomp=seccomp)}


def test_lines_of_status_are_names_and_values() -> None:
    fields = status_fields("Name:\ta: b\nCapEff:\t0001\n\n nothing\n")
    assert fields == {"Name": "a: b", "CapEff": "0001"}


def test_capabilities_are_bits_and_those_without_a_say_are_left_out() -> None:
    assert capabilities("0000000000080000") == ("CAP_SYS_PTRACE",)
    assert capabilities("000001ffffffffff")[:2] == ("CAP_DAC_OVERRIDE", "CAP_IPC_LOCK")
    assert capabilities("0000000000000001") == capabilities("what?") == ()


@pytest.mark.parametrize(("number", "word"), [(0, "disabled"), (1, "strict"), (2, "filter")])
def test_seccomp_is_a_number_in_status(tree, number: int, word: str) -> None:
    assert identify(tree(status(seccomp=number)), {}).seccomp == word


def test_a_kernel_without_seccomp_says_nothing_of_it(tree) -> None:
    assert identify(tree({"/proc/self/status": "Name:\tx\n"}), {}).seccomp is None


def test_capabilities_of_a_user_namespace_do_not_count(tree) -> None:
    inside = MACHINE | {"/proc/self/ns/user": "->user:[4026532177]"}
    who = identify(tree(status("000001ffffffffff") | inside), {})
    assert "CAP_SYS_PTRACE" in who.capabilities
    assert not who.may("CAP_SYS_PTRACE")


def test_capabilities_of_the_machine_count(tree) -> None:
    who = identify(tree(status("0000000000080000") | MACHINE), {})
    assert who.may("CAP_SYS_PTRACE")
    assert not who.may("CAP_IPC_LOCK")


@pytest.mark.parametrize(
    ("files", "environment", "name"),
    [
        ({"/.dockerenv": ""}, {}, "docker"),
        ({"/run/.containerenv": "", "/.dockerenv": ""}, {}, "podman"),
        ({"/.dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"container": "systemd-nspawn"}, "systemd-nspawn"),
        ({"/run/systemd/container": "lxc\n"}, {}, "lxc"),
        ({"/proc/self/cgroup": "4:memory:/docker/0a1b\n"}, {}, "docker"),
        ({"/proc/self/cgroup": "0::/system.slice/docker-0a1b.scope\n"}, {}, "docker"),
        ({"/proc/self/cgroup": "0::/kubepods.slice/kubepods-pod1.slice/x\n"}, {}, "kubernetes"),
        ({"/proc/self/cgroup": "0::/machine.slice/machine-a.scope\n"}, {}, "systemd-nspawn"),
        ({"/proc/self/cgroup": "0::/user.slice/mydockerfiles\n"}, {}, ""),
        ({}, {}, ""),
    ],
)
def test_what_container_this_is(
    tree, files: dict[str, str], environment: dict[str, str], name: str
) -> None:
    assert identify(tree(status() | CONTAINED | files), environment).container == name


def test_a_machine_made_of_an_image_is_no_container(tree) -> None:
    """It has the engine's file, and none of its namespaces."""
    assert identify(tree(status() | MACHINE | {"/.dockerenv": ""}), {}).container == ""


def test_the_service_around_is_the_innermost(tree) -> None:
    own = "0::/user.slice/user@0.service/app.slice/runner.service/job\n"
    assert identify(tree(status() | {"/proc/self/cgroup": own}), {}).unit == "runner.service"
    assert identify(tree({"/proc/self/cgroup": "0::/\n"}), {}).unit == ""
