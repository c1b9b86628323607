"""The ways to open userfaultfd, each tried, and why one fails.

The errors alone say little: EPERM is the kernel's own answer to an ordinary user and the favourite
of seccomp filters, ENOSYS is an old kernel or a filter. So what is true here is laid beside them.
Sources: userfaultfd(2), fs/userfaultfd.c, Documentation/admin-guide/mm/userfaultfd.rst.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import resource
import shlex
import signal
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vmemu import privilege
from vmemu.errors import CoreError
from vmemu.host import containers
from vmemu.host.document import Way
from vmemu.host.files import HostFiles
from vmemu.host.identity import Identity
from vmemu.privilege import as_root, on_the_host, raise_limit
from vmemu.userfault import How, OpeningKills, open_descriptor

DEVICE = "/dev/userfaultfd"
SYSCTL = "/proc/sys/vm/unprivileged_userfaultfd"

HowName = Literal["syscall", "device", "user_mode_only"]
NAMES: dict[How, HowName] = {
    How.SYSCALL: "syscall",
    How.DEVICE: "device",
    How.USER_MODE_ONLY: "user_mode_only",
}


class Refusal(NamedTuple):
    """Why a way does not work, and the command that mends it; empty where there is none."""

    why: str
    remedy: str = ""


@dataclass(frozen=True)
class Attempt:
    """What came of trying a way: 0 and 0, an error number, or the signal that kills who tries."""

    error: int = 0
    killed_by: int = 0

    @property
    def works(self) -> bool:
        return not self.error and not self.killed_by


def attempt(how: How) -> Attempt:
    """Open userfaultfd this way and close it."""
    try:
        os.close(open_descriptor(how))
    except OpeningKills as error:
        return Attempt(killed_by=error.signal)
    except CoreError as error:
        return Attempt(error=error.errno)
    return Attempt()


def ways(files: HostFiles, identity: Identity) -> tuple[Way, ...]:
    """All of them, tried, in the order in which a run tries them."""
    tried = {how: attempt(how) for how in How}
    return explained(tried, Circumstances(files, identity))


def explained(tried: dict[How, Attempt], here: Circumstances) -> tuple[Way, ...]:
    """What came of each, in words."""
    found = []
    for how, one in tried.items():
        refusal = Refusal("") if one.works else here.explain(how, tried)
        way = Way(how=NAMES[how], works=one.works, why=refusal.why, remedy=refusal.remedy)
        found.append(way)
    return tuple(found)


class Circumstances:
    """What is true here, as far as it decides who may open userfaultfd."""

    def __init__(self, files: HostFiles, identity: Identity) -> None:
        self._files = files
        self._identity = identity
        self.sysctl = files.number(SYSCTL, "vm.unprivileged_userfaultfd", must=False)

    def explain(self, how: How, tried: dict[How, Attempt]) -> Refusal:
        """Why this way was refused; what the others met helps to tell."""
        one = tried[how]
        if one.killed_by:
            name = signal.Signals(one.killed_by).name
            return self._filtered(f"a seccomp filter kills the process that asks ({name})")
        if one.error in (errno.EMFILE, errno.ENFILE):
            return _too_many_files(one.error)
        if how is How.DEVICE:
            return self._device(one.error)
        if one.error == errno.ENOSYS:
            return self._no_such_call()
        if one.error == errno.EPERM:
            return self._not_permitted(how, tried)
        return self._otherwise(how, one.error)

    # ---- the system call ----

    def _no_such_call(self) -> Refusal:
        # The setting is there from Linux 5.2 on, and only with CONFIG_USERFAULTFD.
        if self.sysctl is not None or self._registered():
            return self._filtered("a seccomp filter answers that there is no such call (ENOSYS)")
        absent = "this kernel has no userfaultfd (CONFIG_USERFAULTFD)"
        if self._identity.seccomp == "filter":
            return self._filtered(f"{absent}, or a seccomp filter says so (ENOSYS)")
        return Refusal(absent)

    def _not_permitted(self, how: How, tried: dict[How, Attempt]) -> Refusal:
        # The kernel refuses faults in user mode to nobody, and a filter sees the same call.
        other = tried.get(How.USER_MODE_ONLY, Attempt(errno.EPERM))
        kernels_own = (
            how is How.SYSCALL
            and self.sysctl != 1
            and not self._identity.may("CAP_SYS_PTRACE")
            and (other.works or self._identity.seccomp != "filter")
        )
        if kernels_own:
            return self._unprivileged()
        if self._identity.seccomp == "filter":
            return self._filtered("a seccomp filter refuses the call (EPERM)")
        return Refusal(
            "something other than the kernel's own rules refuses it (EPERM): "
            "a security module, or an emulated kernel"
        )

    def _unprivileged(self) -> Refusal:
        switch = "can't be read" if self.sysctl is None else f"is {self.sysctl}"
        why = f"vm.unprivileged_userfaultfd {switch} and this process has no CAP_SYS_PTRACE"
        sysctl = "sysctl vm.unprivileged_userfaultfd=1"
        if not self._identity.first_namespace:
            if "CAP_SYS_PTRACE" in self._identity.capabilities:
                why += " that counts: this is a user namespace of its own"
            return Refusal(why, on_the_host(sysctl))
        if self._identity.container:
            words, granted = containers.with_capability(self._identity.container)
            why = f"{why}; {words}" if words else why
            return Refusal(why, granted or on_the_host(sysctl))
        return Refusal(why, as_root(sysctl))

    def _filtered(self, why: str) -> Refusal:
        where, remedy = containers.without_filter(self._identity)
        return Refusal(f"{why}: {where}" if where else why, remedy)

    def _otherwise(self, how: How, error: int) -> Refusal:
        if error == errno.EINVAL and how is How.USER_MODE_ONLY:
            return Refusal("this kernel can't serve faults of user mode alone (before Linux 5.11)")
        if error == errno.EACCES:
            return Refusal(
                "a security module denies it (EACCES), as SELinux does without a rule for it",
                as_root(_RULE_OF_SELINUX),
            )
        return Refusal(_named(error))

    # ---- the device ----

    def _device(self, error: int) -> Refusal:
        if error == errno.ENOENT:
            return self._no_device()
        if error == errno.EACCES:
            return self._device_denied()
        if error == errno.EPERM:
            # Not the file's mode, which is EACCES: the devices of a control group.
            why = f"the control group of this process forbids {DEVICE} (EPERM)"
            return Refusal(why, containers.with_device(self._identity.container, DEVICE))
        if error in (errno.ENXIO, errno.ENODEV):
            return Refusal(f"nothing is behind {DEVICE} ({_named(error)})", self._make_node())
        return Refusal(f"{DEVICE}: {_named(error)}")

    def _no_device(self) -> Refusal:
        if not self._registered():
            return Refusal(f"this kernel has no {DEVICE} (before Linux 6.1)")
        container = self._identity.container
        if container:
            why = f"the container {container} has no {DEVICE}"
            return Refusal(why, containers.with_device(container, DEVICE))
        return Refusal(f"the kernel has it, but there is no {DEVICE}", self._make_node())

    def _device_denied(self) -> Refusal:
        mode, owner = self._files.ownership(DEVICE)
        who = _user_name()
        why = f"{DEVICE} is of {owner} with mode {mode}, and this process is {who}'s"
        import shutil

        if shutil.which("setfacl"):
            return Refusal(why, as_root(f"setfacl -m u:{shlex.quote(who)}:rw {DEVICE}"))
        return Refusal(why, as_root(f"chmod a+rw {DEVICE}"))

    def _registered(self) -> bool:
        return self._minor() is not None

    def _minor(self) -> str | None:
        text = self._files.optional("/proc/misc", "the devices of the kernel") or ""
        found = re.search(r"^ *(\d+) userfaultfd$", text, re.MULTILINE)
        return found[1] if found else None

    def _make_node(self) -> str:
        minor = self._minor()
        mode = 600 if privilege.is_root() else 666
        make = f"rm -f {DEVICE} && mknod -m {mode} {DEVICE} c 10 {minor}"
        return as_root(make) if minor else ""


_RULE_OF_SELINUX = "ausearch -m avc -ts recent | audit2allow -M vmemu && semodule -i vmemu.pp"


def _too_many_files(error: int) -> Refusal:
    why = f"too many open files ({_named(error)})"
    if error == errno.ENFILE:  # of the whole machine
        return Refusal(why, as_root("sysctl fs.file-max=1000000"))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = None if hard == resource.RLIM_INFINITY else hard
    return Refusal(why, raise_limit("nofile", 1024, most))


def _named(error: int) -> str:
    return f"{os.strerror(error)} ({errno.errorcode.get(error, error)})"


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
