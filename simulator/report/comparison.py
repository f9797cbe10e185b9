"""A comparison of measured with predicted as text lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from simulator.report.layout import between, bullets, columns, labelled, percent, quantity

if TYPE_CHECKING:
    from simulator.traces import Comparison, Figure, Occupation, Row, Unmatched

_UNMATCHED = 12
"""Unmatched names that are printed; JSON has all."""
_NAME = 72
"""Characters of a kernel's name that are printed."""


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return the lines of ``memroof compare``: classes, groups, operators, overlap, unmatched time; or figures."""
    lines = [f"{comparison.file} ({comparison.format}) against {comparison.scenario}", ""]
    if comparison.figures:
        lines += _figure_lines(comparison.figures)
    else:
        steps = f"{comparison.steps:,} steps" if comparison.steps > 1 else "one step"
        lines += [f"seconds of one step; the trace holds {steps}", ""]
        lines += [*_row_lines("class", comparison.classes), "", *_row_lines("kernels", comparison.groups)]
        if comparison.operators:
            lines += ["", *_row_lines("operator", comparison.operators)]
        if comparison.occupation:
            lines += ["", *_occupation_lines(comparison.occupation)]
        lines += _unmatched_lines(comparison.unmatched)
    if comparison.notes:
        lines += ["", "notes", *bullets(comparison.notes)]
    return lines


def _row_lines(title: str, rows: Iterable[Row]) -> list[str]:
    table = [(title, "calls", "measured", "share", "predicted", "share", "predicted/measured")]
    for row in rows:
        ratio = (
            f"{row.ratio:.2f}"
            if row.ratio is not None
            else "not predicted"
            if row.measured
            else "not measured"
        )
        table.append(
            (row.name, f"{row.calls:,.4g}", *_seconds(row.measured, row.measured_share),
             *_seconds(row.predicted, row.predicted_share), ratio)
        )  # fmt: skip
    return columns(table, right=(1, 2, 3, 4, 5, 6))


def _seconds(seconds: float, share: float) -> tuple[str, str]:
    return (quantity(seconds, "seconds"), percent(share)) if seconds else ("", "")


def _figure_lines(figures: Iterable[Figure]) -> list[str]:
    table = [("", "measured", "predicted", "80 %", "predicted/measured")]
    for figure in figures:
        table.append(
            (
                figure.label, quantity(figure.measured, figure.dimension), quantity(figure.predicted, figure.dimension),
                between(figure.low, figure.high, figure.dimension), f"{figure.ratio:.2f}" if figure.ratio else "",
            )
        )  # fmt: skip
    return columns(table, right=(1, 2, 4))


def _occupation_lines(occupation: Occupation) -> list[str]:
    def share(seconds: float) -> str:
        return percent(seconds / occupation.span if occupation.span else 0.0)

    return [
        *labelled("trace", f"{quantity(occupation.span, 'seconds')} from first start to last end, {share(occupation.idle)} idle"),
        *labelled(
            "communication",
            f"{quantity(occupation.communication, 'seconds')}: {quantity(occupation.hidden, 'seconds')} beside computation, "
            f"{quantity(occupation.exposed, 'seconds')} exposed ({share(occupation.exposed)} of the trace)",
        ),
    ]  # fmt: skip


def _unmatched_lines(unmatched: tuple[Unmatched, ...]) -> list[str]:
    if not unmatched:
        return []
    total = sum(one.time for one in unmatched)
    table = [
        (one.name[:_NAME], f"{one.calls:,}", quantity(one.time, "seconds")) for one in unmatched[:_UNMATCHED]
    ]
    lines = [
        "",
        f"unmatched kernels, {quantity(total, 'seconds')} in all",
        *columns(table, right=(1, 2), indent="  "),
    ]
    further = len(unmatched) - _UNMATCHED
    return [*lines, f"  and {further:,} further names"] if further > 0 else lines
