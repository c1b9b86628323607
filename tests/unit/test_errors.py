"""The errors raised on purpose: what they say, and the exit code they end a verb with."""

from __future__ import annotations

import errno

import pytest

from vmemu import core, errors
from vmemu.core import PeerGone
from vmemu.errors import ConfigError, CoreError, HostError, Problem, ProtocolError, VmemuError


def every(kind: type[VmemuError]) -> list[type[VmemuError]]:
    return [kind, *(one for below in kind.__subclasses__() for one in every(below))]


def filled(operation: bytes, errnum: int = 0, protocol: int = 0, detail: bytes = b""):
    fields = {"operation": operation, "errnum": errnum, "protocol": protocol, "detail": detail}
    return core.ffi.new("struct vm_error *", fields | {"address": 0x1000})


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InputError, 2),
        (errors.ConfigError, 2),
        (errors.TraceError, 2),
        (errors.OutputError, 1),
        (errors.HostError, 3),
        (errors.HugepageShortage, 3),
        (errors.MigrationError, 1),
        (errors.ProtocolError, 1),
        (errors.StateError, 1),
        (errors.CoreError, 1),
        (PeerGone, 1),
    ],
)
def test_exit_codes_are_those_of_the_design(kind, code):
    assert kind.exit_code == code


def test_each_error_has_a_kind_of_its_own():
    import vmemu.migration  # noqa: F401  (has errors too)

    tree = {error for error in every(VmemuError) if error.__module__ == "vmemu.errors"}
    named = [error for error in set(every(VmemuError)) if "kind" in vars(error)]
    assert tree <= set(named)
    assert len({error.kind for error in named}) == len(named)


def test_a_refinement_has_the_kind_and_the_exit_code_of_what_it_refines():
    from vmemu.balloon import BallooningInhibited
    from vmemu.hostcheck import PostcopyShortage, PostcopyUnsupported

    for error, of in [
        (PostcopyUnsupported, HostError),
        (PostcopyShortage, errors.HugepageShortage),
        (BallooningInhibited, errors.StateError),
    ]:
        assert (error.kind, error.exit_code) == (of.kind, of.exit_code)


@pytest.mark.parametrize("error", every(VmemuError))
def test_every_error_is_explained_in_the_tree_or_where_it_is_defined(error):
    assert error.__doc__


def test_a_host_error_says_what_mends_it():
    error = HostError("no hugepages", "sysctl vm.nr_hugepages=8")
    assert str(error) == "no hugepages; mend it with: sysctl vm.nr_hugepages=8"
    assert (error.what, error.remedy) == ("no hugepages", "sysctl vm.nr_hugepages=8")
    assert str(HostError("no userfaultfd")) == "no userfaultfd"


def test_problems_come_in_the_order_of_the_file_and_one_a_line():
    late = Problem("a.yaml", 9, 1, "guest", "is missing", "add it")
    early = Problem("a.yaml", 2, 5, "blocks[0]", "is odd", "")
    nowhere = Problem("a.yaml", 0, 0, "", "is empty", "")
    assert str(ConfigError([late, early, nowhere])).splitlines() == [
        "a.yaml: is empty",
        "a.yaml:2:5: blocks[0]: is odd",
        "a.yaml:9:1: guest: is missing; add it",
    ]


def test_a_core_error_names_operation_address_and_reason():
    error = CoreError("UFFDIO_COPY", errno.EINVAL, 0x7F00, "twice")
    assert str(error) == f"UFFDIO_COPY at 0x7f00: Invalid argument (errno {errno.EINVAL}); twice"
    assert str(CoreError("mmap", 0)) == "mmap: failed"


def test_what_the_core_fills_in_becomes_the_right_exception():
    with pytest.raises(CoreError) as caught:
        core.raise_error(filled(b"mmap", errnum=errno.ENOMEM))
    assert (caught.value.operation, caught.value.errno, caught.value.address) == ("mmap", 12, 4096)
    with pytest.raises(ProtocolError, match="main channel: lies"):
        core.raise_error(filled(b"main channel", protocol=1, detail=b"lies"))
    with pytest.raises(PeerGone, match="main channel: gone"):
        core.raise_error(filled(b"main channel", protocol=2, detail=b"gone"))


def test_a_call_that_fails_raises_and_one_that_works_gives_its_result():
    with pytest.raises(CoreError) as caught:
        core.call(core.lib.vm_unmap, 1, 4096)
    assert caught.value.errno == errno.EINVAL
    assert core.call(core.lib.vm_unmap, 1 << 40, 4096) == 0


def test_no_memory_for_a_structure_is_a_memory_error():
    with pytest.raises(MemoryError):
        core.owned(core.ffi.NULL, core.lib.vm_ram_destroy)
