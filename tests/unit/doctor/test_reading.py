"""Host documents as files: there and back, and what is said of a file that is none."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hosts import FULL, good_host
from hypothesis import given
from hypothesis import strategies as st

from vmemu.doctor.reading import parse, read
from vmemu.doctor.survey import survey
from vmemu.errors import InputError
from vmemu.host.document import SCHEMA, HostDocument


def written(host: HostDocument) -> bytes:
    return json.dumps(host.model_dump(by_alias=True)).encode()


def document(**changes: Any) -> bytes:
    return json.dumps(json.loads(written(good_host(pools=(FULL,)))) | changes).encode()


def refusal(content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        parse(content, "a.json")
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("a.json: ")
    return text


@pytest.mark.parametrize("host", [good_host(), good_host(pools=(FULL,)), survey()])
def test_there_and_back(host: HostDocument, tmp_path: Path) -> None:
    file = tmp_path / "host.json"
    file.write_bytes(written(host))
    assert read(str(file)) == host


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert parse(document(later=1), "a.json") == good_host(pools=(FULL,))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no host document: not an object"),
        (b"{}", "no host document: it has no schema"),
        (b'{"schema": "vmemu-result/1"}', f"'vmemu-result/1', and this version reads {SCHEMA}"),
        (b'{"schema": "vmemu-host/2"}', "its schema is 'vmemu-host/2'"),
        (b'{"schema": ["x"]}', "its schema is"),
    ],
)
def test_what_is_no_host_document(content: bytes, words: str) -> None:
    assert words in refusal(content)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": {"total": "much"}}, "memory.total: "),
        ({"pools": [{"page_size": 4096}]}, "pools[0].total: is missing"),
        ({"kernel": None}, "kernel: "),
        ({"userfault": {"how": "magic", "ways": []}}, "userfault.how: "),
        ({"cpus": {}}, "cpus.online: is missing; cpus.allowed: is missing"),
    ],
)
def test_the_key_that_is_wrong_is_named(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(document(**changes))


def test_many_wrong_keys_are_counted() -> None:
    assert "; and 3 more" in refusal(document(cpus={}, limits={}))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory; write one with: vmemu doctor"):
        read(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="Is a directory"):
        read(str(tmp_path))
    with pytest.raises(InputError):
        read("a\0b")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(HostDocument.model_fields)), _JSON)
def test_any_value_of_a_key_is_read_or_refused_in_a_line(key: str, value: Any) -> None:
    content = document(**{"schema" if key == "schema_" else key: value})
    with contextlib.suppress(InputError):
        parse(content, "a.json")
        return
    refusal(content)


@pytest.mark.parametrize("key", ["proofs", "pools", "mounts", "userfault.features"])
def test_what_verdicts_rest_on_may_not_be_left_out(key: str) -> None:
    data = json.loads(document())
    *outer, last = key.split(".")
    del (data[outer[0]] if outer else data)[last]
    assert refusal(json.dumps(data).encode()).startswith(f"a.json: {key}: is missing; write one")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": {"base_page_size": -4096}}, "kernel.base_page_size: -4096 is less than 4096"),
        ({"kernel": {"base_page_size": 0}}, "kernel.base_page_size: 0 is less than 4096"),
        ({"kernel": {"base_page_size": 1 << 60}}, f" {1 << 60} is more than {1 << 20}"),
        ({"kernel": {"base_page_size": 12288}}, "12288 is no power of two"),
        ({"kernel": {"base_page_size": 4096.0}}, "4096.0 is no whole number"),
        ({"memory": {"total": -1}}, "memory.total: -1 is less than 0"),
        ({"memory": {"total": 10**30}}, f"memory.total: {10**30} is more than "),
        ({"limits": {"memlock_soft": -1}}, "limits.memlock_soft: -1 is less than 0"),
        ({"cpus": {"allowed": [-1]}}, "cpus.allowed[0]: -1 is less than 0"),
        ({"default_hugepage_size": 0}, "default_hugepage_size: 0 is less than 4096"),
        ({"hostname": 5}, "hostname: 5 is no text"),
        ({"memory": {"total": 4096, "available": 8192}}, "memory.available: 8192 is more than"),
        ({"memory": {"room": 1 << 60}}, f"memory.room: {1 << 60} is more than memory and free"),
        (
            {"userfault": {"how": None, "ways": [{"how": "device", "works": True}]}},
            "userfault.how: null contradicts userfault.ways, of which device works",
        ),
    ],
)
def test_numbers_that_no_host_has(changes: dict[str, Any], words: str) -> None:
    data = json.loads(document())
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    assert words in refusal(json.dumps(data).encode())


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"page_size": 0}, "pools[0].page_size: 0 is less than 4096"),
        ({"page_size": 3 << 20}, "pools[0].page_size: 3145728 is no power of two"),
        ({"free": -3}, "pools[0].free: -3 is less than 0"),
        ({"total": 4, "free": 9, "surplus": 1}, "pools[0].free: 9 is more than the 5 pages"),
        ({"total": 4, "free": 2, "reserved": 3}, "pools[0].reserved: 3 is more than the 2 pages"),
        ({"total": True}, "pools[0].total: true is no whole number"),
    ],
)
def test_pools_that_no_host_has(figures: dict[str, Any], words: str) -> None:
    (pool,) = json.loads(document())["pools"]
    assert words in refusal(document(pools=[pool | figures]))
    twice = refusal(document(pools=[pool, pool]))
    assert "pools: " in twice and "has two pools of one page size" in twice
