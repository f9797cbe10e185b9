"""Lines of text: units, intervals, alignment."""

from __future__ import annotations

import math

import pytest

from simulator.report.layout import (
    WIDTH,
    bar,
    between,
    bullets,
    columns,
    labelled,
    percent,
    quantity,
    signed_percent,
)


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (13.75, "seconds", "13.8 s"),
        (0.5412, "fraction", "54.1 %"),
        (174_615_846_912, "count", "174,615,846,912"),
        (2.5, "count", "2.50"),
        (153.02, "ratio", "153"),
        (80 * 2**30, "bytes", "80.0 GiB"),
        (math.inf, "bytes", "unbounded"),
        (math.nan, "seconds", "unknown"),
    ],
)
def test_quantities(value: float, dimension: str, text: str) -> None:
    assert quantity(value, dimension) == text


@pytest.mark.parametrize(
    ("low", "high", "dimension", "text"),
    [
        (12.1, 16.0, "seconds", "12.1 to 16.0 s"),
        (0.9, 1.1, "seconds", "900 ms to 1.10 s"),
        (9461, 12328, "1/s", "9,461 to 12,328/s"),
        (0.51, 0.66, "fraction", "51.0 to 66.0 %"),
        (3, 5, "count", "3 to 5"),
        (1.0, 2.0, "dollars", "$1.00 to $2.00"),
    ],
)
def test_intervals_say_a_shared_unit_once(low: float, high: float, dimension: str, text: str) -> None:
    assert between(low, high, dimension) == text


def test_shares() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.014, 0.5, 1.0)] == [
        "0 %",
        "<1 %",
        "1 %",
        "50 %",
        "100 %",
    ]
    assert [signed_percent(change) for change in (0.011, -0.25)] == ["+1.1 %", "-25.0 %"]
    assert [bar(share, 10) for share in (0.0, 0.001, 0.5, 2.0)] == ["", "#", "#####", "##########"]


def test_columns_align_left_and_right() -> None:
    assert columns([("a", "1.5", "x"), ("bcd", "20")], right=[1], indent=" ") == [" a    1.5  x", " bcd   20"]
    assert columns([]) == []


def test_labels_and_bullets_wrap_but_never_between_a_number_and_its_unit() -> None:
    text = ", ".join(f"part {number} 12.5 GiB" for number in range(12))
    lines = labelled("memory", text)
    assert lines[0].startswith("memory          part 0")
    assert len(lines) > 1
    assert all(len(line) <= WIDTH for line in lines)
    assert not any(line.lstrip().startswith("GiB") for line in lines)
    wrapped = labelled("notes", ["- " + "word " * 40, "- short"])
    assert wrapped[1].startswith(" " * 18 + "word")
    assert wrapped[-1] == " " * 16 + "- short"
    assert bullets(["word " * 40])[1].startswith("    word")
    assert labelled("empty", []) == ["empty"]
    assert labelled("empty", "") == ["empty"]
