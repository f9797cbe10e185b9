"""A published figure as scenarios and what of their metrics it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulator.validation.datasets.runs import Content, Metrics

Value = Callable[[Sequence[Metrics]], tuple[float, float]]


@dataclass(frozen=True)
class Claim:
    """One row of a table of claims.

    Attributes
    ----------
    measured : float
        The published figure [SI].
    contents : tuple of mappings
        Scenarios as their files would say them; a ratio has two.
    value : function of the metrics of each
        The predicted figure and its relative standard error.
    """

    measured: float
    contents: tuple[Content, ...]
    value: Value


def figure(name: str, scale: float = 1.0) -> Value:
    """Return the value of a claim that is a metric of its only scenario, times a factor."""
    return lambda found: (found[0][name].value * scale, found[0][name].error)


def ratio(name: str, other: str = "") -> Value:
    """Return the value of a claim that compares two scenarios: a metric of the first over one of the second."""

    def value(found: Sequence[Metrics]) -> tuple[float, float]:
        first, second = found[0][name], found[1][other or name]
        return first.value / second.value, math.hypot(first.error, second.error)

    return value
