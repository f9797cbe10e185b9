"""Text, HTML and Markdown of a result: what must be there, escaping, no outside references."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_cases import OFFLOAD, SERVING, answer, other

from simulator.analysis import Result
from simulator.report import render_report
from simulator.report.content import content
from simulator.report.text import run_lines, title


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return answer(str(tmp_path_factory.getbasetemp()))


class Outline(HTMLParser):
    """Headings, references and open tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def test_the_page_is_whole_and_needs_no_other_file(result: Result) -> None:
    page = render_report(result)
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert all(link.startswith(("#", "data:")) for link in outline.links)
    assert "<script" not in page
    headings = (
        "Figures",
        "Against what is known and required",
        "Time by what binds it",
        "Assumptions",
        "Sources",
    )
    assert set(headings) <= set(outline.headings)
    assert page.count("<svg") == 5
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_the_page_is_the_same_byte_for_byte(result: Result) -> None:
    assert render_report(result) == render_report(result)


def test_texts_of_the_user_are_escaped(result: Result) -> None:
    scenario = result.setup.scenario.model_copy(
        update={"name": "<script>alert(1)</script>", "description": "a & b"}
    )
    page = render_report(replace(result, setup=replace(result.setup, scenario=scenario)))
    assert "<script>" not in page
    assert "a &amp; b" in page


def test_a_page_without_a_timeline_leaves_its_figures_out(result: Result) -> None:
    page = render_report(replace(result, outcome=replace(result.outcome, timeline=None)))
    assert page.count("<svg") == 3


def test_markdown_tables_are_well_formed(result: Result) -> None:
    text = render_report(result, "markdown")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    assert "a paper \\| with a bar" in text


def test_content_says_what_decides(result: Result) -> None:
    page = content(result)
    assert page.verdict == "fits, but misses its limit: step time"
    assert not page.good
    assert [tile.label for tile in page.tiles][:3] == ["step time", "free at the peak", "bottleneck"]
    assert page.checks is not None and page.remedies is not None


def test_what_does_not_fit_is_said_first(result: Result) -> None:
    memory = tuple(replace(use, capacity=1e6) for use in result.memory)
    small = replace(result, outcome=replace(result.outcome, memory=memory))
    page = content(small)
    assert page.verdict == "does not fit"
    assert page.tiles[1].label == "missing" and page.tiles[1].state == "bad"
    lines = run_lines(small)
    assert any(line.startswith("these figures hold if the memory were large enough") for line in lines)


def test_money_and_energy_are_told_where_they_are_known(result: Result) -> None:
    def priced(price: dict[str, Any]) -> Result:
        machine = result.setup.hardware.machine
        machine = replace(machine, price=machine.price.model_copy(update=price))
        return replace(
            result, setup=replace(result.setup, hardware=replace(result.setup.hardware, machine=machine))
        )

    rented = priced({"rent": 10.0 / 3600.0, "purchase": None})
    text = "\n".join(run_lines(rented))
    assert "$10.00/h" in text and "on-demand rent" in text
    assert content(rented).tiles[-1].label == "cost"
    unpriced = priced({"rent": None, "purchase": None})
    assert "dollars" not in title(unpriced)


def test_nothing_held_is_said(result: Result) -> None:
    bare = replace(result, outcome=replace(result.outcome, memory=(), bottlenecks={}))
    lines = run_lines(bare)
    assert "fits            nothing is held" in lines
    assert "bottleneck      nothing runs" in lines


def test_percentiles_stand_side_by_side(tmp_path: Path) -> None:
    lines = run_lines(other(str(tmp_path), SERVING))
    header = next(
        number for number, line in enumerate(lines) if line.split() == ["mean", "p50", "p90", "p99"]
    )
    assert lines[header + 1].startswith("time to first token")
    assert not any(line.startswith("preemptions") for line in lines)


def test_every_tier_has_its_ledger_and_its_footprint(tmp_path: Path) -> None:
    page = render_report(other(str(tmp_path), OFFLOAD))
    for tier in ("hbm", "dram", "nvme"):
        assert f"({tier}, " in page
    assert page.count("Bytes resident over time") == 3
