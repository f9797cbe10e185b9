"""Sizing reports as one self-contained HTML page: inline SVG, light and dark, prints well."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.report.content import content
from simulator.report.text import fullest

if TYPE_CHECKING:
    from simulator.analysis import Result
    from simulator.engine import Timeline

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of the page: its SVG element and what it shows."""

    svg: str
    caption: str


def html(result: Result) -> str:
    """Return the report as an HTML page that needs no other file; the same bytes for the same result."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    page = environment.get_template("report.html")
    return page.render(page=content(result), drawings=_drawings(result), version=_version())


def _drawings(result: Result) -> dict[str, list[Drawing]]:
    from simulator.analysis import plots
    from simulator.analysis.figures import svg

    found = {
        "bottlenecks": [Drawing(svg(plots.plot_bottlenecks(result)), "Where the time goes.")],
        "sensitivity": [
            Drawing(svg(plots.plot_sensitivity(result)), "Each hardware figure raised by 10 % on its own.")
        ],
    }
    if plots.has_roofline(result):
        caption = "Operators of one device under its roof; the area of a mark follows its share of the time."
        found["roofline"] = [Drawing(svg(plots.plot_roofline(result)), caption)]
    if {"requests", "iterations"} <= set(result.outcome.tables):
        found["requests"] = _request_drawings(result)
    timeline = result.timeline
    if timeline is not None and timeline.n_tasks:
        found["footprint"] = [
            Drawing(svg(plots.plot_footprint(result, memory)), "Bytes resident over time, by category.")
            for memory in _drawn_memories(result, timeline)
        ]
        found["timeline"] = [
            Drawing(svg(plots.plot_timeline(result)), "What ran when, on each stream and link.")
        ]
        window = plots.close_window(timeline)
        if window is not None:
            closer = Drawing(svg(plots.plot_timeline(result, window)), "A closer look, half-way through.")
            found["timeline"].append(closer)
    return found


def _request_drawings(result: Result) -> list[Drawing]:
    from simulator.analysis.distribution import plot_latencies, plot_series
    from simulator.analysis.figures import svg

    return [
        Drawing(svg(plot_latencies(result)), "Share of the requests that are served within a time."),
        Drawing(svg(plot_series(result)), "What waits, what runs, and what the KV cache holds."),
    ]


def _drawn_memories(result: Result, timeline: Timeline) -> list[str | None]:
    """Return the fullest memory of each tier where the timeline knows it by name; else whichever is fullest."""
    known = {memory.name for memory in timeline.ledger.memories.values()}
    named: list[str | None] = [use.memory for use in fullest(result.memory) if use.memory in known]
    return named or ([None] if known else [])


def _version() -> str:
    try:
        return version("memroof")
    except PackageNotFoundError:  # a checkout that was never installed
        return ""
