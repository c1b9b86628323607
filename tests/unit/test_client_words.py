"""What a client tells its owner, whatever else lies in the socket between them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmemu.client_worker import ClientProcess
from vmemu.cthread import Bell
from vmemu.errors import MigrationError


def test_last_words_are_heard_though_it_left_something_unread() -> None:
    """The kernel tells a broken connection (ECONNRESET) before what was sent last."""
    bell = Bell()
    spec: Any = SimpleNamespace(name="dpdk")
    client = ClientProcess(spec, cast(Any, None), bell)
    try:
        client._theirs.send(json.dumps({"what": "failed", "message": "no memory"}).encode())
        client.ask_to_stop()
        client._theirs.close()
        with pytest.raises(MigrationError, match="client dpdk: no memory"):
            client._listen()
    finally:
        client.close()
        bell.close()
