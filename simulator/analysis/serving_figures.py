"""Figures of serving: latency by request, queue over time, cost against load, the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.analysis.figures import INK, PALETTE, legend, panels, time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from simulator.analysis.curve import LoadCurve
    from simulator.analysis.distribution import Series
    from simulator.analysis.pareto import Pareto

KNOBS = {"rate": "requests a second", "concurrency": "clients", "speed": "speed of the trace"}
"""What a load is, by the name of what is varied."""
_LIMIT = "#c9302c"


def series_figure(series: Series, *, title: str = "") -> Figure:
    """Draw requests in the queue, sequences in the batch and the KV cache's occupancy over time, one below the other."""
    drawn = [
        (series.waiting, "waiting requests", PALETTE[1]), (series.running, "running sequences", PALETTE[0]),
        (100.0 * series.kv_share, "KV cache in use [%]", PALETTE[2]),
    ]  # fmt: skip
    drawn = [one for one in drawn if len(one[0])]
    figure, rows = panels(len(drawn), 1, 0.4 + 1.6 * len(drawn))
    scale, unit = time_unit(series.end - float(series.time[0]))
    moments = np.append(series.time, series.end) / scale
    for axes, (values, label, colour) in zip(rows, drawn, strict=True):
        axes.fill_between(
            moments, np.append(values, values[-1]), step="post", color=colour, linewidth=0, alpha=0.85,
            rasterized=len(values) > 800,
        )  # fmt: skip
        axes.set_ylabel(label)
        axes.set_ylim(0, max(1.0, 1.05 * float(values.max())))
        axes.set_xlim(float(moments[0]), float(moments[-1]))
    rows[-1].set_xlabel(f"time [{unit}]")
    _title(rows[0], title)
    return figure


def latency_figure(latencies: Mapping[str, npt.NDArray[np.float64]], *, title: str = "") -> Figure:
    """Draw the share of requests within a time (empirical distribution functions), time on a logarithmic axis."""
    figure, (axes,) = panels(1, 1, 3.4)
    for (label, values), colour in zip(latencies.items(), PALETTE, strict=False):
        seconds = np.sort(values[~np.isnan(values)])
        seconds = seconds[seconds > 0.0]
        if len(seconds):
            share = 100.0 * (1.0 + np.arange(len(seconds))) / len(seconds)
            axes.step(seconds, share, where="post", color=colour, label=label, linewidth=1.4)
    axes.set(xscale="log", xlabel="seconds", ylabel="requests within [%]", ylim=(0, 101))
    legend(axes)
    _title(axes, title)
    return figure


def curve_figure(curve: LoadCurve) -> Figure:
    """Draw a load curve: latencies, throughput and goodput, dollars (or busy time) and joules; hollow where it misses."""
    figure, places = panels(2, 2, 5.6)
    loads = [point.load for point in curve.points]
    holds = np.array([point.holds for point in curve.points])
    colours = dict(zip(("p50", "p99"), PALETTE, strict=False))
    for axes, stem, name in (
        (places[0], "time_to_first_token", "time to first token [s]"),
        (places[1], "time_per_output_token", "time per output token [s]"),
    ):
        for statistic, colour in colours.items():
            values = [point.latencies[f"{stem}_{statistic}"] for point in curve.points]
            _line(axes, loads, values, holds, colour, statistic)
        bounds = curve.goal.slo.bounds if curve.goal.slo else {}
        if stem in bounds:
            axes.axhline(bounds[stem], color=_LIMIT, linewidth=1.2, linestyle=(0, (5, 2)), label="objective")
        axes.set_ylabel(name)
        _logarithmic(axes)
        legend(axes)
    _line(places[2], loads, [point.rate for point in curve.points], holds, PALETTE[9], "offered")
    if curve.goal.slo:
        _line(
            places[2], loads, [point.goodput or 0.0 for point in curve.points], holds, PALETTE[2], "goodput"
        )
    places[2].set(ylabel="requests per second", ylim=(0, None))
    legend(places[2])
    priced = [point.dollars_per_million_tokens for point in curve.points]
    if all(value is not None for value in priced):
        _line(
            places[3],
            loads,
            [value or 0.0 for value in priced],
            holds,
            PALETTE[4],
            "dollars a million tokens",
        )
    joules = [point.joules_per_token for point in curve.points]
    # a joule a token is a megajoule a million of them
    _line(places[3], loads, joules, holds, PALETTE[3], "megajoules a million tokens")
    places[3].set_ylabel("a million output tokens")
    _logarithmic(places[3])
    legend(places[3])
    for axes in places[2:]:
        axes.set_xlabel(KNOBS[curve.knob])
    _title(places[0], f"{curve.name}, {curve.devices} accelerators")
    return figure


def pareto_figure(pareto: Pareto) -> Figure:
    """Draw tokens a second for a user against those of an accelerator: the front as a line, a colour a strategy."""
    figure, (axes,) = panels(1, 1, 4.2)
    groups: dict[str, list[tuple[float, float, bool]]] = {}
    for point in pareto.points:
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in point.settings.items())
        groups.setdefault(label, []).append((point.tokens_per_user, point.tokens_per_gpu, point.on_front))
    front = pareto.front
    axes.plot(
        [p.tokens_per_user for p in front],
        [p.tokens_per_gpu for p in front],
        color=INK,
        linewidth=1.0,
        label="front",
    )
    for (label, members), colour in zip(
        groups.items(), PALETTE * (1 + len(groups) // len(PALETTE)), strict=False
    ):
        x, y, on = (np.array(column) for column in zip(*members, strict=True))
        axes.scatter(x[on], y[on], color=colour, s=30, zorder=3, label=label if on.any() else "_")
        axes.scatter(
            x[~on],
            y[~on],
            facecolor="none",
            edgecolor=colour,
            s=30,
            zorder=3,
            label="_" if on.any() else label,
        )
    axes.set(
        xlabel="output tokens per second of a user", ylabel="output tokens per second of an accelerator", xlim=(0, None),
        ylim=(0, None),
    )  # fmt: skip
    legend(axes)
    _title(axes, f"{pareto.name}: what can be had together")
    return figure


def _line(
    axes: Axes, x: list[float], y: list[float], holds: npt.NDArray[np.bool_], colour: str, label: str
) -> None:
    places, values = np.array(x), np.array(y)
    axes.plot(places, values, color=colour, linewidth=1.2, label=label)
    axes.scatter(places[holds], values[holds], color=colour, s=20, zorder=3)
    axes.scatter(places[~holds], values[~holds], facecolor="none", edgecolor=colour, s=20, zorder=3)


def _logarithmic(axes: Axes) -> None:
    """Give an axis ticks at 1, 2 and 5 times powers of ten, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _title(axes: Axes, title: str) -> None:
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=INK)
