"""Scores and fits as text lines and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simulator.validation import Fitted, Score


def score_lines(score: Score) -> list[str]:
    """Return the lines of one data set: errors in all and by device, skipped rows, worst rows."""
    if not score.rows:
        return [f"{score.dataset}: no row is modelled", *_skipped(score), ""]
    verdict = (
        "no bound"
        if score.bound is None
        else "ok"
        if score.ok
        else "WORSE THAN ITS BOUND: " + "; ".join(score.faults)
    )
    lines = [
        f"{score.dataset}: {score.rows:,} rows, {verdict}",
        f"  median {score.median_ape:6.1%}  mean {score.mean_ape:6.1%}  p90 {score.p90_ape:6.1%}  max {score.max_ape:7.1%}  "
        f"bias {score.bias:+6.1%}  in the 80 % interval {_covered(score.coverage_80)}",
    ]
    if len(score.by_device) > 1:
        lines += [
            f"    {device:16} {errors['rows']:7,.0f} rows  median {errors['median_ape']:6.1%}  mean {errors['mean_ape']:6.1%}  "
            f"bias {errors['bias']:+6.1%}  covered {errors['coverage_80']:.1%}"
            for device, errors in score.by_device.items()
        ]
    lines += _skipped(score)
    for row in score.worst:
        inputs = ", ".join(f"{key} {value}" for key, value in row["inputs"].items())
        lines.append(
            f"    line {row['line']}: predicted {row['predicted']:.4g}, measured {row['measured']:.4g} "
            f"({row['predicted'] / row['measured'] - 1.0:+.0%}): {inputs[:160]}"
        )
    return [*lines, ""]


def fitted_lines(results: Sequence[Fitted]) -> list[str]:
    """Return the lines of a device's fits: error on the groups held out, and the constants."""
    lines = []
    for fitted in results:
        record = fitted.record
        lines.append(
            f"{fitted.device} {fitted.operator_class}: fitted on {record.rows:,} rows, judged on {record.held_out:,} "
            f"(by {record.groups}): median {record.median:.1%}, mean {record.mean:.1%}, spread {fitted.spread:.1%}, "
            f"shared {record.shared:.0%}"
        )
        lines.append("  " + ", ".join(f"{s}.{n} {v:g}" for (s, n), v in fitted.values.items()))
    return lines


def score_plot(score: Score) -> Figure:
    """Return predicted against measured on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    axes = figure.add_subplot()
    ends = np.array(
        [min(score.measured.min(), score.predicted.min()), max(score.measured.max(), score.predicted.max())]
    )
    axes.loglog(score.measured, score.predicted, ".", markersize=2, alpha=0.3, rasterized=True)
    axes.loglog(ends, ends, color="black", linewidth=0.8)
    for factor in (0.8, 1.25):
        axes.loglog(ends, ends * factor, color="grey", linewidth=0.6, linestyle="--")
    axes.set_xlabel("measured [SI]")
    axes.set_ylabel("predicted [SI]")
    axes.set_title(f"{score.dataset}\nmedian {score.median_ape:.1%}, {score.rows:,} rows", fontsize=9)
    return figure


def _covered(share: float) -> str:
    """Print a coverage; what rests on no constant has no interval."""
    return "-" if math.isnan(share) else f"{share:.1%}"


def _skipped(score: Score) -> list[str]:
    return [f"    {count:,} rows skipped: {reason}" for reason, count in sorted(score.skipped.items())]
