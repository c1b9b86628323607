"""The features of userfaultfd: which this kernel grants, since when, and what each is good for."""

from __future__ import annotations

import errno
from typing import NamedTuple

from vmemu import userfault
from vmemu.errors import CoreError
from vmemu.userfault import NO_FEATURES, Feature, How, feature_names


class Use(NamedTuple):
    """``since`` is the release of Linux that brought it; ``what`` is what it is needed for."""

    since: str
    what: str
    needed: bool = False
    """Whether post-copy of some memory can't do without it."""
    setting: str = ""
    """What of a scenario needs it, as a scenario writes it; empty: nothing here does."""


_TRACKING, _SHM = "dirty_tracking: kernel", "channel: {kind: shm}"

USES: dict[Feature, Use] = {
    Feature.PAGEFAULT_FLAG_WP: Use("5.7", "write faults: background snapshots in QEMU"),
    Feature.EVENT_FORK: Use("4.11", "fork in the guest's process (CRIU)"),
    Feature.EVENT_REMAP: Use("4.11", "mremap in the guest's process (CRIU)"),
    Feature.EVENT_REMOVE: Use("4.11", "pages given back meanwhile (balloon)"),
    Feature.MISSING_HUGETLBFS: Use("4.11", "post-copy of hugepages", True, "backing: hugetlbfs"),
    Feature.MISSING_SHMEM: Use("4.11", "post-copy of shared memory", True, "backing: shared"),
    Feature.EVENT_UNMAP: Use("4.11", "munmap in the guest's process (CRIU)"),
    Feature.SIGBUS: Use("4.14", "a signal instead of a message", setting="delivery: sigbus"),
    Feature.THREAD_ID: Use(
        "4.14", "which vCPU waits: blocktime, in QEMU too", True, "every scenario"
    ),
    Feature.MINOR_HUGETLBFS: Use("5.13", "hugepages filled by another mapping"),
    Feature.MINOR_SHMEM: Use("5.14", "shared pages filled by another mapping", setting=_SHM),
    Feature.EXACT_ADDRESS: Use("5.18", "the touched byte, not only its page"),
    Feature.WP_HUGETLBFS_SHMEM: Use("5.19", "write faults on hugepages, shared memory"),
    Feature.WP_UNPOPULATED: Use("6.4", "write faults on pages not there yet", setting=_TRACKING),
    Feature.POISON: Use("6.6", "memory errors that move with the guest"),
    Feature.WP_ASYNC: Use("6.7", "dirty tracking by the kernel in pre-copy", setting=_TRACKING),
    Feature.MOVE: Use("6.8", "pages moved into place without a copy"),
}

UNKNOWN_USE = Use("?", "newer than this version of vmemu")


def use_of(name: str) -> Use:
    """What a feature is needed for, by its name without ``UFFD_FEATURE_``."""
    return USES[Feature[name]] if name in Feature.__members__ else UNKNOWN_USE


class Granted(NamedTuple):
    """Names of the features that the kernel announces, and of those among them that it refuses to
    who asks."""

    features: tuple[str, ...]
    refused: tuple[str, ...]


def ask(how: How) -> Granted:
    """Make the handshake: once for what there is, then once for each feature, as the kernel
    announces some that it refuses (EVENT_FORK needs CAP_SYS_PTRACE). Raises CoreError."""
    available = userfault.ask(how).features
    refused = NO_FEATURES
    for bit in (1 << n for n in range(64) if available >> n & 1):
        try:
            userfault.ask(how, bit)
        except CoreError as error:
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            refused |= bit
    return Granted(tuple(feature_names(available)), tuple(feature_names(refused)))
