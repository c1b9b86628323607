"""Whether one thing works on a host: a feature, a way to open userfaultfd, a kind of memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from vmemu.doctor.features import USES
from vmemu.doctor.opening import HowName
from vmemu.errors import InputError
from vmemu.host.document import Backing, FaultKind, HostDocument, Proof, Way
from vmemu.host.files import COLLAPSE
from vmemu.spelling import written_alike
from vmemu.units import UnitError, format_size, parse_size, printable
from vmemu.userfault import Feature, How

SettingName = Literal["shm", "collapse", "sigbus"]

_PREFIX = "UFFD_FEATURE_"
_WAYS: dict[str, HowName] = {name: name for name in get_args(HowName)}
_BACKINGS: dict[str, Backing] = {name: name for name in get_args(Backing)}
_FAULTS: dict[str, FaultKind] = {
    "missing": "missing",
    "minor": "minor",
    "write_protect": "write_protect",
    "wp": "write_protect",
}


@dataclass(frozen=True)
class Answer:
    """Whether it works here; if not, why, and the command that mends it if there is one."""

    works: bool
    why: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class FeatureAsked:
    """A feature bit of ``UFFDIO_API``, by its name without ``UFFD_FEATURE_``."""

    name: str


@dataclass(frozen=True)
class WayAsked:
    """A way to open userfaultfd."""

    how: HowName


@dataclass(frozen=True)
class KindAsked:
    """A kind of memory and fault; ``page_size`` None is the smallest of its backing that there
    is."""

    backing: Backing
    fault: FaultKind = "missing"
    page_size: int | None = None
    thp: bool = False


@dataclass(frozen=True)
class SettingAsked:
    """What a scenario may ask for, and not every host has."""

    name: SettingName


Asked = FeatureAsked | WayAsked | KindAsked | SettingAsked

_KEYS: dict[SettingName, str] = {
    "shm": "channel: {kind: shm}",
    "collapse": "blocks[].collapse: on_complete",
    "sigbus": "migration.postcopy.delivery: sigbus",
}
"""Settings by what --feature calls them, as a scenario has them."""


def _path(setting: str) -> tuple[str, ...]:
    """The keys on the way to a value, and that, in whatever form they are written. A block counts
    by none of its names, and ``kind`` by what it says."""
    keys = re.split(r"[\s.:={}]+", re.sub(r"\[[^]]*\]", "", _word(setting)))
    return tuple(key for key in keys if key not in ("", "kind"))


def _by_path() -> Iterator[tuple[tuple[str, ...], SettingAsked]]:
    """Each by its name, by its whole path and by every end of that."""
    for name, said in _KEYS.items():
        path = _path(said)
        for written in ((name,), *(path[first:] for first in range(len(path)))):
            yield written, SettingAsked(name)


def parse(name: str) -> Asked:
    """What ``name`` asks for. Raises InputError with the nearest names for what is none."""
    word = _word(name)
    setting = _SETTINGS.get(_path(name))
    if setting is not None:
        return setting
    feature = word.upper().removeprefix(_PREFIX)
    if feature in Feature.__members__:
        return FeatureAsked(feature)
    if word in _WAYS:
        return WayAsked(_WAYS[word])
    backing, *parts = name.strip().split(":")
    if backing.lower() in _BACKINGS:
        return _kind(name, _BACKINGS[backing.lower()], parts)
    raise InputError(_unknown(name))


def _kind(name: str, backing: Backing, parts: list[str]) -> KindAsked:
    asked = KindAsked(backing)
    given: set[str] = set()
    for part in parts:
        key, value = _part(name, part)
        if key in given or (given | {key}) >= {"thp", "page_size"}:
            raise InputError(f"--feature {printable(name)}: says two things of the {_SAYS[key]}")
        given.add(key)
        asked = KindAsked(**(vars(asked) | {key: value}))
    if asked.thp and backing == "hugetlbfs":
        raise InputError(f"--feature {printable(name)}: hugetlbfs has no transparent hugepages")
    return asked


_SAYS = {"thp": "page size", "page_size": "page size", "fault": "fault"}


def _part(name: str, part: str) -> tuple[str, FaultKind | bool | int]:
    word = _word(part)
    if word == "thp":
        return "thp", True
    if word in _FAULTS:
        return "fault", _FAULTS[word]
    try:
        return "page_size", parse_size(_unit(part))
    except UnitError as error:
        raise InputError(f"--feature {printable(name)}: {_no_part(part, error)}") from None


def _no_part(part: str, error: UnitError) -> str:
    if part[:1].isdigit():
        return f"'{printable(part)}' is no page size: {error.remedy}"
    may = ["a page size such as 2MiB", "thp", *get_args(FaultKind)]
    near = _perhaps(part, {word: word for word in may[1:]})
    what = f"'{printable(part)}' is none of what may follow a backing"
    return f"{what}{_meant(near)} it may be {', '.join(may[:-1])} or {may[-1]}"


def _unit(size: str) -> str:
    """With the unit as it is written, in whatever case it was."""
    return re.sub("[kmg]ib$", lambda unit: f"{unit[0][0].upper()}iB", size, flags=re.IGNORECASE)


def _word(name: str) -> str:
    return name.strip().lower().replace("-", "_")


_SETTINGS = dict(_by_path())


def _unknown(name: str) -> str:
    kinds = [f"{backing}:{fault}" for backing in _BACKINGS for fault in get_args(FaultKind)]
    names = [*Feature.__members__, *_WAYS, *_BACKINGS, *kinds, *_KEYS]
    near = _perhaps(name, {known.lower(): known for known in names} | _OTHER_NAMES)
    return (
        f"--feature {printable(name)}: nothing is called that{_meant(near)} known are the features "
        f"{', '.join(Feature.__members__)}; the settings of a scenario {', '.join(_KEYS)}; "
        f"the ways to open userfaultfd {', '.join(_WAYS)}; and "
        "the kinds of memory anonymous, shared, hugetlbfs, with :thp or :2MiB, and :missing, "
        ":minor or :write_protect"
    )


_OTHER_NAMES = {
    "anon": "anonymous",
    "ram": "anonymous",
    "hugepages": "hugetlbfs",
    "shmem": "shared",
    "memfd": "shared",
    "tmpfs": "shared",
    "thp": "anonymous:thp",
}
"""What others call kinds of memory."""


def _perhaps(name: str, table: dict[str, str]) -> list[str]:
    """Of ``table``, whose keys are in lower case: those that are written much like ``name``, then
    those of which it is a part."""
    word = _word(name).removeprefix(_PREFIX.lower())
    alike = written_alike(word, table, most=3)
    around = [known for known in table if len(word) > 2 and word in known]
    return list(dict.fromkeys(table[known] for known in (*alike, *around)))[:4]


def _meant(near: list[str]) -> str:
    return f"; is {' or '.join(near)} meant?" if near else ";"


# ---- answers ----


def ordinary(host: HostDocument) -> Answer:
    """Whether post-copy of ordinary memory works at all: by the proof if there is one, else by
    whether userfaultfd can be opened. ``why`` also says how, when it does."""
    uffd = host.userfault
    if uffd.how is None:
        return _no_way(host)
    kind = KindAsked("anonymous", page_size=host.kernel.base_page_size)
    proof = find(host.proofs, kind)
    if proof is not None and not proof.works:
        return Answer(False, proof.why, proof.remedy)
    return Answer(True, f"userfaultfd opens by {How[uffd.how.upper()].label}")


def answer(host: HostDocument, asked: Asked, prove: Callable[[KindAsked], Proof | None]) -> Answer:
    """Whether it works; ``prove`` tries a kind, or gives None for one that this host does not
    have."""
    if isinstance(asked, WayAsked):
        return _way(next(way for way in host.userfault.ways if way.how == asked.how))
    if host.userfault.how is None:
        return _no_way(host)
    if isinstance(asked, FeatureAsked):
        return _feature(host, asked.name)
    if isinstance(asked, SettingAsked):
        return _setting(host, asked.name)
    proof = prove(asked)
    if proof is None:
        return _no_such_kind(host, asked)
    return Answer(bool(proof.works), "" if proof.works else proof.why, proof.remedy)


def find(proofs: tuple[Proof, ...], asked: KindAsked) -> Proof | None:
    """The proof of a kind; the smallest page size of its backing when none is asked for."""
    found = [
        proof
        for proof in proofs
        if (proof.backing, proof.fault, proof.thp) == (asked.backing, asked.fault, asked.thp)
        and asked.page_size in (None, proof.page_size)
    ]
    return min(found, key=lambda proof: proof.page_size, default=None)


def _way(way: Way) -> Answer:
    return Answer(way.works, way.why, way.remedy)


def _no_way(host: HostDocument) -> Answer:
    """Of the ways that fail, the first one that a command mends."""
    ways = [way for way in host.userfault.ways if way.remedy] or [*host.userfault.ways]
    why = f"userfaultfd can't be opened: {ways[0].why}" if ways else "userfaultfd can't be opened"
    return Answer(False, why, ways[0].remedy if ways else "")


def _feature(host: HostDocument, name: str) -> Answer:
    if name in host.userfault.refused:
        why = f"the kernel has UFFD_FEATURE_{name} and refuses it to this process"
        return Answer(False, f"{why}, which has no CAP_SYS_PTRACE" if name == _FORK else why)
    if name not in host.userfault.features:
        use = USES[Feature[name]]
        about = f"it came with Linux {use.since}"
        about += f", and is needed by {use.setting}" if use.setting else ""
        return Answer(False, f"this kernel has no UFFD_FEATURE_{name} ({about})")
    return Answer(True)


def settings(host: HostDocument) -> list[tuple[str, Answer]]:
    """The settings of a scenario that not every host has, as it writes them; on a host of which
    ``collapse`` was tried, and userfaultfd opens."""
    return [(said, _setting(host, name)) for name, said in _KEYS.items()]


def _setting(host: HostDocument, name: SettingName) -> Answer:
    if name == "sigbus":
        return _feature(host, "SIGBUS")
    if name == "shm":
        mapped = _feature(host, "MINOR_SHMEM")
        # Without it the pages of shared blocks are copied, as those of others are.
        return Answer(True, "" if mapped.works else f"every page is copied: {mapped.why}")
    if not host.collapse:
        return _untried(host)
    not_so = [one for one in host.collapse if not one.works]
    reasons = {one.why: "" for one in not_so}
    if len(not_so) < len(host.collapse):
        return Answer(True, "; ".join(f"not for {one.backing} memory: {one.why}" for one in not_so))
    return Answer(False, "; ".join(reasons))


def _untried(host: HostDocument) -> Answer:
    said = f"{COLLAPSE} could not be tried"
    noted = next((one for one in host.unknown if one.what == COLLAPSE), None)
    return Answer(False, said) if noted is None else Answer(False, f"{said}: {noted.why}")


_FORK = str(Feature.EVENT_FORK.name)


def _no_such_kind(host: HostDocument, asked: KindAsked) -> Answer:
    if asked.backing == "hugetlbfs":
        sizes = [format_size(pool.page_size) for pool in host.pools]
        has = f"has {', '.join(sizes)}" if sizes else "has no hugepages"
    else:
        thp = (
            f", transparent ones of {format_size(host.thp.page_size)}" if host.thp.page_size else ""
        )
        has = f"has pages of {format_size(host.kernel.base_page_size)}{thp}"
    wanted = "" if asked.page_size is None else f" of {format_size(asked.page_size)} pages"
    return Answer(False, f"no {asked.backing} memory{wanted} here: this host {has}")
