"""Quantities as people write them: read strictly, written so that they read back."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmemu import units

# The machine may be busy: no example is judged by its time.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("1B", 1),
        ("4096", 4096),
        (4096, 4096),
        ("4KiB", 4096),
        ("2MiB", 2 << 20),
        ("2 MiB", 2 << 20),
        ("1.5GiB", 3 << 29),
        ("0.5KiB", 512),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("7ns", 7),
        ("250us", 250_000),
        ("1.5ms", 1_500_000),
        ("30s", 30 * 10**9),
        ("2min", 12 * 10**10),
    ],
)
def test_durations(text: str, duration: int) -> None:
    assert units.parse_duration(text) == duration


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1GiB/s", 1 << 30),
        ("1B/s", 1),
        ("1Gbit/s", 125_000_000),
        ("8bit/s", 1),
        ("2.5Gbit/s", 312_500_000),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("25%", Fraction(1, 4)),
        ("0.25", Fraction(1, 4)),
        (0.1, Fraction(1, 10)),
        (1e-7, Fraction(1, 10**7)),
        (1, Fraction(1)),
        ("0%", Fraction(0)),
        ("12.5 %", Fraction(1, 8)),
        (Fraction(1, 3), Fraction(1, 3)),
    ],
)
def test_shares_are_exact(text: str | float | Fraction, share: Fraction) -> None:
    assert units.parse_share(text) == share


@pytest.mark.parametrize(
    ("parse", "text", "what", "remedy"),
    [
        (units.parse_size, "2MB", "'2MB'", "MiB is meant (units of 1024): write 2MiB"),
        (units.parse_size, "2kB", "'2kB'", "KiB is meant (units of 1024): write 2KiB"),
        (units.parse_size, "2G", "'2G'", "GiB is meant (units of 1024): write 2GiB"),
        (units.parse_size, "2mib", "'2mib'", "write 2MiB"),
        (units.parse_size, "2PiB", "'2PiB'", "use one of the units B, KiB"),
        (
            units.parse_size,
            "0.3KiB",
            "no whole number of bytes",
            "the nearest that would do is 307",
        ),
        (units.parse_size, "010KiB", "leading zero", "write it without: 10KiB"),
        (units.parse_size, "-1KiB", "is no size", "such as 2MiB"),
        (units.parse_size, -1, "negative", "2MiB"),
        (units.parse_size, True, "is no size", "2MiB"),
        (units.parse_size, None, "is no size", "2MiB"),
        (units.parse_size, "", "is no size", "2MiB"),
        (units.parse_size, "1e3", "is no size", "2MiB"),
        (units.parse_size, "\u0661KiB", "is no size", "2MiB"),
        (units.parse_size, "9" * 5000, "too long", "2MiB"),
        (units.parse_duration, "30", "no unit of time", "ns, us, ms, s or min"),
        (units.parse_duration, 30, "no unit of time", "ns, us, ms, s or min"),
        (units.parse_duration, "3h", "no unit of time that is known", "ns, us, ms, s or min"),
        (units.parse_duration, "0.5ns", "no whole number of nanoseconds", "nearest"),
        (units.parse_rate, "1GiB", "no rate per second", "1GiB/s"),
        (units.parse_rate, "1GB/s", "no unit of rate", "1GiB/s"),
        (units.parse_rate, 5, "no rate per second", "1GiB/s"),
        (units.parse_rate, "1bit/s", "no whole number of bytes", "nearest"),
        (units.parse_share, "101%", "outside 0 to 1", "0% to 100%"),
        (units.parse_share, 1.5, "outside 0 to 1", "0.0 to 1.0"),
        (units.parse_share, -0.5, "outside 0 to 1", "0.0 to 1.0"),
        (units.parse_share, "x", "is no share", "0.0 to 1.0"),
        (units.parse_share, True, "is no share", "0.0 to 1.0"),
        (units.parse_share, float("nan"), "is no share", "0.0 to 1.0"),
        (units.parse_share, float("inf"), "is no share", "0.0 to 1.0"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_would_do(
    parse: Callable[[Any], Any], text: Any, what: str, remedy: str
) -> None:
    with pytest.raises(units.UnitError) as caught:
        parse(text)
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert str(caught.value) == f"{caught.value.what}; {caught.value.remedy}"
    assert isinstance(caught.value, ValueError)


def test_an_integer_that_python_refuses_to_print() -> None:
    huge = 10**5000
    assert units.parse_size(huge) == huge
    with pytest.raises(units.UnitError, match="can't be negative"):
        units.parse_size(-huge)
    with pytest.raises(units.UnitError, match="is no share"):
        units.parse_share(huge)
    with pytest.raises(units.UnitError, match="no unit of time"):
        units.parse_duration(huge)  # type: ignore[arg-type]
    with pytest.raises(units.UnitError, match="no rate"):
        units.parse_rate(huge)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "parse", [units.parse_size, units.parse_duration, units.parse_rate, units.parse_share]
)
@relaxed
@given(text=st.one_of(st.text(), st.integers(), st.floats(), st.from_regex(r"\d+\.?\d* ?\w+(/s)?")))
def test_no_input_raises_anything_else(parse: Callable[[Any], Any], text: Any) -> None:
    refusal = None
    try:
        assert parse(text) >= 0
    except units.UnitError as error:
        refusal = error
    if refusal is not None:
        assert refusal.what
        assert refusal.remedy
        assert "\n" not in str(refusal)


@relaxed
@given(st.integers(0, 1 << 70))
def test_exact_formats_read_back(number: int) -> None:
    assert units.parse_size(units.format_size(number)) == number
    assert units.parse_duration(units.format_duration(number)) == number
    assert units.parse_rate(units.format_rate(number)) == number


@relaxed
@given(st.integers(0, 10**9))
def test_shares_with_decimals_read_back(billionths: int) -> None:
    share = Fraction(billionths, 10**9)
    assert units.parse_share(units.format_share(share)) == share


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (units.format_size(0), "0B"),
        (units.format_size(1 << 20), "1MiB"),
        (units.format_size(3 << 29), "1.5GiB"),
        (units.format_size(4097), "4097B"),
        (units.format_size(1 << 50), "1024TiB"),
        (units.format_duration(90 * 10**9), "1.5min"),
        (units.format_duration(1_234_567), "1234.567us"),
        (units.format_duration(1_234_567, digits=3), "1.23ms"),
        (units.format_duration(999_999, digits=3), "1ms"),
        (units.format_duration(12, digits=3), "12ns"),
        (units.format_size(1_234_567_890, digits=3), "1.15GiB"),
        (units.format_rate(3 << 30), "3GiB/s"),
        (units.format_rate(3_353_489_123, digits=2), "3.1GiB/s"),
        (units.format_share(Fraction(1, 8)), "12.5%"),
    ],
)
def test_formats(text: str, wanted: str) -> None:
    assert text == wanted


@relaxed
@given(st.integers(0, 1 << 60), st.integers(1, 6))
def test_rounded_formats_are_near(number: int, digits: int) -> None:
    shown = units.format_size(number, digits=digits)
    value = Fraction(shown.rstrip("KMGTiB")) * units.SIZE_UNITS[shown.lstrip("0123456789.")]
    # A value of 1000 to 1023 units is shown whole, so one digit is the coarsest that is promised.
    assert abs(value - number) <= Fraction(number, 2 * 10 ** (digits - 1))


def test_a_negative_number_has_no_format() -> None:
    with pytest.raises(units.UnitError, match="is negative; give 0 or more"):
        units.format_size(-1)


def test_printable_text_stays_on_one_line_and_short() -> None:
    assert units.printable("a\nb\x1b") == r"a\nb\x1b"
    assert len(units.printable("x" * 1000)) == 60


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "page", "0 pages"),
        (1, "page", "1 page"),
        (1234, "page", "1,234 pages"),
        (1, "access", "1 access"),
        (2, "access", "2 accesses"),
        (2, "instruction fetch", "2 instruction fetches"),
        (1, "vCPU", "1 vCPU"),
    ],
)
def test_counts_of_things(count: int, noun: str, text: str) -> None:
    assert units.counted(count, noun) == text
