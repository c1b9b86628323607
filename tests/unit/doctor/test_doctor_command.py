"""``vmemu doctor`` where it does not come to its end."""

from __future__ import annotations

import sys

import pytest

from vmemu import cli
from vmemu.errors import HostError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "vmemu: interrupted\n"),
        (HostError("no core"), 3, "no core\n"),
        (MemoryError(), 3, "vmemu: this host has too little memory for that\n"),
    ],
)
def test_a_line_and_the_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def interrupted(**_: bool) -> None:
        raise error

    monkeypatch.setattr("vmemu.doctor.survey.survey", interrupted)
    for words in ((), ("--feature", "MOVE")):
        monkeypatch.setattr(sys, "argv", ["vmemu", "doctor", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
        out, err = capsys.readouterr()
        assert (out, err.lstrip("\n")) == ("", said)
