"""Who asks: capabilities, user namespace, seccomp, and the container around, if there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vmemu.host.files import HostFiles

Seccomp = Literal["disabled", "strict", "filter"]

_SECCOMP: tuple[Seccomp, ...] = ("disabled", "strict", "filter")
_CAPABILITIES = {
    1: "CAP_DAC_OVERRIDE",
    14: "CAP_IPC_LOCK",
    19: "CAP_SYS_PTRACE",
    21: "CAP_SYS_ADMIN",
    24: "CAP_SYS_RESOURCE",
}
"""Those of capabilities(7) that decide anything about post-copy."""

_CGROUPS = {
    "docker": "docker",
    "libpod": "podman",
    "kubepods": "kubernetes",
    "containerd": "containerd",
    "crio": "cri-o",
    "lxc": "lxc",
    "machine.slice": "systemd-nspawn",
}


_FIRST = {
    "ipc": 0xEFFFFFFF,
    "uts": 0xEFFFFFFE,
    "user": 0xEFFFFFFD,
    "pid": 0xEFFFFFFC,
    "cgroup": 0xEFFFFFFB,
}
"""The numbers of the namespaces that a machine begins with (include/uapi/linux/nsfs.h)."""


@dataclass(frozen=True)
class Identity:
    """What decides about the rights of who asks.

    ``first_namespace`` is whether capabilities are those of the machine: in a user namespace of its
    own, as rootless containers have, the kernel counts none of them. ``container`` is empty outside
    of one; ``unit`` is the systemd service around. ``raises_limits`` is whether whoever becomes
    root from here may raise hard limits: sudo gives no capability that is out of bounds.
    """

    capabilities: tuple[str, ...]
    first_namespace: bool
    seccomp: Seccomp | None
    container: str
    unit: str = ""
    raises_limits: bool = True

    def may(self, capability: str) -> bool:
        """Whether the kernel would count it for userfaultfd, memory locks and pipes."""
        return self.first_namespace and capability in self.capabilities


def identify(files: HostFiles, environment: Mapping[str, str] = os.environ) -> Identity:
    """Who asks, of this process."""
    status = status_fields(files.text("/proc/self/status", "capabilities and seccomp") or "")
    cgroups = files.optional("/proc/self/cgroup", "the control group") or ""
    return Identity(
        capabilities=capabilities(status.get("CapEff", "0")),
        first_namespace=_first(files, "user"),
        seccomp=_seccomp(status),
        container=container(files, cgroups, environment),
        unit=_unit(cgroups),
        raises_limits=_first(files, "user") and _in_bounds("CAP_SYS_RESOURCE", status),
    )


def status_fields(text: str) -> dict[str, str]:
    """The lines ``Name: value`` of proc_pid_status(5)."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, colon, value in pairs if colon}


def capabilities(mask: str) -> tuple[str, ...]:
    """The names of those in a hexadecimal mask that decide anything here."""
    try:
        bits = int(mask, 16)
    except ValueError:
        bits = 0
    return tuple(name for bit, name in _CAPABILITIES.items() if bits >> bit & 1)


def container(files: HostFiles, cgroups: str, environment: Mapping[str, str]) -> str:
    """What container this is, empty for none that can be told.

    An engine leaves a file; others name themselves to their first process (the interface of
    systemd), and what they forget stands in the names of control groups. A machine that was made of
    a container's image has the file too, but no namespace of its own.
    """
    if all(_first(files, name) for name in ("pid", "ipc", "uts", "cgroup")):
        return ""
    if "KUBERNETES_SERVICE_HOST" in environment:
        return "kubernetes"
    if files.exists("/run/.containerenv"):
        return "podman"
    if files.exists("/.dockerenv"):
        return "docker"
    file = files.optional("/run/systemd/container", "the container")
    told = environment.get("container") or file or ""
    if told.strip():
        return told.strip()
    parts = re.split(r"[/\-:.\n]", cgroups) + re.findall(r"machine\.slice", cgroups)
    return next((name for word, name in _CGROUPS.items() if word in parts), "")


def _in_bounds(capability: str, status: Mapping[str, str]) -> bool:
    return capability in capabilities(status.get("CapBnd", "ffffffffffffffff"))


def _unit(cgroups: str) -> str:
    found = re.findall(r"([^/\n]+\.service)(?:/|$)", cgroups, re.MULTILINE)
    return found[-1] if found else ""


def _seccomp(status: dict[str, str]) -> Seccomp | None:
    value = status.get("Seccomp", "")
    return _SECCOMP[int(value)] if value in ("0", "1", "2") else None


def _first(files: HostFiles, namespace: str) -> bool:
    """Whether this process is in the machine's own namespace of that kind."""
    return files.link(f"/proc/self/ns/{namespace}") == f"{namespace}:[{_FIRST[namespace]}]"
