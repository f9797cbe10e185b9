"""Figures: what they show, that they are the same byte for byte, and that no global state is touched."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import OFFLOAD, SERVING, answer, copies, other

from simulator.analysis import Sweep, figures, plots
from simulator.engine import Program, execute
from simulator.specs import MemroofError


def texts(figure: object) -> list[str]:
    root = ElementTree.fromstring(figures.svg(figure))  # type: ignore[arg-type]
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_footprint_stacks_categories_under_the_capacity() -> None:
    figure = figures.footprint_figure(
        [0.0, 1.0], {"kv": [1e9, 3e9], "weights": [8e9, 8e9]}, capacity=16e9, end=2.0
    )
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["weights", "kv", "capacity"]
    assert axes.get_ylim()[1] > 16e9 / 2**30
    assert "resident [GiB]" in texts(figure)
    assert figures.footprint_figure([0.0], {}, capacity=math.inf).axes


def test_timeline_has_a_row_for_each_resource_in_use() -> None:
    figure = figures.timeline_figure(copies(), title="copies")
    shown = texts(figure)
    assert {"gpu0.compute", "pcie", "copy", "matmul", "copies"} <= set(shown)
    window = figures.timeline_figure(copies(), window=(1.6, 1.7))
    assert "pcie" not in texts(window)
    named = figures.timeline_figure(copies(), resources=["pcie"])
    assert "gpu0.compute" not in texts(named)


def test_timeline_leaves_out_idle_rows_where_there_are_many() -> None:
    program = Program()
    for number in range(30):
        stream = program.stream(f"s{number}")
        program.compute(stream, 1.0 if number < 20 else 1e-4, tag="work")
    shown = texts(figures.timeline_figure(execute(program)))
    assert "s19" in shown and "s20" not in shown
    assert any("10 rows that are hardly busy" in text for text in shown)


def test_many_bars_are_embedded_as_one_picture() -> None:
    program = Program()
    stream = program.stream("gpu")
    for number in range(4000):
        program.compute(stream, 1.0, tag=f"kind {number % 2}")
    assert len(figures.svg(figures.timeline_figure(execute(program)))) < 100_000


def test_roofline_puts_points_under_the_roof() -> None:
    points = [
        figures.RooflinePoint("gemm", 1e13, 1e10, 0.04),
        figures.RooflinePoint("norm", 1e9, 1e9, 0.001),
        figures.RooflinePoint("nothing", 0.0, 1.0, 1.0),
    ]
    figure = figures.roofline_figure(points, peak=312e12, bandwidth=2e12, title="a device")
    shown = texts(figure)
    assert "gemm (4 %)" in shown and "156 FLOP/B" in shown
    assert not any("nothing" in text for text in shown)


def test_bars_are_ordered_and_labelled() -> None:
    shown = texts(figures.bottleneck_figure({"memory": 0.2, "compute": 0.8, "latency": 0.0}))
    assert "80.0 %" in shown and "latency" not in shown
    tornado = texts(
        figures.effect_figure([("bandwidth", -0.01), ("peak", 0.07), ("none", 0.0)], label="change [%]")
    )
    assert "-1.00 %" in tornado and "+7.00 %" in tornado and "none" not in tornado


def sweep(dimension: str) -> Sweep:
    def row(degree: int, batch: int, value: float | None, fits: bool) -> dict[str, object]:
        low, high = (None, None) if value is None else (value * 0.9, value * 1.1)
        return {
            "a.degree": str(degree),
            "b.batch": str(batch),
            "value": value,
            "low": low,
            "high": high,
            "fits": fits,
        }

    rows = (row(1, 1, 2.0, False), row(2, 1, 1.0, True), row(1, 2, None, False), row(2, 2, 1.5, True))
    return Sweep(("a.degree", "b.batch"), "step_time", dimension, rows)


@pytest.mark.parametrize(("dimension", "label"), [("seconds", "[s]"), ("fraction", "[%]"), ("1/s", "[1/s]")])
def test_sweeps_show_intervals_and_what_does_not_fit(dimension: str, label: str) -> None:
    figure = figures.sweep_figure(sweep(dimension))
    shown = texts(figure)
    assert f"step time {label}" in shown
    assert {"batch 1", "batch 2", "does not fit", "a.degree"} <= set(shown)


def test_the_same_data_gives_the_same_bytes() -> None:
    first, second = (figures.bottleneck_figure({"compute": 0.8, "memory": 0.2}) for _ in range(2))
    assert figures.svg(first) == figures.svg(second)
    assert figures.png(first) == figures.png(second)
    assert "currentColor" in figures.svg(first)


def test_no_global_state() -> None:
    code = (
        "import sys; from simulator.analysis import figures; assert 'matplotlib' not in sys.modules; "
        "figures.png(figures.bottleneck_figure({'compute': 1.0})); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_points_of_a_result_stay_under_its_roof(tmp_path_factory: pytest.TempPathFactory) -> None:
    result = answer(str(tmp_path_factory.getbasetemp()))
    device = result.setup.hardware.device
    graph, passes = plots._graph(result)
    points = plots.roofline_points(result.setup, graph, passes)
    total = sum(point.flops for point in points)
    assert total == pytest.approx(
        float(np.sum(graph.flops(("forward", "input_gradient", "weight_gradient"))))
    )
    for point in points:
        assert point.time >= point.bytes / device.memory["hbm"].bandwidth * 0.999 or point.bytes < 40e6


def test_figures_of_a_result(tmp_path_factory: pytest.TempPathFactory) -> None:
    result = answer(str(tmp_path_factory.getbasetemp()))
    drawn = (
        plots.plot_footprint,
        plots.plot_timeline,
        plots.plot_bottlenecks,
        plots.plot_sensitivity,
        plots.plot_roofline,
    )
    for draw in drawn:
        assert figures.svg(draw(result)).startswith("<svg")
    with pytest.raises(MemroofError, match="no memory 'moon'"):
        plots.plot_footprint(result, "moon")


REQUESTS = [{"arrival": f"{number} ms", "prompt": "40", "output": "10"} for number in range(5)]


@pytest.mark.parametrize(
    ("scenario", "changes"),
    [
        (SERVING, {}),
        (SERVING, {"workload": {"arrival": "list", "list": REQUESTS}}),
        (SERVING, {"workload": {"arrival": "offline", "prompt": "32", "output": "300", "requests": "4"}}),
        (OFFLOAD, {}),
    ],
)
def test_figures_of_serving_and_offload(
    tmp_path: Path, scenario: dict[str, Any], changes: dict[str, Any]
) -> None:
    result = other(str(tmp_path), scenario, **changes)
    shown = texts(plots.plot_roofline(result))
    assert any("mlp.up" in text for text in shown)
    assert texts(plots.plot_footprint(result))
    assert texts(plots.plot_timeline(result))


def test_a_closer_look_holds_some_tasks_of_a_long_run(tmp_path: Path) -> None:
    assert plots.close_window(copies()) is None
    timeline = other(str(tmp_path), SERVING, workload={**SERVING["workload"], "requests": "200"}).timeline
    assert timeline is not None
    window = plots.close_window(timeline)
    assert window is not None
    inside = np.sum((timeline.stream >= 0) & (timeline.end > window[0]) & (timeline.start < window[1]))
    assert plots.CLOSE_TASKS / 3 < inside < plots.CLOSE_TASKS * 3


def test_without_a_timeline_there_is_nothing_to_draw(tmp_path: Path) -> None:
    result = other(str(tmp_path), SERVING)
    bare = replace(result, outcome=replace(result.outcome, timeline=None))
    with pytest.raises(MemroofError, match="keeps no timeline"):
        plots.plot_timeline(bare)
