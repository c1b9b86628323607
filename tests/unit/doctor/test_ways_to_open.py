"""Why a way to open userfaultfd fails, and what mends it, for made-up circumstances."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import signal

import pytest

from vmemu.doctor.opening import NAMES, Attempt, Circumstances, explained
from vmemu.host.document import Way
from vmemu.host.identity import Identity
from vmemu.userfault import How

OPENS = Attempt()
SYSCTL = "/proc/sys/vm/unprivileged_userfaultfd"
MISC = "/proc/misc"
HAS_IT = {SYSCTL: "0\n", MISC: "234 btrfs-control\n 57 userfaultfd\n"}


def refused(error: int) -> Attempt:
    return Attempt(error=error)


def who(
    *capabilities: str,
    first: bool = True,
    filtered: bool = False,
    container: str = "",
    unit: str = "",
) -> Identity:
    seccomp = "filter" if filtered else "disabled"
    return Identity(capabilities, first, seccomp, container, unit)


def explain(
    files, identity: Identity, syscall: Attempt, device: Attempt, user: Attempt
) -> dict[str, Way]:
    tried = {How.SYSCALL: syscall, How.DEVICE: device, How.USER_MODE_ONLY: user}
    return {way.how: way for way in explained(tried, Circumstances(files, identity))}


EPERM, ENOSYS, ENOENT, EACCES = (
    refused(error) for error in (errno.EPERM, errno.ENOSYS, errno.ENOENT, errno.EACCES)
)


def test_what_opens_needs_no_words(tree) -> None:
    ways = explain(tree(HAS_IT), who(), OPENS, OPENS, OPENS)
    assert list(ways) == list(NAMES.values())
    assert all(way.works and not way.why and not way.remedy for way in ways.values())


def test_an_ordinary_user_is_told_of_the_sysctl(tree) -> None:
    way = explain(tree(HAS_IT), who(), EPERM, ENOENT, OPENS)["syscall"]
    assert way.why == "vm.unprivileged_userfaultfd is 0 and this process has no CAP_SYS_PTRACE"
    assert way.remedy == "sysctl vm.unprivileged_userfaultfd=1"


def test_a_capability_of_a_user_namespace_does_not_count(tree) -> None:
    way = explain(tree(HAS_IT), who("CAP_SYS_PTRACE", first=False), EPERM, ENOENT, OPENS)["syscall"]
    assert "no CAP_SYS_PTRACE that counts: this is a user namespace of its own" in way.why
    assert way.remedy == "sudo sysctl vm.unprivileged_userfaultfd=1  # on the host"


@pytest.mark.parametrize(
    ("container", "remedy"),
    [
        ("docker", "docker run --cap-add SYS_PTRACE"),
        ("podman", "podman run --cap-add SYS_PTRACE"),
        ("kubernetes", "sudo sysctl vm.unprivileged_userfaultfd=1  # on the host"),
        ("lxc", "sudo sysctl vm.unprivileged_userfaultfd=1  # on the host"),
    ],
)
def test_a_container_gets_the_capability_from_who_starts_it(
    tree, container: str, remedy: str
) -> None:
    """A filter that lets user mode through is not what refuses the call."""
    identity = who(filtered=True, container=container)
    assert explain(tree(HAS_IT), identity, EPERM, ENOENT, OPENS)["syscall"].remedy == remedy


def test_what_a_pod_is_to_say_is_no_command(tree) -> None:
    identity = who(filtered=True, container="kubernetes")
    denied = explain(tree(HAS_IT), identity, EPERM, ENOENT, OPENS)["syscall"]
    assert "'securityContext: {capabilities: {add: [SYS_PTRACE]}}' gives it" in denied.why
    filtered = explain(tree(HAS_IT), identity, EPERM, ENOENT, EPERM)["syscall"]
    assert "'securityContext: {seccompProfile: {type: Unconfined}}' does" in filtered.why
    assert filtered.remedy == ""


@pytest.mark.parametrize("capabilities", [(), ("CAP_SYS_PTRACE",)])
def test_a_filter_refuses_user_mode_too(tree, capabilities: tuple[str, ...]) -> None:
    identity = who(*capabilities, filtered=True, container="docker")
    ways = explain(tree(HAS_IT), identity, EPERM, ENOENT, EPERM)
    for how in ("syscall", "user_mode_only"):
        assert ways[how].why.startswith("a seccomp filter refuses the call (EPERM)")
        assert "the default profile of docker does not allow userfaultfd(2)" in ways[how].why
        assert ways[how].remedy == "docker run --security-opt seccomp=unconfined"


def test_a_filter_may_say_that_there_is_no_such_call(tree) -> None:
    way = explain(tree(HAS_IT), who(filtered=True), ENOSYS, ENOENT, ENOSYS)["syscall"]
    assert way.why.startswith("a seccomp filter answers that there is no such call (ENOSYS)")


def test_a_kernel_without_it_is_told_from_a_filter(tree) -> None:
    ways = explain(tree({MISC: "257 cuse\n"}), who(), ENOSYS, ENOENT, ENOSYS)
    assert ways["syscall"].why == "this kernel has no userfaultfd (CONFIG_USERFAULTFD)"
    assert ways["syscall"].remedy == ""
    assert ways["device"].why == "this kernel has no /dev/userfaultfd (before Linux 6.1)"


def test_where_it_can_not_be_told_both_are_said(tree) -> None:
    way = explain(tree({}), who(filtered=True), ENOSYS, ENOENT, ENOSYS)["syscall"]
    assert "CONFIG_USERFAULTFD), or a seccomp filter says so" in way.why


def test_a_filter_that_kills_is_named_with_its_signal(tree) -> None:
    killed = Attempt(killed_by=signal.SIGSYS)
    way = explain(tree(HAS_IT), who(filtered=True, unit="ci.service"), killed, OPENS, killed)[
        "syscall"
    ]
    assert way.why == (
        "a seccomp filter kills the process that asks (SIGSYS): "
        "probably SystemCallFilter= of ci.service"
    )
    assert way.remedy.endswith("systemctl edit --stdin ci.service")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.EACCES, "a security module denies it (EACCES)"),
        (errno.EMFILE, "too many open files (Too many open files (EMFILE))"),
        (errno.ENOMEM, "Cannot allocate memory (ENOMEM)"),
    ],
)
def test_other_errors_of_the_call(tree, error: int, words: str) -> None:
    one = refused(error)
    assert words in explain(tree(HAS_IT), who(), one, ENOENT, one)["syscall"].why


def test_a_module_without_a_filter_may_refuse_who_is_privileged(tree) -> None:
    way = explain(tree(HAS_IT), who("CAP_SYS_PTRACE"), EPERM, ENOENT, EPERM)["syscall"]
    assert "a security module, or an emulated kernel" in way.why


def test_an_old_kernel_does_not_know_user_mode_alone(tree) -> None:
    way = explain(tree(HAS_IT), who(), EPERM, ENOENT, refused(errno.EINVAL))["user_mode_only"]
    assert "before Linux 5.11" in way.why


def test_a_device_that_only_root_may_open_is_told_with_its_mode(
    tree, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tree(HAS_IT | {"/dev/userfaultfd": ""})
    os.chmod(tmp_path / "dev/userfaultfd", 0o640)
    name = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(shutil, "which", lambda program: None)
    way = explain(files, who(), EPERM, EACCES, OPENS)["device"]
    assert way.why.startswith(f"/dev/userfaultfd is of {name}:")
    assert "with mode 0640" in way.why
    assert way.remedy == "chmod a+rw /dev/userfaultfd"
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    way = explain(files, who(), EPERM, EACCES, OPENS)["device"]
    assert way.remedy == f"setfacl -m u:{name}:rw /dev/userfaultfd"


def test_a_container_without_the_device_is_given_it(tree) -> None:
    way = explain(tree(HAS_IT), who(container="docker"), EPERM, ENOENT, OPENS)["device"]
    assert way.why == "the container docker has no /dev/userfaultfd"
    assert way.remedy == "docker run --device /dev/userfaultfd"


def test_the_devices_of_a_control_group_refuse_otherwise_than_the_mode(tree) -> None:
    way = explain(tree(HAS_IT), who(container="podman"), EPERM, EPERM, OPENS)["device"]
    assert "the control group of this process forbids /dev/userfaultfd" in way.why
    assert way.remedy == "podman run --device /dev/userfaultfd"


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENXIO])
def test_a_node_that_is_not_there_or_dead_is_made(tree, error: int) -> None:
    way = explain(tree(HAS_IT), who(), EPERM, refused(error), OPENS)["device"]
    assert way.remedy == "rm -f /dev/userfaultfd && mknod -m 600 /dev/userfaultfd c 10 57"
