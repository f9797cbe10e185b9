"""Quantities as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from simulator import units


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("80 GB", "bytes", 80e9),
        ("80 GiB", "bytes", 80 * 2**30),
        ("80GiB", "bytes", 80 * 2**30),
        ("1e9 B", "bytes", 1e9),
        ("1,024 MB", "bytes", 1.024e9),
        ("3.35 TB/s", "bytes/s", 3.35e12),
        ("400 Gb/s", "bytes/s", 50e9),
        ("100 Gbps", "bytes/s", 12.5e9),
        ("989 TFLOP/s", "FLOP/s", 989e12),
        ("1979 TOP/s", "FLOP/s", 1979e12),
        ("2 PFLOPS", "FLOP/s", 2e15),
        ("5 us", "seconds", 5e-6),
        ("5 µs", "seconds", 5e-6),
        ("2 h", "seconds", 7200.0),
        ("1.98 GHz", "hertz", 1.98e9),
        ("0.7 kW", "watts", 700.0),
        ("$30,000", "dollars", 30_000.0),
        ("2.5 USD/h", "dollars/s", 2.5 / 3600),
        ("$98.32/h", "dollars/s", 98.32 / 3600),
        ("5 req/s", "1/s", 5.0),
        ("600 requests/min", "1/s", 10.0),
        ("1.5M IOPS", "1/s", 1.5e6),
        ("300 B tokens", "tokens", 300e9),
    ],
)
def test_reads(text: str, dimension: str, value: float) -> None:
    assert units.parse(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "dimension", "message"),
    [
        ("80", "bytes", "'80' has no unit; write it like '80 GB'"),
        ("80 TB", "bytes/s", "'80 TB' is in bytes, not in bytes/s; did you mean '80 TB/s'?"),
        ("fast", "bytes/s", "'fast' is not a quantity; write it like '3.35 TB/s'"),
        ("", "bytes", "'' is not a quantity"),
        ("3 Gb", "bytes", "'3 Gb' has no unit of bytes"),
        ("1e999 B", "bytes", "not a finite number"),
        ("80 %", "watts", "'80 %' has no unit of watts"),
    ],
)
def test_refuses(text: str, dimension: str, message: str) -> None:
    with pytest.raises(units.UnitError) as caught:
        units.parse(text, dimension)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (80 * 2**30, "bytes", "80.0 GiB"),
        (512, "bytes", "512 B"),
        (3.35e12, "bytes/s", "3.35 TB/s"),
        (989e12, "FLOP/s", "989 TFLOP/s"),
        (13.75, "seconds", "13.8 s"),
        (5.2e-6, "seconds", "5.20 us"),
        (5e-9, "seconds", "5.00 ns"),
        (0.0, "seconds", "0 s"),
        (86400.0 * 33, "seconds", "33.0 d"),
        (7200.0, "seconds", "2.00 h"),
        (1234.5, "dollars", "$1,234"),
        (2.5 / 3600, "dollars/s", "$2.50/h"),
        (5.0, "1/s", "5.00/s"),
        (math.inf, "bytes", "unbounded"),
        (700.0, "watts", "700 W"),
        (0.0, "bytes", "0 B"),
    ],
)
def test_prints(value: float, dimension: str, text: str) -> None:
    assert units.format_quantity(value, dimension) == text


def test_significant_digits() -> None:
    assert [units.significant(x) for x in (0.0, 1e-9, 0.00123, 1.5, 12345.0)] == [
        "0",
        "1.00e-09",
        "0.00123",
        "1.50",
        "12,345",
    ]


@given(st.floats(1e-6, 1e18), st.sampled_from(["bytes", "bytes/s", "FLOP/s", "watts", "hertz"]))
@hypothesis_settings(derandomize=True, deadline=None, max_examples=200)
def test_what_is_printed_reads_back(value: float, dimension: str) -> None:
    printed = units.format_quantity(value, dimension, digits=6)
    if value >= 1.0:
        assert units.parse(printed, dimension) == pytest.approx(value, rel=1e-5)
