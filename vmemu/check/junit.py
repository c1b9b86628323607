"""A check as JUnit XML, which CI systems show as tests.

A scenario is a suite, each of its blocks a test case, and so is the migration as a whole.
Incompatible is a failure, unknown an error (nobody could say that it works); degraded passes with
its reasons as output, unless it is to fail. A file that is no scenario is a suite of one error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from vmemu.check.verdict import Reason, ScenarioReport, Verdict, worst
from vmemu.errors import InputError

WHOLE = "migration"
"""The test case of what concerns no block alone."""

_NO_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml(
    reports: Sequence[ScenarioReport],
    refused: Sequence[tuple[str, InputError]] = (),
    *,
    strict: bool = False,
) -> str:
    """The document; ``refused`` are files that are no scenarios, ``strict`` makes degraded fail."""
    root = ElementTree.Element("testsuites", name="vmemu check")
    for report in reports:
        suite = _suite(root, report.path)
        _case(suite, report.path, WHOLE, report.reasons, strict)
        for block in report.blocks:
            _case(suite, report.path, f"block {block.name}", block.reasons, strict)
    for path, error in refused:
        case = _test_case(_suite(root, path), path, "scenario")
        _wrong(case, "error", error.kind, str(error))
    for counted in (*root, root):
        cases = list(counted.iter("testcase"))
        counted.set("tests", str(len(cases)))
        for outcome in ("failure", "error"):
            wrong = sum(case.find(outcome) is not None for case in cases)
            counted.set(f"{outcome}s", str(wrong))
    ElementTree.indent(root, " ")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, "unicode")}\n'


def _suite(root: ElementTree.Element, path: str) -> ElementTree.Element:
    return ElementTree.SubElement(root, "testsuite", name=_text(path))


def _test_case(suite: ElementTree.Element, path: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_text(path), name=_text(name))


def _case(
    suite: ElementTree.Element, path: str, name: str, reasons: Sequence[Reason], strict: bool
) -> None:
    """A test case has one outcome, so that of the worst reason; its text has all of them."""
    case = _test_case(suite, path, name)
    if not reasons:
        return
    verdict = worst(reason.verdict for reason in reasons)
    text = "\n".join(_said(reason) for reason in reasons)
    first = next(reason for reason in reasons if reason.verdict is verdict)
    if verdict is Verdict.INCOMPATIBLE or (strict and verdict is Verdict.DEGRADED):
        _wrong(case, "failure", first.code, text, first.message)
    elif verdict is Verdict.UNKNOWN:
        _wrong(case, "error", first.code, text, first.message)
    else:
        ElementTree.SubElement(case, "system-out").text = _text(text)


def _wrong(
    case: ElementTree.Element, outcome: str, kind: str, text: str, message: str = ""
) -> None:
    message = message or text.partition("\n")[0]
    element = ElementTree.SubElement(case, outcome, message=_text(message), type=_text(kind))
    element.text = _text(text)


def _said(reason: Reason) -> str:
    place = f"{reason.place}: " if reason.place else ""
    remedy = f"\n  {reason.mending}" if reason.remedy else ""
    return f"{reason.verdict}: {place}{reason.message}{remedy}"


def _text(text: str) -> str:
    """``text`` with what XML can't hold, such as control characters, as escapes."""
    return _NO_XML.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
