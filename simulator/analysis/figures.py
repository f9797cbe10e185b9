"""Figures from plain data: footprint over time, timeline, roofline, bottlenecks, sensitivity, sweeps.

Matplotlib's object interface only (no pyplot state), so figures are made anywhere and come out the same byte for
byte. :func:`svg` draws ink in the page's text colour, so that a figure reads on light and on dark ground.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.units import format_quantity, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from simulator.analysis.whatif import Sweep
    from simulator.engine import Timeline

INK = "#1b2027"
PALETTE = (
    "#3b7dc0", "#e08a2c", "#3f9f6b", "#c9504a", "#8c6bb8", "#2fa0a6", "#cf7ab0", "#9a7b56", "#b59a24", "#7f8791",
)  # fmt: skip
"""Hues of middle lightness, told apart on white and on near-black."""
_LIMIT = "#c9302c"
_MAXIMUM_ROWS = 24
_RESOLUTION = 3000
"""Bars closer than this part of a window are drawn as one."""
_MANY = 800
"""Shapes beyond which an SVG holds them as one embedded picture."""
_FEW_ROWS, _IDLE = 12, 0.01
"""Where there are more rows than this, those busy for less than this share of a window are left out."""
_VISIBLE = 5e-4
"""Smallest share or relative change that is drawn."""


@dataclass(frozen=True, slots=True)
class RooflinePoint:
    """An operator on the roofline: its work [FLOP], its traffic [B] and its time [s]."""

    name: str
    flops: float
    bytes: float
    time: float


def footprint_figure(
    times: Sequence[float] | np.ndarray[Any, Any],
    by_category: Mapping[str, Sequence[float] | np.ndarray[Any, Any]],
    *,
    capacity: float = math.inf,
    end: float | None = None,
    title: str = "",
) -> Figure:
    """Draw the bytes resident in a memory over time, stacked by category, under its capacity.

    Parameters
    ----------
    times : array, shape (n,)
        Moments of change [s], increasing.
    by_category : mapping of str to array, shape (n,)
        Bytes from each moment up to the next [B].
    capacity : float
        Drawn as a line where it is finite [B].
    end : float, optional
        Where the last level ends [s]; the last moment if absent.
    title : str
        Above the figure.
    """
    figure, axes = _figure(3.2, title)
    moments = np.append(
        np.asarray(times, dtype=float), end if end is not None else np.max(times, initial=0.0)
    )
    scale, unit = time_unit(float(moments[-1]))
    names = sorted(by_category, key=lambda name: -float(np.max(by_category[name], initial=0.0)))
    levels = [np.asarray(by_category[name], dtype=float) for name in names]
    bottom = np.zeros(len(moments))
    for name, level, colour in zip(names, levels, _colours(len(names)), strict=False):
        top = bottom + np.append(level, level[-1] if len(level) else 0.0) / 2**30
        axes.fill_between(
            moments / scale,
            bottom,
            top,
            step="post",
            color=colour,
            linewidth=0,
            label=name,
            rasterized=len(times) > _MANY,
        )
        bottom = top
    if math.isfinite(capacity):
        axes.axhline(capacity / 2**30, color=_LIMIT, linewidth=1.2, linestyle=(0, (5, 2)), label="capacity")
    axes.set_ylim(
        0,
        1.08
        * max(float(bottom.max(initial=0.0)), capacity / 2**30 if math.isfinite(capacity) else 0.0, 1e-9),
    )
    axes.set_xlim(float(moments[0]) / scale, max(float(moments[-1]) / scale, 1e-12))
    axes.set(xlabel=f"time [{unit}]", ylabel="resident [GiB]")
    legend(axes)
    return figure


def timeline_figure(
    timeline: Timeline,
    *,
    window: tuple[float, float] | None = None,
    resources: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw what ran where: a row for each stream and link, a colour for each tag.

    Parameters
    ----------
    timeline : Timeline
        What ran.
    window : (float, float), optional
        From and to [s]; the whole run if absent.
    resources : sequence of str, optional
        Rows by name; all that were used, in the order of the program, if absent (the first 24).
    title : str
        Above the figure.
    """
    first, last = window or (0.0, timeline.makespan)
    scale, unit = time_unit(last - first)
    names = [resource.name for resource in timeline.program.resources]
    bars = _bars(timeline, first, last)
    used = _busy_rows(bars, names, first, last) if resources is None else list(resources)
    rows = used[:_MAXIMUM_ROWS]
    dropped = len({resource for resource, _ in bars}) - len(rows)
    figure, axes = _figure(max(1.6, 0.8 + 0.26 * len(rows)), title)
    tags = list(dict.fromkeys(tag for resource, tag in bars if names[resource] in rows))
    colour = dict(zip(tags, _colours(len(tags)), strict=False))
    labelled: set[str] = set()
    many = sum(map(len, bars.values())) > _MANY
    for (resource, tag), spans in bars.items():
        if names[resource] in rows:
            row = rows.index(names[resource])
            axes.broken_barh(
                [(start / scale, (stop - start) / scale) for start, stop in spans], (row - 0.4, 0.8), rasterized=many,
                facecolor=colour[tag], linewidth=0, label="_" if tag in labelled else tag or "task",
            )  # fmt: skip
            labelled.add(tag)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(first / scale, max(last, first + 1e-12) / scale)
    axes.set_xlabel(
        f"time [{unit}]" + (f"   ({dropped} rows that are hardly busy are not drawn)" if dropped > 0 else "")
    )
    legend(axes)
    return figure


def roofline_figure(
    points: Sequence[RooflinePoint],
    *,
    peak: float,
    bandwidth: float,
    title: str = "",
) -> Figure:
    """Draw operators under the roof of a device (Williams et al. 2009, figure 1a); area follows time.

    Parameters
    ----------
    points : sequence of RooflinePoint
        The ten that take longest are drawn.
    peak : float
        Dense peak of the format in use [FLOP/s].
    bandwidth : float
        Peak of the main memory [B/s].
    title : str
        Above the figure.
    """
    figure, axes = _figure(3.6, title)
    usable = [p for p in points if p.flops > 0 and p.bytes > 0 and p.time > 0]
    drawn = sorted(usable, key=lambda p: (-p.time, p.name))[: len(PALETTE)]
    total = sum(point.time for point in points) or 1.0
    ridge = peak / bandwidth
    intensities = [point.flops / point.bytes for point in drawn]
    low = min([ridge / 100.0, *intensities]) / 2.0
    high = max([ridge * 30.0, *intensities]) * 2.0
    roof = np.array([low, ridge, high])
    axes.plot(roof, np.minimum(peak, roof * bandwidth), color=INK, linewidth=1.6)
    for point, intensity, colour in zip(drawn, intensities, PALETTE, strict=False):
        share = point.time / total
        axes.scatter(
            [intensity], [point.flops / point.time], s=24.0 + 420.0 * share, color=colour, alpha=0.85, linewidth=0,
            zorder=3, label=f"{point.name} ({'<1' if share < 0.005 else round(share * 100.0)} %)",
        )  # fmt: skip
    for text, place, side in (
        (format_quantity(peak, "FLOP/s"), high, "right"),
        (f"{significant(ridge)} FLOP/B", ridge, "center"),
    ):
        axes.annotate(text, (place, peak), (0, 5), textcoords="offset points", ha=side, fontsize=8, color=INK)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOP per byte", ylabel="FLOP/s")
    axes.set_ylim(top=peak * 3.0)
    legend(axes, markerscale=0.6)
    return figure


def bottleneck_figure(shares: Mapping[str, float], *, title: str = "") -> Figure:
    """Draw what the time is lost to, as shares of it, largest first."""
    names = sorted(shares, key=lambda name: (-shares[name], name))
    return _bar_figure(
        [
            (name, shares[name] * 100.0, f"{shares[name] * 100.0:.1f} %")
            for name in names
            if shares[name] >= _VISIBLE
        ],
        "share of time [%]",
        title,
    )


def effect_figure(effects: Iterable[tuple[str, float]], *, label: str, title: str = "") -> Figure:
    """Draw relative changes by what causes them (a tornado), the strongest first.

    Parameters
    ----------
    effects : iterable of (str, float)
        Cause, and relative change of the figure that ``label`` names.
    label : str
        Of the horizontal axis.
    title : str
        Above the figure.
    """
    seen = (item for item in effects if abs(item[1]) >= _VISIBLE)
    ordered = sorted(seen, key=lambda item: (-abs(item[1]), item[0]))[:12]
    return _bar_figure(
        [(name, change * 100.0, f"{change * 100.0:+.2f} %") for name, change in ordered], label, title
    )


def sweep_figure(sweep: Sweep) -> Figure:
    """Draw the headline of a what-if with its 80 % interval; hollow where a variant does not fit.

    Parameters
    ----------
    sweep : Sweep
        The first varied key runs along the horizontal axis, each combination of the others is a colour.
    """
    figure, axes = _figure(3.4, "")
    along, others = sweep.keys[0], sweep.keys[1:]
    settings = list(dict.fromkeys(str(row[along]) for row in sweep.rows))
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sweep.rows:
        label = ", ".join(f"{key.rpartition('.')[2]} {row[key]}" for key in others)
        if row["value"] is not None:
            groups.setdefault(label, []).append(row)
    scale, unit = _unit(sweep)
    width = 0.5 / max(1, len(groups))
    for number, ((label, rows), colour) in enumerate(
        zip(groups.items(), _colours(len(groups)), strict=False)
    ):
        offset = (number - (len(groups) - 1) / 2) * width
        place = np.array([settings.index(str(row[along])) + offset for row in rows])
        value, low, high = (
            np.array([row[key] for row in rows], dtype=float) / scale for key in ("value", "low", "high")
        )
        fits = np.array([bool(row["fits"]) for row in rows], dtype=bool)
        axes.errorbar(
            place,
            value,
            yerr=[value - low, high - value],
            fmt="none",
            ecolor=colour,
            capsize=3,
            linewidth=1.2,
        )
        axes.scatter(place[fits], value[fits], color=colour, s=36, zorder=3, label=label or "_")
        axes.scatter(place[~fits], value[~fits], facecolor="none", edgecolor=colour, s=36, zorder=3)
    if any(row["value"] is not None and not row["fits"] for row in sweep.rows):
        axes.scatter([], [], facecolor="none", edgecolor=INK, s=36, label="does not fit")
    axes.set_xticks(range(len(settings)), [textwrap.fill(text, 16) for text in settings])
    axes.set(xlabel=along, ylabel=f"{sweep.headline.replace('_', ' ')}{unit}")
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, len(settings) - 0.4)
    legend(axes)
    return figure


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element that takes the page's text colour; the same bytes for the same data."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "memroof", "svg.fonttype": "none"}):
        figure.savefig(
            buffer, format="svg", dpi=200, transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = re.sub(r" *<metadata>.*?</metadata>\n", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace(INK, "currentColor")


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG on white ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


# --- helpers --------------------------------------------------------------------------------------------------------


def _figure(height: float, title: str, width: float = 8.0) -> tuple[Figure, Axes]:
    figure, (axes,) = panels(1, 1, height, width)
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    return figure, axes


def panels(rows: int, columns: int, height: float, width: float = 8.0) -> tuple[Figure, list[Axes]]:
    """Return an empty figure [inches] and its panels in the house's style, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    found = [figure.add_subplot(rows, columns, number + 1) for number in range(rows * columns)]
    for axes in found:
        axes.patch.set_alpha(0.0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(INK)
            spine.set_linewidth(0.8)
        axes.tick_params(colors=INK, labelsize=8, width=0.8)
        axes.xaxis.label.set(color=INK, fontsize=9)
        axes.yaxis.label.set(color=INK, fontsize=9)
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="#7f8791", alpha=0.25, linewidth=0.6)
    return figure, found


def _bar_figure(rows: Sequence[tuple[str, float, str]], label: str, title: str) -> Figure:
    figure, axes = _figure(max(1.4, 0.7 + 0.28 * len(rows)), title)
    place = np.arange(len(rows))
    values = np.array([value for _, value, _ in rows], dtype=float)
    axes.barh(place, values, color=PALETTE[0], height=0.66, linewidth=0)
    for position, (_, value, text) in enumerate(rows):
        axes.annotate(
            text, (value, position), (4 if value >= 0 else -4, 0), textcoords="offset points", va="center",
            ha="left" if value >= 0 else "right", fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_yticks(place, [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.axvline(0.0, color=INK, linewidth=0.8)
    lowest, highest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    room = 0.14 * max(highest - lowest, 1e-9)
    axes.set_xlim(lowest - room if lowest < 0 else 0.0, highest + room)
    axes.set_xlabel(label)
    return figure


def _busy_rows(
    bars: Mapping[tuple[int, str], Sequence[tuple[float, float]]],
    names: Sequence[str],
    first: float,
    last: float,
) -> list[str]:
    """Return the resources in use, in the order of the program; the hardly busy ones only where there are few."""
    busy: dict[int, float] = {}
    for (resource, _), spans in bars.items():
        busy[resource] = busy.get(resource, 0.0) + sum(stop - start for start, stop in spans)
    least = _IDLE * (last - first) if len(busy) > _FEW_ROWS else 0.0
    return [names[resource] for resource in sorted(busy) if busy[resource] > least]


def _bars(timeline: Timeline, first: float, last: float) -> dict[tuple[int, str], list[tuple[float, float]]]:
    """Return the bars of each (resource, tag) inside a window, with neighbours merged below the resolution."""
    gap = (last - first) / _RESOLUTION
    resource, tag = timeline.resource, timeline.tag
    inside = np.flatnonzero(
        (timeline.end > first) & (timeline.start < last) & (timeline.duration > 0) & (resource >= 0)
    )
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for task in inside[np.argsort(timeline.start[inside], kind="stable")].tolist():
        spans = bars.setdefault((int(resource[task]), timeline.program.tags[tag[task]]), [])
        start, stop = max(first, float(timeline.start[task])), min(last, float(timeline.end[task]))
        if spans and start - spans[-1][1] <= gap:
            spans[-1] = (spans[-1][0], max(spans[-1][1], stop))
        else:
            spans.append((start, stop))
    return bars


def time_unit(span: float) -> tuple[float, str]:
    """Return seconds of a unit in which a span reads well, and its name."""
    units = ((86400.0, "d"), (3600.0, "h"), (1.0, "s"), (1e-3, "ms"))
    return next(((scale, unit) for scale, unit in units if span >= 2.0 * scale), (1e-6, "us"))


def _unit(sweep: Sweep) -> tuple[float, str]:
    """Return a scale and a unit for a sweep's headline."""
    if sweep.dimension == "seconds":
        scale, unit = time_unit(max((row["high"] or 0.0 for row in sweep.rows), default=0.0))
        return scale, f" [{unit}]"
    return (0.01, " [%]") if sweep.dimension == "fraction" else (1.0, f" [{sweep.dimension}]")


def _colours(count: int) -> list[str]:
    return list(islice(cycle(PALETTE), count))


def legend(axes: Axes, markerscale: float = 1.0) -> None:
    """Put the legend beside the axes, if anything is labelled."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        drawn = axes.legend(
            handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False,
            labelcolor=INK, markerscale=markerscale, handlelength=1.2, handleheight=1.0,
        )  # fmt: skip
        drawn.set_zorder(5)
