"""How a container, or a service of systemd, is told to allow userfaultfd."""

from __future__ import annotations

from vmemu.host.identity import Identity
from vmemu.privilege import as_root

_ENGINES = {"docker": "docker", "podman": "podman", "oci": "podman"}
"""Containers as they call themselves, and the command that starts one."""


def without_filter(identity: Identity) -> tuple[str, str]:
    """(whose seccomp filter it probably is, the command that starts without it); what no command
    does, but a line of a pod's description, is in the words."""
    container = identity.container
    if container in _ENGINES:
        engine = _ENGINES[container]
        return (
            f"the default profile of {engine} does not allow userfaultfd(2)",
            f"{engine} run --security-opt seccomp=unconfined",
        )
    if container == "kubernetes":
        return (
            "the pod's seccompProfile does not allow userfaultfd(2); in the pod"
            " 'securityContext: {seccompProfile: {type: Unconfined}}' does",
            "",
        )
    if container == "systemd-nspawn":
        return (
            "systemd-nspawn's does not allow userfaultfd(2)",
            "systemd-nspawn --system-call-filter=userfaultfd",
        )
    if container:
        return f"that of the container {container}", ""
    if identity.unit:
        return (
            f"probably SystemCallFilter= of {identity.unit}",
            as_root(
                f"printf '[Service]\\nSystemCallFilter=userfaultfd\\n' | "
                f"systemctl edit --stdin {identity.unit}"
            ),
        )
    return "whoever started this process has set it", ""


def with_capability(container: str) -> tuple[str, str]:
    """(words, the command that starts such a container with CAP_SYS_PTRACE); each may be empty."""
    if container in _ENGINES:
        return "", f"{_ENGINES[container]} run --cap-add SYS_PTRACE"
    if container == "kubernetes":
        return "in the pod 'securityContext: {capabilities: {add: [SYS_PTRACE]}}' gives it", ""
    if container == "systemd-nspawn":
        return "", "systemd-nspawn --capability=CAP_SYS_PTRACE"
    return "", ""


def with_device(container: str, device: str) -> str:
    """The command that starts such a container with a device of the host; empty if none is
    known."""
    if container in _ENGINES:
        return f"{_ENGINES[container]} run --device {device}"
    if container == "systemd-nspawn":
        return f"systemd-nspawn --bind={device} --property=DeviceAllow='{device} rw'"
    return ""


def with_limit(container: str, name: str, wanted: int | None) -> str:
    """The command that starts such a container with a higher limit; empty if none is known."""
    if container in _ENGINES:
        return f"{_ENGINES[container]} run --ulimit {name}={-1 if wanted is None else wanted}"
    return ""
